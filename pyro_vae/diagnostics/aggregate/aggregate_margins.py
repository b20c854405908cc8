"""The aggregate posterior's margins beside the prior's: where are holes?"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.passes import each_piece
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import LatentSite, Programs, latent_site

from .margins import in_double, margins

__all__ = ["aggregate_margins"]

ROWS_AT_A_TIME = 1000

BLOCK = 2**17
"""Numbers in one block of points times rows times latent dimensions."""

REACH = 5.0
"""Standard deviations beyond the means of q(z|x) and p(z) that the points cover."""

FAR_REACH = 30.0
"""As many scales at most where q(z|x) has no finite variance: 98% of a Cauchy's mass."""

NUM_DRAWS = 256
"""Draws for each datum that tell location and scale where there are no finite moments."""

SCALES = 2**14
"""Most data, evenly spread, whose scales make the median."""

STEPS_PER_SCALE = 4.0
"""Points in a standard deviation of a typical q(z|x): the aggregate's bumps are as wide."""

FEWEST, MOST = 400, 4000


def aggregate_margins(
    vae: Programs, x: Any, *, num_points: int | None = None, seed: int = 0
) -> xr.Dataset:
    r"""Densities of each latent coordinate under the aggregate posterior and under the prior.

    .. math:: \bar q_j(z_j) = \frac1N \sum_n q_j(z_j \mid x_n), \qquad
              \text{overlap}_j = \int \min(\bar q_j(z_j), p_j(z_j))\, dz_j \in [0, 1]

    Where p has mass and the aggregate none is a hole: draws from the prior decode to what no datum
    is near. The sums are over all N data, without Monte Carlo error. Two margins that agree do not
    prove that the joint densities do: that is the total correlation of ``aggregate_kl``.

    The points cover five standard deviations about all means, within the supports. Where a
    distribution has no finite moments, or none that are known, draws tell how far they reach; of
    heavy tails a few percent of the mass may lie beyond. Outside its support a density is 0, and
    so it is where it is infinite, at an end of the support.

    Args:
        vae: A VAE, or any model and guide with one latent vector for each datum.
        x: Data, ``(N, *event_shape)``.
        num_points: Number of points on each axis; enough for the median standard deviation of
            q(z|x), between 400 and 4000, unless given.
        seed: Seed of what is random in the programs.

    Returns:
        ``z``, ``aggregate_density`` and ``prior_density`` over ``latent`` and ``point``, the
        densities per unit of z, and ``overlap`` over ``latent``, by the trapezoidal rule.

    Raises:
        ValueError: If theory does not know the margins of q(z|x) or p(z), as for a flow.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> densities = aggregate_margins(vae, torch.zeros(5, 3), num_points=50)
        >>> dict(densities.sizes)
        {'latent': 2, 'point': 50}
    """
    if num_points is not None:
        num_points = positive_integer(num_points, "num_points")

    rows = DataSource(vae, resolve_device(vae, "auto")).tensor(x, name="x")
    low, high, scale = _extent(vae, rows, seed)
    if num_points is None:
        needed = (high - low) * STEPS_PER_SCALE / scale
        num_points = int(needed.max().clamp(FEWEST, MOST))
    steps = torch.linspace(0, 1, num_points, dtype=low.dtype, device=low.device)
    z = low + (high - low) * steps.unsqueeze(-1)  # (num_points, k)
    total = torch.zeros_like(z)
    prior: list[Tensor] = []

    def visit(piece: Tensor) -> None:
        site = latent_site(vae, piece)
        q, points = margins(in_double(site.q)), z.to(piece.device)
        size = max(1, BLOCK // (len(piece) * z.shape[-1]))
        inside = q.sample()
        sums = [_density(q, part.unsqueeze(1), inside).sum(1) for part in points.split(size)]
        total.add_(torch.cat(sums).cpu())
        if not prior:
            p = margins(in_double(site.p))
            inside = p.sample()
            # Its first row: they are equal. A view would keep the others.
            prior.extend(
                _density(p, part.unsqueeze(1), inside)[:, 0].clone() for part in points.split(size)
            )

    each_piece(vae, rows, visit, seed=seed, purpose="margins", at_a_time=ROWS_AT_A_TIME)
    aggregate, of_p = total / len(rows), torch.cat(prior).cpu()
    overlap = torch.trapezoid(torch.minimum(aggregate, of_p), z, dim=0)
    dims = ("latent", "point")
    return xr.Dataset(
        {
            "z": (dims, z.T.numpy()),
            "aggregate_density": (dims, aggregate.T.numpy()),
            "prior_density": (dims, of_p.T.numpy()),
            "overlap": ("latent", overlap.numpy()),
        },
        coords={"latent": np.arange(z.shape[1]), "point": np.arange(num_points)},
        attrs={"units": "per unit of z", "num_data": len(rows), "seed": seed},
    )


def _extent(vae: Programs, rows: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest and highest end over the data, and the median scale of q(z|x), ``(k,)`` each."""
    found: dict[str, Tensor] = {}
    scales: list[Tensor] = []
    every = math.ceil(len(rows) / SCALES)
    start = 0

    def visit(piece: Tensor) -> None:
        nonlocal start
        ends = {name: values.cpu() for name, values in _ends(latent_site(vae, piece)).items()}
        scales.append(ends["scale"][-start % every :: every])
        start += len(piece)
        low, high = ends["low"].amin(0), ends["high"].amax(0)
        found["low"] = torch.minimum(found.get("low", low), low)
        found["high"] = torch.maximum(found.get("high", high), high)

    each_piece(vae, rows, visit, seed=seed, purpose="margins", at_a_time=ROWS_AT_A_TIME)
    return found["low"], found["high"], torch.cat(scales).median(0).values


def _ends(site: LatentSite) -> dict[str, Tensor]:
    """How far the points must reach for each datum, and its scale, ``(n, k)`` each."""
    found = {name: margins(in_double(d)) for name, d in (("q(z|x)", site.q), ("p(z)", site.p))}
    for name, of_it in found.items():
        if of_it is None:
            raise ValueError(
                f"the margins of {name} must be known, as of normals, mixtures of normals and "
                "independent coordinates; got another distribution, perhaps a flow. aggregate_kl "
                "needs no margins."
            )
    of_q = _span(found["q(z|x)"], FAR_REACH)
    # Of a prior with heavy tails the bulk is enough: beyond it the aggregate decides.
    of_p = _span(found["p(z)"], REACH)
    return {
        "low": torch.minimum(of_q.low, of_p.low),
        "high": torch.maximum(of_q.high, of_p.high),
        "scale": of_q.scale,
    }


class _Span(NamedTuple):
    """Where a distribution has its mass, and its scale, each of its batch shape."""

    low: Tensor
    high: Tensor
    scale: Tensor


def _span(distribution: Any, far_reach: float) -> _Span:
    """REACH standard deviations, or what draws say where there are none, within the support.

    Args:
        distribution: Over single numbers.
        far_reach: Scales at most that are covered where there is no standard deviation.
    """
    try:
        mean, scale = distribution.mean, distribution.variance.sqrt()
    except NotImplementedError:
        mean = scale = torch.full_like(distribution.sample(), torch.nan)
    low, high = mean - REACH * scale, mean + REACH * scale
    known = low.isfinite() & high.isfinite()
    if not known.all():
        draws = distribution.sample(torch.Size([NUM_DRAWS])).sort(0).values
        # Of a normal these are the mean less and plus a standard deviation.
        below, center, above = draws[[round(share * NUM_DRAWS) for share in (0.16, 0.5, 0.84)]]
        of_draws = (above - below) / 2
        least = torch.maximum(draws[0] - of_draws, center - far_reach * of_draws)
        most = torch.minimum(draws[-1] + of_draws, center + far_reach * of_draws)
        low, high = torch.where(known, low, least), torch.where(known, high, most)
        scale = torch.where(known, scale, of_draws)
    support: Any = distribution.support
    if hasattr(support, "lower_bound"):
        low = torch.maximum(low, low.new_zeros(()) + support.lower_bound)
    if hasattr(support, "upper_bound"):
        high = torch.minimum(high, high.new_zeros(()) + support.upper_bound)
    return _Span(low, high, scale)


def _density(distribution: Any, z: Tensor, inside: Tensor) -> Tensor:
    """The density at z, 0 outside the support; ``inside`` holds values in the support."""
    within = distribution.support.check(z)
    density = distribution.log_prob(torch.where(within, z, inside)).exp()
    return torch.where(within & density.isfinite(), density, torch.zeros_like(density))
