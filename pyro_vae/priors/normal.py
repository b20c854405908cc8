"""Priors: a module whose call, without argument, returns p(z)."""

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.distributions import DistributionModule
from pyro_vae.arguments import positive_integer

__all__ = ["StandardNormal"]


class StandardNormal(DistributionModule):
    r"""The prior :math:`p(z) = \mathcal N(0, I_k)`.

    Args:
        latent_dim: Dimension k of z.

    Raises:
        ValueError: If ``latent_dim`` is not a positive integer.

    Example:
        >>> p = StandardNormal(2)()
        >>> p.event_shape
        torch.Size([2])
        >>> round(p.log_prob(torch.zeros(2)).item(), 4)  # -log(2 pi)
        -1.8379
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.event_shape = torch.Size([positive_integer(latent_dim, "latent_dim")])
        # Constants, so not part of the saved state; buffers, so that they follow .to(device).
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Distribution with batch shape ``()`` and event shape ``(k,)``."""
        return dist.Normal(self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"latent_dim={self.event_shape[0]}"
