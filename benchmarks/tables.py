"""The table that a benchmark prints, and the line about the machine below it."""

import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

__all__ = ["machine", "markdown", "spread"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table: the first ``words`` columns to the left, the others to the right.

    Raises:
        ValueError: If a row is not as long as the header.
    """
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        " | ".join(
            text.ljust(width) if column < words else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = " | ".join(
        "-" * width if column < words else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    )
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def spread(values: Sequence[float], *, unit: float = 1.0, digits: int = 2) -> list[str]:
    """Median, least and largest of ``values / unit``, as cells of a table."""
    found = statistics.median(values), min(values), max(values)
    return [f"{value / unit:.{digits}f}" for value in found]


def machine() -> str:
    """Versions, threads and processor, for the line below a table."""
    python = ".".join(map(str, sys.version_info[:2]))
    return (
        f"torch {torch.__version__}, Python {python}, {torch.get_num_threads()} threads, "
        f"{_processor()}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
