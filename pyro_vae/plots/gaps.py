"""What the ELBO misses, and whose fault it is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .arrays import FloatArray, plain
from .new_axes import axes_or_new
from .results import check_result

__all__ = ["gap_bars", "gaps_per_datum"]

FAMILY, ENCODER = "C0", "C1"
PARTS = (
    "approximation_gap",
    "approximation_gap_mcse",
    "amortization_gap",
    "amortization_gap_mcse",
)
STYLES: tuple[dict[str, Any], ...] = (
    {"color": FAMILY},
    {"color": "C2"},
    {"facecolor": FAMILY, "edgecolor": "white", "hatch": "////", "linewidth": 0},
    {"color": ENCODER},
)


def gap_bars(gaps: xr.Dataset, *, guide: str = "guide's family", ax: Axes | None = None) -> Axes:
    r"""Mean inference gap over the data, cut at the best member of each family.

    Every bar is as long as the gap between log evidence and ELBO, on average over the data. Its
    first part is what the family of that bar misses of the evidence however well it is fitted; the
    last part is what the guide's encoder misses of the guide's own family; for another family the
    part between is what it buys over the guide's own, or hatched what it costs. Whiskers are two
    Monte Carlo standard errors of the parts, for a claim about these data.

    Args:
        gaps: What ``diagnostics.inference_gaps`` returned.
        guide: What the guide's own family is called.
        ax: Where to draw; a figure of its own if None.

    Raises:
        TypeError: If ``gaps`` is no dataset.
        ValueError: If it is that of another diagnostic.

    Example:
        >>> parts = {"approximation_gap": 1.0, "amortization_gap": 0.5, "inference_gap": 1.5}
        >>> columns = {name: ("obs_id", [value]) for name, value in parts.items()}
        >>> errors = {f"{name}_mcse": ("obs_id", [0.1]) for name in parts}
        >>> ax = gap_bars(xr.Dataset({**columns, **errors}))
        >>> [float(patch.get_width()) for patch in ax.patches]
        [1.0, 0.5]
    """
    check_result(gaps, [*PARTS, "inference_gap"], name="gaps", source="inference_gaps")
    rows = [guide]
    approximation, amortization, gain = [], [], []
    approximation.append(_mean(gaps["approximation_gap"], gaps["approximation_gap_mcse"]))
    amortization.append(_mean(gaps["amortization_gap"], gaps["amortization_gap_mcse"]))
    gain.append((0.0, 0.0))
    for name in gaps["family"].to_numpy().tolist() if "family" in gaps.dims else ():
        found = gaps.sel(family=name)
        rows.append(name)
        approximation.append(
            _mean(found["family_approximation_gap"], found["family_approximation_gap_mcse"])
        )
        amortization.append(amortization[0])
        gain.append(_mean(found["family_gain"], found["family_gain_mcse"]))
    ax = axes_or_new(ax, width=7.2, height=2.1 + 0.55 * len(rows))
    places = np.arange(len(rows))
    misses, buys, encoder = (np.array(parts) for parts in (approximation, gain, amortization))
    bought, cost = np.maximum(buys[:, 0], 0), np.minimum(buys[:, 0], 0)
    segments = [
        (np.zeros(len(rows)), misses[:, 0], misses[:, 1], "family misses (approximation gap)", 0),
        (misses[:, 0], bought, buys[:, 1], "family would buy", 1),
        (misses[:, 0] + cost, -cost, buys[:, 1], "of that, family would cost", 2),
        (
            misses[:, 0] + bought,
            np.maximum(encoder[:, 0] + cost, np.minimum(encoder[:, 0], 0)),
            encoder[:, 1],
            "encoder misses (amortization gap)",
            3,
        ),
    ]
    for starts, widths, errors, label, style in segments:
        shown = widths != 0
        if not shown.any():
            continue
        ax.barh(
            places[shown], widths[shown], 0.55, left=starts[shown], label=label, **STYLES[style]
        )
        if style == 2:
            continue  # its error is that of the part before
        ax.errorbar(
            (starts + widths)[shown],
            places[shown] + (-0.14, 0.0, 0.0, 0.14)[style],
            xerr=2 * errors[shown],
            fmt="none",
            ecolor="0.15",
            elinewidth=1.2,
            capsize=3,
        )
    ax.set_yticks(places, [plain(name) for name in rows])
    ax.set_ylim(max(len(rows) - 0.5, 0.8), min(-0.5, len(rows) - 1.8))
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_xlabel("nats per datum below the log evidence")
    total = float(gaps["inference_gap"].mean())
    ax.set_title(f"log p(x) − ELBO: {_minus(total)} nats; bars: whose fault, whiskers: ± 2 s.e.")
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.42 / (0.55 * len(rows) + 0.6)),
        ncols=2,
        frameon=False,
        fontsize="small",
    )
    return ax


def gaps_per_datum(gaps: xr.Dataset) -> list[Axes]:
    r"""The two gaps of each datum: one against the other, and each one's histogram.

    Data for which the search is unfinished, or whose evidence has a k-hat above the threshold, are
    crosses: their approximation gap is not to be trusted.

    Args:
        gaps: What ``diagnostics.inference_gaps`` returned.

    Returns:
        Axes of the scatter plot and of the histogram.

    Example:
        >>> names = ("approximation_gap", "amortization_gap")
        >>> columns = {name: ("obs_id", [1.0, 2.0]) for name in names}
        >>> errors = {f"{name}_mcse": ("obs_id", [0.1, 0.1]) for name in names}
        >>> scatter, histogram = gaps_per_datum(xr.Dataset({**columns, **errors}))
        >>> scatter.get_xlabel()
        'approximation gap (family), nats'
    """
    check_result(gaps, PARTS, name="gaps", source="inference_gaps")
    family = gaps["approximation_gap"].to_numpy()
    encoder = gaps["amortization_gap"].to_numpy()
    doubtful = _doubtful(gaps)
    figure = Figure(figsize=(10.0, 4.4), layout="constrained")
    scatter, histogram = figure.subplots(1, 2)
    scatter.errorbar(
        family,
        encoder,
        xerr=2 * gaps["approximation_gap_mcse"].to_numpy(),
        yerr=2 * gaps["amortization_gap_mcse"].to_numpy(),
        fmt="none",
        ecolor="0.75",
        elinewidth=0.7,
        zorder=1,
    )
    for which, marker, color, label in (
        (~doubtful, "o", "0.2", "trusted"),
        (doubtful, "x", "C3", "unfinished, or k-hat too large"),
    ):
        if which.any():
            scatter.scatter(
                family[which],
                encoder[which],
                s=18,
                marker=marker,
                color=color,
                label=label,
                zorder=2,
            )
    for line in (scatter.axhline, scatter.axvline):
        line(0, color="0.3", linewidth=0.8)
    scatter.set_xlabel("approximation gap (family), nats")
    scatter.set_ylabel("amortization gap (encoder), nats")
    scatter.set_title("one point for each datum, whiskers ± 2 s.e.", loc="left")
    bins = np.histogram_bin_edges(_finite([family, encoder]), bins="auto")
    bins = bins if 10 <= len(bins) <= 60 else np.linspace(bins[0], bins[-1], 31)
    for values, color, label in (
        (family, FAMILY, "approximation (family)"),
        (encoder, ENCODER, "amortization (encoder)"),
    ):
        histogram.hist(values, bins, color=color, alpha=0.6, label=f"{label}, mean as line")
        histogram.axvline(float(np.mean(values)), color=color, linewidth=1.5)
    histogram.set_xlabel("gap, nats")
    histogram.set_ylabel("number of data")
    histogram.yaxis.set_major_locator(MaxNLocator(integer=True))
    histogram.set_title("how the gaps are spread over the data", loc="left")
    for axes in (scatter, histogram):
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
            ncols=2,
            frameon=False,
            fontsize="small",
        )
    return [scatter, histogram]


def _mean(values: xr.DataArray, errors: xr.DataArray) -> tuple[float, float]:
    """Mean over the data and its Monte Carlo error."""
    squares = np.square(errors.to_numpy()).sum()
    return float(values.mean()), float(np.sqrt(squares) / len(errors))


def _doubtful(gaps: xr.Dataset) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    doubtful = np.zeros(gaps.sizes["obs_id"], dtype=bool)
    if "unfinished" in gaps:
        surely = gaps["unfinished"] - 3 * gaps["unfinished_mcse"]
        doubtful |= surely.to_numpy() > gaps.attrs.get("unfinished_tolerance", 0.05)
    if "pareto_khat" in gaps:
        threshold = gaps.attrs.get("khat_threshold", 0.7)
        doubtful |= ~(gaps["pareto_khat"].to_numpy() <= threshold)  # unknown is not trusted
    return doubtful


def _finite(pieces: Sequence[FloatArray]) -> FloatArray:
    values = np.concatenate(pieces)
    return values[np.isfinite(values)]


def _minus(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
