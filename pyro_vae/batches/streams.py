"""Batches of a stream, which has no length and no row numbers."""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.seeding import seeded

from .batch import Batch, Part, bounds, do_nothing
from .loaders import FirstRows, opened, taken

__all__ = ["StreamBatches"]

logger = logging.getLogger(__name__)


class StreamBatches:
    """Batches of what an iterable yields; ``num_data`` rows make an epoch.

    Rows are put together anew, so that each batch but the last one of an epoch has ``batch_size``.
    A stream that is longer than ``num_data`` goes on in the next epoch where it stopped. One that
    ends within an epoch ends that epoch too, which is told once; the next epoch opens it again.
    The order is the stream's own: a fit to it can be repeated only if that is.

    Args:
        stream: Can be iterated again from its start; a DataLoader with workers is read ahead.
        as_rows: From what it yields to rows, ``(n, *event_shape)``.
        num_data: Rows of an epoch.
        batch_size: Rows of a batch.
        prepare: Checks one batch and puts it on the device.
        merge_single: Add a last batch of one row to the batch before it.
        part: From row numbers in a batch to those that this process takes; all unless given. Every
            process must read the same rows, in the same order, all of them: the stream must not
            give each process its share. Numbers that it does not draw from torch's global random
            state it has to seed alike itself.
        seed: What a stream draws from torch's global random state, to shuffle for one, is a
            function of this, the epoch, and the place in it.

    Example:
        >>> batches = StreamBatches(
        ...     [torch.zeros(3, 2), torch.ones(4, 2)],
        ...     as_rows=lambda rows: rows,
        ...     num_data=7,
        ...     batch_size=5,
        ...     prepare=lambda rows: rows,
        ... )
        >>> [batch.x[:, 0].tolist() for batch in batches.epoch(0)]
        [[0.0, 0.0, 0.0, 1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(
        self,
        stream: Iterable[Any],
        *,
        as_rows: Callable[[Any], Tensor],
        num_data: int,
        batch_size: int,
        prepare: Callable[[Any], Tensor],
        merge_single: bool = False,
        part: Part | None = None,
        seed: int = 0,
    ) -> None:
        self._stream, self._as_rows, self._num_data = stream, as_rows, num_data
        self._prepare, self._merge_single, self._part = prepare, merge_single, part
        self._seed = seed
        self._sizes = [
            stop - start for start, stop in bounds(num_data, batch_size, merge_single=merge_single)
        ]
        self._first = FirstRows()
        self._open: Generator[Any, None, None] | None = None
        self._left: list[Tensor] = []
        self._has_told = False

    def __len__(self) -> int:
        return len(self._sizes)

    def epoch(
        self, index: int, *, start: int = 0, at_start: Callable[[], None] = do_nothing
    ) -> Generator[Batch, None, None]:
        """The batches of one epoch; those before ``start`` are read too, and left out."""
        num_read = 0
        if start == 0:
            at_start()
        for number, size in enumerate(self._sizes):
            rows = self._next(size, index, number)
            if rows is None and num_read == 0:  # it ended with the epoch before
                rows = self._next(size, index, number)
            if rows is None and num_read == 0:
                raise ValueError("x must have at least one row; got a stream without any.")
            num_rows = 0 if rows is None else len(rows)
            num_read += num_rows
            if rows is not None and not (self._merge_single and num_rows == 1 < size):
                x = self._prepare(rows)
                self._first.add(x)
                if number >= start:
                    yield Batch(taken(x, self._part), None, len(x))
                elif number == start - 1:
                    at_start()
            if num_rows < size:
                self._tell(num_read, index)
                break
        self._first.is_full = True

    def some_rows(self) -> Batch:
        """The first rows that the first epoch brought."""
        return self._first.batch()

    def state(self) -> dict[str, Tensor]:
        """The rows to evaluate on: where a stream stands it alone knows."""
        return self._first.state()

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take over the rows to evaluate on; the stream is read from its start, which is told."""
        self._first.restore(state, device)
        logger.warning(
            "x is read from its start: a stream cannot say where it stood when the fit stopped. "
            "The fit is the uninterrupted one only where an epoch is the whole stream."
        )

    def digest(self) -> str:
        """How many rows an epoch has: a stream cannot be read twice."""
        return f"a stream of {self._num_data} rows an epoch"

    def close(self) -> None:
        """Close the stream; a further epoch opens it again."""
        if self._open is not None:
            self._open.close()
        self._open, self._left = None, []

    def _next(self, size: int, index: int, number: int) -> Tensor | None:
        """The next rows, fewer where the stream ends, None where it has ended."""
        if self._open is None:
            self._open = _opened(self._stream)
        num_rows = sum(map(len, self._left))
        # The noise of each process is its own, and what was read before a fit was stopped has to
        # be read again without it.
        with seeded(self._seed, "order of a stream", index, number):
            while num_rows < size:
                try:
                    block = self._as_rows(next(self._open))
                except StopIteration:
                    self._open = None
                    break
                self._left.append(block)
                num_rows += len(block)
        if num_rows == 0:
            return None
        rows = torch.cat(self._left) if len(self._left) > 1 else self._left[0]
        self._left = [rows[size:]] if num_rows > size else []
        return rows[:size]

    def _tell(self, num_read: int, index: int) -> None:
        if not self._has_told:
            logger.warning(
                "x ended after %d of the num_data = %d rows of epoch %d, which ends there; the "
                "next epoch reads it from its start.",
                num_read,
                self._num_data,
                index + 1,
            )
        self._has_told = True


def _opened(stream: Iterable[Any]) -> Generator[Any, None, None]:
    if isinstance(stream, DataLoader):
        yield from opened(stream)
    else:
        yield from stream
