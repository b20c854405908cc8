"""The VAE as it is written by hand in PyTorch: two networks and a closed-form loss."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from peers.problem import Array, Size, weights

__all__ = ["Networks", "copy_weights", "eager_step", "linear_layers", "whole_step"]

MIN_SCALE = 1e-4


class Networks(nn.Module):
    """Encoder, decoder and log c; calling it gives the loss.

    Args:
        size: Widths of the networks.
        variance: c, or its first value.
        learn_variance: Whether c is learned.
    """

    def __init__(self, size: Size, *, variance: float = 0.1, learn_variance: bool = True) -> None:
        super().__init__()
        n, hidden, k = size
        self.latent_dim = k
        self.encoder = nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, 2 * k))
        self.decoder = nn.Sequential(nn.Linear(k, hidden), nn.ReLU(), nn.Linear(hidden, n))
        self.log_variance = nn.Parameter(
            torch.tensor(math.log(variance)), requires_grad=learn_variance
        )
        copy_weights(linear_layers(self), weights(size))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of q(z|x)."""
        mean, raw = self.encoder(x).chunk(2, -1)
        return mean, nn.functional.softplus(raw) + MIN_SCALE

    def forward(self, x: Tensor) -> Tensor:
        """Minus the ELBO with one draw, summed over the batch, in nats."""
        mean, scale = self.encode(x)
        z = mean + scale * torch.randn_like(mean)
        distance = (x - self.decoder(z)).square().sum()
        constant = x.numel() * (self.log_variance + math.log(2 * math.pi))
        kl = 0.5 * (scale.square() + mean.square() - 1 - 2 * scale.log()).sum()
        loss: Tensor = 0.5 * (distance / self.log_variance.exp() + constant) + kl
        return loss


def linear_layers(*modules: nn.Module) -> list[nn.Linear]:
    """The affine maps in the order in which x runs through them."""
    return [m for module in modules for m in module.modules() if isinstance(m, nn.Linear)]


def copy_weights(layers: Sequence[nn.Linear], values: Sequence[tuple[Array, Array]]) -> None:
    """Put weights and biases in place."""
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, values, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))


def eager_step(
    nets: Networks, rate: float, *, fused: bool, compiled_loss: bool = False
) -> Callable[[Tensor], float]:
    """Loss, backward pass, torch's Adam; with ``compiled_loss`` the first two are compiled."""
    params = [p for p in nets.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=rate, fused=fused or None)
    loss_of: Callable[[Tensor], Tensor] = torch.compile(nets) if compiled_loss else nets

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        loss = loss_of(x)
        (loss / len(x)).backward()
        optimizer.step()
        return loss.item()

    return step


def whole_step(nets: Networks, rate: float, *, compiled: bool = True) -> Callable[[Tensor], float]:
    """Loss, gradient and Adam as one function of tensors, compiled as one graph."""
    params = {name: p.detach().clone() for name, p in nets.named_parameters()}
    firsts, seconds = ({name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2))
    count = torch.zeros(())
    decay, square_decay, epsilon = 0.9, 0.999, 1e-8

    def mean_loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        loss: Tensor = functional_call(nets, values, (x,))
        return loss / len(x)

    def update(x: Tensor) -> Tensor:
        gradients, loss = grad_and_value(mean_loss)(params, x)
        count.add_(1)
        size = rate / (1 - decay**count)
        correction = (1 - square_decay**count).sqrt()
        for name, gradient in gradients.items():
            first, second = firsts[name], seconds[name]
            first.lerp_(gradient, 1 - decay)
            second.mul_(square_decay).addcmul_(gradient, gradient, value=1 - square_decay)
            params[name].sub_(size * first / (second.sqrt() / correction + epsilon))
        result: Tensor = loss
        return result

    compiled_update: Callable[[Tensor], Tensor] = torch.compile(update) if compiled else update

    def step(x: Tensor) -> float:
        with torch.no_grad():
            return compiled_update(x).item() * len(x)

    return step
