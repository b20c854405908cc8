"""Whatever a user has, a data set too, as one checked float tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .arrays import CheckedArray, as_tensor, real_array
from .dataset import Dataset
from .masks import observed_entries

__all__ = ["checked_rows"]


def checked_rows(
    x: Any,
    *,
    event_shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    columns: Sequence[str] | None = None,
    name: str = "x",
    missing: bool = False,
    mask: Any = None,
) -> CheckedArray:
    """:func:`as_tensor` for a :class:`Dataset` as well, whose columns are matched by name too.

    Args:
        x: A data set, or anything that :func:`as_tensor` takes.
        event_shape: Shape that each datum must have; by default any.
        dtype: Floating type of the result.
        columns: Column names in the order the model was fitted on.
        name: What to call the data in error messages.
        missing: Whether NaN, and what a ``numpy.ma`` array masks, is a missing value.
        mask: Which entries were observed, as :func:`observed_entries` takes it; None for all.

    Raises:
        ValueError: As :func:`as_tensor`.
        TypeError: As :func:`as_tensor`.

    Example:
        >>> data = Dataset("ab", torch.tensor([[1.0, 2.0]]), columns=("a", "b"))
        >>> checked_rows(data, columns=("b", "a")).tensor
        tensor([[2., 1.]])
    """
    own = None
    observed = None
    if isinstance(x, Dataset):
        x, own = x.x, x.columns
    if mask is not None:
        if not isinstance(x, Tensor | pd.DataFrame | pd.Series):
            x = x if np.ma.isMaskedArray(x) else real_array(x, name)
        observed = observed_entries(mask, x, columns=columns, own_columns=own, name=name)
    if own is not None and columns is not None and tuple(columns) != own:
        x = pd.DataFrame(x.cpu().numpy(), columns=list(own))
    checked = as_tensor(
        x,
        event_shape=event_shape,
        dtype=dtype,
        columns=columns,
        name=name,
        missing=missing,
        observed=observed,
    )
    if own is not None and checked.columns is None:
        return dataclasses.replace(checked, columns=own)
    return checked
