"""Which rows of the data a batch holds, for parts that have parameters for each datum."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["PerDatumPart", "at_rows", "per_datum_parts", "pieces"]


@runtime_checkable
class PerDatumPart(Protocol):
    """A module that knows data by their row numbers, as ``guides.PerDatumGuide`` does."""

    @property
    def num_rows(self) -> int:
        """Number of rows that x must have now."""

    def at_rows(self, index: Any) -> AbstractContextManager[None]:
        """Say which of those rows come next, while the block lasts."""


def per_datum_parts(programs: object) -> list[PerDatumPart]:
    """The modules of model and guide that have parameters for each datum.

    Example:
        >>> per_datum_parts(nn.Linear(2, 1))
        []
    """
    modules = programs.modules() if isinstance(programs, nn.Module) else ()
    return [module for module in modules if isinstance(module, PerDatumPart)]


@contextmanager
def at_rows(parts: Sequence[PerDatumPart], index: Tensor | None) -> Iterator[None]:
    """Tell parts which rows come next, while the block lasts.

    Args:
        parts: What :func:`per_datum_parts` found.
        index: Row numbers, or None where nobody knows them: a part then takes x for all its rows.
    """
    with ExitStack() as stack:
        for part in parts if index is not None else ():
            stack.enter_context(part.at_rows(index))
        yield


def pieces(
    parts: Sequence[PerDatumPart], x: Tensor, size: int, *, rows: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut x into pieces of at most ``size`` rows, each with its row numbers for :func:`at_rows`.

    Args:
        parts: What :func:`per_datum_parts` found.
        x: Data, ``(N, *event_shape)``.
        size: Largest number of rows in a piece.
        rows: Row numbers of x where x is not all the data.

    Raises:
        ValueError: If x is all the data, and a part has parameters for another number of them.

    Example:
        >>> [index.tolist() for _, index in pieces([], torch.zeros(5, 2), 2)]
        [[0, 1], [2, 3], [4]]
    """
    if rows is None:
        for part in parts:
            if part.num_rows != len(x):
                raise ValueError(
                    f"x must be the {part.num_rows} rows whose parameters "
                    f"{type(part).__name__} holds, in their order; got {len(x)} rows. For some "
                    "of them wrap the call in guide.at_rows(index)."
                )
        rows = torch.arange(len(x), device=x.device)
    yield from zip(x.split(size), rows.split(size), strict=True)
