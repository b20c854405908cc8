"""Variances of the posterior means along the latent directions, told apart from noise."""

from typing import Any

import torch
from torch import Tensor

from .active_units import mean_and_draws

__all__ = ["Directions"]

NOISES = 32
"""Copies of the means' noise that are made to see how large its eigenvalues are."""

MARGIN = 4.0
"""Standard deviations above its mean at which noise's largest eigenvalue is not expected."""


class Directions:
    r"""Eigenvalues of the covariance of the means of q(z|x), gathered piece by piece.

    Means of S draws have a noise of covariance :math:`\Sigma / S`. Its expectation is taken out of
    the covariance of the means; what it leaves is centered at 0 but has eigenvalues of either
    sign, up to about :math:`\frac{\sigma^2}{S} (2 \sqrt{k / N} + k / N)` for k dimensions and N
    data, and no direction below that is known to be active. How large they are is seen from noise
    alone: contrasts of the same draws, :math:`\sum_s w_s z_s / \sqrt S` with
    :math:`\sum_s w_s = 0` and :math:`|w| = 1`, have the noise of the means, whatever its
    correlations and however it differs between data, and nothing of the means.

    Example:
        >>> from pyro.distributions import Normal
        >>> directions = Directions()
        >>> mean, noise = directions.add(Normal(torch.tensor([[1.0], [3.0]]), 1.0).to_event(1), 5)
        >>> directions.variances(None)  # the means are known: no noise
        (tensor([1.], dtype=torch.float64), 0.0)
    """

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._noise: Tensor | None = None  # (k, k), summed over data
        self._sums: Any = 0.0  # (NOISES, k)
        self._squares: Any = 0.0  # (NOISES, k, k)

    def add(self, q: Any, num_samples: int) -> tuple[Tensor, Tensor]:
        """Take some data in; what ``posterior_means`` returns of them.

        Args:
            q: Batch ``(n,)``, event ``(k,)``.
            num_samples: Draws where the mean has no closed form; at least 2 of them are made.
        """
        mean, z = mean_and_draws(q, num_samples)
        self._means.append(mean.cpu())
        if z is None:
            return mean, torch.zeros_like(mean)
        centered = z - mean
        covariance = torch.einsum("snj,snk->jk", centered, centered) / (len(z) - 1) / len(z)
        weights = torch.randn(NOISES, len(z), dtype=z.dtype, device=z.device)
        weights = weights - weights.mean(1, keepdim=True)
        weights = weights / weights.norm(dim=1, keepdim=True) / len(z) ** 0.5
        noise = torch.einsum("rs,snk->rnk", weights, centered)
        self._noise = covariance.cpu() + (0.0 if self._noise is None else self._noise)
        self._sums = self._sums + noise.sum(1).cpu()
        self._squares = self._squares + (noise.mT @ noise).cpu()
        return mean, z.var(0) / len(z)

    def variances(self, prior: Tensor | None) -> tuple[Tensor, float]:
        """Eigenvalues, descending, ``(k,)``, at least 0, and how large noise makes one of them.

        Args:
            prior: Covariance in whose units they are, ``(k, k)``; without it those of z.
        """
        mean = torch.cat(self._means)
        num_data = len(mean)
        centered = mean - mean.mean(0)
        covariance = centered.mT @ centered / num_data
        if self._noise is None:
            return _eigenvalues(covariance, prior).clamp(min=0), 0.0
        # Centered, N means have the noise of N - 1.
        expected = self._noise / num_data * (1 - 1 / num_data)
        shift = self._sums / num_data
        of_noise = self._squares / num_data - shift.unsqueeze(-1) * shift.unsqueeze(-2)
        largest = _eigenvalues(of_noise - expected, prior)[:, 0]
        edge = float(largest.mean() + MARGIN * largest.std())
        return _eigenvalues(covariance - expected, prior).clamp(min=0), edge


def _eigenvalues(covariance: Tensor, prior: Tensor | None) -> Tensor:
    """Eigenvalues relative to the prior's covariance, descending, ``(..., k)``."""
    if prior is not None:
        root = torch.linalg.cholesky(prior)
        half = torch.linalg.solve_triangular(root, covariance, upper=False)
        covariance = torch.linalg.solve_triangular(root, half.mT, upper=False)
    return torch.linalg.eigvalsh(covariance).flip(-1)
