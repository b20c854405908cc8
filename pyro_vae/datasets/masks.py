"""Which entries of data were observed, as a user says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from .arrays import real_array, shared
from .tables import numeric_table

__all__ = ["has_masked", "observed_entries", "says_nan"]


def says_nan(mask: Any) -> bool:
    """Whether a mask is the word "nan": what is NaN is missing.

    Raises:
        ValueError: If it is another word.

    Example:
        >>> says_nan("nan"), says_nan(None)
        (True, False)
    """
    if isinstance(mask, str) and mask != "nan":
        raise ValueError(
            "mask must be an array of the shape of x, True where x was observed, or 'nan'; got "
            f"{mask!r}."
        )
    return isinstance(mask, str)


def has_masked(x: Any) -> bool:
    """Whether x is a ``numpy.ma`` array with an entry masked.

    Example:
        >>> has_masked(np.ma.masked_equal([1.0, 9.0], 9.0)), has_masked(np.zeros(2))
        (True, False)
    """
    return np.ma.isMaskedArray(x) and bool(np.ma.getmaskarray(x).any())


def observed_entries(
    mask: Any,
    x: Any,
    *,
    columns: Sequence[str] | None = None,
    own_columns: Sequence[str] | None = None,
    name: str = "x",
) -> Tensor:
    """Which entries of x were observed, once its columns are ``columns``.

    Args:
        mask: Booleans, or 0 and 1, of the shape of x: an array, a tensor, nested lists, or a table
            whose columns are matched to those of x by name.
        x: The data that the mask is of, ``(N, *event_shape)``: a tensor, an array or a table.
        columns: Names of the columns that are taken of x, in their order.
        own_columns: Names of all columns of x as it is, where it is no table.
        name: What to call the data.

    Returns:
        Booleans on the CPU.

    Raises:
        ValueError: If the mask has another shape, other values than 0 and 1, or other rows; if it
            says that NaN in x was observed; or if it is a table and x has no names of columns.

    Example:
        >>> x = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
        >>> mask = pd.DataFrame({"b": [True, True], "a": [True, False]})
        >>> observed_entries(mask, x)
        tensor([[ True,  True],
                [False,  True]])
    """
    table = x if isinstance(x, pd.DataFrame) else None
    if table is not None:
        own_columns = [str(label) for label in table.columns]
    wanted = own_columns if columns is None else columns
    if isinstance(mask, pd.DataFrame):
        if table is not None and not mask.index.equals(table.index):
            raise ValueError(
                f"mask must have the rows of {name} in their order; got a table with another "
                f"index. Use mask.loc[{name}.index]."
            )
        if own_columns is None or wanted is None:
            raise ValueError(
                f"mask must be an array where {name} has no names of columns; got a DataFrame, "
                "whose columns could only be guessed. Pass mask.to_numpy()."
            )
        if mask.isna().to_numpy().any():
            raise ValueError(_not_boolean("missing values"))
        # Booleans beside missing values, which are gone by now, come as objects.
        mask = mask.apply(lambda column: column.map(_plain) if column.dtype == object else column)
        values, _, _ = numeric_table(mask, columns=wanted, name="mask")
        shape = (len(x), len(wanted))
    else:
        values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else _array(mask)
        shape = tuple(x.shape)
    if values.shape != shape:
        raise ValueError(
            f"mask must have the shape of {name}, {shape}: one entry for each of its entries; got "
            f"{values.shape}. A mask of rows or of columns alone can be broadcast: "
            f"numpy.broadcast_to(mask, {name}.shape)."
        )
    if values.dtype.kind not in "buif":
        raise ValueError(_not_boolean(f"dtype {values.dtype}"))
    if values.dtype.kind != "b" and not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(_not_boolean(_range(values)))
    is_nan = _is_nan(x)
    if own_columns is not None and wanted is not None and list(wanted) != list(own_columns):
        place = {label: index for index, label in enumerate(own_columns)}
        taken = [place[label] for label in wanted if label in place]
        is_nan = is_nan[:, taken]
        if not isinstance(mask, pd.DataFrame):
            values = values[:, taken]
    observed = np.asarray(values, dtype=np.bool_)
    if is_nan.shape == observed.shape and (wrong := int((is_nan & observed).sum())):
        raise ValueError(
            f"mask must be True only where {name} was observed; got True at {wrong} NaN. Is it "
            "inverted, as isna() is? Pass ~mask."
        )
    return shared(observed)


def _is_nan(x: Any) -> np.ndarray[Any, Any]:
    if isinstance(x, Tensor):
        return x.detach().isnan().cpu().numpy()
    if isinstance(x, pd.DataFrame | pd.Series):
        return x.isna().to_numpy()
    array = np.ma.getdata(x)
    if array.dtype.kind != "f":
        return np.zeros(array.shape, dtype=np.bool_)
    nan: np.ndarray[Any, Any] = np.isnan(array) & ~np.ma.getmaskarray(x)
    return nan


def _array(mask: Any) -> np.ndarray[Any, Any]:
    if np.ma.isMaskedArray(mask):
        raise ValueError(_not_boolean("a masked array"))
    if getattr(mask, "dtype", None) == np.dtype(object):
        array = np.asarray(mask)
        if all(isinstance(value, bool | np.bool_) for value in array.flat):
            return array.astype(np.bool_)
    if isinstance(mask, pd.Series) and mask.isna().any():
        raise ValueError(_not_boolean("missing values"))
    try:
        return real_array(mask, "mask")
    except TypeError as error:
        raise ValueError(_not_boolean(type(mask).__name__)) from error


def _plain(value: Any) -> Any:
    return bool(value) if isinstance(value, np.bool_) else value


def _range(values: np.ndarray[Any, Any]) -> str:
    if bool(np.isnan(values).any()):
        return "NaN"
    return f"values in [{values.min():g}, {values.max():g}]"


def _not_boolean(got: str) -> str:
    return (
        f"mask must hold True (or 1) where x was observed and False (or 0) elsewhere; got {got}."
    )
