"""The prior that is a given distribution."""

from collections.abc import Callable
from typing import Any, Self

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
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
        ValueError: If it has a batch shape, its events are single numbers, or a parameter is not
            what its density needs, as a covariance that is not positive definite. Pyro and torch
            check that where validation is on, and then first.

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
        _check_parameters(distribution)
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


def _check_parameters(distribution: Any) -> None:
    """Refuse parameters outside their constraints, which give no density, or NaN for one."""
    for part in ("base_dist", "component_distribution", "mixture_distribution"):
        inner = getattr(distribution, part, None)
        if isinstance(inner, Distribution):
            _check_parameters(inner)
    try:
        constraints_of = distribution.arg_constraints
    except (AttributeError, NotImplementedError):  # a user's own need not declare them
        return
    for name, constraint in constraints_of.items():
        value = vars(distribution).get(name)  # the others are computed from those that are there
        if not isinstance(value, Tensor) or constraints.is_dependent(constraint):
            continue
        if not bool(constraint.check(value).all()):
            raise ValueError(
                f"distribution must have a valid {name}, {_wanted(name, constraint)}; got a "
                f"{type(distribution).__name__} with {_found(name, value.detach())}."
            )


MATRICES = ("covariance_matrix", "precision_matrix")


def _wanted(name: str, constraint: Any) -> str:
    if name in MATRICES:
        return "symmetric and positive definite"
    if name == "scale_tril":
        return "lower triangular with a positive diagonal"
    return f"as {constraint} has it"


def _found(name: str, value: Tensor) -> str:
    if not bool(value.isfinite().all()):
        return f"{int((~value.isfinite()).sum())} values that are not finite"
    if name in MATRICES:
        symmetric = (value + value.mT) / 2
        smallest = torch.linalg.eigvalsh(symmetric).min().item()
        skew = (value - value.mT).abs().max().item()
        mend = f". Add more than {-smallest:.4g} to its diagonal" if smallest <= 0 else ""
        return f"the smallest eigenvalue {smallest:.4g} and an asymmetry of {skew:.4g}{mend}"
    if name == "scale_tril":
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        smallest = torch.linalg.eigvalsh(value @ value.mT).min().item()
        return (
            f"the diagonal entry {diagonal.min().item():.4g} and the smallest eigenvalue "
            f"{smallest:.4g} of its covariance"
        )
    return f"values in [{value.min().item():.4g}, {value.max().item():.4g}]"
