"""The log evidence of programs with one or two latent coordinates, by quadrature."""

import math
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.passes import per_datum_dataset
from pyro_vae.diagnostics.real_joint import RealJoint
from pyro_vae.evaluation import evaluating
from pyro_vae.rows import PerDatumPart, at_rows, per_datum_parts, pieces
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs

from .grid_search import GridSearch
from .warped_joint import WarpedJoint

__all__ = ["quadrature_log_evidence"]

ROWS_AT_A_TIME = 32
"""Data whose grids are refined together."""

POINTS_AT_A_TIME = 8000
"""Grid points that go through the model at once."""

ROUNDING = 8
"""Rounding errors of a log density that its integral may inherit."""


def quadrature_log_evidence(
    vae: Programs,
    x: Any,
    *,
    tolerance: float = 1e-6,
    max_points: int = 250_000,
    seed: int = 0,
) -> xr.Dataset:
    r"""Log p(x) of each datum by the trapezoid rule, for one or two latent coordinates.

    .. math:: p(x) \approx h^K \sum_{j \in \mathbb Z^K} p(x, z(hj))\, |z'(hj)|, \quad
              z = m + s \sinh w

    Each datum has a grid of its own, halved where the density is until the estimated error is
    within the tolerance: for a smooth density it falls exponentially as soon as the spacing is
    below the posterior standard deviation, for one with kinks (ReLU decoder, Laplace prior) by 4
    a halving. What cannot be brought within the tolerance is refused. Whatever prior, likelihood
    and decoder; coordinates with values above, below or between fixed bounds are mapped to the
    line; discrete sites that the guide leaves out are summed out.

    Peaks are sought on a coarse grid, by the slopes between its points, and by climbing from draws
    of guide and prior. A narrow one that changes log p(x, z) at no point of the coarse grid, and
    that no draw leads to, is overlooked.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        tolerance: Largest error of log p(x), in nats. In single precision it is no smaller than
            8 rounding errors of the log density.
        max_points: Largest number of grid points of a datum at any spacing.
        seed: Seed of the draws that the search for peaks begins with; the global random state is
            left alone.

    Returns:
        Over ``obs_id``: ``log_evidence`` and ``error``, its estimated error, in nats;
        ``num_points``, the grid's points. Over ``obs_id`` and ``latent``, in units of z:
        ``posterior_mean`` and ``posterior_sd`` from the same grid, and ``step``, its spacing at
        the mode.

    Raises:
        ValueError: If z has more than two coordinates, x or an argument does not fit, p(x, z) is
            not integrable, or the error of a datum remains above the tolerance.

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
    device = resolve_device(vae, "auto")
    rows = DataSource(vae, device).tensor(x, name="x")
    parts = per_datum_parts(vae)
    found: list[dict[str, Tensor]] = []
    for piece, index in pieces(parts, rows, ROWS_AT_A_TIME):
        with evaluating(vae, seed, "quadrature", len(found), device=device):
            found.append(_evidence(vae, parts, piece, index, tolerance, max_points))
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
) -> dict[str, Tensor]:
    """The columns of some rows."""

    def joint_of(chosen: Tensor) -> RealJoint:
        with at_rows(parts, index[chosen]):
            joint = RealJoint(vae, x[chosen])
        if joint.num_dims > 2:
            raise ValueError(
                f"vae must have one or two latent coordinates for a grid; got {joint.num_dims}. "
                "Use diagnostics.log_evidence or diagnostics.ais_log_evidence."
            )
        return joint

    density = WarpedJoint(
        joint_of, len(x), points_at_a_time=POINTS_AT_A_TIME, dtype=x.dtype, device=x.device
    )
    # Beyond the margin lie, on any grid that is small enough, less than e^-6 tolerances.
    search = GridSearch(density, math.log(1 / min(tolerance, 1.0)) + 20, max_points)
    columns: dict[str, Tensor] = {}
    todo = torch.arange(len(x), device=x.device)
    error = torch.full_like(search.best, math.inf)
    rounding = ROUNDING * torch.finfo(x.dtype).eps
    while True:
        full = search.full.nonzero().squeeze(1)
        if len(full):
            row = int(full[0])
            step = "none" if "step" not in columns else f"{columns['step'][row].max():.2g}"
            raise ValueError(
                f"max_points must be large enough for an error within tolerance={tolerance:g}; "
                f"got {max_points} points for row {int(index[row])} of x, whose log p(x) has an "
                f"estimated error of {float(error[row]):.2g} nats at a step of {step}. Raise "
                "tolerance or max_points: a decoder or prior with kinks converges slowly."
            )
        error = search.error_estimate()
        floor = (rounding * search.best.abs().clamp(min=1)).clamp(min=tolerance)
        for name, values in _estimates(search, error).items():
            column = columns.setdefault(name, torch.zeros_like(values))
            column[todo] = values[todo]
        todo = todo[~(error <= floor)[todo]]
        if not len(todo):
            return columns
        search.halve(todo)


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
