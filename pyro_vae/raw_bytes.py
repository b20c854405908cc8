"""The bytes of a tensor, whatever its type."""

import torch
from torch import Tensor

__all__ = ["raw_bytes", "same_bits"]


def raw_bytes(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in C order, as bytes, ``(bytes,)``.

    Example:
        >>> raw_bytes(torch.tensor([1, 256], dtype=torch.int16)).tolist()
        [1, 0, 0, 1]
    """
    values = tensor.detach().contiguous().reshape(-1)
    if values.stride(0) != 1:  # torch calls a single number contiguous whatever its stride
        values = values.clone(memory_format=torch.contiguous_format).as_strided(values.shape, (1,))
    return values.view(torch.uint8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one type hold the same numbers to the last bit, NaN as any other.

    Example:
        >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
        False
    """
    return torch.equal(raw_bytes(a), raw_bytes(b))
