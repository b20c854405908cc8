"""Pictures of SVI's convergence: the ELBO's trend, restarts, gradients."""

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .arrays import FloatArray, plain
from .new_axes import axes_or_new
from .results import check_result

__all__ = ["elbo_trend", "gradient_signal", "restart_differences"]

MAX_TENSORS = 40
LOW_RATIO = 0.1

IntArray = NDArray[np.int64]


def elbo_trend(found: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """The ELBO over the window's epochs, the line through them, and the verdict.

    Where the ELBO levels off, the slope over the last quarter is drawn too.

    Args:
        found: What ``diagnostics.trend`` returned.
        ax: Axes to draw on; those of a new figure unless given.

    Returns:
        The axes.

    Example:
        >>> scalars = {"slope": 0.5, "slope_se": 0.01, "slope_low": 0.48, "slope_high": 0.52}
        >>> scalars |= {"late_slope": 0.5, "late_slope_se": 0.02}
        >>> found = xr.Dataset(
        ...     {**scalars, "elbo": ("epoch", [1.0, 1.5]), "line": ("epoch", [1.0, 1.5])},
        ...     coords={"epoch": [1, 2]},
        ...     attrs={"verdict": "rising", "column": "elbo"},
        ... )
        >>> elbo_trend(found).get_title(loc="left")
        'ELBO of the last 2 epochs: rising'
    """
    needed = ["slope", "slope_se", "slope_low", "slope_high", "line", "late_slope"]
    check_result(found, needed, name="found", source="trend")
    axes = axes_or_new(ax, width=6.6, height=4.0)
    epochs, column = found["epoch"].to_numpy(), str(found.attrs["column"])
    axes.plot(epochs, found[column].to_numpy(), "o-", color="C0", markersize=3, linewidth=0.9)
    slope, error = found["slope"].item(), found["slope_se"].item()
    axes.plot(
        epochs,
        found["line"].to_numpy(),
        color="C3",
        linewidth=1.8,
        label=f"{slope:+.2g} ± {error:.1g} nats per datum per epoch\n"
        f"95 % interval {found['slope_low'].item():+.2g} to {found['slope_high'].item():+.2g}",
    )
    if str(found.attrs["verdict"]).endswith("leveling off"):
        _late_slope(axes, found, epochs, found[column].to_numpy())
    name = {"elbo": "ELBO", "validation_elbo": "validation ELBO"}.get(column, column)
    axes.set_title(
        f"{plain(name)} of the last {len(epochs)} epochs: {found.attrs['verdict']}",
        loc="left",
        fontsize="medium",
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats per datum")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]
    axes.grid(alpha=0.25)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize="small", ncols=1
    )
    return axes


def restart_differences(found: xr.Dataset) -> list[Axes]:
    """The ELBO of each restart over the epochs, and how far each ends below the best.

    The axis on the left is made for the epochs that R-hat is of. On the right, whiskers are two
    standard errors; a filled point differs from the best one.

    Args:
        found: What ``diagnostics.restarts`` returned.

    Returns:
        Two axes: the curves, and the differences.

    Example:
        >>> found = xr.Dataset(
        ...     {
        ...         "rhat": 1.01,
        ...         "difference": ("restart", [0.0, 0.2]),
        ...         "difference_se": ("restart", [0.0, 0.1]),
        ...         "differs": ("restart", [False, False]),
        ...         "curve": (("restart", "epoch"), [[1.0, 2.0], [1.0, 1.8]]),
        ...     },
        ...     coords={"restart": ["a", "b"], "epoch": [1, 2]},
        ...     attrs={"verdict": "agree", "window": 1, "is_paired": 1},
        ... )
        >>> [axes.get_xlabel() for axes in restart_differences(found)]
        ['epoch', 'nats per datum below the best']
    """
    needed = ["rhat", "difference", "difference_se", "differs", "curve", "restart"]
    check_result(found, needed, name="found", source="restarts")
    names = [plain(name) for name in found["restart"].values.tolist()]
    height = max(3.6, 0.28 * len(names) + 1.4)
    figure = Figure(figsize=(9.6, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1.0))
    curve = found["curve"].to_numpy()
    epochs = found["epoch"].to_numpy()
    colors = [f"C{place % 10}" for place in range(len(names))]
    for values, color in zip(curve, colors, strict=True):
        left.plot(epochs, values, color=color, linewidth=1.1)
    # Made for the last epochs: a fit's beginning would hide their differences.
    window = int(found.attrs["window"])
    late = [row[np.isfinite(row)][-window:] for row in curve]
    low, high = min(map(np.min, late)), max(map(np.max, late))
    spread = (high - low) or 1.0
    left.set_ylim(low - 0.5 * spread, high + 0.1 * spread)
    left.set_xlabel("epoch")
    left.set_ylabel("nats per datum")
    rhat = found["rhat"].item()
    left.set_title(
        f"ELBO; split R-hat of the last {window} epochs: {rhat:.2f}",
        loc="left",
        fontsize="medium",
    )
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(alpha=0.25)
    difference = found["difference"].to_numpy()
    error = np.nan_to_num(found["difference_se"].to_numpy())
    for row, color in enumerate(colors):
        filled = bool(found["differs"].values[row])
        right.errorbar(
            difference[row],
            row,
            xerr=2 * error[row],
            fmt="o",
            color=color,
            markerfacecolor=color if filled else "white",
            capsize=3,
            linewidth=1.2,
        )
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set_yticks(range(len(names)), names)
    right.set_ylabel("restart")
    right.set_ylim(len(names) - 0.5, -0.5)
    right.margins(x=0.1)
    right.set_xlabel("nats per datum below the best")
    paired = "paired" if found.attrs.get("is_paired") else "unpaired"
    right.set_title(
        f"They {found.attrs['verdict']} ({paired}, ± 2 standard errors)",
        loc="left",
        fontsize="medium",
    )
    right.grid(axis="x", alpha=0.25)
    return [left, right]


def gradient_signal(found: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Signal-to-noise ratio of the gradient of each parameter tensor, on a logarithmic axis.

    Args:
        found: What ``diagnostics.gradient_signal_to_noise`` returned; of more than forty tensors
            the forty largest are drawn.
        ax: Axes to draw on; those of a new figure unless given.

    Returns:
        The axes.

    Example:
        >>> found = xr.Dataset(
        ...     {"snr": ("parameter", [0.5]), "snr_mcse": ("parameter", [0.1])},
        ...     coords={"parameter": ["weight"], "program": ("parameter", ["model"])},
        ... ).assign(size=("parameter", [3]))
        >>> gradient_signal(found).get_xlabel()
        'signal / noise of one step'
    """
    needed = ["snr", "snr_mcse", "size", "program"]
    check_result(found, needed, name="found", source="gradient_signal_to_noise")
    count = found.sizes["parameter"]
    if count > MAX_TENSORS:
        largest = np.sort(np.argsort(-found["size"].to_numpy(), kind="stable")[:MAX_TENSORS])
        found = found.isel(parameter=largest)
    names = [plain(name) for name in found["parameter"].values.tolist()]
    axes = axes_or_new(ax, width=7.6, height=0.26 * len(names) + 1.9)
    snr, error = found["snr"].to_numpy(), np.nan_to_num(found["snr_mcse"].to_numpy())
    programs = found["program"].values
    shown = snr[np.isfinite(snr) & (snr > 0)]
    floor = min([LOW_RATIO / 10, *(shown / 2)])
    rows = np.arange(len(names))
    for program, color in (("model", "C0"), ("guide", "C1")):
        chosen = programs == program
        if not chosen.any():
            continue
        value = np.clip(snr[chosen], floor, None)
        low = np.clip(snr[chosen] - 2 * error[chosen], floor, None)
        axes.errorbar(
            value,
            rows[chosen],
            xerr=[value - np.minimum(low, value), 2 * error[chosen]],
            fmt="o",
            color=color,
            capsize=2,
            linewidth=1.1,
            markersize=5,
            label=program,
        )
    axes.axvline(1.0, color="0.45", linewidth=0.9, linestyle="-")
    axes.axvline(LOW_RATIO, color="C3", linewidth=1.0, linestyle="--")
    axes.set_xscale("log")
    top = max([2.0, *(snr + 2 * error)[np.isfinite(snr)]])
    axes.set_xlim(floor / 1.3, 10 ** (math.log10(top) + 0.1))
    axes.set_yticks(rows, names, fontsize="small")
    axes.set_ylim(len(names) - 0.5, -0.9)
    for at, label in ((LOW_RATIO, "noise leads"), (1.0, "1")):
        axes.annotate(
            label,
            (at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize="x-small",
            color="0.35",
        )
    axes.set_xlabel("signal / noise of one step")
    some = "" if count <= MAX_TENSORS else f", {MAX_TENSORS} largest of {count} tensors"
    axes.set_title(
        f"Gradient of the ELBO{some} (± 2 standard errors)", loc="left", fontsize="medium"
    )
    axes.grid(axis="x", alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize="small")
    return axes


def _late_slope(axes: Axes, found: xr.Dataset, epochs: IntArray, values: FloatArray) -> None:
    """A line with the slope of the last quarter through the middle of its points."""
    last = epochs[-max(2, len(epochs) // 4) :]
    slope, error = found["late_slope"].item(), found["late_slope_se"].item()
    level = values[-len(last) :].mean()
    axes.plot(
        last,
        level + slope * (last - last.mean()),
        color="black",
        linewidth=2.2,
        linestyle=(0, (3, 1)),
        label=f"at the end {slope:+.2g} ± {error:.1g}",
    )
