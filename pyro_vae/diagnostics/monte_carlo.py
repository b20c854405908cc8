"""Estimates from draws, each with its Monte Carlo standard error."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["log_mean_less_mean", "mean_and_mcse", "share_error"]


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
    log_weights = log_weights.double()
    relative = log_weights.softmax(0) * len(log_weights)
    mean, _ = mean_and_mcse(values)
    _, error = mean_and_mcse(relative - values)
    return log_weights.logsumexp(0) - math.log(len(log_weights)) - mean, error


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
