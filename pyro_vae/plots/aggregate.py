"""The aggregate posterior and the latent units that are in use."""

import math

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .arrays import FloatArray
from .new_axes import axes_or_new

__all__ = ["eigenvalues", "kl_parts", "aggregate_margins", "unit_kl", "unit_variances"]

ACTIVE, INACTIVE, THEORY = "C0", "0.75", "C1"
MAX_PANELS = 12
MAX_EIGENVALUES = 100

PARTS = {
    "mutual_information": r"mutual information $I_q(n; z)$",
    "total_correlation": r"total correlation of $\bar q(z)$",
    "dimension_kl_sum": r"dimensions $\Sigma_j\,\mathrm{KL}(\bar q_j\,\|\,p_j)$",
    "prior_dependence": "dependence within the prior",
    "marginal_kl": r"aggregate to prior $\mathrm{KL}(\bar q\,\|\,p)$",
}
NARROWEST = 0.1  # nats that an axis of KL spans at least


def kl_parts(parts: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""The mean KL and its parts, one below the other, each beginning where the last one ended.

    Args:
        parts: What ``diagnostics.aggregate_kl`` returned.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.

    Example:
        >>> values = {"kl": 3.0, "mutual_information": 2.0, "marginal_kl": 1.0}
        >>> errors = {f"{name}_mcse": 0.1 for name in values}
        >>> attrs = {"log_num_data": 5.0, "num_data": 148}
        >>> axes = kl_parts(xr.Dataset({**values, **errors}, attrs=attrs))
        >>> axes.get_xlabel()
        'nats per datum'
    """
    axes = axes_or_new(ax, width=8.0, height=3.4)
    names = [name for name in PARTS if name in parts]
    if "total_correlation" in names:
        names.remove("marginal_kl")
    start = 0.0
    ends: list[float] = []
    for row, name in enumerate(["kl", *names]):
        value, error = float(parts[name]), float(parts[f"{name}_mcse"])
        left = 0.0 if name == "kl" else start
        color = "0.35" if name == "kl" else f"C{row - 1}"
        axes.barh(row, value, left=left, color=color, height=0.62)
        end = left + value
        if math.isfinite(error):
            axes.errorbar(end, row, xerr=2 * error, color="black", capsize=3, linewidth=1.2)
        right = max(left, end) + (2 * error if math.isfinite(error) else 0.0)
        axes.annotate(
            f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−"),
            (right, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
        ends += [left, end, right]
        if name != "kl":
            axes.plot([end, end], [row - 0.31, row + 1.31], color="0.5", linewidth=0.8)
            start = end
    low, high = min(ends), max(ends)
    cap, num_data = float(parts.attrs["log_num_data"]), parts.attrs["num_data"]
    if cap < 1.25 * high:
        high = max(high, cap)
        label = f"log N = {cap:.2f}, the most mutual information that {num_data} data can show"
        axes.axvline(cap, color="C3", linestyle="--", linewidth=1.2, zorder=0, label=label)
        figure = axes.figure
        if ax is None and isinstance(figure, Figure):
            figure.legend(loc="outside lower center", frameon=False)
        else:
            axes.legend(loc="lower left", fontsize="small")
    high = max(high, low + NARROWEST)
    width = high - low
    axes.set_xlim(low - 0.02 * width if low < 0 else 0.0, high + 0.12 * width)
    axes.set_yticks(range(len(names) + 1), ["mean KL of the ELBO", *(PARTS[n] for n in names)])
    axes.set_ylim(len(names) + 0.5, -0.5)
    axes.set_xlabel("nats per datum")
    axes.set_title("What the KL is spent on (± 2 Monte Carlo standard errors)", loc="left")
    return axes


def unit_kl(report: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""The KL of each latent unit in descending order, beside the best linear VAE's.

    Args:
        report: What ``diagnostics.collapse_report`` returned, with ``kl``. Units are numbered
            from 1, so unit 1 is ``latent=0``.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If the report has no KL of single units, as for a flow.

    Example:
        >>> values = {"kl": ("latent", [0.0, 1.0]), "active": ("latent", [False, True])}
        >>> axes = unit_kl(xr.Dataset(values))
        >>> [float(bar.get_height()) for bar in axes.patches]
        [1.0, 0.0]
    """
    if "kl" not in report:
        raise ValueError(
            "report must hold the KL of single units, kl; got none. A flow's has no margins in "
            "closed form: unit_variances(report) is there for any guide."
        )
    axes = _units(report, "kl", ax)
    axes.set_ylabel("mean KL, nats per datum")
    if "linear_kl" in report:
        _steps(axes, report["linear_kl"].to_numpy())
    axes.set_ylim(0.0, 1.22 * max(NARROWEST, axes.get_ylim()[1] / 1.05))
    _unit_legend(axes, report, r"best linear VAE, $\log(\lambda_j / c) / 2$", "linear_kl")
    axes.set_title("Information in each latent unit", loc="left")
    return axes


def unit_variances(report: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""The variance of each unit's posterior mean in descending order, on a log scale.

    Args:
        report: What ``diagnostics.collapse_report`` or ``diagnostics.active_units`` returned.
            Units are numbered from 1.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.

    Example:
        >>> values = {"variance": ("latent", [0.5, 0.9]), "active": ("latent", [True, True])}
        >>> axes = unit_variances(xr.Dataset(values, attrs={"threshold": 0.01}))
        >>> axes.get_yscale()
        'log'
    """
    axes = _units(report, "variance", ax, bars=False)
    threshold = float(report.attrs["threshold"])
    axes.set_yscale("log")
    if "linear_variance" in report:
        _steps(axes, report["linear_variance"].where(lambda v: v > 0).to_numpy())
    axes.axhline(threshold, color="C3", linestyle="--", linewidth=1.2)
    axes.annotate(
        f"active above {threshold:g}",
        (0.0, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(4, -11),
        textcoords="offset points",
        color="C3",
        fontsize="small",
    )
    values = report["variance"].to_numpy()
    shown = values[values > 0]
    low = min([threshold, *shown])
    bottom, top = max(low / 3, 1e-8), max([threshold, *shown])
    axes.set_ylim(bottom, 2 * top * (top / bottom) ** 0.18)
    axes.set_ylabel(r"$\mathrm{Var}_x(\mathrm{E}_q\,z_j)$, squared units of z")
    _unit_legend(axes, report, r"best linear VAE, $1 - c / \lambda_j$", "linear_variance")
    axes.set_title("How much each latent unit tells of x", loc="left")
    return axes


def eigenvalues(report: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""Eigenvalues of the data's covariance against c: what a linear VAE finds worth encoding.

    Args:
        report: What ``diagnostics.collapse_report`` returned, with its theory.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If the report has no theory.

    Example:
        >>> values = {"eigenvalue": ("component", [2.0, 0.1]), "active": ("latent", [True])}
        >>> report = xr.Dataset(values, attrs={"variance_c": 0.5})
        >>> eigenvalues(report).get_yscale()
        'log'
    """
    if "eigenvalue" not in report:
        raise ValueError(
            "report must hold the linear theory, eigenvalue; got none. Its advice says why."
        )
    axes = axes_or_new(ax, height=3.8)
    k, c = report.sizes["latent"], float(report.attrs["variance_c"])
    values = report["eigenvalue"].to_numpy()[: max(MAX_EIGENVALUES, 2 * k)]
    number = np.arange(1, len(values) + 1)
    used = (values > c) & (number <= k)
    axes.axhline(c, color="C3", linestyle="--", linewidth=1.2)
    if k < len(values):
        axes.axvline(k + 0.5, color="0.5", linestyle=":", linewidth=1.2)
        axes.annotate(
            f"k = {k}",
            (k + 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -12),
            textcoords="offset points",
            color="0.35",
            fontsize="small",
        )
    size = 5 if len(values) <= 50 else 3.5
    axes.plot(
        number[used],
        values[used],
        "o",
        color=THEORY,
        markersize=size,
        label="above c, among the first k",
    )
    axes.plot(number[~used], values[~used], "o", color=INACTIVE, markersize=size, label="others")
    axes.annotate(
        f"c = {c:.3g}",
        (1.0, c),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color="C3",
        fontsize="small",
    )
    axes.set_yscale("log")
    top = max(c, values.max())
    # Constant features have eigenvalues of rounding's size, far below anything of interest.
    axes.set_ylim(max(min(c, values[values > 0].min(initial=c)), 1e-5 * top) / 2, 3 * top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("component j")
    axes.set_ylabel(r"eigenvalue $\lambda_j$, squared units of x")
    axes.legend(loc="lower left", frameon=False)
    axes.set_title(
        f"Worth encoding to a linear VAE: {int(used.sum())} of k = {k} directions", loc="left"
    )
    return axes


def aggregate_margins(densities: xr.Dataset) -> list[Axes]:
    r"""Density of each latent coordinate under the aggregate posterior and under the prior.

    Where the prior's is above is a hole: draws from the prior fall there, and data do not. Of more
    than twelve coordinates those with the least overlap are shown.

    Args:
        densities: What ``diagnostics.aggregate_margins`` returned.

    Returns:
        One axes a coordinate, titled z_1, z_2, ..., from 1; they are in one figure.

    Example:
        >>> dims, flat = ("latent", "point"), [[0.5, 0.5]]
        >>> values = {"z": (dims, [[-1.0, 1.0]]), "aggregate_density": (dims, flat)}
        >>> values |= {"prior_density": (dims, flat), "overlap": ("latent", [1.0])}
        >>> [axes.get_title() for axes in aggregate_margins(xr.Dataset(values))]
        ['$z_{1}$: overlap 1.00']
    """
    overlap = densities["overlap"].to_numpy()
    shown = np.sort(np.argsort(overlap, kind="stable")[:MAX_PANELS])
    num_columns = min(4, len(shown)) if len(shown) not in {5, 6, 9} else 3
    num_rows = math.ceil(len(shown) / num_columns)
    size = (max(2.9 * num_columns + 0.4, 5.2), 2.3 * num_rows + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    title = "Aggregate posterior and prior, margin by margin"
    if len(shown) < len(overlap):
        title = f"{title}\nthe {len(shown)} of {len(overlap)} with the least overlap"
    figure.suptitle(title, fontsize="medium")
    panels = []
    for number, latent in enumerate(shown):
        axes = figure.add_subplot(num_rows, num_columns, number + 1)
        one = densities.isel(latent=int(latent))
        z, aggregate, prior = (
            one[name].to_numpy() for name in ("z", "aggregate_density", "prior_density")
        )
        axes.fill_between(z, aggregate, color="C0", alpha=0.3, linewidth=0)
        axes.plot(z, aggregate, color="C0", linewidth=1.3)
        holes = np.maximum(aggregate, prior)
        axes.fill_between(z, aggregate, holes, color="C3", alpha=0.3, linewidth=0)
        axes.plot(z, prior, color="0.2", linestyle="--", linewidth=1.1)
        axes.set_xlim(*_in_view(z, aggregate, prior))
        axes.set_ylim(bottom=0.0)
        axes.set_title(f"$z_{{{latent + 1}}}$: overlap {overlap[latent]:.2f}", fontsize="medium")
        axes.tick_params(labelsize="small")
        panels.append(axes)
    figure.supylabel("density, per unit of z", fontsize="medium")
    handles = [
        Line2D([], [], color="C0", label=r"aggregate $\bar q(z_j)$"),
        Line2D([], [], color="0.2", linestyle="--", label=r"prior $p(z_j)$"),
        Patch(color="C3", alpha=0.3, label="prior above aggregate (hole)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return panels


def _units(report: xr.Dataset, name: str, ax: Axes | None, *, bars: bool = True) -> Axes:
    """A value for each unit in descending order, colored by whether it is active."""
    axes = axes_or_new(ax, height=3.8)
    values, active = report[name].to_numpy(), report["active"].to_numpy()
    order = np.argsort(-values, kind="stable")
    colors = [ACTIVE if flag else INACTIVE for flag in active[order]]
    number = np.arange(1, len(values) + 1)
    if bars:
        axes.bar(number, values[order], color=colors, width=0.8)
    else:
        axes.scatter(number, values[order], color=colors, zorder=3)
    labels = [str(report["latent"].to_numpy()[unit] + 1) for unit in order]
    if len(values) <= 32:
        axes.set_xticks(number, labels, fontsize="small")
        axes.set_xlabel("latent unit, in descending order")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("rank of the latent unit")
    axes.set_xlim(0.4, len(values) + 0.6)
    return axes


def _steps(axes: Axes, values: FloatArray) -> None:
    number = np.arange(1, len(values) + 1)
    axes.plot(number, values, color=THEORY, marker="_", markersize=9, linewidth=1.0, zorder=4)


def _unit_legend(axes: Axes, report: xr.Dataset, theory: str, name: str) -> None:
    num_active = int(report["active"].sum())
    handles: list[Artist] = [
        Patch(color=ACTIVE, label=f"active ({num_active})"),
        Patch(color=INACTIVE, label=f"inactive ({report.sizes['latent'] - num_active})"),
    ]
    if name in report:
        handles.append(Line2D([], [], color=THEORY, marker="_", label=theory))
    axes.legend(handles=handles, loc="upper center", ncols=3, frameon=False, fontsize="small")


def _in_view(z: FloatArray, *densities: FloatArray) -> tuple[float, float]:
    """The part of the axis where some density is more than a thousandth of its maximum."""
    is_seen = np.any([density > 1e-3 * density.max() for density in densities], axis=0)
    return float(z[is_seen].min()), float(z[is_seen].max())
