"""What the diagnostics log, to be read beside the answers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collected_messages"]


@contextmanager
def collected_messages(speaker: str = "pyro_vae.diagnostics") -> Iterator[list[str]]:
    """The diagnostics' messages while the block lasts; they do not reach a terminal.

    Args:
        speaker: Name of the logger whose messages are collected.

    Example:
        >>> with collected_messages() as found:
        ...     logging.getLogger("pyro_vae.diagnostics.example").warning("k-hat of %d", 7)
        >>> found
        ['k-hat of 7']
    """
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger = logging.getLogger(speaker)
    collector, passes_on = Collector(logging.WARNING), logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(collector)
        logger.propagate = passes_on
