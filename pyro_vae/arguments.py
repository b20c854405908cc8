"""Checks of arguments that many functions share, each with the package's form of message."""

import difflib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

__all__ = ["did_you_mean", "finite_number", "named_options", "positive_integer"]

P = ParamSpec("P")
R = TypeVar("R")

OTHER_NAMES = {
    "lr": "learning_rate",
    "beta": "kl_weight",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "latent_size": "latent_dim",
    "z_dim": "latent_dim",
    "decoder_variance": "variance",
    "verbose": "progress",
}
"""What other packages call options of this one, where the words are not alike."""


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


def named_options(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose error for an unknown option offers the nearest that it has.

    Python says so by itself from 3.13 on, but not which other word is meant here.

    Args:
        function: Any without ``**kwargs`` of its own.

    Returns:
        The same function, which raises TypeError for an unknown option before it runs.

    Example:
        >>> @named_options
        ... def fit(x, *, epochs=1, learning_rate=0.1):
        ...     return epochs
        >>> fit(None, epochs=3)
        3
        >>> fit(None, learning_rat=1)
        Traceback (most recent call last):
        TypeError: fit() got an unexpected keyword argument 'learning_rat'. Did you mean
        'learning_rate'? It has x, epochs, learning_rate.
        >>> fit(None, lr=1)
        Traceback (most recent call last):
        TypeError: fit() got an unexpected keyword argument 'lr'. Did you mean 'learning_rate'? It
        has x, epochs, learning_rate.
    """
    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                other = OTHER_NAMES.get(name)
                offer = (
                    f" Did you mean {other!r}?" if other in names else did_you_mean(name, names)
                )
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}.{offer} "
                    f"It has {', '.join(names)}."
                )
        return function(*args, **kwargs)

    return checked
