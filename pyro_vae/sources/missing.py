"""Data with missing values: who says so, and the pieces of large ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.datasets import Dataset, has_masked, observed_entries, says_nan

__all__ = [
    "MaskedPiece",
    "check_any_observed",
    "declares_missing",
    "entries_of",
    "masked_pieces",
    "same_values",
]


@dataclass(frozen=True, eq=False)
class MaskedPiece:
    """Some rows of data, and which of their entries were observed."""

    x: Any
    observed: Tensor

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the features, where x has them."""
        names: tuple[str, ...] | None = getattr(self.x, "columns", None)
        return names


def declares_missing(x: Any, mask: Any) -> bool:
    """Whether values of x may be missing by what a user passes.

    A data set that was made for missing values says so, whether or not it has any: a part of it
    may be complete where another is not.

    Example:
        >>> declares_missing(torch.zeros(2), None), declares_missing(torch.zeros(2), "nan")
        (False, True)
        >>> declares_missing(Dataset("gaps", torch.zeros(2), missing=True), None)
        True
    """
    return mask is not None or has_masked(x) or (isinstance(x, Dataset) and x.missing)


def entries_of(mask: Any, x: Any, kind: str | None = None) -> Any:
    """The mask where it is an array, None where it is none or the word "nan".

    Args:
        mask: As a user gives it.
        x: Data.
        kind: What x is, where it has no row numbers by which a mask could be read.

    Raises:
        ValueError: If it is an array and x has no such numbers.

    Example:
        >>> entries_of("nan", torch.zeros(2)) is None
        True
    """
    if mask is None or says_nan(mask):
        return None
    if kind is not None:
        raise ValueError(
            f"mask must be 'nan' for a {kind}, whose rows come by themselves; got a "
            f"{type(mask).__name__}. Let NaN stand for what is missing."
        )
    return mask


def masked_pieces(
    pieces: Iterator[tuple[Tensor, Any, Tensor]], mask: Any, x: Any
) -> Iterator[tuple[Tensor, Any, Tensor]]:
    """Pieces of large data with the part of the mask that is theirs.

    Args:
        pieces: Row numbers, a piece of x, and its values.
        mask: As a user gives it, of x's shape.
        x: The whole.

    Example:
        >>> x = torch.tensor([[1.0], [9.0]])
        >>> pieces = iter([(torch.arange(2), x, x)])
        >>> _, piece, values = next(masked_pieces(pieces, [[True], [False]], x))
        >>> piece.observed.flatten().tolist(), values.flatten().tolist()
        ([True, False], [1.0, 0.0])
    """
    own = x.columns if isinstance(x, Dataset) else None
    observed = observed_entries(mask, x.x if isinstance(x, Dataset) else x, own_columns=own)
    for numbers, piece, values in pieces:
        some = observed[int(numbers[0]) : int(numbers[-1]) + 1]
        seen = torch.where(some.to(values.device), values, torch.zeros_like(values))
        yield numbers, MaskedPiece(piece, some), seen


def check_any_observed(x: Tensor, name: str = "x") -> None:
    """Refuse data to learn from of which nothing was observed.

    Args:
        x: Data with NaN where missing, ``(N, *event_shape)``.
        name: What to call them.

    Raises:
        ValueError: If all of x is NaN.

    Example:
        >>> check_any_observed(torch.full((5, 4), torch.nan))
        Traceback (most recent call last):
        ValueError: x must have an observed value; got none in 5 rows of 4. Is the mask inverted?
    """
    # Of most data the first row tells.
    if bool(x[:1].isnan().all()) and bool(x.isnan().all()):
        raise ValueError(
            f"{name} must have an observed value; got none in {len(x)} rows of {x[0].numel()}. "
            "Is the mask inverted?"
        )


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN in one place being NaN in the other.

    Example:
        >>> same_values(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))
        True
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    if torch.equal(one, other):
        return True
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
