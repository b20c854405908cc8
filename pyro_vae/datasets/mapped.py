"""Data in a file, mapped into memory: rows are read when they are asked for."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .arrays import check_rows, real_array, shared
from .dataset import Dataset, row_index, split_rows
from .files import mapped_npy
from .finite import check_overflow
from .pages import Pages
from .scaling import Scaling

__all__ = ["MappedDataset", "memory_mapped"]

CHUNK_BYTES = 2**24
"""Most of the data, counted in double precision, that a pass over them holds at once."""


class MappedDataset:
    """Data that stay in their file: a :class:`Dataset` for more than fits into memory.

    Made by :func:`memory_mapped`. :func:`pyro_vae.fit` and the diagnostics that go by rows read
    the rows that they need when they need them; for others read some with :meth:`in_memory`.
    Row numbers in error messages are those of the file, also where the data are a part of it.

    Args:
        name: What to call the data.
        array: All rows of the file, ``(M, *shape)``, a ``numpy.memmap``.
        scaling: How x comes from the numbers in the file; by default as they are.
        image_shape: ``(rows, columns)`` or ``(channels, rows, columns)`` by which a datum can be
            drawn as a picture, or ``None``.
        dtype: Floating type in which x is computed; by default that of the file.

    Attributes:
        rows: Numbers of the file's rows that belong to the data, ``(N,)``; None for all.
        event_shape: Shape of one datum.
        labels: None, as ``columns``: a ``.npy`` file holds one array.

    Raises:
        TypeError: If the numbers are not real.
        ValueError: If there are no rows, or ``image_shape`` does not fit.

    Example:
        >>> gray = np.array([[0, 255], [51, 0]], dtype=np.uint8)
        >>> data = MappedDataset("gray", gray, scaling=Scaling.divide(255), dtype=torch.float64)
        >>> data
        gray: 2 rows of (2,) in a file, x = raw / 255
        >>> data.read(torch.tensor([1, 0, 1]))[:, 0]
        tensor([0.2000, 0.0000, 0.2000], dtype=torch.float64)
    """

    labels: None = None
    columns: None = None

    def __init__(
        self,
        name: str,
        array: np.ndarray[Any, Any],
        *,
        scaling: Scaling | None = None,
        image_shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        real_array(array[:1], name)
        check_rows(array.shape, name)
        self.name, self.array, self.dtype = name, array, dtype
        self.scaling = Scaling.identity() if scaling is None else scaling
        self.rows: Tensor | None = None
        self.event_shape: tuple[int, ...] = tuple(array.shape[1:])
        self.image_shape: tuple[int, ...] | None = (
            None if image_shape is None else tuple(image_shape)
        )
        if self.image_shape is not None and (
            len(self.image_shape) not in (2, 3) or math.prod(self.image_shape) != self.num_features
        ):
            raise ValueError(
                "image_shape must be (rows, columns) or (channels, rows, columns) with "
                f"{self.num_features} entries in all; got {self.image_shape}."
            )
        self._pages = Pages(array)

    @property
    def x(self) -> Self:
        """The data themselves, which take the place of a tensor in ``fit(vae, data.x)``."""
        return self

    @property
    def num_data(self) -> int:
        """Number of data N."""
        return len(self.array) if self.rows is None else len(self.rows)

    @property
    def num_features(self) -> int:
        """Number of features of one datum, the product of its event shape."""
        return math.prod(self.event_shape)

    def __len__(self) -> int:
        return self.num_data

    def __repr__(self) -> str:
        return f"{self.name}: {self.num_data} rows of {self.event_shape} in a file, {self.scaling}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:  # noqa: FBT001
        """All of x in memory, for what takes arrays alone."""
        return np.asarray(self.read(self._all()).numpy(), dtype=dtype)

    def read(self, rows: Tensor) -> Tensor:
        """Some rows of x, in the order asked for.

        The file is read in its own order. Integers that are not scaled stay what they are.

        Args:
            rows: Row numbers of the data, ``(n,)``, on the CPU.

        Returns:
            Shape ``(n, *event_shape)``, on the CPU.

        Raises:
            ValueError: If a value overflows in ``dtype``.
        """
        asked = rows if self.rows is None else self.rows[rows]
        numbers, order = torch.sort(asked)
        raw = np.asarray(self.array[numbers.numpy()])
        put_back = np.empty_like(raw)
        put_back[order.numpy()] = raw
        self._pages.have_read(len(rows), scattered=True)
        return self._in_model_units(put_back, asked, is_piece=False)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All of x in the order of the file, in pieces of at most 16 MiB in double precision.

        Returns:
            The pieces, each the numbers of its rows in the file, ``(n,)``, and x there,
            ``(n, *event_shape)``.

        Raises:
            ValueError: If a value overflows in ``dtype``; those of its piece are counted.
        """
        size = max(1, CHUNK_BYTES // (8 * self.num_features))
        if self.rows is not None:
            for numbers in self.rows.sort().values.split(size):
                raw = np.asarray(self.array[numbers.numpy()])
                self._pages.have_read(len(raw), scattered=True)
                yield numbers, self._in_model_units(raw, numbers, is_piece=len(raw) < len(self))
            return
        for start in range(0, len(self.array), size):
            raw = np.asarray(self.array[start : start + size])
            numbers = torch.arange(start, start + len(raw), device="cpu")
            x = self._in_model_units(raw.copy(), numbers, is_piece=len(raw) < len(self))
            self._pages.have_read(len(raw))
            yield numbers, x

    def in_memory(self) -> Dataset:
        """The data as a :class:`Dataset`, read as a whole: take a part with :meth:`subset` first.

        Raises:
            ValueError: If a value is NaN or infinite, or raw 8-bit gray levels are not scaled.

        Example:
            >>> data = MappedDataset("six", np.arange(6.0).reshape(3, 2))
            >>> data.subset([2, 0]).in_memory().x
            tensor([[4., 5.], [0., 1.]], dtype=torch.float64)
        """
        data = Dataset(
            self.name,
            self.read(self._all()),
            scaling=self.scaling,
            image_shape=self.image_shape,
        )
        return data if self.dtype is None else data.to(dtype=self.dtype)

    def split(self, *, held_out: float = 0.2, seed: int = 0) -> tuple[Self, Self]:
        """A random part to learn from and the rest, as :meth:`Dataset.split` divides them.

        Args:
            held_out: Fraction of the rows to hold out, between 0 and 1; their number is rounded.
            seed: Seed of the permutation; equal seeds give equal splits.

        Raises:
            ValueError: If ``held_out`` leaves either part empty.

        Example:
            >>> train, test = MappedDataset("line", np.arange(10.0)[:, None]).split(held_out=0.3)
            >>> len(train), len(test), test.name
            (7, 3, 'line (held out)')
        """
        kept, held = split_rows(self.num_data, held_out=held_out, seed=seed)
        test = self.subset(held)
        test.name = f"{self.name} (held out)"
        return self.subset(kept), test

    def subset(self, indices: Sequence[int] | Tensor | np.ndarray[Any, Any] | slice) -> Self:
        """The rows at ``indices``, in that order; nothing is read.

        Args:
            indices: Row numbers, a slice, or one boolean per row.

        Raises:
            ValueError: If no row is left, or ``indices`` has not one dimension.
            IndexError: If a row does not exist.
        """
        rows = self._all()
        chosen = rows[row_index(indices, rows)]
        check_rows((len(chosen), *self.event_shape), self.name)
        new = copy.copy(self)
        new.rows = chosen if self.rows is None else self.rows[chosen]
        return new

    def reshape(self, *event_shape: int) -> Self:
        """The same data with each datum reshaped, in row-major order.

        Raises:
            ValueError: If the new shape has another number of entries.
        """
        if math.prod(event_shape) != self.num_features:
            raise ValueError(
                f"event_shape must have {self.num_features} entries in all; got {event_shape} "
                f"for data of event shape {self.event_shape}."
            )
        new = copy.copy(self)
        new.event_shape, new.scaling = event_shape, self.scaling.reshape(*event_shape)
        return new

    def flatten(self) -> Self:
        """The same data with each datum a vector."""
        return self.reshape(self.num_features)

    @property
    def raw(self) -> Self:
        """The data in the units of the file."""
        return self.rescale(Scaling.identity())

    def rescale(self, scaling: Scaling) -> Self:
        """The same data in other model units; a scaling per feature has the event shape of x."""
        new = copy.copy(self)
        new.scaling = scaling
        return new

    def _all(self) -> Tensor:
        return torch.arange(self.num_data, device="cpu")

    def _in_model_units(
        self, raw: np.ndarray[Any, Any], numbers: Tensor, *, is_piece: bool
    ) -> Tensor:
        x = shared(raw).reshape(len(raw), *self.event_shape)
        is_scaled = self.scaling != Scaling.identity()
        # Whole numbers stay what they are, so that gray levels are recognized as such.
        if self.dtype is not None and (is_scaled or x.is_floating_point()):
            cast = x.to(self.dtype)
            if cast is not x:
                check_overflow(cast, x, self.name, numbers=numbers, is_piece=is_piece)
            x = cast
        return self.scaling.apply(x) if is_scaled else x


def memory_mapped(
    path: str | os.PathLike[str],
    *,
    scaling: Scaling | None = None,
    image_shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> MappedDataset:
    """Data from a ``.npy`` file that is not read but mapped, one datum a row.

    A fit to them is that to :func:`from_file`'s, number for number, in memory of constant size but
    for 8 bytes a row. Values are checked in one pass when the fit begins.

    Args:
        path: The file, in the order of C: one row after another.
        scaling: From the file's units to those of ``x``; by default none.
        image_shape: ``(rows, columns)`` or ``(channels, rows, columns)`` to draw a datum by.
        dtype: Floating type in which ``x`` is computed; by default torch's default type.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no ``.npy`` file, or is empty, damaged or made of objects.
        TypeError: If values are not real numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "numbers.npy")
        ...     np.save(path, np.arange(8.0).reshape(4, 2))
        ...     data = memory_mapped(path)
        ...     data.read(torch.tensor([3, 0])).tolist()
        [[6.0, 7.0], [0.0, 1.0]]
    """
    source = Path(path).expanduser()
    if source.suffix.lower() != ".npy":
        raise ValueError(
            f"path must end in .npy; got {source.name!r}. Other files cannot be mapped: read them "
            "with from_file, or save the array with numpy.save."
        )
    return MappedDataset(
        source.stem,
        mapped_npy(source),
        scaling=scaling,
        image_shape=image_shape,
        dtype=dtype or torch.get_default_dtype(),
    )
