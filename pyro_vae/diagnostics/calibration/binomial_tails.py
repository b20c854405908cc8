"""Tails of binomial distributions, as far as a band of ranks needs them."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import positive_integer

__all__ = ["FAR", "BinomialTails", "log_pmf", "log_ways"]

FAR = -40.0
"""Log of a tail's probability beyond which no band is sought: its chance is a rounding error."""

MARGIN = 45.0
"""Powers of e that a sum over a tail may leave out."""

SLACK = 1e-6
"""Distance from what is asked for that is kept too."""

ROUNDING = 1e-9
"""Values of log gamma that differ by less are one."""


def log_ways(num_simulations: int) -> Tensor:
    """Logs of the binomial coefficients of S over r, ``(S + 1,)``.

    Example:
        >>> log_ways(2).exp().round().tolist()
        [1.0, 2.0, 1.0]
    """
    total = torch.tensor(float(num_simulations), dtype=torch.float64, device="cpu")
    log_factorials = torch.lgamma(torch.arange(1, num_simulations + 2, device="cpu").double())
    return torch.lgamma(total + 1) - log_factorials - log_factorials.flip(0)


def log_pmf(ways: Tensor, num_draws: int, points: range, counts: range) -> Tensor:
    """Logs of P(X = r), X ~ Binomial(S, i / (L + 1)), at some points and for some r.

    Args:
        ways: What :func:`log_ways` returned for S.
        num_draws: L.
        points: Those i less 1.
        counts: Those r.

    Example:
        >>> log_pmf(log_ways(2), 1, range(1), range(3)).exp()  # z = 1/2
        tensor([[0.2500, 0.5000, 0.2500]], dtype=torch.float64)
    """
    r = torch.arange(counts.start, counts.stop, dtype=torch.float64, device="cpu")
    i = torch.arange(points.start + 1, points.stop + 1, dtype=torch.float64, device="cpu")
    z = (i / (num_draws + 1)).unsqueeze(1)
    return ways[counts.start : counts.stop] + r * z.log() + (len(ways) - 1 - r) * (-z).log1p()


class BinomialTails:
    """Logs of P(X <= r), X ~ Binomial(S, i / (L + 1)), i = 1, ..., L, as far as they are needed.

    Those of P(X >= r) are those of the point as far from the other end. Only a window of r is
    kept for each point, of a few standard deviations of X; it is found by Bernstein's inequality.

    Args:
        num_simulations: Number S of ranks.
        num_draws: L; ranks are 0 to L.
        low: Lowest log gamma that will be asked for.
        high: Highest of them.

    Attributes:
        total: S.
        num_draws: L.

    Example:
        >>> low, high = BinomialTails(2, 1, FAR, 0.0).band(math.log(0.6))  # of 0 of 2 it is 1/2
        >>> low.tolist(), high.tolist()
        ([1], [1])
    """

    def __init__(self, num_simulations: int, num_draws: int, low: float, high: float) -> None:
        self.total = positive_integer(num_simulations, "num_simulations")
        self.num_draws = positive_integer(num_draws, "num_draws")
        lowest = max(low, FAR) - math.log(2) - SLACK
        highest = min(high, math.log(2)) - math.log(2) + SLACK
        self._firsts, self._below = [], []
        ways = log_ways(self.total)
        for point in range(self.num_draws):
            z = (point + 1) / (self.num_draws + 1)
            first = max(0, math.floor(self.total * z - self._reach(z, MARGIN - lowest)))
            last = min(self.total, math.ceil(self.total * z + self._reach(z, MARGIN)))
            counts = range(first, last + 1)
            found = log_pmf(ways, self.num_draws, range(point, point + 1), counts)
            below = found[0].logcumsumexp(0).clamp_(max=0).numpy()
            # The last that is kept is the first that no bound exceeds.
            start = int(np.searchsorted(below, lowest))
            stop = int(np.searchsorted(below, min(highest, -ROUNDING / 2))) + 1
            self._firsts.append(first + start)
            self._below.append(below[start:stop].copy())

    def values_between(self, low: float, high: float) -> np.ndarray:
        """What :func:`log_gamma` can be, from low to high, ascending; of equal ones one."""
        found = []
        for below in self._below:  # that of the other tail has the same values
            values = below + math.log(2)
            found.append(values[(values >= low) & (values <= high)])
        values = np.sort(np.concatenate(found))
        # The lowest of each group, whose differences are roundings.
        first: np.ndarray = values[np.diff(values, prepend=-np.inf) > ROUNDING]
        return first

    def band(self, log_gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest count at each point whose gamma is not below this one."""
        bound = log_gamma - math.log(2) - ROUNDING
        pairs = zip(self._firsts, self._below, strict=True)
        low = np.array([first + int(np.searchsorted(below, bound)) for first, below in pairs])
        # By symmetry; where no count is inside, it is below the lowest.
        return low, self.total - low[::-1]

    def _reach(self, z: float, log_odds: float) -> float:
        """Distance from its mean at which the log of X's tail is surely below minus this."""
        return math.sqrt(2 * log_odds * self.total * z * (1 - z)) + 2 * log_odds / 3
