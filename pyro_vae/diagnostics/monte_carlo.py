"""Estimates from draws, each with its Monte Carlo standard error."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Moments", "log_mean_less_mean", "mean_and_mcse", "share_error"]


def mean_and_mcse(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first dimension and its standard error, in double precision.

    The error is NaN for one draw.

    Example:
        >>> mean_and_mcse(torch.tensor([1.0, 3.0]))
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    draws = draws.double()
    spread = draws.std(0) if len(draws) > 1 else torch.full_like(draws[0], math.nan)
    return draws.mean(0), spread / math.sqrt(len(draws))


NUMBERS_AT_A_TIME = 2**16
"""Elements of a matrix of log weights that are reduced at once."""


class Moments:
    r"""Mean and central moments over the first dimension, gathered block by block.

    What has been seen is kept as a count, a sum and :math:`M_p = \sum_i (v_i - \bar v)^p` alone,
    in double precision, so that memory does not grow with the number of values, and no digits
    are lost where the mean is large.

    Args:
        order: Largest power p, 2 or 4.

    Example:
        >>> moments = Moments()
        >>> for block in (torch.tensor([1.0]), torch.tensor([3.0, 5.0])):
        ...     moments.add(block)
        >>> moments.count, moments.mean.item(), moments.variance().item()
        (3, 3.0, 4.0)

    References:
        Pébay (2008), Formulas for robust, one-pass parallel computation of covariances and
        arbitrary-order statistical moments, section 3. https://doi.org/10.2172/1028931
    """

    def __init__(self, order: int = 2) -> None:
        self.count = 0
        self._order = order
        self._total: Tensor | None = None
        self._sums: list[Tensor] = []  # of powers 2, 3, 4

    def add(self, values: Tensor) -> None:
        """Take a block in, ``(R, ...)``."""
        values = values.double()
        count, total = len(values), values.sum(0)
        deviations = values - total / count
        squares = deviations.square()
        sums = [squares.sum(0)]
        if self._order == 4:
            sums += [(squares * deviations).sum(0), squares.square().sum(0)]
        if self._total is None:
            self.count, self._total, self._sums = count, total, sums
            return
        a, b, n = self.count, count, self.count + count
        delta = total / b - self._total / a
        new = [self._sums[0] + sums[0] + delta**2 * (a * b / n)]
        if self._order == 4:
            (a2, a3, a4), (b2, b3, b4) = self._sums, sums
            new.append(
                a3 + b3 + delta**3 * (a * b * (a - b) / n**2) + 3 * delta * (a * b2 - b * a2) / n
            )
            new.append(
                a4
                + b4
                + delta**4 * (a * b * (a * a - a * b + b * b) / n**3)
                + 6 * delta**2 * (a * a * b2 + b * b * a2) / n**2
                + 4 * delta * (a * b3 - b * a3) / n
            )
        self.count, self._total, self._sums = n, self._total + total, new

    @property
    def mean(self) -> Tensor:
        """The mean, ``(...)``."""
        return self._known / self.count

    @property
    def mcse(self) -> Tensor:
        """Standard error of the mean; NaN for one value."""
        if self.count == 1:
            return torch.full_like(self._known, math.nan)
        return (self.variance() / self.count).sqrt()

    def variance(self, correction: int = 1) -> Tensor:
        """Variance, with divisor n less ``correction``."""
        return self._sums[0] / (self.count - correction)

    def fourth(self) -> Tensor:
        """Fourth central moment, with divisor n, of moments of order 4."""
        return self._sums[2] / self.count

    @property
    def _known(self) -> Tensor:
        if self._total is None:
            raise RuntimeError("moments must have seen a block; got none.")
        return self._total


def log_mean_less_mean(log_weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log of the mean weight less the mean of values of the same noise: a gap and its error.

    .. math:: \log \tfrac1S \sum_s w_s - \tfrac1S \sum_s v_s

    By the delta method the log of a mean varies as the mean of :math:`w_s / \bar w` does.

    Args:
        log_weights: Log w, ``(S, N)``.
        values: v, ``(S, N)``, as log weights whose mean is an ELBO.

    Example:
        >>> equal = torch.full((3, 1), 2.0)
        >>> [value.item() for value in log_mean_less_mean(equal, equal - 1)]
        [1.0, 0.0]
    """
    some = max(1, NUMBERS_AT_A_TIME // max(1, len(log_weights)))
    found = []
    for part, of_part in zip(log_weights.split(some, 1), values.split(some, 1), strict=True):
        part = part.double()
        relative = part.softmax(0) * len(part)
        mean, _ = mean_and_mcse(of_part)
        _, error = mean_and_mcse(relative - of_part)
        found.append((part.logsumexp(0) - math.log(len(part)) - mean, error))
    gaps, errors = zip(*found, strict=True)
    return torch.cat(gaps), torch.cat(errors)


def share_error(count: NDArray[Any], number: int) -> NDArray[np.float64]:
    """Standard deviation of a probability given its hits, uniform before them.

    Unlike the plug-in error of a share it is not 0 where all or none are hits.

    Args:
        count: Number of hits.
        number: Number of trials.

    Example:
        >>> share_error(np.array([0]), 1).round(4).tolist()  # Beta(1, 2): sqrt(1 / 18)
        [0.2357]
    """
    p = (count + 1) / (number + 2)
    error: NDArray[np.float64] = np.sqrt(p * (1 - p) / (number + 3))
    return error
