"""Whether every value is finite, and where the first is that is not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["FiniteScan", "check_overflow", "place", "sum_is_finite"]

MENDS = {
    "NaN": 'Drop or impute those rows, or model the values as missing, mask="nan" in '
    "pyro_vae.fit: nothing is dropped silently.",
    "infinite values": "They often come from a logarithm of zero or a division by zero; correct "
    "or drop those rows.",
}


class FiniteScan:
    """Counts NaN and infinite values over pieces of data, and keeps where the first ones are.

    Args:
        columns: Names of the features, where they have any.
        name: What to call the data in the error.
        missing: Whether NaN stands for a missing value, and is as good as a finite one.

    Attributes:
        found: Whether anything that is not finite was met.

    Example:
        >>> scan = FiniteScan(None, "x")
        >>> scan.add(torch.zeros(5, 2))
        >>> scan.add(torch.tensor([[0.0, float("inf")]]), torch.tensor([5]))
        >>> scan.check()
        Traceback (most recent call last):
        ValueError: x must not contain infinite values; got 1, the first at row 5, column 1. They
        often come from a logarithm of zero or a division by zero; correct or drop those rows.
    """

    def __init__(self, columns: Sequence[str] | None, name: str, *, missing: bool = False) -> None:
        self._columns, self._name, self._missing = columns, name, missing
        self._counts = dict.fromkeys(MENDS, 0)
        self._first: dict[str, str] = {}
        self.found = False

    def add(self, x: Tensor, numbers: Tensor | None = None) -> None:
        """Look at a piece.

        Args:
            x: Some data, ``(n, *event_shape)``.
            numbers: Their row numbers, ``(n,)``; 0, 1, ... unless given.
        """
        if sum_is_finite(x):
            return
        for label, bad in (("NaN", torch.isnan(x)), ("infinite values", torch.isinf(x))):
            if bad.any() and not (self._missing and label == "NaN"):
                self._counts[label] += int(bad.sum())
                self._first.setdefault(label, place(bad, self._columns, numbers))
                self.found = True

    def check(self) -> None:
        """Refuse what was found.

        Raises:
            ValueError: If there was a value that is not finite.
        """
        for label, where in sorted(self._first.items(), key=lambda item: item[0] != "NaN"):
            raise ValueError(
                f"{self._name} must not contain {label}; got {self._counts[label]}, the first at "
                f"{where}. {MENDS[label]}"
            )


def sum_is_finite(x: Tensor) -> bool:
    """Whether one cheap pass proves that every value is finite.

    NaN and infinity never leave a sum again, so a finite sum is a proof. The opposite is not: a
    sum of finite values may overflow, which calls for the exact scan.

    Example:
        >>> sum_is_finite(torch.tensor([0.0, float("nan")])), sum_is_finite(torch.tensor([1]))
        (False, True)
    """
    return not x.is_floating_point() or bool(torch.isfinite(x.sum()))


def check_overflow(
    cast: Tensor,
    x: Tensor,
    name: str,
    *,
    columns: Sequence[str] | None = None,
    numbers: Tensor | None = None,
    is_piece: bool = False,
    missing: bool = False,
) -> None:
    """Refuse finite values that a cast has made infinite.

    Values that were not finite before are left to :class:`FiniteScan`, which counts them.

    Args:
        cast: The data after the cast, ``(n, *event_shape)``.
        x: The data before it.
        name: What to call the data in the error.
        columns: Names of the features, where they have any.
        numbers: Row numbers, ``(n,)``, where these are not all rows.
        is_piece: Whether more rows come after these, which the error then says.
        missing: Whether NaN in x is no reason to leave it to the scan.

    Raises:
        ValueError: If all of x is finite and some of ``cast`` is not.

    Example:
        >>> x = torch.tensor([[0.0], [1e39]], dtype=torch.float64)
        >>> check_overflow(x.float(), x, "x", numbers=torch.tensor([4, 7]))
        Traceback (most recent call last):
        ValueError: x must fit into float32, whose largest value is 3.403e+38; got 1 that overflow
        to infinity, the first at row 7, column 0. Rescale x, or use dtype=torch.float64.
    """
    if sum_is_finite(cast):
        return
    bad = torch.isinf(cast)
    finite = torch.isfinite(x) | x.isnan() if missing else torch.isfinite(x)
    if bad.any() and bool(finite.all()):
        target = str(cast.dtype).removeprefix("torch.")
        rest = ""
        if is_piece and numbers is not None:
            rest = (
                f" That is of rows {int(numbers[0])} to {int(numbers[-1])}; those after them are "
                "not checked yet."
            )
        raise ValueError(
            f"{name} must fit into {target}, whose largest value is "
            f"{torch.finfo(cast.dtype).max:.4g}; got {int(bad.sum())} that overflow to infinity, "
            f"the first at {place(bad, columns, numbers)}. Rescale {name}, or use "
            f"dtype=torch.float64.{rest}"
        )


def place(bad: Tensor, columns: Sequence[str] | None, numbers: Tensor | None = None) -> str:
    """Where the first marked entry is, in the words of its data.

    Args:
        bad: Which entries, ``(n, *event_shape)``; at least one.
        columns: Names of the features, where they have any.
        numbers: Row numbers, ``(n,)``; 0, 1, ... unless given.

    Example:
        >>> place(torch.tensor([[False, True]]), ("age", "height"))
        "row 0, column 'height'"
    """
    index: list[int] = bad.nonzero()[0].tolist()
    if numbers is not None:
        index[0] = int(numbers[index[0]])
    if len(index) > 2:
        return f"index {tuple(index)}"
    where = f"row {index[0]}"
    if len(index) == 2:
        where += f", column {index[1]}" if columns is None else f", column {columns[index[1]]!r}"
    return where
