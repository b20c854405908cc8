"""Large data, checked piece by piece, as one."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.datasets import CheckedArray, MappedDataset

from .missing import same_values
from .pieces import own_tensor
from .scan import Sample, checked_pieces

__all__ = ["CheckedFile", "checked_file", "checked_whole"]

Check = Callable[[Any], CheckedArray]
"""Checks one piece and casts it."""


class CheckedFile(NamedTuple):
    """What a pass over a file found.

    Attributes:
        sample: Rows that stand for all.
        is_plain: Whether nothing but the type is changed by the check.
        last: The last piece.
    """

    sample: Sample
    is_plain: bool
    last: CheckedArray


def checked_whole(
    x: Any,
    pieces: Iterator[tuple[Tensor, Any, Tensor]],
    check: Check,
    *,
    name: str,
    missing: bool = False,
) -> tuple[Tensor, CheckedArray]:
    """Large data in memory: a tensor over their own memory where nothing had to be changed.

    Args:
        x: The data, which are not empty.
        pieces: Row numbers, a piece of x, and its values.
        check: Checks one piece.
        name: What to call the data.
        missing: Whether NaN is a missing value.

    Returns:
        The whole, and the last piece.

    Example:
        >>> from pyro_vae.datasets import as_tensor
        >>> x = torch.arange(6.0).reshape(3, 2)
        >>> pieces = iter([(torch.arange(2), x[:2], x[:2]), (torch.tensor([2]), x[2:], x[2:])])
        >>> whole, _ = checked_whole(x, pieces, as_tensor, name="x")
        >>> whole.data_ptr() == x.data_ptr()
        True
    """
    result: Tensor | None = None
    values_so_far: list[Tensor] = []
    start, num_data = 0, len(x)
    last: CheckedArray | None = None
    found = checked_pieces(pieces, check, num_data=num_data, name=name, missing=missing)
    for values, last in found:
        made = last.tensor
        is_own = made.dtype == values.dtype and made.device == values.device
        if result is None and not (is_own and same_values(made, values)):
            result = made.new_empty(num_data, *made.shape[1:])
            if values_so_far:
                torch.cat(values_so_far, out=result[:start])
        if result is None:
            values_so_far.append(values)
        else:
            result[start : start + len(made)] = made
        start += len(made)
    return own_tensor(x) if result is None else result, _known(last, name)


def checked_file(
    data: MappedDataset, check: Check, *, name: str, missing: bool = False
) -> CheckedFile:
    """Check all of a file.

    Args:
        data: The file.
        check: Checks one piece.
        name: What to call the data.
        missing: Whether NaN is a missing value.

    Example:
        >>> import numpy as np
        >>> from pyro_vae.datasets import as_tensor
        >>> data = MappedDataset("six", np.arange(6.0).reshape(3, 2))
        >>> found = checked_file(data, as_tensor, name="x")
        >>> found.is_plain, len(found.sample.x)
        (True, 3)
    """
    is_plain, sample = True, Sample(len(data))
    last: CheckedArray | None = None
    chunks = ((numbers, x, x) for numbers, x in data.chunks())
    found = checked_pieces(chunks, check, num_data=len(data), name=name, missing=missing)
    for values, last in found:
        made = last.tensor
        is_plain = is_plain and same_values(made, values.to(made.device, made.dtype))
        sample.add(made)
    return CheckedFile(sample, is_plain, _known(last, name))


def _known(last: CheckedArray | None, name: str) -> CheckedArray:
    if last is None:
        raise ValueError(f"{name} must have at least one row; got none.")
    return last
