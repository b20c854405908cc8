"""Families of q(z): unconstrained parameters to a distribution.

A family says what is built, not where its parameters come from: ``guides.AmortizedGuide`` takes
them from an encoder. The families share one signature, so that swapping the diagonal for the full
covariance is one argument.
"""

import abc

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.nn import functional

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.distributions import CholeskyNormal, DistributionModule

__all__ = ["DiagonalNormal", "Family", "FullCovarianceNormal"]


class Family(DistributionModule, abc.ABC):
    """Unconstrained parameters, ``(..., num_params)``, to a distribution over z.

    Attributes:
        event_shape: Shape of one z.
        num_params: Length of the parameter vector, hence of the encoder's output.
    """

    num_params: int

    @abc.abstractmethod
    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""


class DiagonalNormal(Family):
    r"""Normal with diagonal covariance, :math:`\mathcal N(\mu, \operatorname{diag}\sigma^2)`.

    The first ``latent_dim`` parameters are :math:`\mu`, the others :math:`\rho` with
    :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(\rho)`.

    Args:
        latent_dim: Dimension k of z.
        min_scale: :math:`\sigma_{\min} > 0`, which keeps the density bounded.

    Raises:
        ValueError: If ``latent_dim`` is not a positive integer or ``min_scale`` not positive.

    Example:
        >>> q = DiagonalNormal(3)(torch.zeros(5, 6))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))
        >>> round(q.base_dist.scale[0, 0].item(), 3)  # log 2 + min_scale
        0.693
    """

    def __init__(self, latent_dim: int, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        self.event_shape = latent_shape(latent_dim)
        self.min_scale = finite_number(min_scale, "min_scale", "positive", above=0)
        self.num_params = 2 * self.event_shape[0]

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""
        _check_params(params, self.num_params)
        loc, raw_scale = params.chunk(2, dim=-1)
        scale = self.min_scale + functional.softplus(raw_scale)
        return dist.Normal(loc, scale).to_event(1)


class FullCovarianceNormal(Family):
    r"""Normal with full covariance through its Cholesky factor, :math:`\mathcal N(\mu, LL^\top)`.

    The first k parameters are :math:`\mu`; the other :math:`k(k+1)/2` fill the lower triangle. The
    diagonal is :math:`L_{ii} = \sigma_{\min} + \operatorname{softplus}(\rho_{ii})`, so the
    covariance is positive definite whatever the parameters are.

    Args:
        latent_dim: Dimension k of z.
        min_scale: :math:`\sigma_{\min} > 0`, the floor of the factor's diagonal.

    Raises:
        ValueError: If ``latent_dim`` is not a positive integer or ``min_scale`` not positive.

    Example:
        >>> family = FullCovarianceNormal(3)
        >>> family.num_params
        9
        >>> q = family(torch.zeros(5, 9))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, latent_dim: int, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        self.event_shape = latent_shape(latent_dim)
        self.min_scale = finite_number(min_scale, "min_scale", "positive", above=0)
        k = self.event_shape[0]
        self.num_params = k + k * (k + 1) // 2

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""
        _check_params(params, self.num_params)
        latent_dim = self.event_shape[0]
        loc, raw = params[..., :latent_dim], params[..., latent_dim:]
        raw_tril = _fill_triangle(raw, latent_dim)
        diagonal = raw_tril.diagonal(dim1=-2, dim2=-1)
        scale = self.min_scale + functional.softplus(diagonal)
        return CholeskyNormal(loc, scale_tril=raw_tril.tril(-1) + scale.diag_embed())


def latent_shape(latent_dim: int) -> torch.Size:
    """Event shape of a vector z of ``latent_dim`` elements, checked."""
    return torch.Size([positive_integer(latent_dim, "latent_dim")])


def _fill_triangle(values: Tensor, size: int) -> Tensor:
    """``(..., size (size + 1) / 2)`` to ``(..., size, size)``; the lower triangle holds each once.

    The values behind the first row's worth, followed by all of them in reverse, are ``size ** 2``
    numbers; read row by row, no value stands twice on or below the diagonal. This takes one copy
    and no scatter, which would dominate a training step. The upper triangle holds leftovers.
    """
    square = torch.cat([values[..., size:], values.flip(-1)], dim=-1)
    return square.unflatten(-1, (size, size))


def _check_params(params: Tensor, num_params: int) -> None:
    if params.dim() == 0 or params.shape[-1] != num_params:
        raise ValueError(
            f"params must have {num_params} in their last dimension; got shape "
            f"{tuple(params.shape)}. Give the encoder family.num_params outputs."
        )
