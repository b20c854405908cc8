"""One HTML page of questions and verdicts that needs no other file and fetches nothing."""

from .page import html_page as html_page
from .sections import MARKS as MARKS
from .sections import Measure as Measure
from .sections import Picture as Picture
from .sections import Section as Section
from .sections import Table as Table
from .text import printable as printable
from .text import table_text as table_text
from .text import verdicts_text as verdicts_text

__all__ = [
    "MARKS",
    "Measure",
    "Picture",
    "Section",
    "Table",
    "html_page",
    "printable",
    "table_text",
    "verdicts_text",
]
