"""Words of the command line as values, each with its own message where it is none."""

import argparse
from collections.abc import Callable

from pyro_vae.arguments import did_you_mean
from pyro_vae.kinds import Kinds, parse_kind

__all__ = ["fraction", "kind_of", "not_negative", "one_of", "positive", "seed"]


def positive(kind: type) -> Callable[[str], float]:
    """A positive number of a kind.

    Example:
        >>> positive(int)("3")
        3
    """

    def convert(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            noun = "integer" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a positive {noun}; got {text!r}.")
        return value

    return convert


def seed(text: str) -> int:
    """0 or a positive integer.

    Example:
        >>> seed("7")
        7
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive integer; got {text!r}.")
    return int(text)


def fraction(text: str) -> float:
    """A number between 0 and 1.

    Example:
        >>> fraction("0.2")
        0.2
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1; got {text!r}.")
    return value


def not_negative(text: str) -> float:
    """0 or a positive number.

    Example:
        >>> not_negative("0")
        0.0
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or a positive number; got {text!r}.")
    return value


def kind_of(kinds: Kinds) -> Callable[[str], str]:
    """One of some kinds, with its number where it has one.

    Example:
        >>> from pyro_vae.kinds import FAMILIES
        >>> kind_of(FAMILIES)("lowrank:3")
        'lowrank:3'
    """

    def convert(text: str) -> str:
        try:
            name, number = parse_kind(text, kinds)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return name if number is None else f"{name}:{number}"

    return convert


def one_of(*names: str) -> Callable[[str], str]:
    """One of some words.

    Example:
        >>> one_of("mlp", "conv")("conv")
        'conv'
    """

    def convert(text: str) -> str:
        if text in names:
            return text
        hint = did_you_mean(text, names)
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}; got {text!r}.{hint}")

    return convert
