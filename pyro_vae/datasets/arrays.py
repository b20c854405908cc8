"""Whatever a user has, tensor, array, list or table, as one checked float tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .finite import FiniteScan, check_overflow
from .tables import numeric_table

__all__ = [
    "CheckedArray",
    "as_tensor",
    "check_gray_levels",
    "check_rows",
    "real_array",
    "shared",
]

# Exactly the types in which every value is a real number that torch can sum and test. 8-bit and
# narrower floats, quantized and complex types are not among them.
REAL_DTYPES = frozenset(
    {
        torch.bool,
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    }
)


@dataclass(frozen=True, eq=False)
class CheckedArray:
    """Data that passed every check, with what the caller needs to report a cast.

    Args:
        tensor: The data, floating point, finite (NaN where missing), shape ``(N, *event_shape)``
            with ``N >= 1``.
        columns: Column names when the data came as a table, otherwise ``None``.
        source_dtype: Name of the type the data came in, for example ``"uint8"``; a table of mixed
            columns lists them, ``"float64, int64"``.

    Example:
        >>> checked = as_tensor([[0, 1], [2, 3]], dtype=torch.float32)
        >>> checked.tensor.shape, checked.source_dtype
        (torch.Size([2, 2]), 'int64')
    """

    tensor: Tensor
    columns: tuple[str, ...] | None
    source_dtype: str


def as_tensor(
    x: object,
    *,
    event_shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    columns: Sequence[str] | None = None,
    name: str = "x",
    missing: bool = False,
    observed: Tensor | None = None,
) -> CheckedArray:
    r"""Check data and turn them into one float tensor, one datum a row.

    The data are never modified. The result may share their memory, so it is to be read only; a
    tensor stays on its device and is detached from any graph. Everything else lands on the CPU.

    Args:
        x: ``N`` data of any event shape, shape ``(N, *event_shape)``: a tensor, a numpy array, a
            pandas table or series, or nested lists.
        event_shape: Shape that each datum must have; by default any.
        dtype: Floating type of the result. By default tensors, arrays and tables keep a floating
            type (tables of mixed or nullable columns become ``float64``), and lists, integers
            and booleans become torch's default type.
        columns: Column names in the order the model was fitted on. A table is matched to them by
            name and further columns are left out; anything without names is taken by position.
        name: What to call the data in error messages.
        missing: Whether NaN, and what a ``numpy.ma`` array masks, is a missing value.
        observed: Booleans of the shape of the result. What is False is missing, whatever it holds,
            and becomes NaN; what is True must be finite.

    Returns:
        The checked tensor, shape ``(N, *event_shape)``, with its column names and source type.

    Raises:
        TypeError: If the data are not real numbers (strings, dates, categories, objects, complex
            values), or are sparse, or masked where nothing may be missing, or ``dtype`` is not a
            floating type.
        ValueError: If there are no rows, the event shape or the column names do not fit, a value
            is NaN (and not missing) or infinite, or a value overflows in ``dtype``.

    Example:
        >>> checked = as_tensor([[0, 1], [2, 3]], event_shape=(2,), dtype=torch.float64)
        >>> checked.tensor.sum(0), checked.source_dtype
        (tensor([2., 4.], dtype=torch.float64), 'int64')
        >>> as_tensor([[0.0, float("nan")]])
        Traceback (most recent call last):
        ValueError: x must not contain NaN; got 1, the first at row 0, column 1. Drop or impute
        those rows, or model the values as missing, mask="nan" in pyro_vae.fit: nothing is dropped
        silently.
        >>> as_tensor([[0.0, float("nan")]], missing=True).tensor.isnan()
        tensor([[False,  True]])
    """
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype; got {dtype}.")
    names: tuple[str, ...] | None = None
    missing_beside = missing and observed is None
    if isinstance(x, Tensor):
        tensor = _dense(x, name)
        source = str(tensor.dtype).removeprefix("torch.")
    else:
        if isinstance(x, pd.DataFrame | pd.Series):
            array, names, source = numeric_table(x, columns=columns, name=name)
        else:
            if missing and np.ma.isMaskedArray(x):
                unmasked = shared(~np.ma.getmaskarray(x))
                observed = unmasked if observed is None else unmasked & observed.cpu()
                x = np.ma.getdata(x)
            array = real_array(x, name)
            source = array.dtype.name
        check_rows(array.shape, name)
        tensor = shared(array)
        if dtype is None and isinstance(x, list | tuple):
            dtype = torch.get_default_dtype()
    if tensor.dtype not in REAL_DTYPES:
        raise TypeError(f"{name} must be real numbers; got dtype {tensor.dtype}.")
    shape = tuple(tensor.shape)
    check_rows(shape, name)
    if event_shape is not None:
        _check_event(shape, tuple(event_shape), name)
    if observed is not None:
        observed = observed.to(tensor.device)
        # Integers stay what they are, and what is out of sight is not cast.
        tensor = torch.where(observed, tensor, torch.zeros_like(tensor))
    finite = FiniteScan(names, name, missing=missing_beside)
    finite.add(tensor)
    finite.check()
    if dtype is None:
        dtype = tensor.dtype if tensor.is_floating_point() else torch.get_default_dtype()
    cast = tensor.to(dtype)
    # Only a narrower type can overflow; integers overflow in float16 alone.
    if cast is not tensor:
        check_overflow(cast, tensor, name, columns=names, missing=missing)
    if observed is not None:
        cast = torch.where(observed, cast, torch.nan)
    return CheckedArray(cast, names, source)


def check_gray_levels(checked: CheckedArray, name: str) -> None:
    """Refuse raw 8-bit gray levels, which no density over real numbers is meant for.

    Raises:
        ValueError: If the data came as unsigned bytes and reach beyond 1.

    Example:
        >>> check_gray_levels(as_tensor(np.zeros((2, 3), dtype=np.uint8)), "x")
        >>> check_gray_levels(as_tensor(np.full((2, 3), 99, dtype=np.uint8)), "x")
        Traceback (most recent call last):
        ValueError: x must be scaled before a density over real numbers sees it; got uint8 values
        in [99, 99]. Pass x / 255 (for a file scaling=Scaling.divide(255), on the command line
        --divide 255), or cast to float yourself to keep the units.
    """
    rows = checked.tensor
    if checked.source_dtype == "uint8" and bool((rows > 1).any()):
        shown = rows[~rows.isnan()]
        raise ValueError(
            f"{name} must be scaled before a density over real numbers sees it; got uint8 values "
            f"in [{shown.min():.0f}, {shown.max():.0f}]. Pass {name} / 255 (for a file "
            "scaling=Scaling.divide(255), on the command line --divide 255), or cast to float "
            "yourself to keep the units."
        )


def _dense(x: Tensor, name: str) -> Tensor:
    """The tensor without its graph, provided that it holds its values densely."""
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be dense; got layout {x.layout}. Use {name}.to_dense().")
    if x.device.type == "meta":
        raise ValueError(f"{name} must hold values; got a tensor on the meta device.")
    return x.detach()


def real_array(x: Any, name: str) -> np.ndarray[Any, Any]:
    """A numpy array of real numbers from an array, nested lists or any other array-like.

    Raises:
        TypeError: If the values are not real numbers, or are sparse or masked.
        ValueError: If nested lists are not rectangular.

    Example:
        >>> real_array([[1, 2]], "x").shape
        (1, 2)
    """
    if hasattr(x, "toarray"):  # scipy.sparse, without importing it
        raise TypeError(
            f"{name} must be dense; got a sparse {type(x).__name__}. Use {name}.toarray()."
        )
    if np.ma.isMaskedArray(x):
        masked = int(np.ma.count_masked(x))
        if masked:
            raise TypeError(
                f"{name} must not be masked where no value may be missing; got {masked} masked "
                f"entries. Fill them with {name}.filled(...), drop those rows, or fit a model to "
                "what is observed: pyro_vae.fit takes masked arrays."
            )
    if isinstance(x, list | tuple) and x and all(isinstance(item, Tensor) for item in x):
        # numpy would unpack the tensors one number at a time.
        x = [item.detach().cpu().numpy() for item in x]
    try:
        array = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be rectangular, each row as long as the others; got a "
            f"{type(x).__name__} that does not stack."
        ) from error
    if array.ndim == 0 and array.dtype.kind == "O":
        raise TypeError(
            f"{name} must be a tensor, a numpy array, a pandas table or nested lists; got "
            f"{type(x).__name__}. Of a Dataset pass its tensor, data.x."
        )
    if array.size and (array.dtype.kind not in "buif" or array.dtype.itemsize > 8):
        mend = {
            "c": "Pass real and imaginary parts as two features.",
            "f": f"Use {name}.astype('float64').",
            "M": "Pass dates as numbers, for example days since the first.",
            "m": "Pass durations as numbers, for example in days.",
        }.get(
            array.dtype.kind,
            f"Use {name}.astype(float) if these are numbers; encode categories with "
            "pandas.get_dummies or pandas.factorize.",
        )
        raise TypeError(f"{name} must be real numbers; got dtype {array.dtype}. {mend}")
    return array


def shared(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over the array's memory, or over a copy where torch could not read it safely.

    Example:
        >>> shared(np.arange(4, dtype=">i4")[::-1]).tolist()
        [3, 2, 1, 0]
    """
    # torch reads neither negative strides nor foreign byte orders.
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    # torch would warn of, and then allow, writes into read-only memory.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def check_rows(shape: Sequence[int], name: str) -> None:
    """Refuse shapes without rows or without features.

    Raises:
        ValueError: If there is nothing to learn from.

    Example:
        >>> check_rows((0, 3), "x")
        Traceback (most recent call last):
        ValueError: x must have at least one row; got shape (0, 3). With no rows there is nothing
        to learn from: look at the file or filter that it comes from.
    """
    shape = tuple(shape)
    if not shape:
        raise ValueError(
            f"{name} must have one row per datum; got shape (), a single number. "
            "Pass a sequence of data."
        )
    if shape[0] == 0:
        raise ValueError(
            f"{name} must have at least one row; got shape {shape}. With no rows there is nothing "
            "to learn from: look at the file or filter that it comes from."
        )
    if 0 in shape:
        raise ValueError(f"{name} must have at least one feature; got shape {shape}.")


def _check_event(shape: tuple[int, ...], event_shape: tuple[int, ...], name: str) -> None:
    if shape[1:] == event_shape:
        return
    if shape == event_shape:
        mend = f"For a single datum pass {name}.unsqueeze(0), or {name}[None] of an array."
    elif np.prod(shape[1:], dtype=int) == np.prod(event_shape, dtype=int):
        target = ", ".join(str(size) for size in (-1, *event_shape))
        mend = f"The sizes agree, so reshape: {name}.reshape({target})."
    else:
        mend = "Pass the features that the model was built for."
    raise ValueError(
        f"{name} must have event shape {event_shape}; got {shape[1:]} ({name} has shape {shape}). "
        f"{mend}"
    )
