"""Normal families, by what their covariance may be: isotropic, diagonal, low rank, full."""

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.distributions import FactorNormal, IndependentNormal, PackedNormal
from pyro_vae.distributions.packed_triangle import fill_triangle as fill_triangle

from .family import Family

__all__ = ["DiagonalNormal", "FullCovarianceNormal", "IsotropicNormal", "LowRankNormal"]


class IsotropicNormal(Family):
    r"""Normal with one variance for all directions, :math:`\mathcal N(\mu, \sigma^2 I)`.

    The first k parameters are :math:`\mu`, the last is :math:`\rho` of
    :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(\rho)` (see :class:`Family`).

    Args:
        latent_dim: Dimension k of z.
        min_scale: Floor of :math:`\sigma`, positive.
        max_scale: Ceiling of :math:`\sigma`.

    Raises:
        ValueError: If ``latent_dim`` is not a positive integer, or the bounds are none.

    Example:
        >>> family = IsotropicNormal(3)
        >>> family.num_params
        4
        >>> family(torch.zeros(5, 4)).variance[0].unique().numel()
        1
    """

    def __init__(
        self, latent_dim: int, *, min_scale: float = 1e-4, max_scale: float = 1e3
    ) -> None:
        super().__init__(latent_dim, min_scale=min_scale, max_scale=max_scale)
        self.num_params = self.event_shape[0] + 1

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""
        self._check_params(params)
        loc, raw_scale = params[..., :-1], params[..., -1:]
        return IndependentNormal(loc, self._scale(raw_scale))


class DiagonalNormal(Family):
    r"""Normal with diagonal covariance, :math:`\mathcal N(\mu, \operatorname{diag}\sigma^2)`.

    The first k parameters are :math:`\mu`, the others :math:`\rho` of
    :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(\rho)` (see :class:`Family`).

    Args:
        latent_dim: Dimension k of z.
        min_scale: Floor of :math:`\sigma`, positive, which keeps the density bounded.
        max_scale: Ceiling of :math:`\sigma`.

    Raises:
        ValueError: If ``latent_dim`` is not a positive integer, or the bounds are none.

    Example:
        >>> q = DiagonalNormal(3)(torch.zeros(5, 6))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))
        >>> round(q.base_dist.scale[0, 0].item(), 3)  # log 2 + min_scale
        0.693
    """

    def __init__(
        self, latent_dim: int, *, min_scale: float = 1e-4, max_scale: float = 1e3
    ) -> None:
        super().__init__(latent_dim, min_scale=min_scale, max_scale=max_scale)
        self.num_params = 2 * self.event_shape[0]

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""
        self._check_params(params)
        loc, raw_scale = params.chunk(2, dim=-1)
        return IndependentNormal(loc, self._scale(raw_scale))

    def embedding(self, other: Family) -> tuple[Tensor, Tensor]:
        """Contains the isotropic family: its one scale, repeated."""
        if isinstance(other, IsotropicNormal) and self._has_scales_of(other):
            k = self.event_shape[0]
            matrix = torch.zeros(2 * k, k + 1, device="cpu")
            matrix[:k, :k].fill_diagonal_(1)
            matrix[k:, k] = 1
            return matrix, torch.zeros(2 * k, device="cpu")
        return super().embedding(other)


class LowRankNormal(Family):
    r"""Normal with diagonal plus low-rank covariance.

    .. math:: \mathcal N(\mu, FF^\top + S^2), \qquad S = \operatorname{diag}\sigma, \quad F = SA

    Parameters: k for :math:`\mu`, k for :math:`\rho` of
    :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(\rho)` (see :class:`Family`), and
    :math:`kr` for A, row by row. With A, in units of :math:`\sigma`, in place of F a scale that
    shrinks takes its factor along, and the covariance stays as well conditioned as it was.

    Args:
        latent_dim: Dimension k of z.
        rank: Number r of columns of A, at most k. With r = k - 1 or k every covariance is in
            reach, up to the floor of :math:`\sigma`.
        min_scale: Floor of :math:`\sigma`, positive.
        max_scale: Ceiling of :math:`\sigma`; A has none.

    Raises:
        ValueError: If ``latent_dim`` or ``rank`` is not a positive integer, ``rank`` exceeds
            ``latent_dim``, or the bounds are none.

    Example:
        >>> family = LowRankNormal(4, 2)
        >>> family.num_params
        16
        >>> family(torch.zeros(5, 16)).cov_factor.shape
        torch.Size([5, 4, 2])
    """

    def __init__(
        self,
        latent_dim: int,
        rank: int,
        *,
        min_scale: float = 1e-4,
        max_scale: float = 1e3,
    ) -> None:
        super().__init__(latent_dim, min_scale=min_scale, max_scale=max_scale)
        k = self.event_shape[0]
        self.rank = positive_integer(rank, "rank")
        if self.rank > k:
            raise ValueError(
                f"rank must not exceed latent_dim = {k}; got {rank}. At {k} the covariance is "
                "already full."
            )
        self.num_params = 2 * k + k * self.rank

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""
        self._check_params(params)
        k = self.event_shape[0]
        loc, raw_scale, raw_factor = params.split([k, k, k * self.rank], dim=-1)
        scale = self._scale(raw_scale)
        return FactorNormal.from_whitened(loc, scale, raw_factor.unflatten(-1, (k, self.rank)))

    def embedding(self, other: Family) -> tuple[Tensor, Tensor]:
        """Contains the diagonal family at A = 0, which is no place to start from."""
        if isinstance(other, IsotropicNormal | DiagonalNormal):
            raise ValueError(
                f"family must not start from {type(other).__name__}; got {self}. At F = 0 its "
                "gradient vanishes, and F would stay 0: use an encoder of its own, or the full "
                "covariance."
            )
        return super().embedding(other)

    def start_params(self) -> Tensor:
        """Zeros but for a small A: at A = 0 its gradient vanishes, and it would stay there."""
        k = self.event_shape[0]
        start = super().start_params()
        start[2 * k :].view(k, self.rank).fill_diagonal_(0.1)
        return start

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{super().extra_repr()}, rank={self.rank}"


class FullCovarianceNormal(Family):
    r"""Normal with full covariance through its Cholesky factor, :math:`\mathcal N(\mu, LL^\top)`.

    .. math:: L = SA, \qquad S = \operatorname{diag}\sigma, \quad A \text{ lower triangular},
              \quad A_{ii} = 1

    The first k parameters are :math:`\mu`; the other :math:`k(k+1)/2` fill the lower triangle: on
    the diagonal :math:`\rho` of :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(\rho)`
    (see :class:`Family`), below it :math:`\sqrt k A`. So the covariance is positive definite
    whatever the parameters are; where the posterior is narrow the correlations are as easy to
    learn as where it is wide; and the many numbers of a random encoder do not add up with k.

    Args:
        latent_dim: Dimension k of z.
        min_scale: Floor of :math:`\sigma`, positive.
        max_scale: Ceiling of :math:`\sigma`; A has none.

    Raises:
        ValueError: If ``latent_dim`` is not a positive integer, or the bounds are none.

    Example:
        >>> family = FullCovarianceNormal(3)
        >>> family.num_params
        9
        >>> q = family(torch.zeros(5, 9))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(
        self, latent_dim: int, *, min_scale: float = 1e-4, max_scale: float = 1e3
    ) -> None:
        super().__init__(latent_dim, min_scale=min_scale, max_scale=max_scale)
        k = self.event_shape[0]
        self.num_params = k + k * (k + 1) // 2

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""
        self._check_params(params)
        return PackedNormal(
            params, self.event_shape[0], min_scale=self.min_scale, max_scale=self.max_scale
        )

    def embedding(self, other: Family) -> tuple[Tensor, Tensor]:
        """Contains the diagonal and the isotropic family: nothing below the diagonal."""
        if isinstance(other, IsotropicNormal):
            diagonal = DiagonalNormal(
                self.event_shape[0], min_scale=self.min_scale, max_scale=self.max_scale
            )
            first, _ = diagonal.embedding(other)
            second, shift = self.embedding(diagonal)
            return second @ first, shift
        if isinstance(other, DiagonalNormal) and self._has_scales_of(other):
            k = self.event_shape[0]
            matrix = torch.zeros(self.num_params, 2 * k, device="cpu")
            matrix[:k, :k].fill_diagonal_(1)
            # Where fill_triangle takes each diagonal entry from.
            places = fill_triangle(torch.arange(self.num_params - k, device="cpu"), k).diagonal()
            matrix[k + places, k + torch.arange(k, device="cpu")] = 1
            return matrix, torch.zeros(self.num_params, device="cpu")
        return super().embedding(other)
