"""Batches of a tensor."""

from collections.abc import Callable, Generator, Mapping

import torch
from torch import Tensor

from .batch import Batch, Part, bounds, digest, do_nothing, epoch_order, evaluated_rows

__all__ = ["TensorBatches"]

ROWS_AT_A_TIME = 1000


class TensorBatches:
    """Rows of one tensor in a new random order each epoch.

    The order is a function of seed and epoch, so it needs no state to resume from. Besides the
    data it takes 8 bytes a row. Nothing is read ahead: taking the rows is a small part of a step.

    Args:
        x: Data, ``(N, *event_shape)``, on the device where they are used.
        batch_size: Rows in a batch; the last batch of an epoch holds what is left.
        seed: Seed of the order.
        merge_single: Add a last batch of one row to the batch before it, for networks that
            normalize over the batch.
        part: From a batch's row numbers to those that this process takes; all unless given.

    Example:
        >>> x = torch.arange(5.0)[:, None]
        >>> batches = TensorBatches(x, batch_size=2, seed=0)
        >>> len(batches), sorted(row for batch in batches.epoch(0) for row in batch.rows.tolist())
        (3, [0, 1, 2, 3, 4])
    """

    def __init__(
        self,
        x: Tensor,
        *,
        batch_size: int,
        seed: int,
        merge_single: bool = False,
        part: Part | None = None,
    ) -> None:
        self.x = x
        self._seed, self._part = seed, part
        self._bounds = bounds(len(x), batch_size, merge_single=merge_single)

    def __len__(self) -> int:
        return len(self._bounds)

    def epoch(
        self, index: int, *, start: int = 0, at_start: Callable[[], None] = do_nothing
    ) -> Generator[Batch, None, None]:
        """The batches of one epoch."""
        order = epoch_order(len(self.x), self._seed, index).to(self.x.device)
        at_start()
        for first, stop in self._bounds[start:]:
            rows = order[first:stop]
            if self._part is not None:
                rows = self._part(rows)
            yield Batch(self.x.index_select(0, rows), rows, stop - first)

    def some_rows(self) -> Batch:
        """All rows, or a random part of them where there are many; the same on every process."""
        rows = evaluated_rows(len(self.x), self._seed)
        if rows is None:
            return Batch(self.x, None, len(self.x))
        rows = rows.to(self.x.device)
        return Batch(self.x.index_select(0, rows), rows, len(rows))

    def state(self) -> dict[str, Tensor]:
        """Nothing: the order is a function of seed and epoch."""
        return {}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Nothing to take over."""

    def digest(self) -> str:
        """The data in words, with their sha256."""
        return digest(self.x.split(ROWS_AT_A_TIME), len(self.x))

    def close(self) -> None:
        """Nothing is open."""
