"""Are ranks uniform? One test of their whole distribution function, of an exact level."""

import bisect
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer

from .binomial_tails import FAR, BinomialTails, log_pmf, log_ways

__all__ = [
    "critical_log_gamma",
    "critical_log_gammas",
    "ecdf_band",
    "gamma_p_value",
    "grid_ranks",
    "log_gamma",
]

KNOTS = 64

LOG_NEGLIGIBLE = -60.0
"""Log of a Poisson probability that no sum in double precision notices."""

NUMBERS_AT_A_TIME = 2**16
"""Points times counts, or ranks, that are held at once."""


def log_gamma(ranks: Tensor, num_draws: int) -> Tensor:
    r"""How far from uniform the empirical distribution of ranks is, at its worst point, in logs.

    .. math:: \gamma = 2 \min_{1 \le i \le L} \min\{F(R_i \mid S, z_i),\;
              1 - F(R_i - 1 \mid S, z_i)\}, \qquad R_i = \#\{r_s < i\}, \; z_i = i / (L + 1)

    with F the binomial distribution function. Uniform ranks are rejected where this is below
    :func:`critical_log_gamma`; :func:`gamma_p_value` has the p-value.

    Args:
        ranks: Integers from 0 to L, independent of each other along the first dimension,
            ``(S, ...)``; the others are columns, each tested by itself.
        num_draws: L, the largest rank that can be: the number of draws among which one is ranked.

    Returns:
        ``(...)``, double, at most log 2.

    Raises:
        ValueError: If a rank is no integer from 0 to ``num_draws``, or there is none.

    Example:
        >>> gamma = log_gamma(torch.tensor([0, 0, 0]), num_draws=1).exp()  # P(3 of 3 below 1/2)
        >>> round(gamma.item(), 4)  # 2 / 8
        0.25

    References:
        Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity and its
        applications in goodness-of-fit evaluation and multiple sample comparison, section 3.
        https://arxiv.org/abs/2103.10522
    """
    num_draws = positive_integer(num_draws, "num_draws")
    counts = _counts_below(ranks, num_draws)  # (L, columns)
    total = len(ranks)
    tail = torch.zeros(counts.shape[1], dtype=torch.float64, device="cpu")
    ways = log_ways(total)
    some = max(1, NUMBERS_AT_A_TIME // (total + 1))
    for start in range(0, num_draws, some):
        stop = min(start + some, num_draws)
        found = log_pmf(ways, num_draws, range(start, stop), range(total + 1))
        below = found.logcumsumexp(1).clamp_(max=0)
        # S - X is binomial too, with probability 1 - z: the point as far from the other end.
        mirrored = total - counts[num_draws - stop : num_draws - start].flip(0)
        for places in (counts[start:stop], mirrored):
            tail = torch.minimum(tail, below.gather(1, places).amin(0))
    return (math.log(2) + tail).reshape(ranks.shape[1:])


def critical_log_gamma(num_simulations: int, num_draws: int, level: float) -> float:
    """The value below which :func:`log_gamma` falls with probability ``level`` at most.

    Exact, not simulated: the probability that the empirical distribution function of uniform
    ranks stays inside the band is summed from point to point.

    Args:
        num_simulations: Number S of ranks.
        num_draws: L; ranks are 0 to L.
        level: Rate of false alarms, such as 0.05.

    Raises:
        ValueError: If ``level`` is not between 0 and 1, or a number is not a positive integer.

    Example:
        >>> round(critical_log_gamma(100, 99, 0.05), 2)  # 4000 simulations: -5.47
        -5.49
    """
    return critical_log_gammas(num_simulations, num_draws, [level])[0]


def critical_log_gammas(
    num_simulations: int, num_draws: int, levels: Sequence[float]
) -> list[float]:
    """:func:`critical_log_gamma` of several levels, for little more than one costs.

    Example:
        >>> [round(value, 2) for value in critical_log_gammas(100, 99, [0.05, 0.01])]
        [-5.49, -7.29]
    """
    levels = [_checked_level(level) for level in levels]
    num_simulations = positive_integer(num_simulations, "num_simulations")
    num_draws = positive_integer(num_draws, "num_draws")
    # Each single point is outside with probability gamma at most, one of L with L gamma.
    lows = [math.log(level) - math.log(num_draws) for level in levels]
    highs = [min(math.log(2 * level), math.log(2.0)) for level in levels]
    tails = BinomialTails(num_simulations, num_draws, min(lows), max(highs))
    values = tails.values_between(min(lows), max(highs))
    known: dict[float, float] = {}
    found = []
    for level, low, high in zip(levels, lows, highs, strict=True):
        ladder = [low, *values[(values > low) & (values < high)].tolist(), high]
        found.append(_largest_within(tails, ladder, math.log(level), known))
    return found


def gamma_p_value(log_gamma: Tensor, num_simulations: int, num_draws: int) -> Tensor:
    r"""P-values of :func:`log_gamma`: the chance of one as low or lower where ranks are uniform.

    Exact; of more than 64 values, interpolated between 64 that are. Where the sum's rounding is
    larger than the p-value, the bound :math:`\gamma / 2 \le p \le L \gamma` takes over.

    Args:
        log_gamma: ``(...)``.
        num_simulations: Number S of ranks behind each.
        num_draws: L; ranks are 0 to L.

    Returns:
        ``(...)``, double.

    Example:
        >>> gamma_p_value(torch.tensor(math.log(0.25)), 3, 1)  # all below 1/2, or all above
        tensor(0.2500, dtype=torch.float64)
    """
    values = log_gamma.detach().double().cpu().flatten().numpy()
    tails = BinomialTails(num_simulations, num_draws, values.min(), values.max())
    knots = values if len(values) <= KNOTS else np.linspace(values.min(), values.max(), KNOTS)
    log_p = []
    for knot in knots:
        if knot < FAR:
            log_p.append(knot + math.log(num_draws))
            continue
        # A hair above, so that the observed value itself counts as outside.
        outside = _probability_outside(tails, knot + 1e-7)
        log_p.append(min(max(math.log(outside or 1e-300), knot - math.log(2)), 0.0))
        log_p[-1] = min(log_p[-1], knot + math.log(num_draws))
    found = np.exp(log_p if len(values) <= KNOTS else np.interp(values, knots, log_p))
    return torch.from_numpy(found).reshape(log_gamma.shape)


def ecdf_band(
    num_simulations: int, num_draws: int, level: float, *, critical: float | None = None
) -> tuple[Tensor, Tensor]:
    """Between what shares of uniform ranks lie below i, for all i at once.

    The empirical distribution function leaves the band somewhere with probability ``level`` at
    most, and exactly where :func:`log_gamma` is below :func:`critical_log_gamma`.

    Args:
        num_simulations: Number S of ranks.
        num_draws: L; ranks are 0 to L.
        level: Rate of false alarms, such as 0.05.
        critical: What :func:`critical_log_gamma` returned for these, where it is known already.

    Returns:
        Lowest and highest share, ``(L,)`` each, at i = 1, ..., L, where i / (L + 1) is expected.

    Example:
        >>> lower, upper = ecdf_band(4, 1, 0.2)  # P(0 or 4 of 4 below 1/2) = 1/8
        >>> lower.item(), upper.item()
        (0.25, 0.75)
    """
    if critical is None:
        critical = critical_log_gamma(num_simulations, num_draws, level)
    low, high = BinomialTails(num_simulations, num_draws, critical, critical).band(critical)
    return torch.from_numpy(low / num_simulations), torch.from_numpy(high / num_simulations)


def grid_ranks(u: Tensor, num_draws: int) -> Tensor:
    """Values from 0 to 1 as ranks: in which of L + 1 equal cells each lies.

    Example:
        >>> grid_ranks(torch.tensor([0.0, 0.3, 0.5, 1.0]), num_draws=1)
        tensor([0, 0, 1, 1])
    """
    num_draws = positive_integer(num_draws, "num_draws")
    if not ((u >= 0) & (u <= 1)).all():  # also finds NaN
        raise ValueError(
            f"u must lie between 0 and 1; got {u.min().item():g} to {u.max().item():g}."
        )
    return (u.double() * (num_draws + 1)).long().clamp(max=num_draws)


def _counts_below(ranks: Tensor, num_draws: int) -> Tensor:
    """Number of ranks below 1, ..., L in each column, ``(L, columns)``, on the CPU."""
    if ranks.dim() == 0 or ranks.numel() == 0:
        raise ValueError(f"ranks must have shape (S, ...) and hold one; got {tuple(ranks.shape)}.")
    columns = ranks.detach().reshape(len(ranks), -1)
    counts = torch.zeros(num_draws + 1, columns.shape[1], dtype=torch.int64, device="cpu")
    one = counts.new_ones(())
    for part in columns.split(max(1, NUMBERS_AT_A_TIME // columns.shape[1])):
        part = part.cpu()
        whole = part.long()
        if part.is_floating_point() and not (whole == part).all():
            raise ValueError(
                "ranks must be integers; got fractions. grid_ranks makes ranks of them."
            )
        if whole.min() < 0 or whole.max() > num_draws:
            raise ValueError(
                f"ranks must lie between 0 and num_draws = {num_draws}; "
                f"got {ranks.min().item():g} to {ranks.max().item():g}."
            )
        counts.scatter_add_(0, whole, one.expand_as(whole))
    return counts.cumsum(0)[:-1]


def _checked_level(level: float) -> float:
    level = finite_number(level, "level", "between 0 and 1", above=0)
    if not level < 1:
        raise ValueError(f"level must be between 0 and 1; got {level!r}.")
    return level


def _largest_within(
    tails: BinomialTails, ladder: list[float], log_level: float, known: dict[float, float]
) -> float:
    """The largest of ascending values of log gamma with :func:`_probability_outside` in the level.

    The first of them has it. The log of the probability goes up nearly as log gamma does, so that
    regula falsi (Illinois variant) is close after a few steps; on the last ones it is a staircase,
    and every third step halves.

    Args:
        tails: Of the ranks.
        ladder: The values.
        log_level: Log of the level.
        known: Logs of the probabilities found so far, by value, of this level and others.
    """
    for value in sorted(known):
        within = known[value] <= log_level
        cut = bisect.bisect_right(ladder, value) if within else bisect.bisect_left(ladder, value)
        ladder = ladder[max(cut - 1, 0) :] if within else ladder[:cut]
    low, high = 0, len(ladder)
    ends: list[tuple[float, float] | None] = [None, None]  # log gamma, excess over the level
    last, step = -1, 0
    while high - low > 1:
        step += 1
        left, right = ends
        if step % 3 == 0 or high - low <= 3:
            guess = ladder[(low + high) // 2]
        elif left and right:
            guess = left[0] - left[1] * (right[0] - left[0]) / (right[1] - left[1])
        else:
            at, excess = left or right or ((ladder[low] + ladder[high - 1]) / 2, 0.0)
            guess = at - 1.2 * excess
        middle = min(max(bisect.bisect_left(ladder, guess), low + 1), high - 1)
        value = ladder[middle]
        if value not in known:
            known[value] = math.log(max(_probability_outside(tails, value), 1e-16))
        excess = known[value] - log_level
        side = int(excess > 0)
        other = ends[1 - side]
        if side == last and other is not None:
            ends[1 - side] = other[0], other[1] / 2
        ends[side], last = (value, excess), side
        low, high = (low, middle) if side else (middle, high)
    return ladder[low]


def _probability_outside(tails: BinomialTails, log_gamma: float) -> float:
    """P(some count is outside the band) for uniform ranks.

    The counts of S uniform ranks in the L + 1 cells are those of a Poisson process with S points
    in all, so that each step from one point to the next is a convolution.
    """
    low, high = tails.band(log_gamma)
    total = tails.total
    mean = total / (len(low) + 1)
    k = torch.arange(total + 1, dtype=torch.float64, device="cpu")
    log_poisson = k * math.log(mean) - mean - torch.lgamma(k + 1)
    poisson = log_poisson.exp().numpy()
    most = int((log_poisson > LOG_NEGLIGIBLE).nonzero().max())
    inside, start = np.ones(1), 0
    for first, last in zip(low.tolist(), high.tolist(), strict=True):
        if last < max(first, start):
            return 1.0
        step = np.convolve(inside, poisson[: min(last - start, most) + 1])
        inside = step[max(first - start, 0) : last - start + 1]
        start = max(first, start)
    ends = poisson[total - start - np.arange(len(inside))]
    log_all = total * math.log(total) - total - math.lgamma(total + 1)
    return max(0.0, 1.0 - float(inside @ ends) / math.exp(log_all))
