"""Pictures of predictive checks and of marginal calibration."""

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .arrays import FloatArray, plain
from .new_axes import axes_or_new

__all__ = ["pit_differences", "predictive_check"]

MAX_PANELS = 12
MAX_CURVES = 9


def predictive_check(check: xr.Dataset) -> list[Axes]:
    """Histograms of each statistic over replicated data sets, with that of the data as a line.

    A line in the middle of its histogram: the model makes data like these, as far as the statistic
    goes. One outside it: it does not.

    Args:
        check: What ``diagnostics.prior_predictive_check`` or ``posterior_predictive_check``
            returned; its first twelve statistics are drawn.

    Returns:
        The axes, one for each statistic.

    Example:
        >>> check = xr.Dataset(
        ...     {
        ...         "observed": ("statistic", [1.0]),
        ...         "replicated": (("statistic", "simulation"), [[0.0, 1.0, 2.0]]),
        ...         "p_value_two_sided": ("statistic", [1.0]),
        ...     },
        ...     coords={"statistic": ["mean"]},
        ...     attrs={"predictive": "prior"},
        ... )
        >>> [axes.get_xlabel() for axes in predictive_check(check)]
        ['mean']
    """
    names = check["statistic"].values.tolist()[:MAX_PANELS]
    columns = min(3, len(names)) if len(names) != 4 else 2
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.5 * columns + 0.5, 2.7 * rows + 0.9), layout="constrained")
    kind = check.attrs.get("predictive", "")
    some = "" if len(names) == check.sizes["statistic"] else f", first {MAX_PANELS} statistics"
    figure.suptitle(
        f"{kind} predictive check{some}\nline: the data; bars: data sets of the model".strip(),
        fontsize="medium",
    )
    panels = []
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        one = check.sel(statistic=name)
        drawn = one["replicated"].to_numpy().astype(float)
        observed = one["observed"].item()
        finite = drawn[np.isfinite(drawn)]
        if len(finite):
            axes.hist(finite, bins=_bins(finite), color="C0", alpha=0.55)
        if math.isfinite(observed):
            axes.axvline(observed, color="C3", linewidth=2)
        axes.set_title(f"two-sided p = {one['p_value_two_sided'].item():.2g}", fontsize="medium")
        axes.set_xlabel(plain(name))
        if place % columns == 0:
            axes.set_ylabel("replicated data sets")
        axes.margins(x=0.08)
        axes.ticklabel_format(axis="x", scilimits=(-4, 5), useMathText=True)
        axes.tick_params(labelsize="small")
        axes.locator_params(axis="x", nbins=5)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels.append(axes)
    return panels


def pit_differences(found: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""Empirical distribution functions of the PIT values less the uniform one, with their band.

    A curve inside the band is that of a calibrated feature. One that rises above 0 on the left and
    falls below it on the right: the model's distribution is too narrow; the other way round: too
    wide; all above 0: the model's values are too high; all below: too low.

    Args:
        found: What ``diagnostics.pit`` or ``posterior_pit`` returned; its nine features with the
            smallest ``log_gamma`` are drawn in color, the others in gray.
        ax: Axes to draw on; those of a new figure unless given.

    Returns:
        The axes.

    Example:
        >>> found = xr.Dataset(
        ...     {"rank": (("obs_id", "feature"), [[0], [1], [2]])},
        ...     coords={"feature": ["a"]},
        ...     attrs={"num_samples": 2},
        ... )
        >>> [float(round(y, 9)) for y in pit_differences(found).get_lines()[1].get_ydata()]
        [0.0, 0.0, 0.0, 0.0]
    """
    axes = axes_or_new(ax, width=8.2, height=4.2)
    num_draws = int(found.attrs["num_samples"])
    grid = np.arange(1, num_draws + 1) / (num_draws + 1)
    has_band = "ecdf_lower" in found
    if has_band:
        level = found.attrs.get("level")
        share = f"{1 - level:.0%} " if level else ""
        axes.fill_between(
            grid,
            found["ecdf_lower"].to_numpy() - grid,
            found["ecdf_upper"].to_numpy() - grid,
            step="mid",
            color="0.88",
            linewidth=0,
            label=f"{share}simultaneous band of one feature",
        )
    axes.axhline(0, color="0.3", linewidth=0.8)
    ranks = found["rank"].to_numpy()
    names = [
        plain(name) if isinstance(name, str) else f"feature {name}"
        for name in found["feature"].values.tolist()
    ]
    if "log_gamma" in found:
        order = np.argsort(found["log_gamma"].to_numpy(), kind="stable")
    else:
        order = np.arange(len(names))
    for place in order[MAX_CURVES:]:
        axes.plot(*_difference(ranks[:, place], grid), color="0.75", linewidth=0.7, zorder=1.5)
    for number, place in enumerate(order[:MAX_CURVES]):
        label = names[place]
        if "p_value" in found:
            label = f"{label}: p = {found['p_value'].values[place]:.2g}"
        axes.plot(
            *_difference(ranks[:, place], grid), color=f"C{number}", linewidth=1.3, label=label
        )
    if len(order) > MAX_CURVES:
        axes.plot([], [], color="0.75", linewidth=0.7, label=f"{len(order) - MAX_CURVES} more")
    axes.set_xlim(0, 1)
    axes.set_xlabel("u")
    axes.set_ylabel("share of PIT values below u, less u")
    kind = found.attrs.get("predictive", "")
    note = "calibrated inside the band" if has_band else "calibrated near 0"
    if kind == "posterior":
        note = "not uniform even for a right model"
    axes.set_title(
        f"PIT under the {kind} predictive: {note}".replace("  ", " "), fontsize="medium"
    )
    axes.grid(alpha=0.25)
    if ax is None:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize="small")
    else:
        axes.legend(frameon=False, fontsize="x-small")
    return axes


def _difference(ranks: FloatArray, grid: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The curve's points, from (0, 0) to (1, 0)."""
    counts = np.bincount(ranks.astype(int), minlength=len(grid) + 1)[:-1].cumsum()
    inner = counts / len(ranks) - grid
    return np.concatenate([[0.0], grid, [1.0]]), np.concatenate([[0.0], inner, [0.0]])


def _bins(values: FloatArray) -> list[float] | int:
    """Edges of bars: one for each value of a discrete statistic with few of them."""
    distinct = np.unique(values)
    if 1 < len(distinct) <= 20 and np.allclose(values, np.round(values)) and np.ptp(values) < 40:
        edges: list[float] = np.arange(distinct[0] - 0.5, distinct[-1] + 1).tolist()
        return edges
    return min(30, max(8, int(math.sqrt(len(values)))))
