"""Networks: tensor to tensor, any number of leading batch dimensions.

A network knows nothing of distributions. The same ones serve as the mean ``f`` of a likelihood, as
the encoder of a guide, and inside an autoencoder.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Linear as Linear

from pyro_vae.arguments import positive_integer
from pyro_vae.autocast import Autocast as Autocast

__all__ = ["MLP", "Autocast", "ConvDecoder", "ConvEncoder", "Linear", "WithMask"]

Shape = int | Sequence[int]
"""A shape without its batch dimensions; an integer ``n`` stands for ``(n,)``."""


class MLP(nn.Module):
    r"""Multilayer perceptron :math:`W_L\,a(\dots a(W_1 x + b_1)\dots) + b_L`.

    With ``hidden=()`` it is one affine map, which makes a linear VAE or a linear autoencoder.

    Args:
        in_shape: Shape of one input; more than one dimension is flattened.
        hidden: Widths of the hidden layers, in order from the input.
        out_shape: Shape of one output.
        activation: Makes the activation module between layers.

    Shape:
        ``(..., *in_shape)`` to ``(..., *out_shape)``.

    Raises:
        ValueError: If a width is not a positive integer.

    Example:
        >>> MLP(64, (32,), 10)(torch.zeros(5, 3, 64)).shape
        torch.Size([5, 3, 10])
        >>> MLP((1, 28, 28), (), 4)(torch.zeros(1, 28, 28)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        in_shape: Shape,
        hidden: Sequence[int],
        out_shape: Shape,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        self.out_shape = as_shape(out_shape, "out_shape")
        widths = [
            math.prod(self.in_shape),
            *(as_shape((width,), "hidden")[0] for width in hidden),
            math.prod(self.out_shape),
        ]
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths[:-2], widths[1:-1], strict=True):
            layers += [nn.Linear(fan_in, fan_out), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., *in_shape)`` to ``(..., *out_shape)``."""
        batch_shape = _batch_shape(x, self.in_shape)
        if len(self.in_shape) > 1:
            x = x.reshape(*batch_shape, -1)
        y: Tensor = self.layers(x)
        return y.reshape(*batch_shape, *self.out_shape) if len(self.out_shape) > 1 else y


class ConvEncoder(nn.Module):
    """Strided convolutions, then one hidden layer: an image to a vector.

    Each convolution has kernel 4, stride 2 and padding 1, so it halves height and width.

    Args:
        in_shape: ``(channels, height, width)`` of one image; height and width at least
            ``2 ** len(channels)``.
        out_features: Length of the output.
        channels: Output channels of the convolutions, in order from the image.
        hidden: Width of the fully connected layer behind them.
        activation: Makes the activation module between layers.

    Shape:
        ``(..., channels, height, width)`` to ``(..., out_features)``.

    Raises:
        ValueError: If the image is too small to be halved so often.

    Example:
        >>> ConvEncoder((1, 28, 28), 40)(torch.zeros(6, 2, 1, 28, 28)).shape
        torch.Size([6, 2, 40])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape = _as_image_shape(in_shape, "in_shape", halvings=len(channels))
        widths = (self.in_shape[0], *channels)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(fan_in, fan_out, kernel_size=4, stride=2, padding=1)]
            layers += [activation()]
        self.convolutions = nn.Sequential(*layers)
        height, width = (size >> len(channels) for size in self.in_shape[1:])
        self.head = MLP(
            widths[-1] * height * width, (hidden,), out_features, activation=activation
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., channels, height, width)`` to ``(..., out_features)``."""
        batch_shape = _batch_shape(x, self.in_shape)
        # A convolution takes exactly one batch dimension, Pyro's vectorized particles add others.
        features: Tensor = self.convolutions(x.reshape(-1, *self.in_shape))
        y: Tensor = self.head(features.flatten(1))
        return y.reshape(*batch_shape, -1)


class ConvDecoder(nn.Module):
    """One hidden layer, then transposed convolutions: a vector to an image.

    The mirror of :class:`ConvEncoder`; the output is unbounded, as the mean of a Gaussian is.

    Args:
        in_features: Length of the input, usually the latent dimension.
        out_shape: ``(channels, height, width)`` of one image; height and width at least
            ``2 ** len(channels)``.
        channels: Input channels of the transposed convolutions, in order from the latent side.
        hidden: Width of the fully connected layer before them.
        activation: Makes the activation module between layers.

    Shape:
        ``(..., in_features)`` to ``(..., channels, height, width)``.

    Raises:
        ValueError: If the image is too small to be doubled so often.

    Example:
        >>> ConvDecoder(10, (3, 30, 26))(torch.zeros(6, 2, 10)).shape
        torch.Size([6, 2, 3, 30, 26])
    """

    def __init__(
        self,
        in_features: int,
        out_shape: Sequence[int],
        *,
        channels: Sequence[int] = (64, 32),
        hidden: int = 256,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.out_shape = _as_image_shape(out_shape, "out_shape", halvings=len(channels))
        # Heights at each stage, found by halving downwards, so that odd sizes come out exactly.
        depth = len(channels)
        sizes = [tuple(size >> level for size in self.out_shape[1:]) for level in range(depth + 1)]
        start = (channels[0], *sizes[depth]) if depth else self.out_shape
        self.head = MLP(in_features, (hidden,), start, activation=activation)
        widths = (*channels, self.out_shape[0])
        layers: list[nn.Module] = []
        for level, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [activation()]
            small, large = sizes[depth - level], sizes[depth - level - 1]
            layers += [
                nn.ConvTranspose2d(
                    fan_in,
                    fan_out,
                    kernel_size=4,
                    stride=2,
                    padding=1,
                    output_padding=(large[0] - 2 * small[0], large[1] - 2 * small[1]),
                )
            ]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., channels, height, width)``."""
        batch_shape = z.shape[:-1]
        y: Tensor = self.convolutions(self.head(z.reshape(-1, z.shape[-1])))
        return y.reshape(*batch_shape, *self.out_shape)


class WithMask(nn.Module):
    r"""An encoder of x with missing entries: it is shown 0 for each, and the mask beside x.

    NaN is a missing entry. The mask, 1 where x was observed and 0 elsewhere, is joined to x along
    the first dimension of an event: of n features the encoder gets 2 n, of an image with C
    channels 2 C.

    Args:
        encoder: Network for events of twice the first size.
        event_dim: Number of dimensions of one x; unless given, that of the encoder's ``in_shape``,
            as MLP and ConvEncoder have it, else 1.

    Attributes:
        takes_missing: True: a guide with this encoder gets x with NaN, and not with zeros.

    Shape:
        ``(..., n, *rest)`` to what the encoder makes of ``(..., 2 n, *rest)``.

    Example:
        >>> x = torch.tensor([[5.0, float("nan")]])
        >>> WithMask(nn.Identity())(x)
        tensor([[5., 0., 1., 0.]])
        >>> WithMask(ConvEncoder((2, 8, 8), 4))(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 4])
    """

    takes_missing = True

    def __init__(self, encoder: nn.Module, *, event_dim: int | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        if event_dim is None:
            in_shape = getattr(encoder, "in_shape", (1,))
            event_dim = len(in_shape) if isinstance(in_shape, tuple) else 1
        self.event_dim = positive_integer(event_dim, "event_dim")

    def forward(self, x: Tensor) -> Tensor:
        """What the encoder says of x and of which entries were observed."""
        observed = ~x.isnan()
        shown = torch.where(observed, x, 0.0)
        y: Tensor = self.encoder(torch.cat([shown, observed.to(x.dtype)], dim=-self.event_dim))
        return y

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"event_dim={self.event_dim}"


def as_shape(shape: Shape, name: str) -> tuple[int, ...]:
    """A shape as a tuple; an integer n becomes (n,).

    Raises:
        ValueError: If a size is not a positive integer; the message calls the argument ``name``.
    """
    try:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        checked = tuple(positive_integer(size, name) for size in sizes)
    except (TypeError, ValueError):
        checked = ()
    if not checked:
        raise ValueError(f"{name} must hold positive integers; got {shape!r}.")
    return checked


def _as_image_shape(shape: Sequence[int], name: str, *, halvings: int) -> tuple[int, ...]:
    sizes = as_shape(shape, name)
    if len(sizes) != 3:
        raise ValueError(f"{name} must be (channels, height, width); got {sizes}.")
    if min(sizes[1:]) < 2**halvings:
        raise ValueError(
            f"{name} must have height and width of at least {2**halvings} to be halved "
            f"{halvings} times; got {sizes}. Pass fewer channels."
        )
    return sizes


def _batch_shape(x: Tensor, event_shape: tuple[int, ...]) -> torch.Size:
    if x.shape[x.dim() - len(event_shape) :] != event_shape:
        raise ValueError(f"input must end in shape {event_shape}; got {tuple(x.shape)}.")
    return x.shape[: x.dim() - len(event_shape)]
