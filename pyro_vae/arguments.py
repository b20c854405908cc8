"""Checks of arguments that many functions share, each with the package's form of message."""

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

__all__ = ["did_you_mean", "finite_number", "positive_integer"]


def positive_integer(value: Any, name: str) -> int:
    """``value`` as an int, if it is a positive integer of Python or NumPy.

    Raises:
        ValueError: If it is not.

    Example:
        >>> positive_integer(3, "epochs")
        3
        >>> positive_integer(0, "epochs")
        Traceback (most recent call last):
        ValueError: epochs must be a positive integer; got 0.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a positive integer; got {value!r}.")
    return number


def finite_number(value: Any, name: str, condition: str, *, above: float) -> float:
    """``value`` as a float, if it is a finite number greater than ``above``.

    Args:
        value: What the user gave.
        name: The argument's name.
        condition: What it must be, in words.
        above: Largest number that it must exceed; ``-math.inf`` for any finite number.

    Raises:
        ValueError: If it is not.

    Example:
        >>> finite_number(-1.0, "variance", "positive", above=0)
        Traceback (most recent call last):
        ValueError: variance must be positive; got -1.0.
    """
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (above < number < math.inf):
        raise ValueError(f"{name} must be {condition}; got {value!r}.")
    return number


def did_you_mean(text: str, names: Iterable[str]) -> str:
    """A sentence that offers the nearest of some names, empty where none is near.

    Example:
        >>> did_you_mean("digonal", ["diagonal", "full"])
        " Did you mean 'diagonal'?"
        >>> did_you_mean("x", ["diagonal", "full"])
        ''
    """
    near = difflib.get_close_matches(text, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
