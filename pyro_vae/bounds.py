"""Unconstrained numbers to bounded ones, smoothly, so that a gradient is left everywhere."""

import math

from torch import Tensor
from torch.nn import functional

__all__ = ["bounded", "inverse_positive", "positive"]

REACH = 50.0
"""So far beyond a bound the gradient has vanished, and the difference of two large numbers has not
yet lost the bound."""


def bounded(raw: Tensor, low: float, high: float) -> Tensor:
    r"""Numbers strictly between two bounds, and ``raw`` itself well inside them.

    .. math:: \ell + \operatorname{softplus}(r - \ell) - \operatorname{softplus}(r - u)

    Args:
        raw: Any real numbers.
        low: Lower bound :math:`\ell`.
        high: Upper bound :math:`u > \ell`.

    Example:
        >>> import torch
        >>> bounded(torch.tensor([-1e6, 1.0, 1e6]), -15.0, 15.0)
        tensor([-15.0000,   1.0000,  15.0000])
    """
    raw = raw.clamp(low - REACH, high + REACH)
    return low + functional.softplus(raw - low) - functional.softplus(raw - high)


def positive(raw: Tensor, floor: float, ceiling: float) -> Tensor:
    r"""Positive numbers with a floor and a ceiling: softplus between them.

    .. math:: \epsilon + \operatorname{softplus}(r) - \operatorname{softplus}(r - M)

    with :math:`M = \text{ceiling} - \epsilon`; far below the ceiling the last term vanishes.

    Args:
        raw: Any real numbers.
        floor: :math:`\epsilon > 0`, what very negative numbers become.
        ceiling: What very large numbers become.

    Example:
        >>> import torch
        >>> positive(torch.tensor([-1e3, 0.0, 1e6]), 1e-4, 1e3)
        tensor([1.0000e-04, 6.9325e-01, 1.0000e+03])
    """
    raw = raw.clamp(max=ceiling - floor + REACH)
    return floor + functional.softplus(raw) - functional.softplus(raw - (ceiling - floor))


def inverse_positive(value: float, floor: float, ceiling: float) -> float:
    r"""The number that :func:`positive` makes ``value`` of.

    .. math:: \log(e^w - 1) - \log(1 - e^{w - M}), \qquad w = v - \epsilon

    Args:
        value: v, strictly between floor and ceiling.
        floor: :math:`\epsilon`.
        ceiling: :math:`M + \epsilon`.

    Example:
        >>> round(inverse_positive(math.log(2.0), 0.0, 1e3), 12)
        0.0
    """
    excess = value - floor
    below = -math.expm1(-excess)
    return excess + math.log(below) - math.log1p(-math.exp(value - ceiling))
