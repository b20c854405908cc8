"""The normal with full covariance at the price of a diagonal one."""

import copy
import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.bounds import positive

from .cholesky_normal import CholeskyNormal
from .packed_triangle import PackedTriangle, fill_triangle

__all__ = ["PackedNormal"]


class PackedNormal(CholeskyNormal):
    r"""Multivariate normal :math:`\mathcal N(\mu, LL^\top)` made of unconstrained numbers.

    .. math:: L = SA, \qquad S = \operatorname{diag}\sigma, \quad A \text{ lower triangular},
              \quad A_{ii} = 1

    The numbers are k for :math:`\mu`, then a packed triangle (:class:`PackedTriangle`) with
    :math:`\rho` of :math:`\sigma` (:func:`~pyro_vae.bounds.positive`) on its diagonal and
    :math:`\sqrt k A` below it. A draw, the density of that draw and the margins' variances

    .. math:: z_i = \mu_i + \sigma_i \Big(\varepsilon_i + \sum_{j<i} A_{ij} \varepsilon_j\Big),
              \quad \operatorname{Var} z_i = \sigma_i^2 \Big(1 + \sum_{j<i} A_{ij}^2\Big)

    .. math:: \log q(z) = -\tfrac12\|\varepsilon\|^2 - \sum_i \log \sigma_i
              - \tfrac k2 \log 2\pi

    and with them entropy and KL to independent coordinates read the packed numbers: neither L nor
    any other matrix of k by k is made. Who asks for ``scale_tril`` or the covariance, for several
    draws at once, for a larger batch shape or for the density of another value gets them from L,
    which is made then.

    Args:
        params: Unconstrained numbers, ``(..., k + k (k + 1) / 2)``.
        latent_dim: k.
        min_scale: Floor of :math:`\sigma`, positive.
        max_scale: Ceiling of :math:`\sigma`.

    Example:
        >>> q = PackedNormal(torch.tensor([5.0, 6.0, 0.0, 1.0, 0.0]), 2)
        >>> q.mean
        tensor([5., 6.])
        >>> (q.scale_tril / math.log(2)).round(decimals=3)  # softplus(0), and 1 / sqrt(2)
        tensor([[1.0000, 0.0000],
                [0.7070, 1.0000]])
    """

    arg_constraints = {"params": constraints.real_vector}

    def __init__(
        self,
        params: Tensor,
        latent_dim: int,
        *,
        min_scale: float = 1e-4,
        max_scale: float = 1e3,
        validate_args: bool | None = None,
    ) -> None:
        sizes = [latent_dim, *PackedTriangle.part_sizes(latent_dim)]
        self.params = params
        # One split, whose derivative is one concatenation: with slices each would be a tensor of
        # zeros as large as the parameters.
        self.loc, rows, rest = params.split(sizes, dim=-1)
        triangle = PackedTriangle.from_parts(rows, rest, size=latent_dim)
        self._rectangle, self._rest = triangle
        self._scale = positive(triangle.diagonal(), min_scale, max_scale)
        is_checked = self._validate_args if validate_args is None else validate_args
        # A sum takes a fraction of the time of looking at each number, and finds as much.
        is_suspect = is_checked and not bool(params.detach().sum().isfinite())
        batch_shape, event_shape = torch.Size(params.shape[:-1]), torch.Size([latent_dim])
        torch.distributions.Distribution.__init__(
            self, batch_shape, event_shape, validate_args=is_suspect
        )
        self._validate_args = is_checked

    def expand(self, batch_shape: Any, _instance: Any = None) -> CholeskyNormal:
        """The same distribution with a larger batch shape; with its own one still packed."""
        if _instance is None and torch.Size(batch_shape) == self.batch_shape:
            # Pyro expands at every site in a plate.
            same = copy.copy(self)
            same._draw = None
            return same
        dense = CholeskyNormal(
            self.loc, scale_tril=self._unbroadcasted_scale_tril, validate_args=False
        )
        dense._validate_args = self._validate_args
        expanded: CholeskyNormal = dense.expand(batch_shape, _instance)
        return expanded

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, ``batch_shape + (k,)``."""
        return self._scale.square() * (1 + self._triangle.below_squared() / self._size)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``batch_shape``."""
        return 0.5 * self._size * (1 + math.log(2 * math.pi)) + self._log_det

    @property
    def _size(self) -> int:
        return self.event_shape[0]

    @property
    def _triangle(self) -> PackedTriangle:
        return PackedTriangle(self._rectangle, self._rest)

    @property
    def _log_det(self) -> Tensor:
        return self._scale.log().sum(-1)

    def _shift(self, noise: Tensor) -> Tensor:
        if noise.shape != self.loc.shape:  # many draws share one L
            return super()._shift(noise)
        below = self._triangle.below_times(noise) / math.sqrt(self._size)
        return self._scale * (noise + below)

    @property
    def _unbroadcasted_scale_tril(self) -> Tensor:  # type: ignore[override]  # torch's is stored
        found: Tensor | None = self.__dict__.get("_dense")
        if found is None:
            with torch.enable_grad():  # whoever asks first, the next one may want a gradient
                found = self._made_dense()
            if not torch.is_inference_mode_enabled():
                self._dense = found
        return found

    def _made_dense(self) -> Tensor:
        square = fill_triangle(self.params[..., self._size :], self._size)
        below = (self._scale / math.sqrt(self._size)).unsqueeze(-1) * square.tril(-1)
        return below + self._scale.diag_embed()
