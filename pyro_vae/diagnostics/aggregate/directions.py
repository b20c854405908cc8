"""Variances of the posterior means along the latent directions, told apart from noise."""

from typing import Any

import torch
from torch import Tensor

from pyro_vae.diagnostics.monte_carlo import Moments
from pyro_vae.traces.runs import draws_of_a_run

from .active_units import checked_means, known_means

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
        self._count = 0
        self._mean: Any = 0.0  # (k,)
        self._products: Any = 0.0  # (k, k), of deviations, summed over data
        self._noise: Tensor | None = None  # (k, k), summed over data
        self._sums: Any = 0.0  # (NOISES, k)
        self._squares: Any = 0.0  # (NOISES, k, k)

    def add(self, q: Any, num_samples: int) -> tuple[Tensor, Tensor]:
        """Take some data in; what ``posterior_means`` returns of them.

        Args:
            q: Batch ``(n,)``, event ``(k,)``.
            num_samples: Draws where the mean has no closed form; at least 2 of them are made.
        """
        mean = known_means(q)
        if mean is None:
            mean, noise = self._drawn(q, max(2, num_samples))
        else:
            noise = torch.zeros_like(mean)
        count, center = len(mean), mean.mean(0)
        centered = mean - center
        shift = (center - self._mean).cpu()
        weight = self._count * count / (self._count + count)
        self._products = (
            self._products + (centered.mT @ centered).cpu() + weight * torch.outer(shift, shift)
        )
        self._mean = self._mean + shift * (count / (self._count + count))
        self._count += count
        return mean, noise

    def _drawn(self, q: Any, num_samples: int) -> tuple[Tensor, Tensor]:
        """Means of draws and the variance of their noise; its covariance and its copies kept."""
        draws = Moments()
        products: Any = 0.0  # (k, k), of deviations from a datum's mean
        contrasts: Any = 0.0  # (NOISES, n, k), of draws less those of the first block
        first: Any = None
        total: Any = 0.0  # (NOISES, 1) both
        squares: Any = 0.0
        for size in draws_of_a_run(num_samples, q.batch_shape[0]):
            z = q.sample(torch.Size([size])).double()
            center = z.mean(0)
            if draws.count:
                shift = center - draws.mean
                weight = draws.count * size / (draws.count + size)
                products = products + weight * shift.mT @ shift
            else:
                first = center
            draws.add(z)
            centered = (z - center).flatten(0, 1)
            products = products + centered.mT @ centered
            weights = torch.randn(NOISES, size, dtype=z.dtype, device=z.device)
            contrasts = contrasts + torch.einsum("rs,snk->rnk", weights, z - first)
            total = total + weights.sum(1, keepdim=True)
            squares = squares + weights.square().sum(1, keepdim=True)
        mean = checked_means(draws.mean, q)
        # Weights less their mean, of length 1: so much of the draws' mean must go.
        length = (squares - total.square() / num_samples).sqrt().unsqueeze(-1)
        noise = contrasts - total.unsqueeze(-1) * (mean - first)
        noise = noise / length / num_samples**0.5
        covariance = (products / (num_samples - 1) / num_samples).cpu()
        self._noise = covariance if self._noise is None else self._noise + covariance
        self._sums = self._sums + noise.sum(1).cpu()
        self._squares = self._squares + (noise.mT @ noise).cpu()
        return mean, draws.variance() / num_samples

    def variances(self, prior: Tensor | None) -> tuple[Tensor, float]:
        """Eigenvalues, descending, ``(k,)``, at least 0, and how large noise makes one of them.

        Args:
            prior: Covariance in whose units they are, ``(k, k)``; without it those of z.
        """
        num_data = self._count
        covariance = self._products / num_data
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
