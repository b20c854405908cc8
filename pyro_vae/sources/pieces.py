"""Data of the kinds that are not treated as a whole: in files, and large ones in memory."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from pyro_vae.batches import as_row, first
from pyro_vae.batches.batch import MAX_EVALUATED
from pyro_vae.datasets import Dataset, MappedDataset
from pyro_vae.datasets.arrays import REAL_DTYPES, shared

from .scan import Sample

__all__ = ["entries", "in_pieces", "looked_at", "mapped", "own_tensor"]

MAX_WHOLE_BYTES = 2**26
"""Larger data in memory are checked in pieces: a check of the whole takes more of it."""

PIECE_NUMBERS = 2**21
"""Numbers in a piece, 16 MiB in double precision."""


def mapped(x: Any, name: str) -> MappedDataset | None:
    """Data in a file that is mapped into memory; None if x is anything else.

    Example:
        >>> mapped(np.zeros((2, 3)), "x") is None
        True
    """
    if isinstance(x, np.memmap):
        return MappedDataset(name, x)
    return x if isinstance(x, MappedDataset) else None


def entries(dataset: TorchDataset[Any], rows: Tensor) -> Tensor:
    """The x of some entries of a torch Dataset, ``(n, *event_shape)``.

    Example:
        >>> entries([(torch.tensor([1.0]), "a"), (torch.tensor([2.0]), "b")], torch.tensor([1, 0]))
        tensor([[2.],
                [1.]])
    """
    return torch.stack([as_row(first(dataset[i])) for i in rows.tolist()])


def in_pieces(x: Any) -> Iterator[tuple[Tensor, Any, Tensor]] | None:
    """Large data in memory piece by piece; None for what is better checked whole.

    Returns:
        Row numbers, a piece as a user would pass it, and its values in x's own memory.

    Example:
        >>> in_pieces(torch.zeros(5, 2)) is None
        True
    """
    if type(x) not in {Tensor, np.ndarray} and not isinstance(x, Dataset):
        return None
    values = x.x if isinstance(x, Dataset) else x
    if isinstance(values, Tensor) and values.layout != torch.strided:  # which has no nbytes
        return None
    if values.ndim < 1 or values.nbytes <= MAX_WHOLE_BYTES:
        return None
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "buif" or values.dtype.itemsize > 8:
            return None
    elif values.device.type == "meta" or values.dtype not in REAL_DTYPES:
        return None
    return _cut(x, values)


def own_tensor(x: Any) -> Tensor:
    """The tensor over the memory of such data.

    Example:
        >>> x = np.zeros((5, 2))
        >>> own_tensor(x).data_ptr() == x.ctypes.data
        True
    """
    values = x.x if isinstance(x, Dataset) else x
    return values.detach() if isinstance(values, Tensor) else shared(values)


def looked_at(x: Tensor) -> Tensor:
    """x, or rows that stand for it where it is large: see :class:`Sample`.

    Example:
        >>> x = torch.zeros(5, 2)
        >>> looked_at(x) is x
        True
    """
    if x.nbytes <= MAX_WHOLE_BYTES or len(x) <= MAX_EVALUATED:
        return x
    sample = Sample(len(x))
    for piece in x.split(_size(x)):
        sample.add(piece)
    return sample.x


def _cut(x: Any, values: Any) -> Iterator[tuple[Tensor, Any, Tensor]]:
    size = _size(values)
    for start in range(0, len(values), size):
        stop = min(start + size, len(values))
        piece = x.subset(slice(start, stop)) if isinstance(x, Dataset) else x[start:stop]
        yield torch.arange(start, stop, device="cpu"), piece, own_tensor(values[start:stop])


def _size(values: Any) -> int:
    return max(1, PIECE_NUMBERS // max(1, math.prod(values.shape[1:])))
