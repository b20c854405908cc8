"""A batch, what training reads batches from, and the order of an epoch."""

from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_vae.seeding import generator

__all__ = ["Batch", "Batches", "Part", "bounds", "epoch_order", "evaluated_rows"]

MAX_EVALUATED = 2000
"""Training rows on which an epoch's ELBO is evaluated. On Fashion-MNIST their standard error is
about a nat, and an epoch takes about 1 % longer."""

Part = Callable[[Tensor], Tensor]
"""From a batch's row numbers to those of them that this process takes."""


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

    def epoch(self, index: int) -> Generator[Batch, None, None]:
        """The batches of one epoch, a function of ``index`` alone where that is possible.

        Close the generator where an epoch is left before its end: a thread may read ahead.
        """

    def some_rows(self) -> Batch:
        """At most ``MAX_EVALUATED`` rows to evaluate on, the same ones after every epoch."""

    def close(self) -> None:
        """Let go of what is open between epochs, such as a stream."""


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
