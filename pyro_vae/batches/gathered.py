"""Batches of rows that are read when their turn comes."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing

import torch
from torch import Tensor

from pyro_vae.seeding import seeded

from .batch import Batch, Part, bounds, digest, do_nothing, epoch_order, evaluated_rows
from .prefetch import moved, pinned, prefetched

__all__ = ["GatheredBatches"]

ROWS_AT_A_TIME = 1000


class GatheredBatches:
    """Rows that a function reads, in the order that :class:`TensorBatches` has for a tensor.

    While a step runs, a thread reads the next two batches. On a GPU they are pinned and copied
    without waiting (which has not been run for want of one).

    Args:
        gather: From row numbers, ``(n,)`` on the CPU, to x there, ``(n, *event_shape)``, checked.
        num_data: Number of rows N.
        device: Where the batches go.
        batch_size: Rows in a batch; the last batch of an epoch holds what is left.
        seed: Seed of the order.
        merge_single: Add a last batch of one row to the batch before it.
        part: From a batch's row numbers to those that this process takes; all unless given.
        ahead: Read ahead. Not where ``gather`` may draw from the global random state.

    Example:
        >>> x = torch.arange(5.0)[:, None]
        >>> made = GatheredBatches(x.__getitem__, 5, device=x.device, batch_size=2, seed=0)
        >>> all(torch.equal(x[batch.rows], batch.x) for batch in made.epoch(0))
        True
    """

    def __init__(
        self,
        gather: Callable[[Tensor], Tensor],
        num_data: int,
        *,
        device: torch.device,
        batch_size: int,
        seed: int,
        merge_single: bool = False,
        part: Part | None = None,
        ahead: bool = True,
    ) -> None:
        self._gather, self._num_data, self._device = gather, num_data, device
        self._seed, self._part, self._ahead = seed, part, ahead
        self._bounds = bounds(num_data, batch_size, merge_single=merge_single)
        self._some: Batch | None = None

    def __len__(self) -> int:
        return len(self._bounds)

    def epoch(
        self, index: int, *, start: int = 0, at_start: Callable[[], None] = do_nothing
    ) -> Generator[Batch, None, None]:
        """The batches of one epoch."""
        at_start()
        read = self._read(epoch_order(self._num_data, self._seed, index), start)
        with closing(prefetched(read) if self._ahead else read) as batches:
            for x, rows, num_global in batches:
                yield Batch(moved(x, self._device), moved(rows, self._device), num_global)

    def some_rows(self) -> Batch:
        """All rows, or a random part of them where there are many; read once and kept."""
        if self._some is None:
            rows = evaluated_rows(self._num_data, self._seed)
            every = torch.arange(self._num_data, device="cpu")
            # A dataset that draws must not change the global random state here.
            with seeded(self._seed, "reading evaluated rows"):
                x = self._gather(every if rows is None else rows).to(self._device)
            self._some = Batch(x, None if rows is None else rows.to(self._device), len(x))
        return self._some

    def state(self) -> dict[str, Tensor]:
        """Nothing: the order is a function of seed and epoch."""
        return {}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Nothing to take over."""

    def digest(self) -> str:
        """The data in words, with their sha256: a pass over all of them."""
        rows = torch.arange(self._num_data, device="cpu")
        with seeded(self._seed, "reading for a digest"):
            return digest(map(self._gather, rows.split(ROWS_AT_A_TIME)), self._num_data)

    def close(self) -> None:
        """Nothing is open between epochs."""

    def _read(
        self, order: Tensor, start: int
    ) -> Generator[tuple[Tensor, Tensor, int], None, None]:
        for first, stop in self._bounds[start:]:
            rows = order[first:stop]
            if self._part is not None:
                rows = self._part(rows)
            # Checks refuse data without rows, which a part of a batch may be.
            x = self._gather(rows) if len(rows) else self._gather(order[:1])[:0]
            yield pinned(x, self._device), pinned(rows, self._device), stop - first
