"""Are ranks uniform? One test of their whole distribution function, of an exact level."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer

__all__ = ["critical_log_gamma", "ecdf_band", "gamma_p_value", "grid_ranks", "log_gamma"]

KNOTS = 64


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
    below, above = _log_tails(len(ranks), num_draws)
    tail = torch.minimum(below.gather(1, counts), above.gather(1, counts))
    return (math.log(2) + tail.amin(0)).reshape(ranks.shape[1:])


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
    level = _checked_level(level)
    below, above = _checked_tails(num_simulations, num_draws)
    # Each single point is outside with probability gamma at most, one of L with L gamma.
    low, high = math.log(level) - math.log(num_draws), min(math.log(2 * level), math.log(2.0))
    for _ in range(24):
        middle = (low + high) / 2
        if _probability_outside(below, above, middle) <= level:
            low = middle
        else:
            high = middle
    return low


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
    below, above = _checked_tails(num_simulations, num_draws)
    values = log_gamma.detach().double().cpu().flatten().numpy()
    knots = values if len(values) <= KNOTS else np.linspace(values.min(), values.max(), KNOTS)
    log_p = []
    for knot in knots:
        # A hair above, so that the observed value itself counts as outside.
        outside = _probability_outside(below, above, knot + 1e-7)
        log_p.append(min(max(math.log(outside or 1e-300), knot - math.log(2)), 0.0))
        log_p[-1] = min(log_p[-1], knot + math.log(num_draws))
    found = np.exp(log_p if len(values) <= KNOTS else np.interp(values, knots, log_p))
    return torch.from_numpy(found).reshape(log_gamma.shape)


def ecdf_band(num_simulations: int, num_draws: int, level: float) -> tuple[Tensor, Tensor]:
    """Between what shares of uniform ranks lie below i, for all i at once.

    The empirical distribution function leaves the band somewhere with probability ``level`` at
    most, and exactly where :func:`log_gamma` is below :func:`critical_log_gamma`.

    Args:
        num_simulations: Number S of ranks.
        num_draws: L; ranks are 0 to L.
        level: Rate of false alarms, such as 0.05.

    Returns:
        Lowest and highest share, ``(L,)`` each, at i = 1, ..., L, where i / (L + 1) is expected.

    Example:
        >>> lower, upper = ecdf_band(4, 1, 0.2)  # P(0 or 4 of 4 below 1/2) = 1/8
        >>> lower.item(), upper.item()
        (0.25, 0.75)
    """
    critical = critical_log_gamma(num_simulations, num_draws, level)
    low, high = _band(*_log_tails(num_simulations, num_draws), critical)
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
    whole = ranks.detach().long().cpu()
    if ranks.is_floating_point() and not (whole == ranks.detach().cpu()).all():
        raise ValueError("ranks must be integers; got fractions. grid_ranks makes ranks of them.")
    if whole.min() < 0 or whole.max() > num_draws:
        raise ValueError(
            f"ranks must lie between 0 and num_draws = {num_draws}; "
            f"got {whole.min().item()} to {whole.max().item()}."
        )
    columns = whole.reshape(len(whole), -1)
    counts = columns.new_zeros(num_draws + 1, columns.shape[1])
    counts.scatter_add_(0, columns, torch.ones_like(columns))
    return counts.cumsum(0)[:-1]


def _checked_level(level: float) -> float:
    level = finite_number(level, "level", "between 0 and 1", above=0)
    if not level < 1:
        raise ValueError(f"level must be between 0 and 1; got {level!r}.")
    return level


def _checked_tails(num_simulations: int, num_draws: int) -> tuple[Tensor, Tensor]:
    num_simulations = positive_integer(num_simulations, "num_simulations")
    return _log_tails(num_simulations, positive_integer(num_draws, "num_draws"))


def _log_tails(num_simulations: int, num_draws: int) -> tuple[Tensor, Tensor]:
    """Logs of P(X <= r) and P(X >= r) for X ~ Binomial(S, i / (L + 1)): ``(L, S + 1)`` each."""
    total = torch.tensor(float(num_simulations), dtype=torch.float64, device="cpu")
    r = torch.arange(num_simulations + 1, dtype=torch.float64, device="cpu")
    z = torch.arange(1, num_draws + 1, dtype=torch.float64, device="cpu") / (num_draws + 1)
    ways = torch.lgamma(total + 1) - torch.lgamma(r + 1) - torch.lgamma(total - r + 1)
    log_pmf = ways + r * z.log()[:, None] + (total - r) * (-z).log1p()[:, None]
    below = log_pmf.logcumsumexp(1)
    above = log_pmf.flip(1).logcumsumexp(1).flip(1)
    return below.clamp(max=0), above.clamp(max=0)


def _band(below: Tensor, above: Tensor, log_gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest count at each point whose gamma is not below this one."""
    inside = torch.minimum(below, above) + math.log(2) >= log_gamma
    last = inside.shape[1] - 1
    low = inside.long().argmax(1)
    high = last - inside.flip(1).long().argmax(1)
    return low.numpy(), torch.where(inside.any(1), high, low - 1).numpy()


def _probability_outside(below: Tensor, above: Tensor, log_gamma: float) -> float:
    """P(some count is outside :func:`_band`) for uniform ranks.

    The counts of S uniform ranks in the L + 1 cells are those of a Poisson process with S points
    in all, so that each step from one point to the next is a convolution.
    """
    low, high = _band(below, above, log_gamma)
    total = below.shape[1] - 1
    mean = total / (len(low) + 1)
    k = torch.arange(total + 1, dtype=torch.float64, device="cpu")
    poisson = (k * math.log(mean) - mean - torch.lgamma(k + 1)).exp().numpy()
    inside, start = np.ones(1), 0
    for first, last in zip(low, high, strict=True):
        if last < max(first, start):
            return 1.0
        step = np.convolve(inside, poisson[: last - start + 1])
        inside = step[max(first - start, 0) : last - start + 1]
        start = max(first, start)
    ends = poisson[total - start - np.arange(len(inside))]
    log_all = total * math.log(total) - total - math.lgamma(total + 1)
    return max(0.0, 1.0 - float(inside @ ends) / math.exp(log_all))
