"""The picture that a benchmark draws: bars with their spread, or curves, and a line for the floor.

Nothing goes through pyplot, so no display is needed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

__all__ = ["FLOOR", "OTHERS", "OURS", "bars", "curves", "panels", "write"]

OURS, OTHERS, FLOOR = "#1f6f8b", "#b8b8b8", "#c2410c"
"""Colors of this package, of the peers' bars, and of the arithmetic floor."""

PEERS = ("#6b7280", "#b45309", "#7c3aed", "#4d7c0f")
"""Colors of the peers' curves."""


def panels(
    count: int, *, columns: int = 2, width: float = 5.2, height: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, each of this size in inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def bars(
    ax: Axes,
    values: Mapping[str, Sequence[float]],
    *,
    label: str,
    title: str = "",
    floor: float | None = None,
    floor_label: str = "arithmetic floor",
    ours: Sequence[str] = (),
    digits: int = 2,
) -> None:
    """One horizontal bar for each name: the median, with a whisker from least to largest.

    Args:
        ax: Where to draw.
        values: What was measured, by name; the first is drawn on top.
        label: What the numbers are, with their unit.
        title: Title of the panel.
        floor: Where the line of the floor stands.
        floor_label: What that floor is.
        ours: Names whose bars have this package's color.
        digits: Decimals of the median that is written beside each bar.
    """
    names = list(values)
    medians = [statistics.median(values[name]) for name in names]
    below = [m - min(values[name]) for m, name in zip(medians, names, strict=True)]
    above = [max(values[name]) - m for m, name in zip(medians, names, strict=True)]
    ax.barh(
        names,
        medians,
        xerr=[below, above],
        color=[OURS if name in ours else OTHERS for name in names],
        error_kw={"elinewidth": 1, "ecolor": "#444444"},
    )
    ends = [m + a for m, a in zip(medians, above, strict=True)]
    # Room for the numbers; without it the longest bar's would run into the frame.
    ax.set_xlim(0, 1.2 * max(ends))
    for position, (end, median) in enumerate(zip(ends, medians, strict=True)):
        ax.annotate(
            f"{median:.{digits}f}",
            (end, position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    if floor is not None:
        ax.axvline(floor, color=FLOOR, linestyle="--", linewidth=1.2, label=floor_label)
        # Above the frame, where no bar is.
        ax.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
            fontsize=8,
            frameon=False,
        )
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.set_title(title, fontsize=10, loc="left")
    ax.tick_params(axis="y", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def curves(
    ax: Axes,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    logarithmic: str = "",
    ours: Sequence[str] = (),
) -> None:
    """One curve for each name, with its points marked; a name with "floor" in it is dashed.

    Args:
        ax: Where to draw.
        lines: x and y of each curve, by name.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        title: Title of the panel.
        logarithmic: The axes that are: "", "x" or "xy".
        ours: Names whose curves have this package's color; every second one is dotted.
    """
    others = cycle(PEERS)
    fillings = cycle((OURS, "white"))
    for name, (x, y) in lines.items():
        if "floor" in name:
            ax.plot(x, y, color=FLOOR, linestyle="--", linewidth=1.2, label=name)
        elif name in ours:
            filling = next(fillings)
            ax.plot(
                x,
                y,
                color=OURS,
                marker="o",
                markersize=5,
                markerfacecolor=filling,
                linestyle="-" if filling == OURS else ":",
                linewidth=1.8,
                label=name,
            )
        else:
            ax.plot(x, y, color=next(others), marker="s", markersize=3, linewidth=1.2, label=name)
    for axis, name in ((ax.xaxis, "x"), (ax.yaxis, "y")):
        if name in logarithmic:
            getattr(ax, f"set_{name}scale")("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.set_title(title, fontsize=10)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=True)


def write(figure: Figure, path: Path | None) -> None:
    """Write the picture where ``--picture`` says, if it says so."""
    if path is not None:
        figure.savefig(path, dpi=150)
