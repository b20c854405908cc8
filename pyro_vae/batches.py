"""Batches of data for training: from one tensor, or from a torch DataLoader."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from pyro_vae.seeding import generator

__all__ = ["Batch", "Batches", "LoaderBatches", "TensorBatches", "first", "stacked"]

MAX_EVALUATED = 2000
"""Training rows on which an epoch's ELBO is evaluated. On Fashion-MNIST their standard error is
about a nat, and an epoch takes about 1 % longer."""

MAX_STACKED_BYTES = 2**31
"""A torch Dataset up to this size is read once into one tensor, not row by row each epoch."""


class Batch(NamedTuple):
    """Some of the data.

    Attributes:
        x: The data, ``(B, *event_shape)``.
        rows: Their row numbers, ``(B,)``, or None where nobody knows them.
    """

    x: Tensor
    rows: Tensor | None


class Batches(Protocol):
    """What training reads: some batches an epoch."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of one epoch, a function of ``index`` alone where that is possible."""

    def some_rows(self) -> Batch:
        """At most ``MAX_EVALUATED`` rows to evaluate on, the same ones after every epoch."""


class TensorBatches:
    """Rows of one tensor in a new random order each epoch.

    The order is a function of seed and epoch, so it needs no state to resume from.

    Args:
        x: Data, ``(N, *event_shape)``, on the device where they are used.
        batch_size: Rows in a batch; the last batch of an epoch holds what is left.
        seed: Seed of the order.
        merge_single: Add a last batch of one row to the batch before it, for networks that
            normalize over the batch.
    """

    def __init__(
        self, x: Tensor, *, batch_size: int, seed: int, merge_single: bool = False
    ) -> None:
        self.x = x
        self._seed = seed
        starts = list(range(0, len(x), batch_size))
        if merge_single and len(starts) > 1 and len(x) - starts[-1] == 1:
            starts.pop()
        self._bounds = list(zip(starts, [*starts[1:], len(x)], strict=True))

    def __len__(self) -> int:
        return len(self._bounds)

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        order = torch.randperm(
            len(self.x), generator=generator(self._seed, "order", index), device="cpu"
        ).to(self.x.device)
        for start, stop in self._bounds:
            rows = order[start:stop]
            yield Batch(self.x.index_select(0, rows), rows)

    def some_rows(self) -> Batch:
        """All rows, or a random part of them where there are many."""
        if len(self.x) <= MAX_EVALUATED:
            return Batch(self.x, None)
        chosen = torch.randperm(
            len(self.x), generator=generator(self._seed, "evaluated rows"), device="cpu"
        )[:MAX_EVALUATED].to(self.x.device)
        return Batch(self.x.index_select(0, chosen), chosen)


class LoaderBatches:
    """Batches of a torch DataLoader, each checked and moved as it comes.

    The order is the loader's own, and so is its randomness.

    Args:
        loader: Yields tensors, or tuples whose first entry is x.
        prepare: Checks one batch and puts it on the device.

    Raises:
        ValueError: If the loader has no batches.
    """

    def __init__(self, loader: DataLoader[Any], *, prepare: Callable[[Any], Tensor]) -> None:
        self._loader = loader
        self._prepare = prepare
        self._seen: list[Tensor] = []
        if len(loader) == 0:
            raise ValueError("x must have at least one batch; got a DataLoader without any.")

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        # The loader draws its seed on the default device, which may be none with numbers on it.
        with torch.device("cpu"):
            batches = iter(self._loader)
        for batch in batches:
            x = self._prepare(first(batch))
            if index == 0 and sum(map(len, self._seen)) < MAX_EVALUATED:
                self._seen.append(x)
            yield Batch(x, None)

    def some_rows(self) -> Batch:
        """The first rows that the first epoch brought."""
        return Batch(torch.cat(self._seen)[:MAX_EVALUATED], None)


def stacked(dataset: TorchDataset[Any]) -> Tensor | None:
    """All x of a torch Dataset as one tensor, or None where they would take too much memory.

    Args:
        dataset: Yields x, or tuples whose first entry is x.

    Raises:
        ValueError: If the dataset is empty.
        TypeError: If its entries are not tensors (or arrays, or numbers).

    Example:
        >>> stacked(TensorDataset(torch.zeros(3, 2), torch.ones(3))).shape
        torch.Size([3, 2])
    """
    num_data = len(dataset)  # type: ignore[arg-type]
    if num_data == 0:
        raise ValueError(
            "x must have at least one row, but the Dataset has no rows; got length 0."
        )
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[0]
    row = _as_row(first(dataset[0]))
    if num_data * math.prod(row.shape) * row.element_size() > MAX_STACKED_BYTES:
        return None
    return torch.stack([_as_row(first(dataset[i])) for i in range(num_data)])


def first(batch: Any) -> Any:
    """The x of what a torch Dataset or DataLoader yields: the first entry of a tuple, or all."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def _as_row(row: Any) -> Tensor:
    try:
        return torch.as_tensor(row, device="cpu")
    except (TypeError, RuntimeError, ValueError) as error:
        raise TypeError(
            f"x must be a Dataset of tensors; got an entry of type {type(row).__name__}. "
            "Give it a transform such as torchvision.transforms.ToTensor()."
        ) from error
