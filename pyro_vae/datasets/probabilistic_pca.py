"""The linear-Gaussian model, whose evidence and posterior have closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from .arrays import as_tensor

__all__ = ["LinearGaussian"]

# Rows that are centered in float64 at a time, so that a large data set is never copied whole.
CHUNK = 4096


@dataclass(frozen=True, eq=False, repr=False)
class LinearGaussian:
    r"""Probabilistic PCA: what a variational autoencoder with a linear decoder is.

    .. math:: z \sim N(0, I_k), \quad x \mid z \sim N(W z + \mu, c I_n)

    With :math:`M = W^\top W + c I_k` every quantity is exact, computed in float64 from k x k
    matrices and returned in the type of ``x``. Columns of ``W`` that are not orthogonal make the
    posterior correlated, and a diagonal guide then misses :meth:`best_diagonal_gap` nats.

    Args:
        weight: :math:`W`, shape ``(n, k)``.
        mean: :math:`\mu`, shape ``(n,)``.
        variance: :math:`c > 0`, in squared units of ``x``.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or ``variance`` is not positive.
        TypeError: If ``weight`` or ``mean`` is not numeric.

    Example:
        >>> model = LinearGaussian(torch.tensor([[2.0], [0.0]]), torch.zeros(2), variance=1.0)
        >>> x = torch.tensor([[5.0, 0.0]])
        >>> model.posterior(x).mean, model.posterior(x).variance  # 10 / 5 and 1 / 5, as M = 5
        (tensor([[2.]]), tensor([[0.2000]]))
        >>> model.log_prob(x)  # -log(2 pi) - log(5) / 2 - 5^2 / (2 * 5), as x_1 has variance 5
        tensor([-5.1426])

    References:
        Tipping and Bishop (1999), Probabilistic Principal Component Analysis, J. R. Statist. Soc.
        B 61, sections 3.1 to 3.3. https://doi.org/10.1111/1467-9868.00196
    """

    weight: Tensor
    mean: Tensor
    variance: float

    def __post_init__(self) -> None:
        weight = as_tensor(self.weight, name="weight").tensor
        if weight.ndim != 2:
            raise ValueError(
                f"weight must have shape (features, latent_dim); got {tuple(weight.shape)}."
            )
        mean = as_tensor(self.mean, name="mean", event_shape=()).tensor
        if len(mean) != len(weight):
            raise ValueError(
                f"mean must have shape ({len(weight)},) for weight of shape "
                f"{tuple(weight.shape)}; got {tuple(mean.shape)}."
            )
        variance = float(self.variance)
        if not (variance > 0 and math.isfinite(variance)):
            raise ValueError(f"variance must be positive and finite; got {variance}.")
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "mean", mean.to(weight))
        object.__setattr__(self, "variance", variance)

    @property
    def num_features(self) -> int:
        """Number of observed features n."""
        return self.weight.shape[0]

    @property
    def latent_dim(self) -> int:
        """Dimension k of the latent space."""
        return self.weight.shape[1]

    def __repr__(self) -> str:
        return (
            f"LinearGaussian(num_features={self.num_features}, latent_dim={self.latent_dim}, "
            f"variance={self.variance:.6g})"
        )

    @classmethod
    def maximum_likelihood(cls, x: object, latent_dim: int) -> Self:
        r"""The model of highest likelihood for the data, in closed form.

        .. math:: \mu = \bar x, \quad c = \frac{1}{n - k} \sum_{j > k} \lambda_j, \quad
                  W = U_k (\Lambda_k - c I)^{1/2}

        with eigenvalues and eigenvectors of the covariance that has divisor :math:`N`. Columns of
        ``W`` are orthogonal, so a diagonal guide is exact here. Each column's largest entry is
        positive.

        Args:
            x: Data, shape ``(N, n)``, in any form that ``as_tensor`` takes.
            latent_dim: :math:`k`, from 1 to n - 1.

        Returns:
            The fitted model, with ``weight`` and ``mean`` in the type of ``x``.

        Raises:
            ValueError: If ``latent_dim`` is out of range, or the data vary in no more than
                ``latent_dim`` directions, where the likelihood is unbounded.
            TypeError: If ``latent_dim`` is not an integer or ``x`` is not numeric.

        Example:
            >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
            >>> model = LinearGaussian.maximum_likelihood(x, 1)  # eigenvalues 9/2 and 1/2
            >>> model.variance, model.weight
            (0.5, tensor([[2.],
                    [0.]]))
        """
        data = as_tensor(x).tensor
        if data.ndim != 2:
            raise ValueError(f"x must be a matrix; got shape {tuple(data.shape)}. Flatten it.")
        if isinstance(latent_dim, bool) or not isinstance(latent_dim, int):
            raise TypeError(f"latent_dim must be an integer; got {latent_dim!r}.")
        num_features = data.shape[1]
        if not 1 <= latent_dim < num_features:
            raise ValueError(
                f"latent_dim must be from 1 to {num_features - 1}, one less than the number of "
                f"features; got {latent_dim}."
            )
        mean = data.mean(0, dtype=torch.float64)
        covariance = sum_of_squares(data, mean) / len(data)
        ascending, vectors = torch.linalg.eigh(covariance)
        eigenvalues, vectors = ascending.flip(0), vectors.flip(1)[:, :latent_dim]
        variance = float(eigenvalues[latent_dim:].mean())
        # Rounding leaves directions without variation an eigenvalue of this size.
        if not variance > num_features * torch.finfo(torch.float64).eps * float(eigenvalues[0]):
            raise ValueError(
                f"x must vary in more than latent_dim={latent_dim} directions, or its likelihood "
                f"is unbounded; got a mean discarded eigenvalue of {variance:.3g} from "
                f"{len(data)} rows. Lower latent_dim or add data."
            )
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        lengths = (eigenvalues[:latent_dim] - variance).clamp(min=0).sqrt()
        weight = vectors * largest.sign() * lengths
        return cls(weight.to(data.dtype), mean.to(data.dtype), variance)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Exact log evidence of each datum.

        .. math:: \log p(x) = -\tfrac12 \left[ n \log 2\pi + \log |M| + (n - k) \log c
                  + |r - W m|^2 / c + |m|^2 \right], \quad r = x - \mu, \ m = M^{-1} W^\top r

        Args:
            x: Data, shape ``(N, n)``.

        Returns:
            :math:`\log p(x)`, shape ``(N,)``, in nats.

        Raises:
            ValueError: If the event shape is not ``(n,)``, or a value is not finite.
        """
        data = self._checked(x)
        weight, mean, factor = self._double()
        constant = (
            self.num_features * math.log(2 * math.pi)
            + 2 * float(factor.diagonal().log().sum())
            + (self.num_features - self.latent_dim) * math.log(self.variance)
        )
        parts = []
        for rows in data.split(CHUNK):
            residual = rows.to(weight) - mean
            m = torch.cholesky_solve(weight.T @ residual.T, factor).T
            # |r|^2 / c - r^T W M^-1 W^T r / c in sums of squares alone: nothing cancels.
            misfit = (residual - m @ weight.T).square().sum(1) / self.variance
            parts.append(-0.5 * (constant + misfit + m.square().sum(1)))
        return torch.cat(parts).to(data)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        r"""Exact posterior :math:`p(z \mid x) = N(M^{-1} W^\top (x - \mu), c M^{-1})`.

        Args:
            x: Data, shape ``(N, n)``.

        Returns:
            A distribution with batch shape ``(N,)`` and event shape ``(k,)``.

        Raises:
            ValueError: If the event shape is not ``(n,)``, or a value is not finite.
        """
        data = self._checked(x)
        weight, mean, factor = self._double()
        m = torch.cat(
            [
                torch.cholesky_solve(weight.T @ (rows.to(weight) - mean).T, factor).T
                for rows in data.split(CHUNK)
            ]
        )
        scale_tril = torch.linalg.cholesky(self.variance * torch.cholesky_inverse(factor))
        return MultivariateNormal(m.to(data), scale_tril=scale_tril.to(data))

    def best_diagonal_gap(self) -> float:
        r"""Nats by which the best diagonal Gaussian guide misses the evidence, for every x.

        .. math:: \min_q \; \log p(x) - \mathrm{ELBO}(x)
                  = \tfrac12 \left[ \sum_j \log M_{jj} - \log |M| \right] \ge 0

        Its mean is that of the posterior and its variances are :math:`c / M_{jj}`. The gap is 0
        if and only if the columns of ``W`` are orthogonal.

        Returns:
            The gap, in nats per datum.

        Example:
            >>> weight = torch.tensor([[1.0, 1.0], [0.0, 1.0]])  # M = [[2, 1], [1, 3]]
            >>> model = LinearGaussian(weight, torch.zeros(2), variance=1.0)
            >>> round(model.best_diagonal_gap(), 4)  # log(6 / 5) / 2
            0.0912
        """
        _, _, factor = self._double()
        diagonal = factor.square().sum(1)  # of M = factor factor^T
        # Rounding must not turn a gap of 0 negative.
        return max(0.0, float(0.5 * diagonal.log().sum() - factor.diagonal().log().sum()))

    def best_isotropic_gap(self) -> float:
        r"""Nats by which the best isotropic Gaussian guide misses the evidence, for every x.

        .. math:: \min_q \; \log p(x) - \mathrm{ELBO}(x)
                  = \tfrac12 \left[ k \log(\mathrm{tr}\, M / k) - \log |M| \right] \ge 0

        Its mean is that of the posterior and its variance is :math:`k c / \mathrm{tr}\, M`.

        Returns:
            The gap, in nats per datum; never below :meth:`best_diagonal_gap`.
        """
        _, _, factor = self._double()
        trace = float(factor.square().sum())
        half_log_det = float(factor.diagonal().log().sum())
        return max(0.0, 0.5 * self.latent_dim * math.log(trace / self.latent_dim) - half_log_det)

    def simulate(self, num_data: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Draws from the model, the same for equal seeds on every device.

        Args:
            num_data: Number of draws N, at least 1.
            seed: Seed of a generator of its own; torch's and numpy's global ones are not used.

        Returns:
            ``x`` of shape ``(N, n)`` and the latent ``z`` that it came from, ``(N, k)``.

        Raises:
            ValueError: If ``num_data`` is less than 1.
        """
        if num_data < 1:
            raise ValueError(f"num_data must be at least 1; got {num_data}.")
        weight, mean, _ = self._double()
        generator = np.random.default_rng(seed)
        z = torch.from_numpy(generator.standard_normal((num_data, self.latent_dim)))
        noise = torch.from_numpy(generator.standard_normal((num_data, self.num_features)))
        z, noise = z.to(weight.device), noise.to(weight.device)
        x = z @ weight.T + mean + math.sqrt(self.variance) * noise
        return x.to(self.weight), z.to(self.weight)

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """The same model with ``weight`` and ``mean`` in another type or on another device."""
        weight = self.weight.to(device=device or self.weight.device, dtype=dtype)
        return type(self)(weight, self.mean.to(weight), self.variance)

    def _checked(self, x: Tensor) -> Tensor:
        return as_tensor(x, event_shape=(self.num_features,)).tensor

    def _double(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, mu and the Cholesky factor of M, in float64."""
        weight, mean = self.weight.to(torch.float64), self.mean.to(torch.float64)
        gram = weight.T @ weight
        gram.diagonal().add_(self.variance)
        return weight, mean, torch.linalg.cholesky(gram)


def sum_of_squares(data: Tensor, mean: Tensor) -> Tensor:
    """The centered sum of squares and products, ``(n, n)``, in the type of ``mean``."""
    total = mean.new_zeros(len(mean), len(mean))
    for rows in data.split(CHUNK):
        residual = rows.to(mean) - mean
        total += residual.T @ residual
    return total
