"""A user's own data from disk: numpy arrays and comma-separated tables."""

from __future__ import annotations

import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .arrays import CheckedArray, as_tensor, check_gray_levels
from .dataset import Dataset
from .declared import check_cells, check_npy, check_unpacked
from .finite import place
from .scaling import Scaling

__all__ = ["from_file", "mapped_npy"]

SUFFIXES = (".npy", ".npz", ".csv")

# What numpy and zipfile raise over a file that is empty, cut short, altered or foreign.
DAMAGE = (
    ValueError,
    TypeError,
    EOFError,
    OSError,
    MemoryError,
    RuntimeError,  # an archive with a password; a header of too many brackets
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

MISSING = frozenset({"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None"})
"""Cells that hold no value, besides what pandas takes for none."""

OF_OBJECTS = re.compile("Object arrays|Python objects|holds objects|pickled")
"""How it is told that an array is one of objects."""


def from_file(
    path: str | os.PathLike[str],
    *,
    scaling: Scaling | None = None,
    labels: str | None = None,
    key: str | None = None,
    image_shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    missing: bool = False,
) -> Dataset:
    """Data from a ``.npy``, ``.npz`` or ``.csv`` file, one datum a row.

    Nothing in the file is executed: arrays of pickled objects are refused.

    Args:
        path: The file. A ``.csv`` file has a header row with column names.
        scaling: From the file's units to those of ``x``; by default none.
        labels: Name of the column (``.csv``) or array (``.npz``) with the labels. Integers are
            kept; anything else is numbered in sorted order.
        key: Name of the array to read (``.npz``); by default ``"x"`` or the only one.
        image_shape: ``(rows, columns)`` or ``(channels, rows, columns)`` to draw a datum by.
        dtype: Floating type of ``x``; by default torch's default type.
        missing: Whether values may be missing: NaN, and in a ``.csv`` file an empty cell, ``NA``
            and what else ``pandas.read_csv`` takes for it, spaces around it or not. They are NaN
            in ``x``; columns of true and false become 1 and 0.

    Returns:
        A data set named after the file; column names of a ``.csv`` file are kept.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix, ``key`` or ``labels`` is unknown, or the file is empty, damaged,
            made of objects, or holds infinite values, or NaN while ``missing`` is False.
        TypeError: If values are not numeric; columns are named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "iris.csv")
        ...     lines = ["length,width,species", "5.1,3.5,setosa", "5.9,3.0,virginica"]
        ...     _ = path.write_text(chr(10).join(lines))
        ...     data = from_file(path, labels="species")
        >>> data
        iris: 2 rows of (2,), x = raw, labels 2 classes
        >>> data.columns, data.labels
        (('length', 'width'), tensor([0, 1]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "gaps.csv")
        ...     _ = path.write_text(chr(10).join(["length,width", "5.1,", "NA,3.0"]))
        ...     data = from_file(path, missing=True)
        >>> data
        gaps: 2 rows of (2,), x = raw, 2 of 4 values missing
    """
    source = Path(path).expanduser()
    if source.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"path must end in {', '.join(SUFFIXES)}; got {source.name!r}. Save other data with "
            "numpy.save or DataFrame.to_csv(index=False)."
        )
    _check_file(source)
    if key is not None and source.suffix.lower() != ".npz":
        raise ValueError(
            f"key must be left out but for .npz files; got {key!r} for {source.name}."
        )
    raw: Any
    codes: np.ndarray[Any, Any] | None
    if source.suffix.lower() == ".csv":
        raw, codes = _read_csv(source, labels, missing=missing)
    elif source.suffix.lower() == ".npz":
        raw, codes = _read_npz(source, key, labels)
    elif labels is not None:
        raise ValueError(
            f"labels must be left out for .npy files, which hold one array; got {labels!r}. Save "
            "both with numpy.savez(path, x=..., labels=...)."
        )
    else:
        raw, codes = np.array(mapped_npy(source)), None
    checked = as_tensor(
        raw, dtype=dtype or torch.get_default_dtype(), name=source.name, missing=True
    )
    if not missing:
        _check_complete(checked, source.name)
    scaling = scaling or Scaling.identity()
    if scaling == Scaling.identity():
        check_gray_levels(checked, source.name)
    return Dataset(
        source.stem,
        scaling.apply(checked.tensor),
        # Dataset turns integers into a long tensor.
        labels=None if codes is None else torch.from_numpy(codes),
        scaling=scaling,
        columns=checked.columns,
        image_shape=None if image_shape is None else tuple(image_shape),
        missing=missing,
    )


def mapped_npy(path: Path) -> np.ndarray[Any, Any]:
    """The array in a ``.npy`` file, mapped and not read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, damaged or made of objects.

    Example:
        >>> mapped_npy(Path("nowhere.npy"))
        Traceback (most recent call last):
        FileNotFoundError: path must be a file; got nowhere.npy, no such file.
    """
    _check_file(path)
    try:
        with path.open("rb") as file:
            check_npy(file, path.stat().st_size)
        # A memory map cannot hold objects at all.
        return np.lib.format.open_memmap(path, mode="r")
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        # A pipe would wait for ever, and a device has no end.
        special = "no regular file" if path.exists() else "no such file"
        kind = "a folder" if path.is_dir() else special
        raise FileNotFoundError(f"path must be a file; got {path}, {kind}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} must hold data; got an empty file.")


def _read_npz(
    path: Path, key: str | None, labels: str | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    # Opened here, because numpy leaves a damaged file open.
    with path.open("rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise ValueError(f"{path} must be an archive of arrays; got one array. Name it .npy.")
        file.seek(0)
        try:
            archive = np.load(file, allow_pickle=False)
        except DAMAGE as error:
            raise _damaged(path, error) from error
        names = list(archive.files)
        others = [name for name in names if name != labels]
        if key is None:
            key = others[0] if len(others) == 1 else "x"
        for argument, wanted in (("key", key), ("labels", labels)):
            if wanted is not None and wanted not in names:
                raise ValueError(
                    f"{argument} must be one of {', '.join(map(repr, names)) or 'no names'}, the "
                    f"arrays in {path.name}; got {wanted!r}."
                )
        try:
            raw = _array(archive, key, path)
            marks = None if labels is None else _array(archive, labels, path)
        except DAMAGE as error:
            raise _damaged(path, error) from error
    return raw, None if marks is None else _codes(marks)


def _array(archive: Any, name: str, path: Path) -> np.ndarray[Any, Any]:
    """An array of an archive, whose claims are looked at first."""
    listed = archive.zip.namelist()
    member = archive.zip.getinfo(f"{name}.npy" if f"{name}.npy" in listed else name)
    check_unpacked(member, path.stat().st_size)
    with archive.zip.open(member) as file:
        check_npy(file, member.file_size)
    with archive.zip.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_csv(
    path: Path, labels: str | None, *, missing: bool
) -> tuple[pd.DataFrame, np.ndarray[Any, Any] | None]:
    try:
        first = pd.read_csv(path, nrows=1, compression=None)
        # Where pandas takes columns for row names, the error below is raised instead.
        check_cells(path, first.shape[1])
        # In a table of one column a row whose value is missing is an empty line.
        keeps_empty = missing and first.shape[1] == 1
        # Whole columns at a time, or a long one could change its type half way.
        table = (
            pd.read_csv(path, low_memory=False, compression=None, skip_blank_lines=not keeps_empty)
            if isinstance(first.index, pd.RangeIndex)
            else first
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} must be a comma-separated table in UTF-8 with a header row; got: "
            f"{str(error).strip()}"
        ) from error
    if not isinstance(table.index, pd.RangeIndex):
        # pandas took the first column for row names, and shifted the others by one.
        raise ValueError(
            f"{path} must have as many fields in each row as in the header; got more than "
            f"{len(table.columns)}."
        )
    unnamed = [str(label) for label in table.columns if str(label).startswith("Unnamed: ")]
    if unnamed:
        raise ValueError(
            f"{path} must have a name for each column; got none for {len(unnamed)}. Row numbers "
            "written by DataFrame.to_csv are such a column: write with index=False."
        )
    if labels is None:
        return (_with_gaps(table, path) if missing else table), None
    if labels not in table.columns:
        raise ValueError(
            f"labels must be one of the columns {', '.join(map(repr, table.columns[:10]))}"
            f"{', ...' if len(table.columns) > 10 else ''} in {path.name}; got {labels!r}."
        )
    values, marks = table.drop(columns=labels), table[labels].to_numpy()
    return (_with_gaps(values, path) if missing else values), _codes(marks)


def _with_gaps(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table with NaN in cells that hold no value but kept pandas from reading numbers."""
    made = {}
    for place_of, label in enumerate(table.columns):
        cells = table.iloc[:, place_of]
        if not (cells.dtype == object or isinstance(cells.dtype, pd.StringDtype)):
            continue
        given = cells.map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
        given = given.mask(given.isin(MISSING)).replace({True: 1.0, False: 0.0})
        numbers = pd.to_numeric(given, errors="coerce")
        unread = numbers.isna() & given.notna()
        if not unread.any():
            made[place_of] = numbers.astype(np.float64)
        elif numbers.notna().any():  # else they are words, told with the other columns of words
            first = int(unread.to_numpy().argmax())
            raise TypeError(
                f"{path.name} must hold numbers in column {str(label)!r}, and an empty cell or NA "
                f"where there is none; got {str(cells.iloc[first])!r} in row {first}, the first "
                f"of {int(unread.sum())} that are neither."
            )
    if not made:
        return table
    columns = [made.get(index, table.iloc[:, index]) for index in range(table.shape[1])]
    return pd.concat(columns, axis=1).set_axis(table.columns, axis=1)


def _check_complete(checked: CheckedArray, name: str) -> None:
    """Refuse missing values where nobody said that there may be any."""
    gaps = checked.tensor.isnan()
    if gaps.any():
        raise ValueError(
            f"{name} must not contain NaN; got {int(gaps.sum())}, the first at "
            f"{place(gaps, checked.columns)}. Drop or impute those rows, or model the values as "
            "missing, missing=True in from_file or 'pyro-vae fit --missing': nothing is dropped "
            "silently."
        )


def _codes(marks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Integer labels as they are; anything else numbered in sorted order."""
    if marks.dtype.kind in "biu":
        return marks.astype(np.int64)
    if marks.ndim != 1:
        raise ValueError(f"labels must have one entry per row; got shape {marks.shape}.")
    codes, _ = pd.factorize(marks, sort=True)
    if (codes < 0).any():
        raise ValueError(
            f"labels must not be missing; got {int((codes < 0).sum())}, the first at row "
            f"{int((codes < 0).argmax())}. Drop those rows, or name them."
        )
    return codes.astype(np.int64)


def _damaged(path: Path, error: BaseException) -> ValueError:
    text = str(error)
    if OF_OBJECTS.search(text):
        return ValueError(
            f"{path} must hold plain numbers; got pickled objects, which are never loaded because "
            "they could run code. Save it again after x.astype(float)."
        )
    return ValueError(
        f"{path} must be a complete numpy file; got {type(error).__name__}: "
        f"{text.rstrip('.')}. It is truncated, damaged or of another kind."
    )
