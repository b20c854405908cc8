"""Two samples by their nearest neighbors: do they lie in the same places?"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "FIGURES",
    "Reference",
    "coverage_if_equal",
    "covered",
    "distances",
    "normal_factor",
    "radii",
    "region",
    "whitening",
]

FIGURES = ("precision", "recall", "density", "coverage")

GROUPS = 20
"""Groups of the reference that the jackknife leaves out in turn."""

NUMBERS_AT_A_TIME = 2**17
"""Distances that are held at once."""

FLAT = 1e-12
"""Share of the largest variance that each direction has at least."""

TINY = 1e-24
"""Variance that each direction has at least, where all points are equal."""


class Reference:
    r"""A sample r_1, ..., r_N with balls around it, against which others of M points are held.

    With :math:`B_i` the ball around :math:`r_i` that reaches to its K-th nearest neighbor in the
    sample, and :math:`B'_j` that around :math:`y_j` in the other one,

    .. math:: \text{precision} &= \tfrac1M \#\{j : y_j \in \textstyle\bigcup_i B_i\}, \qquad
              \text{recall} = \tfrac1N \#\{i : r_i \in \textstyle\bigcup_j B'_j\}, \\
              \text{density} &= \tfrac1{KM} \#\{(i, j) : y_j \in B_i\}, \qquad
              \text{coverage} = \tfrac1N \#\{i : B_i \text{ holds some } y_j\}.

    Args:
        rows: The sample, ``(N, D)``, in double precision.
        num_neighbors: Number K.

    Example:
        >>> line = torch.arange(40.0).double().unsqueeze(1)
        >>> Reference(line, num_neighbors=1).figures(line + 0.25).tolist()  # each in 2 balls
        [1.0, 1.0, 1.975, 1.0]

    References:
        Kynkäänniemi, Karras, Laine, Lehtinen and Aila (2019), Improved precision and recall
        metric for assessing generative models, equations 1 and 2.
        https://arxiv.org/abs/1904.06991
        Naeem, Oh, Uh, Choi and Yoo (2020), Reliable fidelity and diversity metrics for generative
        models, equations 3 and 4. https://arxiv.org/abs/2002.09797
    """

    def __init__(self, rows: Tensor, *, num_neighbors: int) -> None:
        self.rows, self.num_neighbors = rows, num_neighbors
        number = torch.arange(len(rows), device=rows.device)
        self._groups = number % GROUPS
        self._radii = rows.new_empty(len(rows))
        self._left = rows.new_empty(GROUPS, len(rows))
        """Radii in the sample without a group; for the rows of the group without meaning."""
        for some, between in _own_distances(rows):
            self._radii[some] = _radii(between, num_neighbors)
            for group in range(GROUPS):
                kept = self._groups != group
                self._left[group, some] = _radii(between[:, kept], num_neighbors)

    def figures(self, other: Tensor, radius: Tensor | None = None) -> Tensor:
        """Precision, recall, density and coverage of another sample ``(M, D)``, as ``(4,)``.

        Args:
            other: The other sample.
            radius: Radii of the balls around it, where they are known already.
        """
        radius = radii(other, self.num_neighbors) if radius is None else radius
        everyone = torch.ones_like(self._groups, dtype=torch.bool).unsqueeze(0)
        return self._figures(other, self._radii.unsqueeze(0), everyone, radius)[0]

    def jackknife(self, other: Tensor, radius: Tensor | None = None) -> Tensor:
        """Standard errors of the four figures over references, ``(4,)``; the other sample stays.

        Groups of the reference are left out in turn. By the inequality of Efron and Stein the
        variance is in expectation rather too large than too small.
        """
        radius = radii(other, self.num_neighbors) if radius is None else radius
        kept = torch.stack([self._groups != group for group in range(GROUPS)])
        left = self._figures(other, self._left, kept, radius)
        return left.std(0, correction=0) * math.sqrt(GROUPS - 1)

    def _figures(self, other: Tensor, own: Tensor, kept: Tensor, others: Tensor) -> Tensor:
        """The figures, ``(G, 4)``, for G subsets of the reference with radii of their own.

        Args:
            other: The other sample, ``(M, D)``.
            own: Radii around the reference, ``(G, N)``.
            kept: Which of it belong to a subset, ``(G, N)``.
            others: Radii around the other sample, ``(M,)``.
        """
        hit = torch.zeros(len(own), len(other), dtype=torch.bool, device=other.device)
        sums = own.new_zeros(3, len(own))
        for some, cross in _distances_in_pieces(self.rows, other):
            near = (cross <= others).any(1)
            for group, (radius, wanted) in enumerate(
                zip(own[:, some], kept[:, some], strict=True)
            ):
                inside = cross[wanted] <= radius[wanted].unsqueeze(1)
                hit[group] |= inside.any(0)
                sums[0, group] += near[wanted].sum()
                sums[1, group] += inside.sum()
                sums[2, group] += inside.any(1).sum()
        count = kept.sum(1)
        recall, coverage = sums[0] / count, sums[2] / count
        density = sums[1] / len(other) / self.num_neighbors
        return torch.stack([hit.double().mean(1), recall, density, coverage], 1)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances, ``(n, m)``, between the rows of ``(n, D)`` and ``(m, D)``.

    Example:
        >>> distances(torch.zeros(1, 2).double(), torch.tensor([[3.0, 4.0]]).double()).item()
        5.0
    """
    # The product of matrices that makes it fast loses digits far from the origin.
    center = b.mean(0)
    return torch.cdist(a - center, b - center)


def radii(rows: Tensor, num_neighbors: int) -> Tensor:
    """Distance of each row, ``(N, D)``, to its K-th nearest among the others, ``(N,)``.

    Example:
        >>> radii(torch.tensor([[0.0], [1.0], [3.0]]), 1).tolist()
        [1.0, 1.0, 2.0]
    """
    return torch.cat([_radii(between, num_neighbors) for _, between in _own_distances(rows)])


def coverage_if_equal(num_reference: int, num_draws: int, num_neighbors: int) -> float:
    r"""Expected coverage of M draws from the very distribution of the N references.

    .. math:: 1 - \prod_{j=1}^K \frac{N - j}{M + N - j}

    Whatever the distribution, if it has a density; the expected density is then 1.

    Example:
        >>> round(coverage_if_equal(2, 1, 1), 4)
        0.5

    References:
        Naeem, Oh, Uh, Choi and Yoo (2020), section 3.3 and appendix.
        https://arxiv.org/abs/2002.09797
    """
    missed = 1.0
    for j in range(1, num_neighbors + 1):
        missed *= (num_reference - j) / (num_draws + num_reference - j)
    return 1.0 - missed


class Region(NamedTuple):
    """Where a sample is dense: a point is inside if its K-th anchor is within the reach.

    Attributes:
        anchors: ``(A, k)``.
        num_neighbors: Number K.
        reach: Distance.
        shorter: Reach one standard error of its rank down.
        longer: Reach one standard error of its rank up.
        nominal: Expected share of the distribution inside, given the anchors: exact.
    """

    anchors: Tensor
    num_neighbors: int
    reach: Tensor
    shorter: Tensor
    longer: Tensor
    nominal: float


def region(anchors: Tensor, calibration: Tensor, *, num_neighbors: int, level: float) -> Region:
    """The region around anchors that holds a given share of their distribution.

    The reach is an order statistic of the distances of other points of that distribution, so that
    a new point is inside with probability rank / (m + 1), m other points, whatever the
    distribution.

    Args:
        anchors: ``(A, k)``.
        calibration: Other points of the same distribution, ``(m, k)``.
        num_neighbors: Number K.
        level: Share.

    Example:
        >>> line = torch.arange(99.0).unsqueeze(1)
        >>> found = region(torch.zeros(1, 1), line, num_neighbors=1, level=0.95)
        >>> found.reach.item(), found.nominal  # the 95th of 99 distances 0, 1, ..., 98
        (94.0, 0.95)
    """
    num = len(calibration)
    ordered = _far(calibration, anchors, num_neighbors).sort().values
    rank = max(1, math.ceil(level * (num + 1) - 1e-9))
    width = max(1, round(math.sqrt(num * level * (1 - level))))
    return Region(
        anchors,
        num_neighbors,
        ordered[rank - 1],
        ordered[max(0, rank - 1 - width)],
        ordered[min(num - 1, rank - 1 + width)],
        rank / (num + 1),
    )


def covered(points: Tensor, place: Region) -> tuple[Tensor, float]:
    """Which points ``(n, k)`` lie in a region, ``(n,)``; the error of their share by its reach.

    The error is what the share would change by if the reach were off by one standard error of its
    rank.

    Example:
        >>> place = Region(torch.zeros(1, 1), 1, *torch.tensor([2.0, 1.0, 3.0]), nominal=0.95)
        >>> inside, error = covered(torch.tensor([[0.0], [1.5], [-2.5], [9.0]]), place)
        >>> inside.tolist(), error
        ([True, True, False, False], 0.25)
    """
    far = _far(points, place.anchors, place.num_neighbors)
    change = (far <= place.longer).double().mean() - (far <= place.shorter).double().mean()
    return far <= place.reach, change.item() / 2


def whitening(points: Tensor) -> Tensor:
    """Matrix W, ``(k, k)``, such that ``points @ W`` have unit covariance.

    A direction in which they do not vary gets so large a weight that any step in it is a long way.

    Example:
        >>> whitening(torch.tensor([[0.0], [2.0]]).double())  # the variance is 2
        tensor([[0.7071]], dtype=torch.float64)
    """
    variances, axes = _principal(points)
    return axes * variances.rsqrt()


def normal_factor(points: Tensor) -> Tensor:
    r"""Matrix U, ``(k, k)``, whose :math:`U^\top U` is the covariance of points ``(N, k)``.

    Its rows are the first k points, made orthogonal one after the other in the metric of the
    inverse covariance. So it follows an affine map of the points, which a Cholesky factor does
    not: ``noise @ U`` are the very same draws in other coordinates.

    Example:
        >>> points = torch.tensor([[2.0], [0.0]]).double()
        >>> normal_factor(points), normal_factor(10 * points)
        (tensor([[1.4142]], dtype=torch.float64), tensor([[14.1421]], dtype=torch.float64))
    """
    variances, axes = _principal(points)
    size = len(axes)
    first = (points - points.mean(0))[:size] @ (axes * variances.rsqrt())
    first = torch.cat([first, first.new_zeros(size - len(first), size)])
    basis, triangle = torch.linalg.qr(first.mT)
    # The signs of QR are arbitrary.
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(basis)
    return (basis * signs).mT @ (axes * variances.sqrt()).mT


def _principal(points: Tensor) -> tuple[Tensor, Tensor]:
    """Variances along the principal axes, none of them 0, and the axes as columns."""
    variances, axes = torch.linalg.eigh(torch.atleast_2d(points.mT.cov()))
    return variances.clamp(min=max(FLAT * variances[-1].item(), TINY)), axes


def _distances_in_pieces(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a at a time: which, and their distances from all of b."""
    size = max(1, NUMBERS_AT_A_TIME // len(b))
    for start in range(0, len(a), size):
        some = slice(start, min(start + size, len(a)))
        yield some, distances(a[some], b)


def _own_distances(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for some, between in _distances_in_pieces(rows, rows):
        number = torch.arange(some.start, some.stop, device=rows.device).unsqueeze(1)
        yield some, between.scatter_(1, number, 0.0)


def _far(points: Tensor, anchors: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest anchor."""
    return torch.cat([_kth(found, k) for _, found in _distances_in_pieces(points, anchors)])


def _radii(between: Tensor, num_neighbors: int) -> Tensor:
    # The nearest is the point itself.
    return _kth(between, num_neighbors + 1)


def _kth(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of each row; several times faster than ``kthvalue``."""
    return values.topk(k, dim=1, largest=False).values[:, -1]
