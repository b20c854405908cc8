"""Whether programs run only so that their operations are written down."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_capturing", "now_capturing"]

_CAPTURING: ContextVar[bool] = ContextVar("capturing", default=False)


def is_capturing() -> bool:
    """Whether a graph is being captured.

    A number that changes from step to step must then be given as a tensor that lives on, which the
    graph reads anew each time, since a Python number is written into the graph as it is.

    Example:
        >>> is_capturing()
        False
    """
    return _CAPTURING.get()


@contextmanager
def now_capturing() -> Iterator[None]:
    """While the block lasts, a graph is being captured.

    Example:
        >>> with now_capturing():
        ...     is_capturing()
        True
    """
    token = _CAPTURING.set(True)
    try:
        yield
    finally:
        _CAPTURING.reset(token)
