r"""Lower triangular matrices whose numbers lie in one row, and what needs no unpacking.

Cut into rows of k, the :math:`k (k + 1) / 2` numbers make a rectangle V that holds two triangles,
head to foot. Row r has row r - 1 of the matrix in its first r places, and row k - 1 - r in reverse
behind it::

    V[r, c] = M[r - 1, c]              for c < r,
              M[k - 1 - r, k - 1 - c]  for c >= r.

The diagonal of the matrix is on the two diagonals of V that meet. For even k the last row of V is
half a row, all of it of the first kind. This order is a file format: saved encoders put out
numbers in it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PackedTriangle", "fill_triangle"]


class PackedTriangle(NamedTuple):
    r"""A lower triangular matrix M, ``(..., k, k)``, as a rectangle; views, nothing is copied.

    All passes are over the :math:`k (k + 1) / 2` numbers alone, by operations that multiply and
    add: a gather, a scatter, or a choice between two tensors takes several times as long.

    Attributes:
        rectangle: V, ``(..., R, k)`` with R half of k, rounded up if k is odd and not otherwise.
        rest: The half row behind it, ``(..., k / 2)``; for odd k of length 0.

    Example:
        >>> triangle = PackedTriangle.of(torch.tensor([1.0, 2.0, 3.0]), 2)
        >>> fill_triangle(torch.tensor([1.0, 2.0, 3.0]), 2).tril()
        tensor([[3., 0.],
                [2., 1.]])
        >>> triangle.diagonal(), triangle.below_times(torch.tensor([10.0, 0.0]))
        (tensor([3., 1.]), tensor([ 0., 20.]))
    """

    rectangle: Tensor
    rest: Tensor

    @classmethod
    def of(cls, values: Tensor, size: int) -> "PackedTriangle":
        """The triangle of ``(..., size (size + 1) / 2)`` numbers."""
        return cls.from_parts(*values.split(cls.part_sizes(size), dim=-1), size=size)

    @classmethod
    def from_parts(cls, rows: Tensor, rest: Tensor, *, size: int) -> "PackedTriangle":
        """The triangle of numbers that were cut in two, as :meth:`part_sizes` says."""
        return cls(rows.unflatten(-1, (rows.shape[-1] // size, size)), rest)

    @staticmethod
    def part_sizes(size: int) -> list[int]:
        """How many numbers are in the rectangle, and how many behind it."""
        num_values = size * (size + 1) // 2
        return [num_values - num_values % size, num_values % size]

    def diagonal(self) -> Tensor:
        """Diagonal of M, ``(..., k)``."""
        size = self.rectangle.shape[-1]
        rows = self.rectangle.flatten(-2)  # a view
        first, last = rows[..., size :: size + 1], rows[..., :: size + 1]
        return torch.cat([first, self.rest[..., -1:], last.flip(-1)], dim=-1)

    def below_times(self, vector: Tensor) -> Tensor:
        r"""M below its diagonal times a vector, :math:`\sum_{j<i} M_{ij} v_j`, ``(..., k)``.

        Args:
            vector: v, ``(..., k)``, of the same batch shape.
        """
        forth, back = vector.unsqueeze(-2), vector.flip(-1).unsqueeze(-2)
        return self._sums(forth, back, vector[..., : self.rest.shape[-1]])

    def below_squared(self) -> Tensor:
        r"""Squared length of each row below the diagonal, :math:`\sum_{j<i} M_{ij}^2`."""
        return self._sums(self.rectangle, self.rectangle, self.rest)

    def _sums(self, first: Tensor, second: Tensor, rest: Tensor) -> Tensor:
        """Sums over the rows of M, below its diagonal, times the factor for each kind of place."""
        places = torch.ones_like(self.rectangle[(0,) * (self.rectangle.dim() - 2)])
        upper_rows = (self.rectangle * (first * places.tril(-2))).sum(-1)[..., 1:]
        lower_rows = (self.rectangle * (second * places.triu(1))).sum(-1).flip(-1)
        if not self.rest.shape[-1]:
            return torch.cat([upper_rows, lower_rows], dim=-1)
        middle = (self.rest * rest)[..., :-1].sum(-1, keepdim=True)
        return torch.cat([upper_rows, middle, lower_rows], dim=-1)


def fill_triangle(values: Tensor, size: int) -> Tensor:
    """``(..., size (size + 1) / 2)`` to ``(..., size, size)``; the lower triangle holds each once.

    The values behind the first row's worth, followed by all of them in reverse, are ``size ** 2``
    numbers; read row by row, no value stands twice on or below the diagonal. This takes one copy
    and no scatter. The upper triangle holds leftovers.

    Example:
        >>> fill_triangle(torch.arange(6), 3).tril()
        tensor([[3, 0, 0],
                [5, 4, 0],
                [2, 1, 0]])
    """
    square = torch.cat([values[..., size:], values.flip(-1)], dim=-1)
    return square.unflatten(-1, (size, size))
