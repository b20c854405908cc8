"""What guides over a family share: parameters for x, and the family's distribution of them."""

import abc
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.distributions import DistributionModule
from pyro_vae.families import Family

__all__ = ["FamilyGuide"]


def check_family(family: Any) -> None:
    """Refuse a class in a family's place.

    Raises:
        TypeError: If ``family`` declares no ``event_shape``.
    """
    if not hasattr(family, "event_shape"):
        raise TypeError(
            f"family must be an instance that declares event_shape; got {family!r}. "
            "Write families.DiagonalNormal(latent_dim), not the class alone."
        )


class FamilyGuide(DistributionModule, abc.ABC):
    """A guide q(z|x) whose distribution is a member of one family.

    Subclasses say where the parameters come from; everything else is the family's.

    Args:
        family: Unconstrained parameters to a distribution over z.

    Attributes:
        family: The same.
        event_shape: Shape of one z.

    Raises:
        TypeError: If ``family`` declares no ``event_shape``.
    """

    def __init__(self, family: Family) -> None:
        super().__init__()
        check_family(family)
        self.event_shape = torch.Size(family.event_shape)
        self.family = family

    @abc.abstractmethod
    def params(self, x: Tensor) -> Tensor:
        """The family's parameters at x, ``(N, num_params)``."""

    @abc.abstractmethod
    def with_family(self, family: Family) -> "FamilyGuide":
        """The same guide in a larger family, which starts where this one is."""

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Distribution q(z|x) with one member of the family for each row of x."""
        q: dist.TorchDistribution = self.family(self.params(x))
        return q
