"""Pareto-smoothed importance sampling: how heavy the tail of the weights is, and the cure."""

import math

import torch
from torch import Tensor

__all__ = ["khat_threshold", "pareto_khat", "smoothed_log_weights", "untrusted"]

FEWEST_IN_TAIL = 5
FEWEST_DRAWS = 25
"""Of so few a fifth makes a tail."""

NUMBERS_AT_A_TIME = 2**18
"""Numbers of a fit, points times tail times data, that are held at once."""


def pareto_khat(log_weights: Tensor) -> Tensor:
    r"""Shape :math:`\hat k` of the generalized Pareto tail of importance weights, for each datum.

    The :math:`M = \lceil \min(S/5,\, 3\sqrt S) \rceil` largest weights of a datum are fitted by
    Zhang and Stephens' estimate, drawn a little towards 1/2 as ten more values would. The weights
    have a finite variance where :math:`k < 1/2` and a finite mean where :math:`k < 1`; estimates
    are to be trusted below :func:`khat_threshold`. A datum's figure depends on no other datum.

    Where all weights of the tail are equal up to rounding, as at the exact posterior, there is no
    tail, and the figure is 0. Where one to four weights stand above a tail of equal ones, as a
    discrete z makes them, there is nothing to fit, and the figure is infinite. A value of z that
    no draw has hit leaves no trace in the weights: for a discrete z a small figure proves nothing.

    Args:
        log_weights: :math:`\log p(x, z_s) - \log q(z_s \mid x)`, ``(S, N)``: log weights, not
            their negatives.

    Returns:
        ``(N,)``. NaN where fewer than 25 draws leave no tail to fit, or a weight is NaN or
        infinite, or all are 0: none of these is to be trusted, see :func:`untrusted`.

    Example:
        >>> pareto_khat(torch.full((1000, 2), -7.0))
        tensor([0., 0.], dtype=torch.float64)

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling,
        section 2 and appendix G. https://arxiv.org/abs/1507.02646
        Zhang and Stephens (2009), A new and efficient estimation method for the generalized Pareto
        distribution. https://doi.org/10.1198/tech.2009.08017
    """
    return torch.cat([_tail(part)[0] for part in _parts(log_weights)])


def smoothed_log_weights(log_weights: Tensor) -> Tensor:
    r"""Log weights whose tail is replaced by the expected order statistics of the fitted Pareto.

    No smoothed weight exceeds the largest raw one. Data whose tail cannot be fitted (see
    :func:`pareto_khat`) keep their weights.

    Args:
        log_weights: ``(S, N)``, in nats.

    Returns:
        ``(S, N)``: the same draws in the same order, in double precision.

    Example:
        >>> smoothed_log_weights(torch.full((1000, 1), -7.0)).unique()
        tensor([-7.], dtype=torch.float64)
    """
    smoothed = torch.empty_like(log_weights, dtype=torch.float64)
    start = 0
    for part in _parts(log_weights):
        smoothed[:, start : start + part.shape[1]] = _smoothed(part)
        start += part.shape[1]
    return smoothed


def _smoothed(log_weights: Tensor) -> Tensor:
    khat, sigma, cutoff, order = _tail(log_weights)
    log_weights = log_weights.double()
    tail_length = len(order)
    if not tail_length:
        return log_weights
    top = log_weights.max(0).values
    shares = (
        torch.arange(1, tail_length + 1, dtype=torch.float64, device=khat.device) - 0.5
    ) / tail_length
    log_tails = -torch.log1p(-shares).unsqueeze(1)
    # (exp(k t) - 1) / k tends to t as k does to 0.
    small = khat.abs() < 1e-12
    safe = torch.where(small, torch.ones_like(khat), khat)
    quantiles = torch.where(small, log_tails, torch.expm1(safe * log_tails) / safe)
    smoothed = (cutoff.exp() + sigma * quantiles).log().clamp(max=0.0) + top
    fitted = sigma > 0
    raw = log_weights.gather(0, order)
    return log_weights.scatter(0, order, torch.where(fitted, smoothed, raw))


def khat_threshold(num_samples: int) -> float:
    r"""Largest :math:`\hat k` at which S draws suffice: :math:`\min(1 - 1/\log_{10} S,\, 0.7)`.

    Args:
        num_samples: Number S of draws.

    Returns:
        A number from 0, for 10 draws or fewer, to 0.7, from 2155 draws on.

    Example:
        >>> round(khat_threshold(100), 3), round(khat_threshold(1000), 3), khat_threshold(5000)
        (0.5, 0.667, 0.7)

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling,
        equation 13. https://arxiv.org/abs/1507.02646
    """
    return min(1 - 1 / math.log10(max(10, num_samples)), 0.7)


def untrusted(khat: Tensor, threshold: float) -> Tensor:
    r"""Which :math:`\hat k` are not known to be at most the threshold: NaN is not.

    Args:
        khat: Any shape.
        threshold: See :func:`khat_threshold`.

    Example:
        >>> untrusted(torch.tensor([0.5, 0.9, math.nan]), 0.7)
        tensor([False,  True,  True])
    """
    return ~(khat <= threshold)


def _parts(log_weights: Tensor) -> tuple[Tensor, ...]:
    """The matrix cut into some data at a time: the figures of one depend on no other."""
    num_samples = len(log_weights)
    points = num_samples + _tail_length(num_samples) * _num_points(_tail_length(num_samples))
    return log_weights.split(max(1, NUMBERS_AT_A_TIME // max(1, points)), dim=1)


def _tail_length(num_samples: int) -> int:
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def _num_points(length: int) -> int:
    return 30 + math.isqrt(length)


def _tail(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape and scale of the fitted tail, its cutoff less the maximum, and its draws ascending.

    The scale is 0 where there was nothing to fit.
    """
    rounding = 64 * torch.finfo(log_weights.dtype).eps
    log_weights = log_weights.double()
    num_samples, num_data = log_weights.shape
    tail_length = _tail_length(num_samples)
    khat = log_weights.new_full((num_data,), math.nan)
    sigma, cutoff = torch.zeros_like(khat), torch.zeros_like(khat)
    nothing = torch.zeros((0, num_data), dtype=torch.int64, device=log_weights.device)
    if tail_length < FEWEST_IN_TAIL:
        return khat, sigma, cutoff, nothing
    top, order = log_weights.topk(tail_length + 1, dim=0)
    order = order[:-1].flip(0)
    cutoff = top[-1] - top[0]
    excesses = ((top[:-1] - top[0]).exp() - cutoff.exp()).flip(0)  # ascending
    valid = ~log_weights.isnan().any(0) & top[0].isfinite()
    equal = valid & (excesses[-1] <= rounding * top[0].abs().clamp(min=1))
    khat[equal] = 0.0
    # Weights that are equal to the cutoff, as those of a discrete z may be, are not in its tail.
    lengths = (excesses > 0).sum(0)
    for length in lengths[valid & ~equal].unique().tolist():
        which = valid & (lengths == length)
        khat[which], sigma[which] = (
            _fit(excesses[-length:, which]) if length >= FEWEST_IN_TAIL else (math.inf, 0.0)
        )
    return khat, sigma, cutoff, order


def _fit(excesses: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale of generalized Pareto distributions, from ascending values ``(M, N)``."""
    length = len(excesses)
    num_points = _num_points(length)
    points = torch.arange(1, num_points + 1, dtype=torch.float64, device=excesses.device) - 0.5
    quartile = excesses[max(0, int(length / 4 + 0.5) - 1)]
    # Zhang and Stephens' theta: the profile likelihood is averaged over it.
    theta = (1 - (num_points / points).sqrt()).unsqueeze(1) / (3 * quartile) + 1 / excesses[-1]
    shape = torch.log1p(-theta.unsqueeze(0) * excesses.unsqueeze(1)).mean(0)
    rate = torch.where(theta == 0, 1 / excesses.mean(0), -theta / shape)  # 0 / 0: its limit
    profile = length * (rate.log() - shape - 1)
    mean_theta = (profile.softmax(0) * theta).sum(0)
    khat = torch.log1p(-mean_theta * excesses).mean(0)
    sigma = -khat / mean_theta
    return (length * khat + 5) / (length + 10), sigma
