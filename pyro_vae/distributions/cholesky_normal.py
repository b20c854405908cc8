"""The normal with full covariance, which knows the log density of its own draws."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import _standard_normal

from .own_draw import OwnDraw

__all__ = ["CholeskyNormal"]


class CholeskyNormal(OwnDraw, dist.MultivariateNormal):
    r"""Multivariate normal :math:`\mathcal N(\mu, L L^\top)` that remembers the noise of its draw.

    A draw is :math:`z = \mu + L\varepsilon`. For that very tensor the log density needs no
    triangular solve, because :math:`L^{-1}(z - \mu) = \varepsilon` is already known:

    .. math:: \log q(z) = -\tfrac12\|\varepsilon\|^2 - \sum_i \log L_{ii} - \tfrac k2 \log 2\pi

    Its derivative with respect to the parameters is the total one, through :math:`z` as well as
    through :math:`\mu` and :math:`L`; there is none with respect to :math:`z` itself. Any other
    value, a draw changed in place, or one by ``sample()`` takes the ordinary route.

    Args:
        loc: Mean, ``(..., k)``.
        scale_tril: Cholesky factor with positive diagonal, ``(..., k, k)``.

    Example:
        >>> q = CholeskyNormal(torch.zeros(2), scale_tril=2 * torch.eye(2))
        >>> round(q.log_prob(torch.zeros(2)).item(), 4)  # -log(2 pi) - log 4
        -3.2242
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws, ``sample_shape + batch_shape + (k,)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self._remember(self.loc + self._shift(noise), noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, all constants kept, shape ``batch_shape`` (broadcast)."""
        noise = self._noise_behind(value)
        if noise is None:
            return super().log_prob(value)
        constant = noise.shape[-1] * math.log(2 * math.pi)
        return -0.5 * (noise.square().sum(-1) + constant) - self._log_det

    def _shift(self, noise: Tensor) -> Tensor:
        r""":math:`L\varepsilon`, what a draw adds to the mean."""
        return (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    @property
    def _log_det(self) -> Tensor:
        return self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
