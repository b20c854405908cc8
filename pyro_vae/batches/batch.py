"""A batch, what training reads batches from, and the order of an epoch."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_vae.raw_bytes import raw_bytes
from pyro_vae.seeding import generator

__all__ = [
    "Batch",
    "Batches",
    "Part",
    "bounds",
    "digest",
    "do_nothing",
    "epoch_order",
    "evaluated_rows",
]

MAX_EVALUATED = 2000
"""Training rows on which an epoch's ELBO is evaluated. On Fashion-MNIST their standard error is
about a nat, and an epoch takes about 1 % longer."""

Part = Callable[[Tensor], Tensor]
"""From a batch's row numbers to those of them that this process takes."""


def do_nothing() -> None:
    """What is called where there is nothing to do.

    Example:
        >>> do_nothing()
    """


class Batch(NamedTuple):
    """Some of the data.

    Attributes:
        x: The data, ``(B, *event_shape)``; of several processes each has its part.
        rows: Their row numbers, ``(B,)``, or None where nobody knows them.
        num_global: Rows of the whole batch, over all processes.
    """

    x: Tensor
    rows: Tensor | None
    num_global: int


class Batches(Protocol):
    """What training reads: some batches an epoch."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""

    def epoch(
        self, index: int, *, start: int = 0, at_start: Callable[[], None] = do_nothing
    ) -> Generator[Batch, None, None]:
        """The batches of one epoch, a function of ``index`` alone where that is possible.

        Close the generator where an epoch is left before its end: a thread may read ahead.

        Args:
            index: Number of the epoch, from 0.
            start: Number of batches to leave out at its beginning.
            at_start: Called when they are left out, before the next one is made: reading may draw
                from the global random state.
        """

    def state(self) -> dict[str, Tensor]:
        """What else the order depends on, as it was at the beginning of the current epoch."""

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take over what :meth:`state` returned, before the epoch is read anew."""

    def some_rows(self) -> Batch:
        """At most ``MAX_EVALUATED`` rows to evaluate on, the same ones after every epoch."""

    def digest(self) -> str:
        """The data in words, with their sha256; without where they cannot be read twice."""

    def close(self) -> None:
        """Let go of what is open between epochs, such as a stream."""


def digest(pieces: Iterable[Tensor], num_data: int) -> str:
    """Data in words: rows, event shape, type, and the sha256 of their bytes in C order.

    Args:
        pieces: The data in pieces, in their order: ``(n, *event_shape)``.
        num_data: Number of rows N.

    Example:
        >>> digest([torch.zeros(2, 3), torch.zeros(1, 3)], 3)[:38]
        '3 rows of (3,), float32, sha256 6db65f'
    """
    found, kind = hashlib.sha256(), ""
    for piece in pieces:
        kind = f"{tuple(piece.shape[1:])}, {str(piece.dtype).removeprefix('torch.')}"
        values: Any = raw_bytes(piece.cpu()).numpy()
        found.update(values)
    return f"{num_data} rows of {kind}, sha256 {found.hexdigest()}"


def bounds(num_data: int, batch_size: int, *, merge_single: bool) -> list[tuple[int, int]]:
    """Where batches begin and end; the last one holds what is left.

    Args:
        num_data: Rows of an epoch.
        batch_size: Rows of a batch.
        merge_single: Add a last batch of one row to the batch before it.

    Example:
        >>> bounds(5, 2, merge_single=False), bounds(5, 2, merge_single=True)
        ([(0, 2), (2, 4), (4, 5)], [(0, 2), (2, 5)])
    """
    starts = list(range(0, num_data, batch_size))
    if merge_single and len(starts) > 1 and num_data - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_data], strict=True))


def epoch_order(num_data: int, seed: int, index: int) -> Tensor:
    """The order of the rows in an epoch, ``(N,)`` on the CPU: 8 N bytes.

    Example:
        >>> epoch_order(5, 0, 1).sort().values
        tensor([0, 1, 2, 3, 4])
    """
    return torch.randperm(num_data, generator=generator(seed, "order", index), device="cpu")


def evaluated_rows(num_data: int, seed: int) -> Tensor | None:
    """Numbers of the rows to evaluate on; None for all, where they are few.

    Example:
        >>> evaluated_rows(5, 0) is None, len(evaluated_rows(5000, 0))
        (True, 2000)
    """
    if num_data <= MAX_EVALUATED:
        return None
    order = torch.randperm(num_data, generator=generator(seed, "evaluated rows"), device="cpu")
    return order[:MAX_EVALUATED].clone()
