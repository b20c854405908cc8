"""Sparse sets of lattice points in one or two dimensions, one set for each of several data."""

import itertools

import torch
from torch import Tensor

__all__ = ["Lattice"]

BITS = 26
"""Bits of a coordinate in a code; a datum's number takes the rest of 63."""

CODES_AT_A_TIME = 2**18
"""Codes around points that are held at once."""

ORIGIN = 1 << (BITS - 1)


class Lattice:
    """Points with integer coordinates, each belonging to a datum, as codes in one tensor.

    A code holds the datum's number and the coordinates, so that sets are sorted, united and looked
    up for all data at once.

    Args:
        num_dims: Number K of coordinates, 1 or 2.
        device: Where the codes live.

    Example:
        >>> lattice = Lattice(1, torch.device("cpu"))
        >>> codes = lattice.codes(torch.tensor([0, 0]), torch.tensor([[3], [4]]))
        >>> lattice.coordinates(lattice.around(codes, 1))[1].flatten()
        tensor([2, 3, 4, 5])
    """

    def __init__(self, num_dims: int, device: torch.device) -> None:
        self.num_dims, self.device = num_dims, device
        self._units = [1 << (BITS * (num_dims - 1 - dim)) for dim in range(num_dims)]

    def codes(self, owner: Tensor, index: Tensor) -> Tensor:
        """Codes of points with coordinates ``(P, K)`` that belong to data ``(P,)``."""
        codes = owner << (BITS * self.num_dims)
        for dim, unit in enumerate(self._units):
            codes = codes + (index[:, dim] + ORIGIN) * unit
        return codes

    def coordinates(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the datum, ``(P,)``, and coordinates, ``(P, K)``, of each code."""
        owner = codes >> (BITS * self.num_dims)
        index = [(codes // unit) % (1 << BITS) - ORIGIN for unit in self._units]
        return owner, torch.stack(index, -1)

    def box(self, num_data: int, radius: int) -> Tensor:
        """All points with coordinates from -radius to radius, for each datum."""
        offsets = self._offsets(radius)
        owner = torch.arange(num_data, device=self.device) << (BITS * self.num_dims)
        corner = sum(ORIGIN * unit for unit in self._units)
        return (owner.unsqueeze(1) + corner + offsets).flatten()

    def around(self, codes: Tensor, radius: int) -> Tensor:
        """The points, and all within ``radius`` of one of them in each coordinate."""
        offsets = self._offsets(radius)
        # Neighbors share their surroundings: some at a time leave little to be united.
        parts = codes.split(max(1, CODES_AT_A_TIME // len(offsets)))
        around = [(part.unsqueeze(1) + offsets).flatten().unique() for part in parts]
        return torch.cat(around).unique()

    def lonely(self, codes: Tensor, radius: int, known: Tensor) -> Tensor:
        """Those of which the next or the farthest point within ``radius`` may not be known.

        With one coordinate, where the rest are needless to surround; with two, all of them.
        """
        if self.num_dims > 1:
            return codes
        around = torch.stack([codes + offset for offset in (-radius, -1, 1, radius)])
        return codes[(known[_place(known, around)] != around).any(0)]

    def halved(self, codes: Tensor) -> Tensor:
        """The points and their neighbors on the lattice with half the spacing."""
        owner, index = self.coordinates(codes)
        return self.around(self.codes(owner, 2 * index), 1)

    def steps(self, codes: Tensor, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Differences to the next and from the last point along a dimension; NaN without one.

        Args:
            codes: Sorted codes, ``(P,)``.
            values: A value at each of them.
            dim: The dimension.
        """
        after = self.look_up(codes, values, codes + self._units[dim])
        before = self.look_up(codes, values, codes - self._units[dim])
        return after - values, values - before

    def without(self, codes: Tensor, known: Tensor) -> Tensor:
        """Those codes that are not among sorted, non-empty ones."""
        return codes[known[_place(known, codes)] != codes]

    def sublattice_errors(self, codes: Tensor, weights: Tensor, num_data: int, by: int) -> Tensor:
        """Largest log ratio of a sum over every ``by``-th point to the sum over all, ``(N,)``.

        There are as many sums over every ``by``-th point as shifts, :math:`by^K`; each is
        multiplied by their number, as a coarser lattice has larger cells.
        """
        owner, index = self.coordinates(codes)
        shifts = by**self.num_dims
        shift = torch.zeros_like(owner)
        for dim in range(self.num_dims):
            shift = shift * by + index[:, dim] % by
        sums = weights.new_zeros(num_data * shifts)
        sums = sums.index_add_(0, owner * shifts + shift, weights).view(num_data, shifts)
        return (sums * shifts / sums.sum(1, keepdim=True)).log().abs().amax(1)

    def look_up(self, codes: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
        """Values at wanted codes, from those at sorted ones; NaN at codes that are not there."""
        place = _place(codes, wanted)
        return torch.where(codes[place] == wanted, values[place], torch.nan)

    def _offsets(self, radius: int) -> Tensor:
        axis = range(-radius, radius + 1)
        points = itertools.product(axis, repeat=self.num_dims)
        offsets = [sum(i * u for i, u in zip(point, self._units, strict=True)) for point in points]
        return torch.tensor(offsets, device=self.device)


def _place(known: Tensor, codes: Tensor) -> Tensor:
    return torch.searchsorted(known, codes).clamp(max=len(known) - 1)
