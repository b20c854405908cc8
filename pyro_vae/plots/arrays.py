"""Tensors and arrays to checked numpy arrays, and texts that matplotlib prints as they are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FloatArray", "check_count", "finite_array", "finite_rows", "plain", "to_numpy"]

FloatArray = NDArray[np.float64]


def to_numpy(values: Any) -> NDArray[Any]:
    """A numpy array of whatever holds numbers or labels, with or without a gradient."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        return np.asarray((values.double() if values.is_floating_point() else values).numpy())
    return np.asarray(values)


def finite_array(values: Any, *, name: str) -> FloatArray:
    """The values as float64.

    Raises:
        TypeError: If they are not numeric.
        ValueError: If one is not finite.
    """
    array = to_numpy(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numeric; got dtype {array.dtype}.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite; got {array[index]} at index {index}.")
    return array


def finite_rows(values: Any, *, name: str) -> FloatArray:
    """``(N, *event_shape)`` as float64 of shape ``(N, D)``.

    Raises:
        TypeError: If the values are not numeric.
        ValueError: If there is no row or no feature, or a value is not finite.
    """
    array = finite_array(values, name=name)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(
            f"{name} must have shape (N, *event_shape) with N at least 1; got {array.shape}."
        )
    return array.reshape(len(array), -1)


def check_count(value: int, name: str, *, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")


def plain(text: object) -> str:
    """The text with its dollar signs escaped, which would otherwise begin a formula."""
    return str(text).replace("$", r"\$")
