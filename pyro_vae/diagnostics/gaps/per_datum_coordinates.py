"""Coordinates in which a search moves: those where a step of 1 is a standard deviation of q."""

from typing import Any, Protocol

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.distributions import CholeskyNormal
from pyro_vae.families import Family, FullCovarianceNormal

from .per_datum_start import full_params

__all__ = ["Coordinates", "NormalCoordinates", "TableCoordinates"]

SCORES = 16
"""Draws behind the Fisher information."""

LEAST_FISHER = 0.05
"""A unit is no more than some 4.5 of the parameter's own."""

NETWORK_SHARE = 0.1
"""Step size of a flow's networks, which all data share, in that of a datum's parameters."""


class Coordinates(Protocol):
    """Where the members of a search are.

    Attributes:
        leaves: Tensors that q is a function of, with gradient.
    """

    leaves: list[Tensor]

    def q(self, *, fixed: bool = False) -> Any:
        """The members, batch ``(N,)``; with ``fixed`` without gradient in their parameters."""

    def renew(self) -> None:
        """Take the units anew."""

    def slopes(self, gradients: list[Tensor], share: Tensor | None = None) -> list[Tensor]:
        """Gradients in the leaves as nats per unit, the first one ``(N, ...)``.

        Args:
            gradients: One for each leaf.
            share: Power to which the units are raised for each datum, ``(N, 1)``: 0 makes them
                the parameters' own.
        """

    def move(self, steps: list[Tensor], share: Tensor | None = None) -> None:
        """Go some units along, in place."""

    def table(self) -> Tensor:
        """The family's parameters, ``(N, num_params)``."""


class TableCoordinates:
    r"""The family's parameters in units of :math:`F_{jj}^{-1/2}`, F the Fisher information of q.

    Args:
        family: Unconstrained parameters to a distribution over z. Its networks move too.
        table: Its parameters for each datum, ``(N, num_params)``.
    """

    def __init__(self, family: Family, table: Tensor) -> None:
        self._family = family
        first = table.detach().clone().requires_grad_(True)  # noqa: FBT003
        self.leaves = [first, *family.parameters()]
        self._unit = torch.ones_like(first)

    def q(self, *, fixed: bool = False) -> Any:
        """The members."""
        return self._family(self.leaves[0].detach() if fixed else self.leaves[0])

    def renew(self) -> None:
        """Estimate the Fisher information from the scores of draws; of a flow, of its base."""
        q = self.q()
        base = q.base_dist if isinstance(q, dist.TransformedDistribution) else q
        fisher = torch.zeros_like(self.leaves[0])
        for _ in range(SCORES):
            (score,) = torch.autograd.grad(
                base.log_prob(base.sample()).sum(),
                self.leaves[:1],
                retain_graph=True,
                materialize_grads=True,
            )
            fisher += score.square() / SCORES
        unit = fisher.clamp(min=LEAST_FISHER).rsqrt()
        self._unit = torch.where(fisher > 0, unit, torch.ones_like(unit))

    def slopes(self, gradients: list[Tensor], share: Tensor | None = None) -> list[Tensor]:
        """Gradients per unit."""
        return [gradients[0] * self._power(share), *gradients[1:]]

    def move(self, steps: list[Tensor], share: Tensor | None = None) -> None:
        """Go some units along."""
        self.leaves[0] += steps[0] * self._power(share)
        for leaf, step in zip(self.leaves[1:], steps[1:], strict=True):
            leaf += NETWORK_SHARE * step

    def table(self) -> Tensor:
        """The first leaf."""
        return self.leaves[0].detach()

    def _power(self, share: Tensor | None) -> Tensor:
        return self._unit if share is None else self._unit**share


class NormalCoordinates:
    r"""A normal distribution as seen from itself: :math:`\mu + Lu` and :math:`L(I + T)`.

    At u = 0, T = 0 (lower triangular) the Fisher information is 1 for each coordinate but 2 on the
    diagonal of T, so that the search is as easy for a correlated posterior as for any other.

    Args:
        family: The full covariance.
        table: Its parameters for each datum, ``(N, num_params)``.
    """

    def __init__(self, family: FullCovarianceNormal, table: Tensor) -> None:
        self._family = family
        q: Any = family(table.detach())
        self.leaves = [
            q.loc.clone().requires_grad_(True),  # noqa: FBT003
            q.scale_tril.clone().requires_grad_(True),  # noqa: FBT003
        ]

    def q(self, *, fixed: bool = False) -> Any:
        """The members."""
        loc, tril = (leaf.detach() if fixed else leaf for leaf in self.leaves)
        return CholeskyNormal(loc, scale_tril=tril)

    def renew(self) -> None:
        """The units follow from where the members are."""

    def slopes(self, gradients: list[Tensor], share: Tensor | None = None) -> list[Tensor]:
        """Gradients per unit."""
        tril = self.leaves[1].detach()
        by_mean = (tril.mT @ gradients[0].unsqueeze(-1)).squeeze(-1)
        by_scale = (tril.mT @ gradients[1].tril()).tril()
        by_scale.diagonal(dim1=-2, dim2=-1).mul_(0.5**0.5)
        return [by_mean, by_scale]

    def move(self, steps: list[Tensor], share: Tensor | None = None) -> None:
        """Go some units along."""
        loc, tril = self.leaves
        # The noise of a row's many entries must not add up with k.
        factor = steps[1].tril(-1) / loc.shape[-1] ** 0.5
        factor.diagonal(dim1=-2, dim2=-1).copy_(
            (steps[1].diagonal(dim1=-2, dim2=-1) * 0.5**0.5).exp()
        )
        loc += (tril @ steps[0].unsqueeze(-1)).squeeze(-1)
        tril.copy_(tril @ factor)

    def table(self) -> Tensor:
        """The family's parameters of mean and Cholesky factor."""
        return full_params(self._family, *(leaf.detach() for leaf in self.leaves))
