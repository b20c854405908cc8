"""Data simulated from a model that is known, so that every estimate has a true value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from .arrays import as_tensor
from .dataset import Dataset
from .probabilistic_pca import LinearGaussian

__all__ = ["LinearGaussianData", "linear_gaussian"]


@dataclass(frozen=True, eq=False, repr=False)
class LinearGaussianData(Dataset):
    """A data set that knows the model and the latent values it was simulated from.

    Splits and subsets keep each datum's ``z``. See :class:`Dataset` for the other arguments.

    Args:
        z: The latent value of each datum, shape ``(N, k)``.
        truth: The model that ``x`` and ``z`` were drawn from.

    Raises:
        ValueError: If ``z`` or ``truth`` does not fit ``x``.

    Example:
        >>> data = linear_gaussian(5, features=3, latent_dim=2)
        >>> data.x.shape, data.z.shape, data.log_evidence.shape
        (torch.Size([5, 3]), torch.Size([5, 2]), torch.Size([5]))
    """

    z: Tensor = field(kw_only=True)
    truth: LinearGaussian = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = (self.num_data, self.truth.latent_dim)
        if tuple(self.z.shape) != expected:
            raise ValueError(f"z must have shape {expected}; got {tuple(self.z.shape)}.")
        if self.num_features != self.truth.num_features:
            raise ValueError(
                f"truth must have {self.num_features} features, as x; got "
                f"{self.truth.num_features}."
            )

    @property
    def log_evidence(self) -> Tensor:
        """Exact log p(x) of each datum, shape ``(N,)``, in nats; computed at each call."""
        return self.truth.log_prob(self.x.flatten(1))

    @property
    def posterior(self) -> MultivariateNormal:
        """Exact p(z | x) of each datum, batch ``(N,)``, event ``(k,)``; computed at each call."""
        return self.truth.posterior(self.x.flatten(1))

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """The same data and truth in another floating type or on another device."""
        x = as_tensor(self.x, dtype=dtype).tensor.to(device=device or self.x.device)
        truth = self.truth.to(dtype=dtype, device=device)
        return dataclasses.replace(self, x=x, z=self.z.to(x), truth=truth)

    def _rows(self, index: Tensor) -> dict[str, Any]:
        return {**super()._rows(index), "z": self.z[index]}


def linear_gaussian(
    num_data: int = 1000,
    *,
    features: int = 10,
    latent_dim: int = 2,
    variance: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> LinearGaussianData:
    r"""Data from a random linear-Gaussian model with exact evidence and posterior.

    .. math:: z \sim N(0, I_k), \quad x \mid z \sim N(W z + \mu, c I_n), \quad
              W_{ij}, \mu_i \sim N(0, 1)

    Columns of ``W`` are drawn independently and not orthogonal: a diagonal guide has a gap of
    ``truth.best_diagonal_gap()`` nats, a full-covariance one can be exact. For new data from the
    same truth use ``truth.simulate(num_data, seed=...)``, with another seed.

    Args:
        num_data: Number of data N, at least 1.
        features: Number of observed features n, at least 1.
        latent_dim: Dimension k of the latent space, at least 1.
        variance: Observation variance c > 0, in squared units of ``x``.
        seed: Seed of the parameters and of the data; nothing global is seeded or used.
        dtype: Floating type; by default torch's default type.

    Returns:
        ``x`` of shape ``(N, n)`` with ``z``, ``truth``, ``log_evidence`` and ``posterior``.

    Raises:
        ValueError: If a size is less than 1 or ``variance`` is not positive.
        TypeError: If ``dtype`` is not a floating type.

    Example:
        >>> data = linear_gaussian(100, features=4)
        >>> data
        linear_gaussian: 100 rows of (4,), x = raw
        >>> data.log_evidence.shape, data.posterior.event_shape
        (torch.Size([100]), torch.Size([2]))
    """
    for name, size in (("num_data", num_data), ("features", features), ("latent_dim", latent_dim)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}.")
    # A child seed: with the seed itself the parameters would be the very numbers that simulate()
    # draws as data.
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    dtype = dtype or torch.get_default_dtype()
    truth = LinearGaussian(
        as_tensor(generator.standard_normal((features, latent_dim)), dtype=dtype).tensor,
        as_tensor(generator.standard_normal(features), dtype=dtype).tensor,
        variance,
    )
    x, z = truth.simulate(num_data, seed=seed)
    return LinearGaussianData("linear_gaussian", x, z=z, truth=truth)
