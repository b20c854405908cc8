"""What a command shows of itself, and which of several processes does."""

import logging
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from pyro_vae.optim.processes import Processes

__all__ = ["one_speaks", "shows_progress"]


def shows_progress(options: Namespace) -> bool:
    """A bar for a person at a terminal, none in a log file or with ``--quiet``."""
    return not options.quiet and sys.stderr.isatty()


@contextmanager
def one_speaks(processes: Processes) -> Iterator[None]:
    """Keep warnings and messages of all processes but the first to themselves.

    Example:
        >>> with one_speaks(Processes(rank=1, size=2)):
        ...     warnings.warn("the first process says the same")
    """
    if processes.is_first:
        yield
        return
    logger = logging.getLogger("pyro_vae")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore")
            yield
    finally:
        logger.setLevel(level)
