"""IDX, the file format of the MNIST family, read so that a damaged file is never mistaken."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_idx"]

UNSIGNED_BYTE = 8


def read_idx(path: Path, *, ndim: int) -> np.ndarray[Any, Any]:
    """The bytes of an IDX file, after its header and its size were found to agree.

    The header is two zero bytes, a type code (8 for unsigned bytes), the number of dimensions,
    and each dimension as a big-endian 32-bit integer; the data follow, last dimension fastest.

    Args:
        path: An uncompressed file.
        ndim: Number of dimensions that it must have: 3 for images, 1 for labels.

    Returns:
        Unsigned bytes, in the shape that the header gives.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no IDX file of unsigned bytes with ``ndim`` dimensions, or is not
            complete.
    """
    size = path.stat().st_size
    header_size = 4 + 4 * ndim
    with path.open("rb") as file:
        header = file.read(header_size)
    expected_start = bytes([0, 0, UNSIGNED_BYTE, ndim])
    if len(header) < header_size or not header.startswith(expected_start):
        raise ValueError(
            f"{path} must be an IDX file of unsigned bytes with {ndim} dimensions; got {size} "
            f"bytes that start with {header[:4].hex(' ') or 'nothing'}, not "
            f"{expected_start.hex(' ')}. Delete it, and use download=True or another copy."
        )
    shape = struct.unpack(f">{ndim}I", header[4:])
    # Checked before anything is allocated, so a forged header costs no memory.
    if size != header_size + math.prod(shape):
        raise ValueError(
            f"{path} must be complete; got {size} bytes where its header promises "
            f"{header_size + math.prod(shape)} for shape {shape}. It is truncated or damaged: "
            "delete it, and use download=True or another copy."
        )
    return np.fromfile(path, dtype=np.uint8, offset=header_size).reshape(shape)
