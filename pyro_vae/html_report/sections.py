"""What a page is made of: questions, verdicts, figures, tables and pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from pyro_vae.report import with_error

__all__ = ["MARKS", "Measure", "Picture", "Section", "Table"]

MARKS = {
    "good": "✓",
    "doubtful": "?",
    "bad": "✗",
    "no verdict": "•",
    "does not apply": "–",
    "failed": "!",
}
"""What a section can end with, and the sign that stands before the word: color alone tells
nothing to who does not see it."""


@dataclass(frozen=True)
class Measure:
    """A figure with its error and what it is held against.

    Attributes:
        name: What was measured.
        value: The figure.
        error: Its standard error; NaN where there is none.
        unit: Its unit, as "nats"; empty for a pure number.
        wanted: In words, what it should be, as "at most 0.7"; empty where nothing is wanted.

    Example:
        >>> Measure("gap", 1.234, 0.021, unit="nats").text
        '1.234 ± 0.021'
    """

    name: str
    value: float
    error: float = math.nan
    unit: str = ""
    wanted: str = ""

    @property
    def text(self) -> str:
        """Figure and error as they are printed."""
        if math.isfinite(self.error) and 0 < self.error < 5e-5:
            return f"{self.value:.4f} ± 0.0001"
        if not math.isfinite(self.error):
            return f"{self.value:.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"
        return with_error(self.value, self.error)


@dataclass(frozen=True)
class Table:
    """Cells of text, as they are shown.

    Attributes:
        caption: What the table holds.
        columns: Heads of the columns.
        rows: The rows, each with a cell for each column; the first names the row.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure and the words below it, which also stand for it where it cannot be seen."""

    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A question with its answer.

    Attributes:
        question: The question, in plain words.
        verdict: One of the keys of ``MARKS``.
        sentence: The answer in words.
        measures: The figures that it rests on, the decisive one first.
        next_step: What to do about it; empty where there is nothing to do.
        remarks: What else is to be known, as that a figure is only a bound.
        tables: Tables.
        pictures: Pictures.

    Raises:
        ValueError: If ``verdict`` is no such word.

    Example:
        >>> Section("Is it fine?", "good", "It is.").mark
        '✓ good'
    """

    question: str
    verdict: str
    sentence: str
    measures: Sequence[Measure] = ()
    next_step: str = ""
    remarks: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()

    def __post_init__(self) -> None:
        if self.verdict not in MARKS:
            raise ValueError(f"verdict must be one of {', '.join(MARKS)}; got {self.verdict!r}.")

    @property
    def mark(self) -> str:
        """The verdict with its sign."""
        return f"{MARKS[self.verdict]} {self.verdict}"
