"""A pass over data that checks them piece by piece."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.batches.batch import MAX_EVALUATED
from pyro_vae.datasets import CheckedArray, FiniteScan

__all__ = ["Sample", "checked_pieces"]

MAX_SAMPLE_BYTES = 2**28
"""Most memory of a sample."""


def checked_pieces(
    pieces: Iterable[tuple[Tensor, Any, Tensor]],
    prepare: Callable[[Any], CheckedArray],
    *,
    num_data: int,
    name: str,
    missing: bool = False,
) -> Iterator[tuple[Tensor, CheckedArray]]:
    """Check data piece by piece, as if they were checked whole.

    What is not finite is counted over all of them. Other errors are those of the first piece that
    has one, with the row numbers of the whole.

    Args:
        pieces: Row numbers, ``(n,)``; the piece as a user would pass it; its values as a tensor.
        prepare: Checks one piece and casts it.
        num_data: Number of rows N of the whole.
        name: What to call the data.
        missing: Whether NaN is a missing value.

    Returns:
        Each piece's values before and after ``prepare``.

    Raises:
        ValueError: If a value is not finite, or ``prepare`` refuses a piece.

    Example:
        >>> from pyro_vae.datasets import as_tensor
        >>> x = torch.tensor([[1.0], [2.0], [float("nan")]])
        >>> pieces = ((torch.tensor([i]), x[i : i + 1], x[i : i + 1]) for i in range(3))
        >>> [checked.tensor.item() for _, checked in checked_pieces(
        ...     pieces, as_tensor, num_data=3, name="x")]
        Traceback (most recent call last):
        ValueError: x must not contain NaN; got 1, the first at row 2, column 0. Drop or impute
        those rows, or model the values as missing, mask="nan" in pyro_vae.fit: nothing is dropped
        silently.
    """
    finite: FiniteScan | None = None
    for numbers, piece, values in pieces:
        if finite is None:
            finite = FiniteScan(getattr(piece, "columns", None), name, missing=missing)
        finite.add(values, numbers)
        if finite.found:  # the rest is only counted
            continue
        try:
            checked = prepare(piece)
        except ValueError as error:
            raise ValueError(_of_the_whole(str(error), values, numbers, num_data)) from error
        yield values, checked
    if finite is not None:
        finite.check()


def _of_the_whole(text: str, values: Tensor, numbers: Tensor, num_data: int) -> str:
    """An error about a piece in the words of the whole."""
    text = text.replace(str(tuple(values.shape)), str((num_data, *values.shape[1:])))

    def numbered(found: re.Match[str]) -> str:
        return found[1] + str(int(numbers[int(found[2])]))

    moved = re.sub(r"(\bat (?:row |index \())(\d+)", numbered, text)
    if moved == text or len(values) == num_data:
        return moved
    first, last = int(numbers[0]), int(numbers[-1])
    return f"{moved} That is of rows {first} to {last}; those after them are not checked yet."


class Sample:
    """Rows that stand for all in a look at what data are like: which features vary, for one.

    They are at most 2000 rows at even distances, and rows in which those features vary that do not
    among them. So a feature is constant in the sample if and only if it is in the data. Rows are
    fewer where they are so long that the sample would take more than 256 MiB: each kind has half
    of that. What is left out of the second kind can make a feature look constant that varies in
    few rows.

    Where values are missing, which is NaN, this is of the observed ones.

    Args:
        num_data: Number of rows N of the whole.

    Example:
        >>> sample = Sample(3)
        >>> sample.add(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
        >>> sample.add(torch.tensor([[0.0, 3.0]]))
        >>> sample.x.shape
        torch.Size([3, 2])
    """

    def __init__(self, num_data: int) -> None:
        self._num_data = num_data
        self._seen, self._num_varying = 0, 0
        self._rows: list[Tensor] = []
        self._start: Tensor | None = None
        self._constant: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Look at a piece, ``(n, *event_shape)``."""
        if len(x) == 0:
            return
        limit = max(1, MAX_SAMPLE_BYTES // 2 // max(1, x[0].nbytes))
        step = -(-self._num_data // min(MAX_EVALUATED, limit))
        # Copies, or the sample would keep whole pieces alive.
        self._keep(x[-self._seen % step :: step].clone())
        self._seen += len(x)
        # Twice where a feature is met first: the second look finds what differs from the first.
        for _ in range(0 if step == 1 else 1 + self._is_unmet()):
            varying = self._newly_varying(x)[: limit - self._num_varying]
            self._num_varying += len(varying)
            self._keep(x.index_select(0, varying))

    @property
    def x(self) -> Tensor:
        """The sample, ``(S, *event_shape)``."""
        return torch.cat(self._rows)

    def _keep(self, x: Tensor) -> None:
        if len(x) == 0:
            return
        self._rows.append(x)
        flat = x.reshape(len(x), -1)
        if self._start is None or self._constant is None:
            self._start, self._constant = flat[0], torch.ones_like(flat[0], dtype=torch.bool)
        if self._is_unmet():
            observed = ~flat.isnan()
            first = flat.gather(0, observed.int().argmax(0, keepdim=True))[0]
            self._start = torch.where(self._start.isnan(), first, self._start)
        self._constant &= ((flat == self._start) | flat.isnan()).all(0)

    def _is_unmet(self) -> bool:
        """Whether some feature has no observed value so far."""
        return self._start is not None and bool(self._start.isnan().any())

    def _newly_varying(self, x: Tensor) -> Tensor:
        """For each feature that is constant so far, the first row where it is not.

        For one without an observed value so far that is the first row that has one.
        """
        if self._start is None or self._constant is None or not self._constant.any():
            return torch.arange(0, device=x.device)
        features = self._constant.nonzero().flatten()
        flat = x.reshape(len(x), -1).index_select(1, features)
        differs = (flat != self._start[features]) & ~flat.isnan()
        return differs.int().argmax(0)[differs.any(0)].unique()
