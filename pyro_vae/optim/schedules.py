"""Learning-rate schedules: functions of the progress through training."""

import math
from collections.abc import Callable

__all__ = ["Schedule", "constant", "cosine", "warmup"]

Schedule = Callable[[float], float]
"""Maps progress through training, 0 to 1, to a factor of the learning rate."""


def constant(progress: float) -> float:
    """The learning rate as it is.

    Example:
        >>> constant(0.3)
        1.0
    """
    return 1.0


def cosine(progress: float) -> float:
    r"""Half a cosine from 1 to 0, :math:`(1 + \cos \pi t) / 2`.

    Example:
        >>> [round(cosine(t), 3) for t in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]

    References:
        Loshchilov and Hutter (2017), SGDR, equation 5. https://arxiv.org/abs/1608.03983
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup(fraction: float, *, then: Schedule = cosine) -> Schedule:
    """A linear rise from 0 over the first ``fraction`` of training, ``then`` over the rest.

    Args:
        fraction: Share of training that the rise takes, between 0 and 1.
        then: Schedule behind it.

    Raises:
        ValueError: If ``fraction`` does not lie strictly between 0 and 1.

    Example:
        >>> rising = warmup(0.2, then=constant)
        >>> round(rising(0.1), 3), rising(0.5)
        (0.5, 1.0)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie strictly between 0 and 1; got {fraction}.")

    def schedule(progress: float) -> float:
        if progress < fraction:
            return progress / fraction
        return then((progress - fraction) / (1.0 - fraction))

    return schedule
