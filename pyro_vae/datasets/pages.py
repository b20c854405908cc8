"""The pages of a mapped file that stay in a process's memory after they were read."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

__all__ = ["Pages"]

MAX_RESIDENT_BYTES = 2**28
"""Pages of a larger file are given back to the system when about so much of them was read."""

READ_AROUND_BYTES = 2**16
"""What Linux maps around an address that was read, if the file is in its cache."""


class Pages:
    """Gives pages of a read-only map back, so that a process does not grow to the file's size.

    The pages stay in the system's cache as long as there is room: reading them again costs no
    reading from the disk. Maps that can be written to are left alone, since changes to a private
    one would be lost.

    Args:
        array: A ``numpy.memmap``, or any other array, for which nothing is done.

    Example:
        >>> pages = Pages(np.zeros((5, 2)))
        >>> pages.have_read(3)
    """

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._map = _read_only_map(array) if array.nbytes > MAX_RESIDENT_BYTES else None
        self._row_bytes = array.itemsize * math.prod(array.shape[1:])
        self._read = 0

    def have_read(self, num_rows: int, *, scattered: bool = False) -> None:
        """Count rows that were read; give the pages back where they are many.

        Args:
            num_rows: How many rows.
            scattered: Whether they lie apart, so that each brought its neighborhood with it.
        """
        if self._map is None:
            return
        self._read += num_rows * (self._row_bytes + (READ_AROUND_BYTES if scattered else 0))
        if self._read >= MAX_RESIDENT_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0


def _read_only_map(array: np.ndarray[Any, Any]) -> mmap.mmap | None:
    if getattr(array, "mode", None) != "r" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    return owner
