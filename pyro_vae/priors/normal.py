"""Normal priors: the standard one, and one whose mean and covariance are learned."""

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.distributions import CholeskyNormal, DistributionModule, UnitNormal
from pyro_vae.families import FullCovarianceNormal

from .starts import unit_scale

__all__ = ["Normal", "StandardNormal"]


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
        return UnitNormal(self.loc, self.scale)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"latent_dim={self.event_shape[0]}"


class Normal(DistributionModule):
    r"""The prior :math:`p(z) = \mathcal N(m, LL^\top)`, mean and covariance learned.

    A decoder whose first layer is affine can take on the map :math:`z \mapsto m + Lz`, so with one
    the models of x are the same as with N(0, I). What differs is the guide's task, and the way
    there.

    Args:
        latent_dim: Dimension k of z.

    Attributes:
        params: What :class:`~pyro_vae.families.FullCovarianceNormal` makes the distribution of,
            ``(k + k (k + 1) / 2,)``. They start at N(0, I).

    Raises:
        ValueError: If ``latent_dim`` is not a positive integer.

    Example:
        >>> p = Normal(2)()
        >>> p.batch_shape, p.event_shape
        (torch.Size([]), torch.Size([2]))
        >>> round(p.log_prob(torch.zeros(2)).item(), 4)  # -log(2 pi)
        -1.8379
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.family = FullCovarianceNormal(latent_dim)
        self.event_shape = self.family.event_shape
        self.params = nn.Parameter(unit_scale(self.family, torch.zeros(self.event_shape)))

    def forward(self) -> CholeskyNormal:
        """Distribution with batch shape ``()`` and event shape ``(k,)``."""
        return self.family(self.params)
