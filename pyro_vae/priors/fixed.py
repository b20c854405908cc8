"""The prior that is a given distribution."""

from collections.abc import Callable
from typing import Self

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.distributions import DistributionModule

from .copies import copied

__all__ = ["Fixed"]


class Fixed(DistributionModule):
    """Any distribution of Pyro or torch as p(z), as it is.

    The module holds a copy whose tensors are constants: they follow ``.to()``, are not trained and
    not saved. Until the module is moved they keep their type, which should be the VAE's.

    Args:
        distribution: p(z), with batch shape () and at least one event dimension.

    Raises:
        TypeError: If it is not a distribution.
        ValueError: If it has a batch shape, or its events are single numbers.

    Example:
        >>> uniform = dist.Uniform(torch.zeros(2), torch.full((2,), 4.0)).to_event(1)
        >>> Fixed(uniform)().log_prob(torch.ones(2))  # -log 16
        tensor(-2.7726)
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"distribution must be one of Pyro's or torch's; got {distribution!r}. A module "
                "that returns a distribution is a prior already."
            )
        batch_shape, event_shape = distribution.batch_shape, distribution.event_shape
        if batch_shape or not event_shape:
            n = len(batch_shape)
            mend = (
                f"Make batch dimensions part of the event: distribution.to_event({n}), or "
                f"torch.distributions.Independent(distribution, {n})."
                if n
                else "Give its parameters a dimension, and make that the event: .to_event(1)."
            )
            raise ValueError(
                "distribution must have batch shape () and at least one event dimension; got "
                f"batch shape {tuple(batch_shape)} and event shape {tuple(event_shape)}. {mend}"
            )
        self.event_shape = torch.Size(event_shape)
        self._distribution = copied(distribution, _constant)

    def forward(self) -> dist.TorchDistribution:
        """Distribution with batch shape ``()``."""
        # A copy over the same tensors: what a distribution computes once and keeps, as a precision
        # matrix, must not outlast a move to another type or device.
        return copied(self._distribution, _itself)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return str(self._distribution)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's
        super()._apply(fn, recurse)
        self._distribution = copied(self._distribution, fn)
        return self


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _itself(tensor: Tensor) -> Tensor:
    return tensor
