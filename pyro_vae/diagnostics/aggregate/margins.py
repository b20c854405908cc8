"""The distribution of each coordinate of a vector, where theory knows it."""

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
)

from pyro_vae.priors.copies import copied

__all__ = ["factorizes", "in_double", "margins"]


def margins(distribution: Any) -> Any:
    r"""The margins :math:`d_j(z_j)` of a distribution over vectors, as one of single numbers.

    Known for independent coordinates of any kind, for normals, whose margins are normal with the
    diagonal of the covariance, and for mixtures of normals.

    Args:
        distribution: Batch ``(...)``, event ``(k,)``.

    Returns:
        Batch ``(..., k)``, event ``()``; None where theory does not know them, as for a flow.

    Example:
        >>> covariance = torch.tensor([[4.0, 1.0], [1.0, 9.0]])
        >>> margins(dist.MultivariateNormal(torch.zeros(2), covariance)).stddev
        tensor([2., 3.])
    """
    if isinstance(distribution, dist.ExpandedDistribution):
        inner = margins(distribution.base_dist)
        return (
            None if inner is None else inner.expand(distribution.batch_shape + inner.shape()[-1:])
        )
    if factorizes(distribution):
        return distribution.base_dist
    if isinstance(distribution, MultivariateNormal | LowRankMultivariateNormal):
        return dist.Normal(distribution.mean, distribution.variance.sqrt(), validate_args=False)
    if isinstance(distribution, MixtureSameFamily):
        components = margins(distribution.component_distribution)
        if not isinstance(components, torch.distributions.Normal):
            return None
        loc, scale = components.loc.mT, components.scale.mT  # (..., k, K)
        logits = distribution.mixture_distribution.logits.unsqueeze(-2).expand_as(loc)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits, validate_args=False),
            dist.Normal(loc, scale, validate_args=False),
            validate_args=False,
        )
    return None


def factorizes(distribution: Any) -> bool:
    """Whether a distribution over vectors is a product over coordinates by its form.

    Example:
        >>> factorizes(dist.Laplace(torch.zeros(2), 1.0).to_event(1))
        True
    """
    return (
        isinstance(distribution, Independent)
        and distribution.reinterpreted_batch_ndims == 1
        and not distribution.base_dist.event_shape
    )


def in_double(distribution: Any) -> Any:
    """A copy of a distribution in double precision, without gradient.

    Example:
        >>> in_double(dist.Normal(torch.zeros(2), 1.0)).mean.dtype
        torch.float64
    """
    return copied(distribution, _doubled)


def _doubled(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.double() if tensor.is_floating_point() else tensor
