"""Guides: a module whose call maps x to q(z|x)."""

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.distributions import DistributionModule
from pyro_vae.families import Family

__all__ = ["AmortizedGuide"]


class AmortizedGuide(DistributionModule):
    r"""Amortized guide :math:`q(z \mid x)`: one encoder gives every x its member of a family.

    Mean g(x) and covariance h(x) come out of one shared network, so a Gaussian family makes this
    :math:`q(z \mid x) = \mathcal N(g(x), h(x))`.

    Args:
        family: Unconstrained parameters to a distribution over z.
        encoder: Network from ``(..., *event_shape of x)`` to ``(..., family.num_params)``.

    Raises:
        TypeError: If ``family`` declares no ``event_shape``.

    Example:
        >>> from pyro_vae.families import DiagonalNormal
        >>> family = DiagonalNormal(2)
        >>> guide = AmortizedGuide(family, nn.Linear(3, family.num_params))
        >>> guide(torch.zeros(5, 3)).event_shape
        torch.Size([2])
    """

    def __init__(self, family: Family, encoder: nn.Module) -> None:
        super().__init__()
        if not hasattr(family, "event_shape"):
            raise TypeError(
                f"family must be an instance that declares event_shape; got {family!r}. "
                "Write families.DiagonalNormal(latent_dim), not the class alone."
            )
        self.event_shape = torch.Size(family.event_shape)
        self.family = family
        self.encoder = encoder

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Distribution q(z|x) with batch shape ``x.shape[:-len(event_shape of x)]``."""
        q: dist.TorchDistribution = self.family(self.encoder(x))
        return q
