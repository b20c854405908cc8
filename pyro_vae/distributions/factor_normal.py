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

    Nothing of size k by k is made; the triangular solves are of size r, and one of them belongs to
    a draw. For any other value :math:`\varepsilon = R^{-1}(z - \mu)`, where

    .. math:: R^{-1} = \bigl(I_k - A\,(L + L L^\top)^{-1} A^\top\bigr) D^{-1/2}

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

    def __init__(
        self,
        loc: Tensor,
        cov_factor: Tensor,
        cov_diag: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        scale = cov_diag.sqrt()
        whitened = cov_factor / scale.unsqueeze(-1)
        self._fill(loc, cov_factor, cov_diag, scale, whitened, validate_args)

    @classmethod
    def from_whitened(
        cls, loc: Tensor, scale: Tensor, whitened: Tensor, *, validate_args: bool | None = None
    ) -> "FactorNormal":
        r"""The same normal by :math:`D^{1/2}` and A, with nothing to take apart again.

        Args:
            loc: Mean :math:`\mu`, ``(..., k)``.
            scale: Diagonal of :math:`D^{1/2}`, positive, ``(..., k)``.
            whitened: :math:`A = D^{-1/2} F`, ``(..., k, r)``.
            validate_args: Check the parameters; None follows Pyro's setting.

        Example:
            >>> whitened, scale = torch.tensor([[1.0], [0.0]]), torch.tensor([2.0, 3.0])
            >>> FactorNormal.from_whitened(torch.zeros(2), scale, whitened).variance
            tensor([8., 9.])
        """
        new = cls.__new__(cls)
        cov_factor = scale.unsqueeze(-1) * whitened
        new._fill(loc, cov_factor, scale.square(), scale, whitened, validate_args)
        return new

    def _fill(
        self,
        loc: Tensor,
        cov_factor: Tensor,
        cov_diag: Tensor,
        scale: Tensor,
        whitened: Tensor,
        validate_args: bool | None,  # noqa: FBT001
    ) -> None:
        batch = torch.broadcast_shapes(loc.shape[:-1], cov_factor.shape[:-2], cov_diag.shape[:-1])
        self.loc = loc.expand(*batch, -1)
        self.cov_factor = cov_factor.expand(*batch, -1, -1)
        self.cov_diag = cov_diag.expand(*batch, -1)
        self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag = cov_factor, cov_diag
        self._scale, self._whitened = scale, whitened
        self._capacitance_tril = _capacitance_tril(whitened)
        torch.distributions.Distribution.__init__(
            self, batch, loc.shape[-1:], validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FactorNormal":
        """The same distribution with a larger batch shape; no memory is copied."""
        # torch makes no instance of a class with another __init__, but fills one.
        new: FactorNormal = super().expand(
            batch_shape, _instance or type(self).__new__(type(self))
        )
        new._scale, new._whitened = self._scale, self._whitened
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws, ``sample_shape + batch_shape + (k,)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        whitened, tril = self._whitened, self._capacitance_tril
        inner = _solve(tril + _one(tril), whitened.mT @ noise.unsqueeze(-1))
        scaled = noise + (whitened @ inner).squeeze(-1)
        return self._remember(self.loc + self._scale * scaled, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, all constants kept, shape ``batch_shape`` (broadcast)."""
        noise = self._noise_behind(value)
        if noise is None:
            if self._validate_args:
                self._validate_sample(value)
            noise = self._noise_of(value)
        # The diagonal, as a slice of the rows put end to end.
        diagonal = self._capacitance_tril.flatten(-2)[..., :: self._capacitance_tril.shape[-1] + 1]
        log_det = self._scale.log().sum(-1) + diagonal.log().sum(-1)
        constant = noise.shape[-1] * math.log(2 * math.pi)
        return -0.5 * (noise.square().sum(-1) + constant) - log_det

    def _noise_of(self, value: Tensor) -> Tensor:
        whitened, tril = self._whitened, self._capacitance_tril
        residual = (value - self.loc) / self._scale
        inner = _solve(tril, whitened.mT @ residual.unsqueeze(-1))
        inner = _solve((tril + _one(tril)).mT, inner, upper=True)
        return residual - (whitened @ inner).squeeze(-1)


def _capacitance_tril(whitened: Tensor) -> Tensor:
    r"""Cholesky factor of :math:`I_r + A^\top A`.

    In single precision the 1 is lost beside large A, and a matrix of low rank has no factor: hence
    in double precision, where the device has it. The matrix is small.
    """
    wide = whitened if whitened.device.type == "mps" else whitened.double()
    gram = wide.mT @ wide
    return torch.linalg.cholesky(gram + _one(gram)).to(whitened.dtype)


def _one(square: Tensor) -> Tensor:
    return torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)


def _solve(tril: Tensor, right: Tensor, *, upper: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(tril, right, upper=upper)
