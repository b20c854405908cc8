"""Batches of a torch DataLoader."""

import itertools
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from pyro_vae.seeding import seeded

from . import batch as limits
from .batch import Batch, Part, bounds, digest, do_nothing
from .prefetch import END, prefetched
from .torch_data import as_row, first

__all__ = ["FirstRows", "LoaderBatches", "opened", "taken"]


class LoaderBatches:
    """Batches of a torch DataLoader, each checked and moved as it comes.

    The order is the loader's own. A loader with workers is read ahead by a thread. One without
    runs its dataset in this process, where it may draw from the global random state that the noise
    of the steps comes from too: it is read between the steps.

    Args:
        loader: Yields tensors, or tuples whose first entry is x.
        prepare: Checks one batch and puts it on the device.
        merge_single: Add a last batch of one row to the batch before it; one batch is then read
            ahead.
        part: From row numbers in a batch to those that this process takes; the loaders of all
            processes have to yield the same batches then. All unless given.
        seed: What a loader draws from torch's global random state, its order for one, is a
            function of this, the epoch, and the place in it.

    Raises:
        ValueError: If the loader has no batches, or yields a part already where ``part`` is given.

    Example:
        >>> loader = DataLoader(torch.zeros(5, 2), batch_size=3)
        >>> batches = LoaderBatches(loader, prepare=lambda rows: rows)
        >>> [batch.num_global for batch in batches.epoch(0)]
        [3, 2]
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        prepare: Callable[[Any], Tensor],
        merge_single: bool = False,
        part: Part | None = None,
        seed: int = 0,
    ) -> None:
        self._loader, self._prepare = loader, prepare
        self._merge_single, self._part, self._seed = merge_single, part, seed
        self._first = FirstRows()
        self._state: dict[str, Tensor] | None = None
        if len(loader) == 0:
            raise ValueError("x must have at least one batch; got a DataLoader without any.")
        if part is not None and _is_a_part(loader):
            raise ValueError(
                "x must yield the same batches on every process; got a DataLoader with a "
                "DistributedSampler. Leave the sampler out: fit gives each process its part."
            )

    def __len__(self) -> int:
        size = self._loader.batch_size
        if not self._merge_single or size is None or self._loader.drop_last:
            return len(self._loader)
        num_data = len(self._loader.sampler)  # type: ignore[arg-type]
        return len(bounds(num_data, size, merge_single=True))

    def epoch(
        self, index: int, *, start: int = 0, at_start: Callable[[], None] = do_nothing
    ) -> Generator[Batch, None, None]:
        """The batches of one epoch; those before ``start`` are read too, and left out."""
        self._state = self._generator_states()
        if start == 0:
            at_start()
        with closing(self._read(index)) as read:
            for number, x in enumerate(read):
                self._first.add(x)
                if number >= start:
                    yield Batch(taken(x, self._part), None, len(x))
                elif number == start - 1:
                    at_start()
        self._first.is_full = True
        self._state = None

    def some_rows(self) -> Batch:
        """The first rows that the first epoch brought."""
        return self._first.batch()

    def state(self) -> dict[str, Tensor]:
        """States of the generators that the loader and its samplers have of their own."""
        own = self._generator_states() if self._state is None else self._state
        return {**own, **self._first.state()}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Put the generators into the states that :meth:`state` returned."""
        self._first.restore(state, device)
        generators = self._generators()
        for name in generators.keys() & state.keys():
            generators[name].set_state(state[name].clone())

    def digest(self) -> str:
        """The loader in words, with the sha256 of its dataset's x where that can be indexed.

        The rows are read one by one in their order, not through the loader, whose generators stay
        as they are. A dataset that draws at random has another digest each time, unless it draws
        from torch's global random state; one that has no rows by number has no sum.
        """
        loader, dataset = self._loader, self._loader.dataset
        words = f"a DataLoader of {len(self)} batches"
        try:
            num_data = len(dataset)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return f"{words}, {_kind(dataset)}"
        words += (
            f" (batch_size={loader.batch_size}, drop_last={loader.drop_last}, "
            f"{_kind(loader.sampler)}, {_kind(loader.batch_sampler)}) over a {_kind(dataset)} of "
            f"length {num_data}"
        )
        if not hasattr(dataset, "__getitem__"):
            return words
        rows = (as_row(first(dataset[i]))[None] for i in range(num_data))
        try:
            with seeded(self._seed, "reading for a digest"):
                return f"{words}, {digest(rows, num_data)}"
        # Whatever a dataset of the user's raises: its loader need not index it so.
        except Exception:  # noqa: BLE001
            return words

    def close(self) -> None:
        """Nothing is open between epochs."""

    def _generators(self) -> dict[str, torch.Generator]:
        sampler = self._loader.sampler
        inner = getattr(self._loader.batch_sampler, "sampler", None)
        owners = {"loader": self._loader, "sampler": sampler, "inner sampler": inner}
        found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
        return {name: each for name, each in found.items() if isinstance(each, torch.Generator)}

    def _generator_states(self) -> dict[str, Tensor]:
        return {name: each.get_state() for name, each in self._generators().items()}

    def _read(self, index: int) -> Generator[Tensor, None, None]:
        with closing(self._opened(index)) as batches:
            waiting: list[Tensor] = []
            for batch in batches:
                waiting.append(self._prepare(first(batch)))
                # Whether a batch is the last one shows when the next one does not come.
                num_kept = 0 if not self._merge_single else 2 if len(waiting[-1]) == 1 else 1
                while len(waiting) > num_kept:
                    yield waiting.pop(0)
            if waiting:
                yield torch.cat(waiting) if len(waiting) > 1 else waiting[0]

    def _opened(self, index: int) -> Generator[Any, None, None]:
        with closing(opened(self._loader)) as batches:
            # A loader that shuffles draws its order from the global random state, most at the
            # first batch. The noise of each process is its own, and what was read before a fit
            # was stopped has to be read again without it.
            for block in itertools.count():
                with seeded(self._seed, "order of a loader", index, block):
                    batch = next(batches, END)
                if batch is END:
                    return
                yield batch


def _kind(value: Any) -> str:
    return type(value).__name__


def _is_a_part(loader: DataLoader[Any]) -> bool:
    samplers = loader.sampler, getattr(loader.batch_sampler, "sampler", None)
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)


class FirstRows:
    """The first rows that came by, for want of row numbers to choose others by.

    Attributes:
        is_full: Whether no more are taken.

    Example:
        >>> rows = FirstRows()
        >>> rows.add(torch.zeros(3, 2))
        >>> rows.batch().num_global
        3
    """

    def __init__(self) -> None:
        self._seen: list[Tensor] = []
        self.is_full = False

    def add(self, x: Tensor) -> None:
        """Keep the rows of x while they are needed."""
        if not self.is_full:
            self._seen.append(x)
            self.is_full = sum(map(len, self._seen)) >= limits.MAX_EVALUATED

    def state(self) -> dict[str, Tensor]:
        """They, once no more are taken."""
        return {"first rows": self.batch().x} if self.is_full else {}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take over what :meth:`state` returned."""
        if "first rows" in state:
            self._seen, self.is_full = [state["first rows"].to(device)], True

    def batch(self) -> Batch:
        """At most ``MAX_EVALUATED`` of them."""
        x = torch.cat(self._seen)[: limits.MAX_EVALUATED]
        return Batch(x, None, len(x))


def opened(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """What a loader yields, read ahead if it has workers.

    Example:
        >>> [len(rows) for rows in opened(DataLoader(torch.zeros(5, 2), batch_size=3))]
        [3, 2]
    """
    # The loader draws its seed on the default device, which may be none with numbers on it.
    with torch.device("cpu"):
        batches = iter(loader)
    yield from prefetched(batches) if loader.num_workers else batches


def taken(x: Tensor, part: Part | None) -> Tensor:
    """The rows of a batch that this process takes.

    Example:
        >>> taken(torch.tensor([1.0, 2.0, 3.0]), lambda rows: rows[1:])
        tensor([2., 3.])
    """
    if part is None:
        return x
    return x.index_select(0, part(torch.arange(len(x), device=x.device)))
