"""Data together with what is needed to read them: labels, units, names and picture shape."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .arrays import as_tensor, check_gray_levels
from .scaling import Scaling

__all__ = ["Dataset", "row_index", "split_rows"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Data ``x``, one datum a row, with labels, units and names beside them.

    A model is given ``data.x``; the rest is for splitting, plotting and reporting.

    Args:
        name: What to call the data, for example ``"digits"``.
        x: Data in model units, floating point and finite but for NaN where ``missing``, shape
            ``(N, *event_shape)``.
        labels: Integer class of each datum, shape ``(N,)``, or ``None``.
        scaling: How ``x`` came from the raw data.
        columns: Feature names, if data are vectors that have them.
        image_shape: ``(rows, columns)`` or ``(channels, rows, columns)`` by which a datum can be
            drawn as a picture, or ``None``.
        missing: Whether NaN in ``x`` is a missing value. :func:`pyro_vae.fit` takes such data as
            they are.

    Raises:
        ValueError: If shapes, labels, names or values do not fit together.
        TypeError: If ``x`` is not numeric or ``labels`` are not integers.

    Example:
        >>> data = Dataset("corners", torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> data
        corners: 3 rows of (2,), x = raw
        >>> data.flatten().event_shape, len(data), data.num_features
        ((2,), 3, 2)
        >>> Dataset("gaps", torch.tensor([[0.0, torch.nan], [1.0, 2.0]]), missing=True)
        gaps: 2 rows of (2,), x = raw, 1 of 4 values missing
    """

    name: str
    x: Tensor
    labels: Tensor | None = None
    scaling: Scaling = field(default_factory=Scaling.identity)
    columns: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] | None = None
    missing: bool = False

    def __post_init__(self) -> None:
        checked = as_tensor(self.x, missing=self.missing)
        check_gray_levels(checked, "x")
        object.__setattr__(self, "x", checked.tensor)
        if self.labels is not None:
            object.__setattr__(self, "labels", _long(self.labels, checked.tensor))
        columns = checked.columns if self.columns is None else tuple(self.columns)
        if columns is not None and (len(columns),) != self.event_shape:
            raise ValueError(
                f"columns must name each feature; got {len(columns)} names for event shape "
                f"{self.event_shape}."
            )
        object.__setattr__(self, "columns", columns)
        if self.image_shape is not None:
            shape = tuple(self.image_shape)
            if len(shape) not in (2, 3) or math.prod(shape) != self.num_features:
                raise ValueError(
                    "image_shape must be (rows, columns) or (channels, rows, columns) with "
                    f"{self.num_features} entries in all; got {shape}."
                )
            object.__setattr__(self, "image_shape", shape)
        for part in (self.scaling.shift, self.scaling.scale):
            if isinstance(part, Tensor) and tuple(part.shape) != self.event_shape:
                raise ValueError(
                    f"scaling must have the event shape of x; got {tuple(part.shape)} for x of "
                    f"event shape {self.event_shape}."
                )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.x.shape[1:])

    @property
    def num_data(self) -> int:
        """Number of data N."""
        return len(self.x)

    @property
    def num_features(self) -> int:
        """Number of features of one datum, the product of its event shape."""
        return math.prod(self.event_shape)

    @property
    def num_missing(self) -> int:
        """Number of missing values."""
        return int(self.x.isnan().sum()) if self.missing else 0

    def __len__(self) -> int:
        return self.num_data

    def __repr__(self) -> str:
        text = f"{self.name}: {self.num_data} rows of {self.event_shape}, {self.scaling}"
        if self.labels is not None:
            text += f", labels {len(self.labels.unique())} classes"
        if self.missing:
            text += f", {self.num_missing} of {self.x.numel()} values missing"
        return text

    def split(self, *, held_out: float = 0.2, seed: int = 0) -> tuple[Self, Self]:
        """A random part to learn from and the rest, held out to judge by.

        Args:
            held_out: Fraction of the rows to hold out, between 0 and 1; their number is rounded.
            seed: Seed of the permutation; equal seeds give equal splits.

        Returns:
            The rows to learn from, and the rows held out. No row is in both.

        Raises:
            ValueError: If ``held_out`` leaves either part empty.

        Example:
            >>> train, test = Dataset("line", torch.arange(10.0)).split(held_out=0.3)
            >>> len(train), len(test), float(train.x.sum() + test.x.sum())
            (7, 3, 45.0)
        """
        kept, held = split_rows(self.num_data, held_out=held_out, seed=seed)
        test = self.subset(held)
        return self.subset(kept), dataclasses.replace(test, name=f"{self.name} (held out)")

    def subset(self, indices: Sequence[int] | Tensor | np.ndarray[Any, Any] | slice) -> Self:
        """The rows at ``indices``, in that order.

        Args:
            indices: Row numbers, a slice, or one boolean per row.

        Returns:
            The same kind of data set with these rows.

        Raises:
            ValueError: If no row is left, or ``indices`` has not one dimension.
            IndexError: If a row does not exist.
        """
        return dataclasses.replace(self, **self._rows(row_index(indices, self.x)))

    def _rows(self, index: Tensor) -> dict[str, Any]:
        """The fields that have one entry per datum, at these rows."""
        return {
            "x": self.x[index],
            "labels": None if self.labels is None else self.labels[index],
        }

    def flatten(self) -> Self:
        """The same data with each datum a vector."""
        return self.reshape(self.num_features)

    def reshape(self, *event_shape: int) -> Self:
        """The same data with each datum reshaped, in row-major order.

        Args:
            event_shape: New shape of a datum, for example ``1, 28, 28`` for a convolution.

        Returns:
            The same kind of data set; column names are kept while data stay vectors.

        Raises:
            ValueError: If the new shape has another number of entries.
        """
        if math.prod(event_shape) != self.num_features:
            raise ValueError(
                f"event_shape must have {self.num_features} entries in all; got {event_shape} "
                f"for data of event shape {self.event_shape}."
            )
        return dataclasses.replace(
            self,
            x=self.x.reshape(self.num_data, *event_shape),
            scaling=self.scaling.reshape(*event_shape),
            columns=self.columns if len(event_shape) == 1 else None,
        )

    def rescale(self, scaling: Scaling) -> Dataset:
        """The same raw data in other model units.

        Args:
            scaling: The scaling that takes the place of the present one, for example
                ``Scaling.standardize(train.raw)``.

        Returns:
            A plain data set with ``x = scaling.apply(raw)``.

        Example:
            >>> data = Dataset("gray", torch.tensor([[0.5], [1.0]]), scaling=Scaling.divide(16))
            >>> data.rescale(Scaling.identity()).x.tolist()
            [[8.0], [16.0]]
        """
        return Dataset(
            self.name,
            scaling.apply(self.raw),
            labels=self.labels,
            scaling=scaling,
            columns=self.columns,
            image_shape=self.image_shape,
            missing=self.missing,
        )

    def in_memory(self) -> Self:
        """The data as they are; a :class:`MappedDataset` is read into memory by this."""
        return self

    @property
    def raw(self) -> Tensor:
        """The data in raw units, shape ``(N, *event_shape)``."""
        return self.scaling.invert(self.x)

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """The same data in another floating type or on another device; labels stay integers.

        Args:
            dtype: Floating type of ``x``; by default as it is.
            device: Device of ``x`` and ``labels``; by default where they are.

        Returns:
            The same kind of data set.

        Raises:
            ValueError: If a value overflows in ``dtype``.
            TypeError: If ``dtype`` is not a floating type.
        """
        x = as_tensor(self.x, dtype=dtype, missing=self.missing).tensor.to(
            device=device or self.x.device
        )
        return dataclasses.replace(self, x=x)


def _long(labels: Any, x: Tensor) -> Tensor:
    """Labels as a long tensor beside ``x``, one per row."""
    given = labels if isinstance(labels, Tensor) else np.array(labels)
    floating = isinstance(given, Tensor) and (given.is_floating_point() or given.is_complex())
    if floating or (isinstance(given, np.ndarray) and given.dtype.kind not in "biu"):
        raise TypeError(
            f"labels must be integers; got dtype {given.dtype}. Number other labels with "
            "pandas.factorize(labels, sort=True)[0]."
        )
    values = given if isinstance(given, Tensor) else torch.from_numpy(given.astype(np.int64))
    if tuple(values.shape) != (len(x),):
        raise ValueError(
            f"labels must have one entry per row of x; got shape {tuple(values.shape)} for "
            f"{len(x)} rows."
        )
    return values.to(device=x.device, dtype=torch.int64)


def split_rows(
    num_data: int, *, held_out: float, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Numbers of the rows to learn from and of those held out, each in random order.

    Raises:
        ValueError: If ``held_out`` leaves either part empty.

    Example:
        >>> kept, held = split_rows(10, held_out=0.3, seed=0)
        >>> len(kept), len(held), sorted([*kept, *held]) == list(range(10))
        (7, 3, True)
    """
    num_held_out = round(held_out * num_data) if 0 < held_out < 1 else 0
    if not 0 < num_held_out < num_data:
        raise ValueError(
            "held_out must be a fraction between 0 and 1 that leaves rows in both parts; got "
            f"{held_out} of {num_data} rows."
        )
    order = np.random.default_rng(seed).permutation(num_data)
    return order[num_held_out:], order[:num_held_out]


def row_index(indices: Any, x: Tensor) -> Tensor:
    """Row numbers on the device of ``x``, whatever the default device is.

    Example:
        >>> row_index(slice(1, 3), torch.zeros(5))
        tensor([1, 2])
    """
    if isinstance(indices, slice):
        indices = range(len(x))[indices]
    if not isinstance(indices, Tensor):
        array = np.array(indices)
        # An empty list has no type of its own.
        indices = torch.from_numpy(array if array.size else array.astype(np.int64))
    if indices.ndim != 1:
        raise ValueError(
            f"indices must have one dimension; got shape {tuple(indices.shape)}. "
            "For one row pass [index]."
        )
    return indices.to(x.device)
