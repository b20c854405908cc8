"""Grids that are fine where a density is, found by halving from a coarse one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .lattice import Lattice
from .warped_joint import WarpedJoint

__all__ = ["GridSearch"]

COARSEST = {1: 1 / 512, 2: 1 / 8}
"""First spacing in w, of which the prior's standard deviation is about 1, by dimension."""

WINDOW = 3.0
"""Half-width in w of the first grid, 10 standard deviations, unless a component of the prior lies
farther out; it grows wherever there is mass."""

GROWTH = {1: 1 / 8, 2: 1 / 2}
"""How far in w around a point with mass the first grid grows at once, by dimension."""

FARTHEST = 80.0
"""Where no proper posterior has mass left: a factor of 10^34 in u."""

STARTS = 8
CLIMBING_STEPS = 40


@dataclass
class GridSearch:
    """The grid of each of N data, level by level, on a common spacing.

    A point's cell is halved as long as the density may come within ``margin`` of its maximum
    there, judged by first and second differences; and the grid grows until all around it the
    density is below that. Local maxima are also sought from draws of guide and prior and, of a
    mixture prior, from its components, so that a peak between the points of a coarse grid is not
    passed over.

    Args:
        density: The density.
        margin: In nats: what lies that far below the maximum is left out.
        max_points: Largest number of grid points of a datum.

    Attributes:
        spacing: Distance in w of neighboring points.
        codes: The points, sorted.
        values: Log densities, ``(P,)``.
        best: Largest log density found for each datum, ``(N,)``.
        full: Data whose grid would have had more than ``max_points`` points.
    """

    density: WarpedJoint
    margin: float
    max_points: int

    def __post_init__(self) -> None:
        density = self.density
        self.lattice = Lattice(density.num_dims, density.center.device)
        self.spacing = COARSEST[density.num_dims]
        self.full = torch.zeros(density.num_data, dtype=torch.bool, device=self.lattice.device)
        peaks = zip(self._climbed(), density.component_points(), strict=True)
        self._peaks, self._peak_values = (torch.cat(parts) for parts in peaks)
        self.best = self._peak_values.amax(0)
        window = min(max(WINDOW, density.reach), FARTHEST)
        box = self.lattice.box(density.num_data, math.ceil(window / self.spacing))
        codes = torch.cat([box, self._around_peaks(~self.full)]).unique()
        self._fill(codes, radius=round(GROWTH[density.num_dims] / self.spacing))

    @property
    def points(self) -> tuple[Tensor, Tensor]:
        """Row number, ``(P,)``, and place, ``(P, K)``, of each point."""
        owner, index = self.lattice.coordinates(self.codes)
        return owner, index.double() * self.spacing

    @property
    def num_points(self) -> Tensor:
        """Number of points of each datum, ``(N,)``."""
        return torch.bincount(self.points[0], minlength=len(self.best))

    def step(self) -> Tensor:
        """Distance of neighboring points at the highest peak, in units of z, ``(N, K)``."""
        owner = torch.arange(len(self.best), device=self.best.device)
        peak = self._peaks[self._peak_values.argmax(0), owner]
        above = self.density.latent_values(owner, peak + self.spacing / 2)
        below = self.density.latent_values(owner, peak - self.spacing / 2)
        return (above - below).abs()

    def halve(self, rows: Tensor) -> None:
        """Go to half the spacing with the data of these row numbers alone."""
        owner, index = self.lattice.coordinates(self.codes)
        chosen = torch.zeros_like(self.full)
        chosen[rows] = True
        possible = self.values + self._gain()
        keep = chosen[owner] & (possible > self.best[owner] - self.margin)
        self.spacing /= 2
        self.density.keep(rows)
        codes = torch.cat([self.lattice.halved(self.codes[keep]), self._around_peaks(chosen)])
        self._fill(codes.unique(), radius=1)

    def log_integral(self) -> Tensor:
        """Log of the sum over each datum's grid times its cell, ``(N,)``; -inf without points."""
        owner, _ = self.points
        sums = self.best.new_zeros(len(self.best)).index_add_(0, owner, self._weights(owner))
        return self.best + sums.log() + self.density.num_dims * math.log(self.spacing)

    def error_estimate(self) -> Tensor:
        """Estimated error of the log integral, ``(N,)``, infinite where a peak is unresolved.

        Every second, fourth and eighth point make coarser grids, each with all its shifts, whose
        errors E2, E4, E8 are known: the largest of the shifts, since one may be right by chance.
        Where they fall faster than any power, as for a smooth density, E2 bounds the error. Else
        the error is taken to fall by 4 a halving, as with kinks, from the largest of the three:
        where the kinks lie between the points makes each of them uncertain by itself.
        """
        owner, _ = self.points
        weights = self._weights(owner)
        by_two, by_four, by_eight = (
            self.lattice.sublattice_errors(self.codes, weights, len(self.best), by)
            for by in (2, 4, 8)
        )
        is_smooth = (by_two < by_four / 1000) & (by_four < by_eight / 25) & by_eight.isfinite()
        smooth = torch.maximum(by_two, by_four * (by_four / by_eight).square())
        kinked = torch.stack([by_two / 2, by_four / 8, by_eight / 32]).amax(0)
        error = torch.where(is_smooth, smooth, kinked).nan_to_num(math.inf, posinf=math.inf)
        return torch.where(self._is_unresolved(owner), math.inf, error)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of z, ``(N, K)`` each."""
        owner, w = self.points
        shares = self._weights(owner)
        zeros = self.density.center.new_zeros(self.density.center.shape)
        total = zeros[:, 0].index_add(0, owner, shares)
        shares = (shares / total[owner]).unsqueeze(1)
        z = self.density.latent_values(owner, w)
        mean = zeros.index_add(0, owner, shares * z)
        variance = zeros.index_add(0, owner, shares * (z - mean[owner]).square())
        return mean, variance.sqrt()

    def _weights(self, owner: Tensor) -> Tensor:
        return (self.values - self.best[owner]).exp()

    def _fill(self, codes: Tensor, *, radius: int) -> None:
        """Evaluate the points, and their neighbors as long as they are within the margin."""
        self.codes = codes.new_empty(0)
        self.values = self.best.new_empty(0)
        new = self._allowed(codes)
        while len(new):
            owner, index = self.lattice.coordinates(new)
            values = self.density(owner, index.double() * self.spacing)
            self.best = self.best.scatter_reduce(0, owner, values, "amax")
            order = torch.cat([self.codes, new]).sort()
            self.codes = order.values
            self.values = torch.cat([self.values, values])[order.indices]
            alive = new[values > self.best[owner] - self.margin]
            if not len(alive):
                return
            if self.lattice.coordinates(alive)[1].abs().max() * self.spacing > FARTHEST:
                raise ValueError(
                    "p(x, z) must be integrable over z; got a density that does not fall off at "
                    f"{FARTHEST:.0f} powers of e from the prior's median."
                )
            alive = self.lattice.lonely(alive, radius, self.codes)
            new = self._allowed(
                self.lattice.without(self.lattice.around(alive, radius), self.codes)
            )

    def _allowed(self, new: Tensor) -> Tensor:
        """New points without those of data whose grids become too large, which are noted."""
        owner, _ = self.lattice.coordinates(torch.cat([self.codes, new]))
        count = torch.bincount(owner, minlength=len(self.full))
        self.full |= count > self.max_points
        return new[~self.full[self.lattice.coordinates(new)[0]]]

    def _values_or_nan(self) -> Tensor:
        """Log densities with NaN for -inf, which says nothing of slopes."""
        return self.values.where(self.values.isfinite(), math.nan)

    def _gain(self) -> Tensor:
        """How much higher than at a point the density may be in its cell, for a quadratic one."""
        values, num_dims = self._values_or_nan(), self.density.num_dims
        gain = torch.zeros_like(values)
        for dim in range(num_dims):
            ahead, behind = self.lattice.steps(self.codes, values, dim)
            bend = (ahead - behind).abs().nan_to_num(0.0)
            slope = torch.fmin(ahead.abs(), behind.abs()).nan_to_num(0.0)
            gain = gain + slope / 2 + num_dims * bend / 4
        return gain

    def _is_unresolved(self, owner: Tensor) -> Tensor:
        """Whether a peak of a datum that matters is narrower than the spacing, ``(N,)``."""
        matters = self.best - self.margin / 2
        values, num_dims = self._values_or_nan(), self.density.num_dims
        top, rise = torch.ones_like(owner, dtype=torch.bool), torch.zeros_like(values)
        sharp = torch.zeros_like(top)
        for dim in range(num_dims):
            ahead, behind = self.lattice.steps(self.codes, values, dim)
            top &= (ahead <= 0) & (behind >= 0)
            rise += num_dims * (behind - ahead) / 8
            sharp |= behind - ahead > 1
        bad = top & sharp & (values + rise > matters[owner])
        unresolved = torch.zeros_like(self.full)
        unresolved[owner[bad]] = True
        # The peaks that were found from draws must have a grid point near their tops.
        draw, peak_owner = (self._peak_values > matters).nonzero(as_tuple=True)
        nearest = self.lattice.look_up(self.codes, values, self._nearest(draw, peak_owner))
        near = nearest > self._peak_values[draw, peak_owner] - 1
        unresolved[peak_owner[~near]] = True
        return unresolved

    def _around_peaks(self, chosen: Tensor) -> Tensor:
        matters = chosen & (self._peak_values > self.best - self.margin)
        return self.lattice.around(self._nearest(*matters.nonzero(as_tuple=True)), 1)

    def _nearest(self, draw: Tensor, owner: Tensor) -> Tensor:
        index = (self._peaks[draw, owner] / self.spacing).round().long()
        return self.lattice.codes(owner, index)

    def _climbed(self) -> tuple[Tensor, Tensor]:
        """Local maxima by a pattern search: no gradient, so that kinks do not matter."""
        places, values, stride = self.density.starts(STARTS)
        eye = torch.eye(self.density.num_dims, dtype=places.dtype, device=places.device)
        moves = torch.cat([eye, -eye])
        for _ in range(CLIMBING_STEPS):
            tried = places + moves[:, None, None] * stride[..., None]  # (2K, R, N, K)
            found = self.density.at_draws(tried.flatten(0, 1)).view(tried.shape[:-1])
            top = found.max(0)
            better = top.values > values
            which = top.indices[None, ..., None].expand(1, *places.shape)
            places = torch.where(better.unsqueeze(-1), tried.gather(0, which)[0], places)
            values = torch.where(better, top.values, values)
            stride = torch.where(better, stride, stride / 2)
        return places, values
