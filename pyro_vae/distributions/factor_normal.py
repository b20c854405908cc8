"""The normal with the covariance of factor analysis: low rank plus diagonal."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import _standard_normal

from .own_draw import OwnDraw

__all__ = ["FactorNormal"]


class FactorNormal(OwnDraw, dist.LowRankMultivariateNormal):
    r"""Multivariate normal :math:`\mathcal N(\mu, F F^\top + D)`, D diagonal, F of r columns.

    With :math:`A = D^{-1/2} F` and the Cholesky factor :math:`LL^\top = I_r + A^\top A`,

    .. math:: R = D^{1/2}\bigl(I_k + A\,(I_r + L)^{-1} A^\top\bigr), \qquad R R^\top = F F^\top + D

    is a square root of the covariance with :math:`\log\det R = \tfrac12 \sum_j \log D_{jj} +
    \sum_i \log L_{ii}`. A draw is :math:`z = \mu + R\varepsilon` with k standard normal numbers,
    so the log density of that very tensor is known from :math:`\varepsilon` alone:

    .. math:: \log q(z) = -\tfrac12\|\varepsilon\|^2 - \log\det R - \tfrac k2 \log 2\pi

    Nothing of size k by k is made; the one triangular solve is of size r and belongs to the draw.
    Any other value takes the ordinary route, by Woodbury's identity.

    Args:
        loc: Mean :math:`\mu`, ``(..., k)``.
        cov_factor: :math:`F`, ``(..., k, r)``.
        cov_diag: Diagonal of D, positive, ``(..., k)``.

    Example:
        >>> factor, diagonal = torch.tensor([[1.0], [0.0]]), torch.tensor([3.0, 1.0])
        >>> q = FactorNormal(torch.zeros(2), factor, diagonal)
        >>> round(q.log_prob(torch.zeros(2)).item(), 4)  # -log(2 pi) - log 2
        -2.531
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws, ``sample_shape + batch_shape + (k,)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        scale = self._unbroadcasted_cov_diag.sqrt()
        whitened = self._unbroadcasted_cov_factor / scale.unsqueeze(-1)  # A
        tril = self._capacitance_tril
        one = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
        projected = whitened.mT @ noise.unsqueeze(-1)
        inner = torch.linalg.solve_triangular(tril + one, projected, upper=False)
        return self._remember(self.loc + scale * (noise + (whitened @ inner).squeeze(-1)), noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, all constants kept, shape ``batch_shape`` (broadcast)."""
        noise = self._noise_behind(value)
        if noise is None:
            return super().log_prob(value)
        log_det = 0.5 * self._unbroadcasted_cov_diag.log().sum(-1)
        log_det = log_det + self._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = noise.shape[-1] * math.log(2 * math.pi)
        return -0.5 * (noise.square().sum(-1) + constant) - log_det
