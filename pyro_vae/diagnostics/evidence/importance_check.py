"""Whether importance weights say that an integral is too small."""

import math

import torch
from torch import Tensor

__all__ = ["least_log_mean"]

FALSE_ALARM = 1e-8
"""Chance for a datum that right figures are called wrong."""


def least_log_mean(log_weights: Tensor) -> Tensor:
    r"""Log of what the expectation of positive weights is not below, ``(N,)``, from S draws.

    The mean less :math:`\sqrt{2 L}` of its standard errors and :math:`7 L \max w / 3 (S - 1)`,
    :math:`L = \log 2 / \alpha`, with :math:`\alpha` = 1e-8. Weights above the largest that was
    seen only add to the expectation, so they need no bound. Where one draw outweighs the others
    that says nothing, but a positive variable is above :math:`1 / \alpha` times its expectation
    with probability :math:`\alpha` at most; so the mean times :math:`\alpha` will do too.

    Args:
        log_weights: ``(S, N)``; NaN and infinity count as weight 0.

    Example:
        >>> least = least_log_mean(torch.zeros(100_001, 1))
        >>> round(least.exp().item(), 5)  # 1 - 7 log(2e8) / 3e5
        0.99955

    References:
        Maurer and Pontil (2009), Empirical Bernstein bounds, theorem 4.
        https://arxiv.org/abs/0907.3740
    """
    num_draws, log_factor = len(log_weights), math.log(2 / FALSE_ALARM)
    log_weights = log_weights.double().nan_to_num(-math.inf, posinf=-math.inf)
    top = log_weights.amax(0)
    top = torch.where(top.isfinite(), top, 0.0)
    weights = (log_weights - top).exp()
    mean, variance = weights.mean(0), weights.var(0)
    slack = (2 * variance * log_factor / num_draws).sqrt() + 7 * log_factor / 3 / (num_draws - 1)
    return top + torch.maximum((mean - slack).clamp(min=0), mean * FALSE_ALARM).log()
