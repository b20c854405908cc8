"""The best member of a family for each datum, found by stochastic gradient ascent on the ELBO."""

import copy
import math
from typing import Any, NamedTuple

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.families import Family, FullCovarianceNormal
from pyro_vae.traces.runs import draws_of_a_run

from .per_datum_coordinates import Coordinates, NormalCoordinates, TableCoordinates
from .per_datum_joint import RowsJoint

__all__ = ["Optimum", "best_members", "draw_log_weights"]

FIRST_RATE, LAST_RATE = 0.2, 0.003
"""Step sizes, in standard deviations of q."""

FAR = 3.0
"""Slope, in nats per standard deviation of q, from which on a datum counts as far from its best q.
Its steps are first measured in the parameters' own units."""

SETTLED = 0.75
"""Share of the steps after which its unit, which shrinks geometrically, is that of the others."""

PAIRS = 2
"""Antithetic pairs of draws for each datum and step."""

REFRESH = 25
"""Steps after which the units are taken anew."""

GROUPS, PAIRS_OF_A_GROUP = 32, 4
"""Independent gradients behind what is left to gain."""


class Optimum(NamedTuple):
    """The best members found.

    Attributes:
        family: The family; a copy of its networks was trained where it has some.
        table: Its parameters for each datum, ``(N, num_params)``.
        left: Nats that a further step is expected to gain, ``(N,)``.
        left_mcse: Its Monte Carlo standard error.
    """

    family: Family
    table: Tensor
    left: Tensor
    left_mcse: Tensor

    @property
    def q(self) -> dist.TorchDistribution:
        """The members, batch ``(N,)``."""
        q: dist.TorchDistribution = self.family(self.table)
        return q


def best_members(
    joint: RowsJoint, family: Family, start: Tensor, *, num_steps: int, thorough: bool = True
) -> Optimum:
    r"""Maximize each datum's ELBO over the parameters of its own q, with the model as it is.

    Adam on antithetic pairs of draws, with a decaying step size and the average of the last
    quarter of the iterates. The gradient is that of the path alone,
    :math:`\nabla_\phi [\log p(x, z_\phi) - \log q_{\bar\phi}(z_\phi)]`, which vanishes draw by
    draw at the exact posterior; for a flow, whose density at another value takes an inverse, it is
    the total one. Steps are measured in standard deviations of q, or what corresponds to them in
    other parameters, so that a narrow posterior is as easy as a wide one. No parameter's ``grad``
    or ``requires_grad`` is touched.

    What is left to gain is estimated by :math:`\tfrac12 \sum_j g_j^2`, g the gradient at the
    result in those units, without bias from the noise of g.

    Args:
        joint: Log p(x, z) at the data.
        family: Unconstrained parameters to a distribution over z.
        start: Parameters where each datum starts, ``(N, num_params)``.
        num_steps: Number of steps; a full covariance that starts far off takes them twice.
        thorough: Whether to find out what is left to gain, which is NaN if not, and whether one
            datum far off has all of them take the steps twice.

    References:
        Roeder, Wu and Duvenaud (2017), Sticking the landing, section 3.
        https://arxiv.org/abs/1703.09194
        Amari (1998), Natural gradient works efficiently in learning.
        https://doi.org/10.1162/089976698300017746
    """
    family = copy.deepcopy(family).to(start).requires_grad_(True)  # noqa: FBT003
    coordinates: Coordinates = TableCoordinates(family, start)
    # The runs behind ``joint`` have validated x and parameters.
    with torch.enable_grad(), pyro.validation_enabled(False):  # noqa: FBT003
        coordinates.renew()
        slopes = coordinates.slopes(_gradients(joint, coordinates, GROUPS))[0]
        far = slopes.abs().amax(-1, keepdim=True) > FAR
        if isinstance(family, FullCovarianceNormal):
            table = coordinates.table()
            twice = far | (far.any() & thorough)
            rows = twice.squeeze(-1).nonzero().squeeze(-1)
            if len(rows):
                with joint.at(rows) as some:
                    nearer = TableCoordinates(family, table[rows])
                    _ascend(some, nearer, far[rows], num_steps)
                table = table.index_copy(0, rows, nearer.table())
            coordinates = NormalCoordinates(family, table)
            far = torch.zeros_like(far)
        _ascend(joint, coordinates, far, num_steps)
        if thorough:
            left, left_mcse = _left_to_gain(joint, coordinates)
        else:
            left = left_mcse = start.new_full((len(start),), math.nan)
    family.requires_grad_(False)  # noqa: FBT003
    return Optimum(family, coordinates.table(), left, left_mcse)


def draw_log_weights(
    joint: RowsJoint, q: Any, num_samples: int, *, rows: Tensor | None = None
) -> Tensor:
    r"""Log weights :math:`\log p(x, z_s) - \log q(z_s)` of draws from q, ``(S, n)``.

    Normal distributions of one shape draw the same noise from the same random state.

    Args:
        joint: Log p(x, z) at the data, or at ``rows`` of them.
        q: Distributions over z, batch ``(N,)``.
        num_samples: Number S of draws for each datum.
        rows: Numbers of the n rows to weigh; the noise is that of all N.
    """
    num_data = q.batch_shape[0] if rows is None else len(rows)
    device = (joint if rows is None else rows).device
    found = torch.empty(num_samples, num_data, dtype=torch.float64, device=device)
    start = 0
    for size in draws_of_a_run(num_samples, q.batch_shape[0]):
        z = q.rsample((size,))
        log_q = q.log_prob(z)
        if rows is not None:
            z, log_q = z[:, rows], log_q[:, rows]
        with pyro.validation_enabled(False):  # noqa: FBT003
            found[start : start + size] = joint(z).double() - log_q.double()
        start += size
    return found


def _ascend(joint: RowsJoint, coordinates: Coordinates, far: Tensor, num_steps: int) -> None:
    """Move to the average of the last quarter of the iterates."""
    leaves = coordinates.leaves
    averages = [torch.zeros_like(leaf) for leaf in leaves]
    num_averaged = max(1, num_steps // 4)
    adam = _Adam(leaves)
    for step in range(num_steps):
        if step % REFRESH == 0:
            coordinates.renew()
        rate = FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (step / num_steps)
        share = torch.ones_like(far, dtype=leaves[0].dtype)
        share[far] = min(1.0, step / (SETTLED * num_steps))
        slopes = coordinates.slopes(_gradients(joint, coordinates, PAIRS), share)
        with torch.no_grad():
            coordinates.move(adam.steps(slopes, rate), share)
            if step >= num_steps - num_averaged:
                for average, leaf in zip(averages, leaves, strict=True):
                    average += leaf / num_averaged
    with torch.no_grad():
        for average, leaf in zip(averages, leaves, strict=True):
            leaf.copy_(average)


def _gradients(joint: RowsJoint, coordinates: Coordinates, num_pairs: int) -> list[Tensor]:
    """Gradients of the ELBO, averaged over draws and summed over data: rows do not mix.

    A graph holds no more rows times draws than go through the model at once.
    """
    q = coordinates.q()
    base = q.base_dist if isinstance(q, dist.TransformedDistribution) else q
    fixed = coordinates.q(fixed=True) if base is q else None
    some = max(1, joint.chunk_size // (2 * joint.num_data))
    total = [torch.zeros_like(leaf) for leaf in coordinates.leaves]
    for half in base.rsample((num_pairs,)).split(some):
        z = torch.cat([half, 2 * base.mean - half])
        if fixed is not None:
            log_q = fixed.log_prob(z)
        else:
            log_q = base.log_prob(z)
            for transform in q.transforms:
                before, z = z, transform(z)
                log_q = log_q - transform.log_abs_det_jacobian(before, z)
        elbo = (joint(z) - log_q).sum() / (2 * num_pairs)
        found = torch.autograd.grad(
            elbo, coordinates.leaves, retain_graph=some < num_pairs, materialize_grads=True
        )
        total = [one + other for one, other in zip(total, found, strict=True)]
    return total


def _left_to_gain(joint: RowsJoint, coordinates: Coordinates) -> tuple[Tensor, Tensor]:
    """Half the squared slopes of each datum's own parameters, and the jackknife error of that."""
    coordinates.renew()
    num_own = 2 if isinstance(coordinates, NormalCoordinates) else 1
    found = []
    for _ in range(GROUPS):
        slopes = coordinates.slopes(_gradients(joint, coordinates, PAIRS_OF_A_GROUP))
        found.append(torch.cat([slope.flatten(1) for slope in slopes[:num_own]], 1).double())
    groups = torch.stack(found)
    total, squares = groups.sum(0), groups.square()

    def estimate(total: Tensor, squares: Tensor, count: int) -> Tensor:
        # Products of different groups alone: the square of one would add its noise.
        return (total.square() - squares).sum(-1) / (2 * count * (count - 1))

    whole = estimate(total, squares.sum(0), GROUPS)
    without = estimate(total - groups, squares.sum(0) - squares, GROUPS - 1)
    return whole, without.std(0, correction=0) * math.sqrt(GROUPS - 1)


class _Adam:
    """Adam's steps from slopes."""

    def __init__(self, leaves: list[Tensor]) -> None:
        self._moments = [(torch.zeros_like(leaf), torch.zeros_like(leaf)) for leaf in leaves]
        self._count = 0

    def steps(self, slopes: list[Tensor], rate: float) -> list[Tensor]:
        self._count += 1
        found = []
        for slope, (first, second) in zip(slopes, self._moments, strict=True):
            first.lerp_(slope, 0.1)
            second.lerp_(slope.square(), 0.05)
            mean = first / (1 - 0.9**self._count)
            size = (second / (1 - 0.95**self._count)).sqrt()
            # Where slopes are small a step is one of the natural gradient, which does not
            # overshoot.
            found.append(rate * mean / (size + rate))
        return found
