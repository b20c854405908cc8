"""Rows that are read when they are asked for, to those who take a tensor row by row."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["LazyRows"]


class LazyRows:
    """A stand-in for a tensor ``(N, *event_shape)`` of which a part is in memory at a time.

    It has what passes over the data need: length, shape, type, device, pieces and some rows. What
    treats it as a whole fails with an AttributeError instead of reading it.

    Args:
        gather: From row numbers, ``(n,)`` on the CPU, to x there, ``(n, *event_shape)``, checked.
        like: A row or more of x, which tells shape, type and device.
        numbers: Numbers of the rows, ``(N,)``.

    Example:
        >>> x = torch.arange(5.0)[:, None]
        >>> rows = LazyRows(x.__getitem__, like=x[:1], numbers=torch.arange(5))
        >>> [piece.flatten().tolist() for piece in rows[1:].split(3)], rows.shape
        ([[1.0, 2.0, 3.0], [4.0]], torch.Size([5, 1]))
    """

    def __init__(
        self, gather: Callable[[Tensor], Tensor], *, like: Tensor, numbers: Tensor
    ) -> None:
        self._gather, self._like, self._numbers = gather, like[:0], numbers

    @property
    def shape(self) -> torch.Size:
        """Shape ``(N, *event_shape)``."""
        return torch.Size([len(self._numbers), *self._like.shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows go when they are read."""
        return self._like.device

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        """A slice of the rows, unread; or the rows at some numbers, read: a tensor."""
        if isinstance(index, slice):
            return LazyRows(self._gather, like=self._like, numbers=self._numbers[index])
        chosen = index.cpu() if isinstance(index, Tensor) else index
        return self._gather(self._numbers[chosen]).to(self.device)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The rows at some numbers, read; along dimension 0 alone."""
        if dim != 0:
            raise ValueError(f"dim must be 0, that of the rows; got {dim}.")
        rows: Tensor = self[index]
        return rows

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in pieces of at most ``size``, each read when it is asked for."""
        for numbers in self._numbers.split(size):
            yield self._gather(numbers).to(self.device)

    def tensor_split(self, sections: int) -> list["LazyRows"]:
        """Unread parts, as even as can be."""
        return [
            LazyRows(self._gather, like=self._like, numbers=numbers)
            for numbers in self._numbers.tensor_split(sections)
        ]

    def new_zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros of this type on this device."""
        return self._like.new_zeros(*shape, dtype=dtype)
