"""pandas tables as numeric arrays, with errors that name the columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

__all__ = ["numeric_table"]

# An error that lists thousands of one-hot columns helps no one.
MAX_LISTED = 10


def numeric_table(
    table: pd.DataFrame | pd.Series, *, columns: Sequence[str] | None = None, name: str = "x"
) -> tuple[np.ndarray[Any, Any], tuple[str, ...] | None, str]:
    """The numbers of a table, its column names, and the name of its type.

    Args:
        table: A table, ``(N, D)``, or a series, ``(N,)``.
        columns: Names to select, in this order; by default all columns as they stand.
        name: What to call the table in error messages.

    Returns:
        The values, ``(N, D)`` or ``(N,)``, with missing ones as NaN; the column names, ``None``
        for a series; and the source type, several joined by commas.

    Raises:
        TypeError: If a column is not numeric, or is sparse.
        ValueError: If column names repeat, or ``columns`` names one that the table does not have.

    Example:
        >>> numeric_table(pd.DataFrame({"b": [1, 2], "a": [3, 4]}), columns=("a", "b"))
        (array([[3, 1],
           [4, 2]]), ('a', 'b'), 'int64')
    """
    if isinstance(table, pd.Series):
        _check_numeric({str(table.name): table.dtype} if len(table) else {}, name)
        return _values(table, [table.dtype]), None, str(table.dtype)
    names = tuple(str(label) for label in table.columns)
    repeated = [label for label, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{name} must have distinct column names; got {_listed(repeated)} more than once."
        )
    if columns is not None:
        wanted = tuple(columns)
        position = {label: index for index, label in enumerate(names)}
        missing = [label for label in wanted if label not in position]
        if missing:
            unexpected = [label for label in names if label not in set(wanted)]
            also = f" The table also has {_listed(unexpected)}." if unexpected else ""
            raise ValueError(
                f"{name} must have the columns that the model was fitted on; got a table without "
                f"{_listed(missing)}.{also}"
            )
        # By position, because a label such as 3 counts under the name "3".
        table = table.iloc[:, [position[label] for label in wanted]]
        names = wanted
    dtypes = list(table.dtypes)
    # An empty table has object columns whatever it was meant to hold: "no rows" is the news then.
    if len(table):
        _check_numeric(dict(zip(names, dtypes, strict=True)), name)
    source = ", ".join(sorted({str(dtype) for dtype in dtypes}))
    return _values(table, dtypes), names, source


def _check_numeric(dtypes: dict[str, Any], name: str) -> None:
    """Name every column that is not made of dense real numbers, in one error."""
    sparse = [label for label, dtype in dtypes.items() if isinstance(dtype, pd.SparseDtype)]
    if sparse:
        raise TypeError(
            f"{name} must be dense; got sparse columns {_listed(sparse)}. "
            f"Use {name}.sparse.to_dense()."
        )
    bad = {label: dtype for label, dtype in dtypes.items() if not _is_real(dtype)}
    if bad:
        got = ", ".join(f"{label!r} ({dtype})" for label, dtype in list(bad.items())[:MAX_LISTED])
        more = f" and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise TypeError(
            f"{name} must have numeric columns only; got {got}{more}. Encode them first: "
            "pandas.get_dummies makes indicator columns, pandas.factorize integer codes, and a "
            "date less its first date is a number of days."
        )


def _is_real(dtype: Any) -> bool:
    # A category of booleans would pass for boolean.
    if isinstance(dtype, pd.CategoricalDtype) or types.is_complex_dtype(dtype):
        return False
    return bool(types.is_numeric_dtype(dtype) or types.is_bool_dtype(dtype))


def _values(table: pd.DataFrame | pd.Series, dtypes: list[Any]) -> np.ndarray[Any, Any]:
    """The values in the columns' own type if they share a plain one, in float64 otherwise."""
    plain = len(set(dtypes)) == 1 and isinstance(dtypes[0], np.dtype)
    if plain or not len(table):
        return table.to_numpy()
    return table.to_numpy(dtype=np.float64, na_value=np.nan)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(label) for label in names[:MAX_LISTED])
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED} more"
