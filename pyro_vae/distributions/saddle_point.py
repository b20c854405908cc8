r"""Log densities with large parameters, without the difference of large log gamma functions.

In float32 :math:`\log \Gamma(10^5)` is exact to 0.06 only, and a density that subtracts two such
numbers is no more exact than that. Loader's way is to take the leading terms out by hand: what is
left of :math:`\log \Gamma` is Stirling's remainder, which is small, and the leading terms combine
into deviances, which are small where the density is large.

References:
    Loader (2000), Fast and accurate computation of binomial probabilities. R's ``dbinom``,
    ``dpois`` and ``dnbinom`` follow it.
"""

import math

import torch
from torch import Tensor

__all__ = ["deviance_term", "log_poisson_constant", "stirling_remainder"]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

# The asymptotic series in 1 / y; from 10 on its first term left out is below 1e-15.
STIRLING_FROM = 10.0
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)


def stirling_remainder(y: Tensor) -> Tensor:
    r"""What Stirling's formula lacks of the log gamma function, at y > 0.

    .. math:: \log \Gamma(y) - (y - \tfrac12) \log y + y - \tfrac12 \log 2\pi

    Example:
        >>> stirling_remainder(torch.tensor([1.0, 1e6], dtype=torch.float64))  # 1 - log(2 pi) / 2
        tensor([8.1061e-02, 8.3333e-08], dtype=torch.float64)
    """
    is_large = y >= STIRLING_FROM
    inverse = torch.where(is_large, y, STIRLING_FROM).reciprocal()
    square = inverse.square()
    series = torch.full_like(square, STIRLING[-1])
    for coefficient in STIRLING[-2::-1]:
        series = series * square + coefficient
    small = torch.where(is_large, 1.0, y)
    exact = small.lgamma() - (small - 0.5) * small.log() + small - HALF_LOG_2PI
    return torch.where(is_large, series * inverse, exact)


def deviance_term(weight: Tensor, log_ratio: Tensor) -> Tensor:
    r"""The term :math:`w\,(d - e^d + 1) \le 0`, w > 0; half a deviance with its sign.

    It is zero with zero slope at d = 0, so an error in d costs :math:`w\,(1 - e^d)` times as much
    only.

    Example:
        >>> deviance_term(torch.tensor(2.0), torch.tensor([0.0, math.log(2.0)]))  # 2 log 2 - 2
        tensor([ 0.0000, -0.6137])
    """
    return weight * (log_ratio - log_ratio.expm1())


def log_poisson_constant(count: Tensor) -> Tensor:
    r"""Log of the largest Poisson probability of a positive count, :math:`x \log x - x - \log x!`.

    Example:
        >>> log_poisson_constant(torch.tensor([1.0, 2.0]))  # -1; log 2 - 2
        tensor([-1.0000, -1.3069])
    """
    return -0.5 * count.log() - HALF_LOG_2PI - stirling_remainder(count)
