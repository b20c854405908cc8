"""Draws of a reference posterior with the guide over them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_vae.arviz_container import group

from .arrays import FloatArray, finite_array, plain

__all__ = ["posterior_pairs"]

MAX_DIMS = 5
SHOWN = 2000
"""Draws of NUTS in a panel."""
LEVELS = (0.5, 0.9)
BINS = 60
GUIDE = "black"


def posterior_pairs(
    nuts: Any,
    guide: Any,
    *,
    obs_id: int | None = None,
    latents: Sequence[int] | None = None,
    title: str | None = None,
) -> list[Axes]:
    r"""Pairs of latent dimensions of one datum: NUTS as points, q(z|x) as contours.

    The diagonal has the marginal densities, NUTS as steps of its chains and q as a line. The
    contours are the smallest regions that hold 50 % and 90 % of the draws from q. Where points
    lie outside of them, q is too narrow or in the wrong place; where chains have colors apart,
    they have not mixed.

    Args:
        nuts: What ``diagnostics.posterior_nuts`` returned, or draws of one datum,
            ``(chain, draw, latent)``.
        guide: What ``diagnostics.guide_draws`` returned, or draws of the same datum from q,
            ``(draw, latent)``; some 4000 draw it smoothly.
        obs_id: Which datum, where there are several.
        latents: Dimensions to show; the first five unless given.
        title: Title of the whole; says how to read the picture unless given.

    Returns:
        Axes of the lower triangle, row by row.

    Raises:
        TypeError: If ``nuts`` or ``guide`` holds no draws.
        ValueError: If the shapes do not fit, or a dimension or datum is not there.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> axes = posterior_pairs(rng.normal(size=(4, 50, 2)), rng.normal(size=(200, 2)))
        >>> len(axes)
        3
    """
    of_nuts = _of_one_datum(_draws_in(nuts, "nuts"), obs_id, ("chain", "draw", "latent"), "nuts")
    of_guide = _of_one_datum(_draws_in(guide, "guide"), obs_id, ("draw", "latent"), "guide")
    chains, draws = finite_array(of_nuts, name="nuts"), finite_array(of_guide, name="guide")
    if chains.ndim != 3 or draws.ndim != 2 or chains.shape[2] != draws.shape[1]:
        raise ValueError(
            "nuts must have shape (chain, draw, latent) and guide (draw, latent) with as many "
            f"dimensions; got {chains.shape} and {draws.shape}. Choose one datum."
        )
    num_dims = chains.shape[2]
    dims = list(range(min(num_dims, MAX_DIMS)) if latents is None else latents)
    for dim in dims:
        if not 0 <= dim < num_dims:
            raise ValueError(f"latents must be from 0 to {num_dims - 1}; got {dim}.")
    count = len(dims)
    side = 2.1 * count + 1.2
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    made: list[Axes] = []
    limits = [_limits(chains[..., dim], draws[:, dim]) for dim in dims]
    for row in range(count):
        for column in range(row + 1):
            ax = figure.add_subplot(count, count, row * count + column + 1)
            low_x, low_y = dims[column], dims[row]
            if row == column:
                _margins(ax, chains[..., low_x], draws[:, low_x], limits[row])
            else:
                _cloud(ax, chains[..., [low_x, low_y]])
                _contours(ax, draws[:, [low_x, low_y]], limits[column], limits[row])
                ax.set_ylim(limits[row])
            ax.set_xlim(limits[column])
            ax.tick_params(labelsize="small")
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_locator(MaxNLocator(4))
            if row == count - 1:
                ax.set_xlabel(f"$z_{{{low_x + 1}}}$")
            else:
                ax.tick_params(labelbottom=False)
            if row == column:
                ax.set_yticks([])
                ax.set_ylabel("density")
            elif column == 0:
                ax.set_ylabel(f"$z_{{{low_y + 1}}}$")
            else:
                ax.tick_params(labelleft=False)
            made.append(ax)
    shown = "" if count == num_dims else f"; {count} of {num_dims} dimensions"
    figure.suptitle(
        f"Posterior by NUTS (points) and q(z|x) (lines){shown}" if title is None else plain(title),
        fontsize="medium",
    )
    handles = [
        Line2D([], [], color=f"C{c % 10}", marker="o", markersize=4, linestyle="", label=label)
        for c, label in enumerate(f"NUTS, chain {c + 1}" for c in range(len(chains)))
    ]
    handles.append(Line2D([], [], color=GUIDE, label="q(z|x): density, 50 % and 90 % regions"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, int(side // 1.9)),
        frameon=False,
        fontsize="small",
    )
    return made


def _draws_in(found: Any, name: str) -> Any:
    """The draws of z in a container or a dataset; anything else as it is."""
    if isinstance(found, xr.DataArray | np.ndarray | Tensor | list | tuple):
        return found
    try:
        dataset = found if isinstance(found, xr.Dataset) else group(found, "posterior")
        return dataset["z"]
    except (KeyError, ValueError):
        if hasattr(found, "__array__") and not isinstance(found, Mapping):
            return found
    source = {"nuts": "posterior_nuts", "guide": "guide_draws"}[name]
    raise TypeError(
        f"{name} must be what diagnostics.{source} returned, or an array of draws; got "
        f"{type(found).__name__} without draws of z."
    )


def _of_one_datum(draws: Any, obs_id: int | None, dims: tuple[str, ...], name: str) -> Any:
    """Draws with these dimensions, where those of the draws have names."""
    if not isinstance(draws, xr.DataArray):
        return draws
    if "obs_id" in draws.dims:
        there = draws["obs_id"].to_numpy().tolist()
        if obs_id is None and len(there) > 1:
            raise ValueError(
                f"obs_id must say which of {len(there)} data in {name} is drawn; got None."
            )
        chosen = there[0] if obs_id is None else obs_id
        if chosen not in there:
            raise ValueError(f"obs_id must be one of {there}; got {obs_id!r}.")
        draws = draws.isel(obs_id=there.index(chosen))
    return draws.transpose(*dims) if set(draws.dims) == set(dims) else draws


def _limits(chains: FloatArray, draws: FloatArray) -> tuple[float, float]:
    """From the lowest to the highest of nearly all draws of both."""
    ends = [np.quantile(values, (0.001, 0.999)) for values in (chains, draws)]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _margins(ax: Axes, chains: FloatArray, draws: FloatArray, limits: tuple[float, float]) -> None:
    edges = np.linspace(*limits, 31)
    for c, chain in enumerate(chains):
        ax.hist(
            chain,
            bins=edges.tolist(),
            density=True,
            histtype="step",
            color=f"C{c % 10}",
            alpha=0.7,
        )
    centers, density = _smooth_density([draws], [limits])
    ax.plot(centers[0], density, color=GUIDE)
    ax.set_ylim(bottom=0)


def _cloud(ax: Axes, chains: FloatArray) -> None:
    """Points of all chains, in turn, so that none hides the others."""
    step = max(1, chains.shape[0] * chains.shape[1] // SHOWN)
    thinned = chains[:, ::step]
    colors = [f"C{c % 10}" for c in range(len(chains))]
    points = thinned.swapaxes(0, 1).reshape(-1, 2)
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=4,
        alpha=0.35,
        linewidths=0,
        c=colors * thinned.shape[1],
        rasterized=True,
    )


def _contours(
    ax: Axes, draws: FloatArray, x_limits: tuple[float, float], y_limits: tuple[float, float]
) -> None:
    centers, density = _smooth_density(list(draws.T), [x_limits, y_limits])
    ordered = np.sort(density, axis=None)[::-1]
    shares = ordered.cumsum() / ordered.sum()
    levels = sorted({float(ordered[np.searchsorted(shares, level)]) for level in LEVELS})
    ax.contour(*centers, density.T, levels=levels, colors=GUIDE, linewidths=(0.9, 1.4))


def _smooth_density(
    columns: list[FloatArray], limits: list[tuple[float, float]]
) -> tuple[list[FloatArray], FloatArray]:
    """A histogram of fine bins, smoothed by a normal kernel in each direction.

    Its width is Scott's rule, n to the power -1 / (d + 4), times the standard deviation.
    """
    edges = [np.linspace(low, high, BINS * (3 - len(columns)) + 1) for low, high in limits]
    density, _ = np.histogramdd(np.stack(columns, 1), bins=edges, density=True)
    centers = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    for axis, (column, center) in enumerate(zip(columns, centers, strict=True)):
        width = column.std() * len(column) ** (-1 / (len(columns) + 4)) or 1.0
        kernel = np.exp(-0.5 * ((center[:, None] - center) / width) ** 2)
        kernel /= kernel.sum(1, keepdims=True)
        density = np.moveaxis(np.tensordot(kernel, density, (1, axis)), 0, axis)
    return centers, density
