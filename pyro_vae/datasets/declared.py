"""What a file declares of its size, held against what there is, before memory is taken for it."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

__all__ = ["check_cells", "check_npy", "check_unpacked"]

MAX_UNPACKED_BYTES = 2**30
"""An array of an archive may always unpack to so much."""

MAX_RATIO = 100
"""An array may unpack to more if that is not more than so many times its compressed size."""

CELL_BYTES = 8

READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""By version of the format. The third is for names of fields, which plain numbers have not."""


def check_npy(file: IO[bytes], size: int) -> None:
    """Refuse an array whose header declares more, or other things, than the file can hold.

    Args:
        file: The array in numpy's format, from its beginning; the header is read.
        size: Bytes in the file.

    Raises:
        ValueError: If the header is none, or declares objects or more bytes than there are.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> np.lib.format.write_array_header_1_0(
        ...     file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 2)}
        ... )
        >>> _ = file.seek(0)
        >>> check_npy(file, 128)
        Traceback (most recent call last):
        ValueError: the header declares shape (1000000000000, 2) of float64, 16000000000128 bytes;
        there are 128
    """
    version = np.lib.format.read_magic(file)
    if version not in READERS:
        raise ValueError(f"an array of plain numbers has format 1.0 or 2.0, not {version}")
    shape, _, dtype = READERS[version](file)
    if dtype.hasobject:
        raise ValueError("the array holds objects")
    if dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"the header declares shape {shape} of {dtype.itemsize} bytes each")
    needed = file.tell() + math.prod(shape) * dtype.itemsize
    if needed > size:
        raise ValueError(
            f"the header declares shape {shape} of {dtype}, {needed} bytes; there are {size}"
        )


def check_unpacked(member: zipfile.ZipInfo, size: int) -> None:
    """Refuse a member of an archive that is small on disk and enormous in memory.

    Args:
        member: What the archive declares of it.
        size: Bytes in the archive.

    Raises:
        ValueError: If it is beyond both limits.

    Example:
        >>> bomb = zipfile.ZipInfo("x.npy")
        >>> bomb.file_size, bomb.compress_size = 10**10, 10**7
        >>> check_unpacked(bomb, 10**7)
        Traceback (most recent call last):
        ValueError: x.npy unpacks from 10000000 bytes to 10000000000, more than 1 GiB and more than
        100 times as much; save what is really so uniform as .npy
    """
    packed = min(member.compress_size, size)
    if member.file_size > max(MAX_UNPACKED_BYTES, MAX_RATIO * packed):
        raise ValueError(
            f"{member.filename} unpacks from {packed} bytes to {member.file_size}, more than "
            f"{MAX_UNPACKED_BYTES >> 30} GiB and more than {MAX_RATIO} times as much; save what "
            "is really so uniform as .npy"
        )


def check_cells(path: Path, columns: int) -> None:
    """Refuse a text file whose short lines would be filled up to an enormous table.

    A line that has all its fields has at least one byte for each, the comma or the end behind it.

    Args:
        path: The text.
        columns: Fields in a complete line.

    Raises:
        ValueError: If there are more cells than bytes, and 1 GiB of them or more as float64.
    """
    ends = 1
    with path.open("rb") as file:
        while piece := file.read(2**20):
            ends += piece.count(b"\n") + piece.count(b"\r")
    cells = columns * ends
    if cells > path.stat().st_size and cells * CELL_BYTES > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"{path} must have as many fields in each row as in the header; got {columns} columns "
            f"and up to {ends} rows in {path.stat().st_size} bytes, too few for that."
        )
