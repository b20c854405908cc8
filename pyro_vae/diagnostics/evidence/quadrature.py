"""The log evidence of programs with one or two latent coordinates, by quadrature."""

import math
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.passes import per_datum_dataset, piece_size
from pyro_vae.diagnostics.real_joint import RealJoint
from pyro_vae.evaluation import evaluating
from pyro_vae.rows import PerDatumPart, at_rows, per_datum_parts, pieces
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs, log_weights

from .grid_search import GridSearch
from .importance_check import least_log_mean
from .prior_components import prior_components
from .warped_joint import WarpedJoint

__all__ = ["quadrature_log_evidence"]

ROWS_AT_A_TIME = 32
"""Data whose grids are refined together."""

CHUNK_SIZE = 8000
"""Grid points that go through the model at once."""

AIM = 0.1
"""Share of the tolerance that grids are refined to where their points suffice."""

GUIDE_DRAWS = 512
"""Draws from the guide whose importance weights the integral is held against."""

ROUNDING = 8
"""Rounding errors of a log density that its integral may inherit."""


def quadrature_log_evidence(
    vae: Programs,
    x: Any,
    *,
    tolerance: float = 1e-4,
    max_points: int = 250_000,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""Log p(x) of each datum by the trapezoid rule, for one or two latent coordinates.

    .. math:: p(x) \approx h^K \sum_{j \in \mathbb Z^K} p(x, z(hj))\, |z'(hj)|, \quad
              z = m + s \sinh w

    Each datum has a grid of its own, halved where the density is until the estimated error is
    within a tenth of the tolerance, or the grid is full. For a smooth density it falls
    exponentially as soon as the spacing is below the posterior standard deviation, and mostly ends
    far below the tolerance; for one with kinks (ReLU decoder, Laplace prior) it falls by 4 a
    halving. What cannot be brought within the tolerance is refused. Whatever prior, likelihood and
    decoder; coordinates with values above, below or between fixed bounds are mapped to the line;
    discrete sites that the guide leaves out are summed out.

    Peaks are sought on a first grid, by the slopes between its points, and by climbing from draws
    of guide and prior and from the components of a mixture prior (a ``MixtureSameFamily``). At
    the prior's median the first grid has 1/512 of the prior's standard deviation between points
    with one coordinate, 1/8 with two; at 10 standard deviations ten times that. Of two grids that
    both miss peaks the difference says nothing of them: ``error`` is that of the peaks that were
    found. A peak narrower than the first spacing that neither changes log p(x, z) at a point of
    the first grid nor is reached by a climb is overlooked, as most are of a decoder like
    sin(600 z) with little noise. So the integral is held against two importance estimates, from
    512 draws each of prior and guide, and refused where it is less than they allow. What is below
    their accuracy passes: a tenth of a nat at best, several nats where few draws have weight.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        tolerance: Largest estimated error of log p(x), in nats, that is not refused; a tenth of it
            is aimed at. In single precision it is no smaller than 8 rounding errors of the log
            density.
        max_points: Largest number of grid points of a datum at any spacing; 4000 is little.
            Besides ``chunk_size`` it bounds the memory: 32 data have their grids at a time.
        chunk_size: Grid points that go through the model at once, but at least 32, one of each
            of these data. The result does not depend on it.
        seed: Seed of the draws that the search for peaks begins with; the global random state is
            left alone.

    Returns:
        Over ``obs_id``: ``log_evidence`` and ``error``, its estimated error, in nats;
        ``num_points``, the grid's points. Over ``obs_id`` and ``latent``, in units of z:
        ``posterior_mean`` and ``posterior_sd`` from the same grid, and ``step``, its spacing at
        the mode.

    Raises:
        ValueError: If z has more than two coordinates, x or an argument does not fit, p(x, z) is
            not integrable, the error of a datum remains above the tolerance, or importance
            weights say that its integral is too small.

    Example:
        >>> import pyro_vae as pv
        >>> from pyro_vae import families, guides, likelihoods, priors
        >>> from torch import nn
        >>> vae = pv.VAE(
        ...     prior=priors.StandardNormal(1),
        ...     likelihood=likelihoods.Gaussian(nn.Identity(), event_shape=(1,), variance=1.0),
        ...     guide=guides.AmortizedGuide(families.DiagonalNormal(1), nn.Linear(1, 2)),
        ... )
        >>> evidence = quadrature_log_evidence(vae, torch.tensor([[2.0]]))
        >>> round(evidence["log_evidence"].item(), 4)  # log N(2; 0, 2) = -log(4 pi) / 2 - 1
        -2.2655
        >>> round(evidence["posterior_mean"].item(), 4)
        1.0

    References:
        Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule, section 5.
        https://doi.org/10.1137/130932132
    """
    tolerance = finite_number(tolerance, "tolerance", "positive", above=0)
    max_points = positive_integer(max_points, "max_points")
    chunk_size = positive_integer(chunk_size, "chunk_size")
    device = resolve_device(vae, "auto")
    rows = DataSource(vae, device).tensor(x, name="x")
    parts = per_datum_parts(vae)
    found: list[dict[str, Tensor]] = []
    for piece, index in pieces(parts, rows, piece_size(ROWS_AT_A_TIME, rows)):
        with evaluating(vae, seed, "quadrature", len(found), device=device):
            columns = _evidence(vae, parts, piece, index, tolerance, max_points, chunk_size)
            found.append(columns)
    columns = {name: torch.cat([columns[name] for columns in found]) for name in found[0]}
    return per_datum_dataset(
        columns, attrs={"tolerance": tolerance, "max_points": max_points, "seed": seed}
    )


def _evidence(
    vae: Programs,
    parts: list[PerDatumPart],
    x: Tensor,
    index: Tensor,
    tolerance: float,
    max_points: int,
    chunk_size: int,
) -> dict[str, Tensor]:
    """The columns of some rows."""

    def joint_of(chosen: Tensor) -> RealJoint:
        with at_rows(parts, index[chosen]):
            joint = RealJoint(vae, x[chosen], chunk_size=chunk_size)
        if joint.num_dims > 2:
            raise ValueError(
                f"vae must have one or two latent coordinates for a grid; got {joint.num_dims}. "
                "Use diagnostics.log_evidence or diagnostics.ais_log_evidence."
            )
        return joint

    with at_rows(parts, index):
        density = WarpedJoint(
            joint_of,
            len(x),
            components=prior_components(vae, x),
            points_at_a_time=chunk_size,
            dtype=x.dtype,
            device=x.device,
        )
        weights = {
            "the prior": density.prior_log_weights(),
            "the guide": log_weights(vae, x, num_samples=GUIDE_DRAWS),
        }
        # Beyond the margin lie, on any grid that is small enough, less than e^-6 tolerances.
        search = GridSearch(density, math.log(1 / min(tolerance, 1.0)) + 20, max_points)
    columns = _refined(search, index, tolerance, ROUNDING * torch.finfo(x.dtype).eps)
    for source, values in weights.items():
        _check(columns, values, source, index, tolerance, x.dtype)
    return columns


def _refined(
    search: GridSearch, index: Tensor, tolerance: float, rounding: float
) -> dict[str, Tensor]:
    """The columns, on grids that were halved until the error is what was aimed at."""
    columns: dict[str, Tensor] = {}
    todo = torch.arange(len(index), device=index.device)
    while True:
        least = rounding * search.best.abs().clamp(min=1)
        for row in todo[search.full[todo]].tolist():  # keeps what the grid before has found
            if not columns or not columns["error"][row] <= least[row].clamp(min=tolerance):
                raise ValueError(_too_few_points(search, columns, row, index, tolerance))
        todo = todo[~search.full[todo]]
        if not len(todo):
            return columns
        error = search.error_estimate()
        floor = least.clamp(min=AIM * tolerance)
        for name, values in _estimates(search, error).items():
            column = columns.setdefault(name, torch.zeros_like(values))
            column[todo] = values[todo]
        todo = todo[~(error <= floor)[todo]]
        if not len(todo):
            return columns
        search.halve(todo)


def _too_few_points(
    search: GridSearch, columns: dict[str, Tensor], row: int, index: Tensor, tolerance: float
) -> str:
    """What to say when a row's grid is full."""
    error = float(columns["error"][row]) if columns else math.inf
    step = f"{columns['step'][row].max():.2g}" if columns else "none"
    possible = f" to {error * 1.05:.1e}, which this row would meet," if error < math.inf else ""
    return (
        f"max_points must be large enough for an error within tolerance={tolerance:g}; "
        f"got {search.max_points} points for row {int(index[row])} of x, whose log p(x) has an "
        f"estimated error of {error:.2g} nats at a step of {step}. Raise tolerance{possible} or "
        "max_points: a decoder or prior with kinks converges slowly."
    )


def _check(
    columns: dict[str, Tensor],
    weights: Tensor,
    source: str,
    index: Tensor,
    tolerance: float,
    dtype: torch.dtype,
) -> None:
    """Refuse an integral that importance weights say is too small."""
    found, least = columns["log_evidence"], least_log_mean(weights)
    rounding = ROUNDING * torch.finfo(dtype).eps * found.abs().clamp(min=1)
    allowed = torch.maximum(columns["error"].clamp(min=tolerance), rounding)
    wrong = (least > found + allowed).nonzero().squeeze(1)
    if len(wrong):
        row = int(wrong[0])
        mean = weights[:, row].double().logsumexp(0) - math.log(len(weights))
        raise ValueError(
            "p(x, z) must have no peak that the grid misses; got log p(x) = "
            f"{float(found[row]):.6g} nats on the grid for row {int(index[row])} of x, but "
            f"{float(mean):.6g} and at least {float(least[row]):.6g} from {len(weights)} "
            f"draws of {source}. Use diagnostics.log_evidence or diagnostics.ais_log_evidence."
        )


def _estimates(search: GridSearch, error: Tensor) -> dict[str, Tensor]:
    mean, sd = search.moments()
    return {
        "log_evidence": search.log_integral(),
        "error": error,
        "posterior_mean": mean,
        "posterior_sd": sd,
        "step": search.step(),
        "num_points": search.num_points,
    }
