"""Sections and tables as plain text."""

import re
import unicodedata
from collections.abc import Sequence

from .sections import Section, Table

__all__ = ["decisive", "number_columns", "printable", "table_text", "verdicts_text"]

NUMBER = re.compile(
    r"[-−+]?(\d[\d.,]*|inf|nan)(e[-+]?\d+)?( ?%)?( ± [\d.]+(e[-+]?\d+)?( ?%)?)?|[-–]?"
)

TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Kinds of signs that turn the order of what follows."""


def verdicts_text(sections: Sequence[Section]) -> str:
    """The verdicts as plain text, one line a question.

    Example:
        >>> from pyro_vae.html_report import Measure
        >>> print(verdicts_text([Section("Is it fine?", "good", "", [Measure("gap", 1.0, 0.25)])]))
        question     verdict  figure
        Is it fine?  good     gap: 1.00 ± 0.25
    """
    rows = [[s.question, s.verdict, decisive(s) or s.sentence] for s in sections]
    return table_text(Table("", ("question", "verdict", "figure"), rows))


def table_text(table: Table) -> str:
    """A table as plain text; columns of numbers are flush right.

    Example:
        >>> print(table_text(Table("", ("run", "ELBO"), [["a", "1.0"], ["b", "-12.0"]])))
        run   ELBO
        a      1.0
        b    -12.0
    """
    numeric = number_columns(table)
    lines = [list(map(_cell, line)) for line in (table.columns, *table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    text = [
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.caption, *text] if table.caption else text)


def printable(text: str) -> str:
    r"""A text without signs that a terminal would obey, as a stranger's names may hold them.

    Args:
        text: Any; tabs and ends of lines stay.

    Example:
        >>> printable("a\tb\x1b[2Jc")
        'a\tb\\x1b[2Jc'
    """
    return "".join(repr(sign)[1:-1] if _is_command(sign) else sign for sign in text)


def _is_command(sign: str) -> bool:
    if sign in "\t\n":
        return False
    return unicodedata.category(sign) in {"Cc", "Cs"} or unicodedata.bidirectional(sign) in TURNS


def _cell(text: str) -> str:
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def decisive(section: Section) -> str:
    """The decisive figure in one line."""
    if not section.measures:
        return ""
    measure = section.measures[0]
    wanted = f" ({measure.wanted})" if measure.wanted else ""
    unit = f" {measure.unit}" if measure.unit else ""
    return f"{measure.name}: {measure.text}{unit}{wanted}"


def number_columns(table: Table) -> list[bool]:
    """Which columns hold numbers alone; the first one names the rows."""
    return [
        index > 0
        and all(NUMBER.fullmatch(row[index]) for row in table.rows)
        and any(character.isdigit() for row in table.rows for character in row[index])
        for index in range(len(table.columns))
    ]
