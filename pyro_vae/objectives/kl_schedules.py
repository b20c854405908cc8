"""Schedules of the KL weight: progress through training, 0 to 1, to a factor of the KL."""

from collections.abc import Callable
from dataclasses import dataclass

from pyro_vae.arguments import finite_number, positive_integer

__all__ = ["kl_cycle", "kl_warmup"]


def kl_warmup(
    fraction: float, *, start: float = 0.0, end: float = 1.0
) -> Callable[[float], float]:
    r"""A linear rise of the KL weight over the first part of training.

    .. math:: \beta(t) = a + (b - a) \min(t / f, 1)

    Units of z that carry nothing early on are then not switched off before the decoder has learned
    to use them. What is trained while :math:`\beta < 1` is not a bound on log p(x).

    Args:
        fraction: Share f of training that the rise takes, up to 1.
        start: Weight a in the beginning.
        end: Weight b from there on.

    Raises:
        ValueError: If ``fraction`` does not lie in (0, 1].

    Example:
        >>> rising = kl_warmup(0.2)
        >>> [rising(t) for t in (0.0, 0.1, 0.2, 1.0)]
        [0.0, 0.5, 1.0, 1.0]

    References:
        Bowman et al. (2016), Generating sentences from a continuous space, section 3.1.
        https://arxiv.org/abs/1511.06349
        Sonderby et al. (2016), Ladder variational autoencoders, section 2.3.
        https://arxiv.org/abs/1602.02282
    """
    return _Warmup(_share(fraction, "fraction"), start, end)


def kl_cycle(
    num_cycles: int, *, rise: float = 0.5, start: float = 0.0, end: float = 1.0
) -> Callable[[float], float]:
    r"""Cyclical annealing: the rise of :func:`kl_warmup`, again and again.

    Training is cut into cycles of equal length. In the first part of each the weight rises
    linearly, in the rest it stays.

    Args:
        num_cycles: Number of cycles.
        rise: Share of each cycle that the rise takes, up to 1.
        start: Weight at the beginning of each cycle.
        end: Weight after the rise, and at the end of training.

    Raises:
        ValueError: If ``num_cycles`` is not a positive integer, or ``rise`` not in (0, 1].

    Example:
        >>> cycling = kl_cycle(2)
        >>> [cycling(t) for t in (0.0, 0.125, 0.25, 0.49, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]

    References:
        Fu et al. (2019), Cyclical annealing schedule, equations 6 and 7.
        https://arxiv.org/abs/1903.10145
    """
    return _Cycle(positive_integer(num_cycles, "num_cycles"), _share(rise, "rise"), start, end)


@dataclass(frozen=True)
class _Warmup:
    fraction: float
    start: float
    end: float

    def __call__(self, progress: float) -> float:
        if progress >= self.fraction:
            return self.end
        return self.start + (self.end - self.start) * progress / self.fraction

    def __repr__(self) -> str:
        return f"kl_warmup({self.fraction}, start={self.start}, end={self.end})"


@dataclass(frozen=True)
class _Cycle:
    num_cycles: int
    rise: float
    start: float
    end: float

    def __call__(self, progress: float) -> float:
        if progress >= 1:
            return self.end
        within = progress * self.num_cycles % 1.0
        return _Warmup(self.rise, self.start, self.end)(within)

    def __repr__(self) -> str:
        return f"kl_cycle({self.num_cycles}, rise={self.rise}, start={self.start}, end={self.end})"


def _share(value: float, name: str) -> float:
    share = finite_number(value, name, "above 0 and at most 1", above=0)
    if share > 1:
        raise ValueError(f"{name} must be above 0 and at most 1; got {value!r}.")
    return share
