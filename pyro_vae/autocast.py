"""Networks in bfloat16, inside programs in float32."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Autocast"]


class Autocast(nn.Module):
    r"""A network whose matrix products run in a narrower type; what it returns is float32 again.

    So parameters, gradients, draws and log densities stay in float32, and only the network's
    output is rounded: the density is exact at a mean that has the precision of bfloat16,
    :math:`2^{-8}`. Wrap decoder and encoder, each by itself:

        likelihoods.Gaussian(Autocast(networks.MLP(k, (400,), n)), event_shape=(n,))

    The names in ``state_dict`` are those of the network, so that weights serve with and without.
    On a GPU it has not been run for want of one.

    Args:
        network: From a tensor to a tensor.
        dtype: ``torch.bfloat16``, or ``torch.float16``, whose gradients underflow without a
            scaling that :func:`pyro_vae.fit` does not do.

    Raises:
        ValueError: If ``dtype`` is neither.

    Shape:
        That of the network.

    Example:
        >>> half = Autocast(nn.Linear(1, 1, bias=False))
        >>> _ = half.load_state_dict({"weight": torch.tensor([[1 + 2.0**-12]])})
        >>> half(torch.ones(1, 1)).item(), half(torch.ones(1, 1)).dtype
        (1.0, torch.float32)

    References:
        Micikevicius et al. (2018), Mixed precision training. https://arxiv.org/abs/1710.03740
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        if dtype not in {torch.bfloat16, torch.float16}:
            raise ValueError(f"dtype must be torch.bfloat16 or torch.float16; got {dtype}.")
        self.network, self.dtype = network, dtype
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, float32, as the network does.

        Raises:
            TypeError: If x is not float32: in double precision nothing would be cast.
        """
        if x.dtype != torch.float32:
            raise TypeError(
                f"x must be float32 for a network under Autocast; got {x.dtype}. Leave Autocast "
                "out, or call .float() on the model."
            )
        # Without the cache of cast weights: each is used once in a pass.
        with torch.autocast(x.device.type, dtype=self.dtype, cache_enabled=False):
            y: Tensor = self.network(x)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"dtype={self.dtype}"


def _without_prefix(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    inner = f"{prefix}network."
    for key in [key for key in state_dict if key.startswith(inner)]:
        state_dict[prefix + key.removeprefix(inner)] = state_dict.pop(key)


def _with_prefix(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: object
) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[f"{prefix}network.{key.removeprefix(prefix)}"] = state_dict.pop(key)
