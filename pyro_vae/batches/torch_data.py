"""What a torch Dataset yields, as tensors."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from pyro_vae.seeding import seeded

__all__ = ["as_row", "first", "stacked"]

MAX_STACKED_BYTES = 2**31
"""A torch Dataset up to this size is read once into one tensor, not row by row each epoch."""


def stacked(dataset: TorchDataset[Any]) -> Tensor | None:
    """All x of a torch Dataset as one tensor, or None where they would take too much memory.

    Args:
        dataset: Yields x, or tuples whose first entry is x.

    Raises:
        ValueError: If the dataset is empty, or its rows differ in shape.
        TypeError: If its entries are not tensors (or arrays, or numbers).

    Example:
        >>> stacked(TensorDataset(torch.zeros(3, 2), torch.ones(3))).shape
        torch.Size([3, 2])
    """
    num_data = len(dataset)  # type: ignore[arg-type]
    if num_data == 0:
        raise ValueError(
            "x must have at least one row, but the Dataset has no rows; got length 0."
        )
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[0]
    with seeded(0, "reading a Dataset"):  # which may draw
        return _stacked(dataset, num_data)


def _stacked(dataset: TorchDataset[Any], num_data: int) -> Tensor | None:
    row = as_row(first(dataset[0]))
    if num_data * math.prod(row.shape) * row.element_size() > MAX_STACKED_BYTES:
        return None
    # Not a list of rows, which would double the memory.
    result = row.new_empty(num_data, *row.shape)
    for i in range(num_data):
        row = as_row(first(dataset[i])).detach()
        if row.shape != result.shape[1:]:
            raise ValueError(
                f"x must have rows of one shape; got {tuple(row.shape)} at row {i} after "
                f"{tuple(result.shape[1:])}."
            )
        # As torch.stack does: whole numbers and fractions become fractions.
        result = result.to(torch.promote_types(result.dtype, row.dtype))
        result[i] = row
    return result


def first(batch: Any) -> Any:
    """The x of what a torch Dataset or DataLoader yields: the first entry of a tuple, or all.

    Example:
        >>> first(("x", "label")), first("x")
        ('x', 'x')
    """
    return batch[0] if isinstance(batch, tuple | list) else batch


def as_row(row: Any) -> Tensor:
    """One x of a torch Dataset as a tensor on the CPU.

    Raises:
        TypeError: If it is no tensor, array or number.

    Example:
        >>> as_row([1, 2])
        tensor([1, 2])
    """
    try:
        return torch.as_tensor(row, device="cpu")
    except (TypeError, RuntimeError, ValueError) as error:
        raise TypeError(
            f"x must be a Dataset of tensors; got an entry of type {type(row).__name__}. "
            "Give it a transform such as torchvision.transforms.ToTensor()."
        ) from error
