"""Small multiples: one panel for each feature, at most twelve."""

import math
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .arrays import plain

__all__ = ["MAX_FEATURES", "feature_panels"]

MAX_FEATURES = 12
LETTERS_PER_INCH = 11


def feature_panels(
    num_features: int,
    columns: Sequence[str] | None,
    *,
    width: float,
    height: float,
    notes: Sequence[str] = (),
) -> tuple[Figure, list[Axes]]:
    """A figure with a titled panel for each of the first twelve features.

    Args:
        num_features: Number D of features.
        columns: Their names; x_1, x_2, ... if None.
        width: Width of a panel in inches.
        height: Height of a panel in inches.
        notes: Titles of the whole; another is added if features are left out.

    Returns:
        The figure, and its axes in the order of the features.

    Raises:
        ValueError: If ``columns`` does not name each feature.
    """
    if columns is not None and len(columns) != num_features:
        raise ValueError(
            f"columns must name each feature; got {len(columns)} names for {num_features} "
            "features."
        )
    shown = min(num_features, MAX_FEATURES)
    num_columns = min(4, shown) if shown not in {5, 6, 9} else 3
    num_rows = math.ceil(shown / num_columns)
    size = (width * num_columns + 0.6, height * num_rows + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    parts = list(notes)
    if shown < num_features:
        parts.append(f"first {shown} of {num_features} features")
    if parts:
        fits = sum(map(len, parts)) < LETTERS_PER_INCH * size[0]
        figure.suptitle(("; " if fits else "\n").join(parts), fontsize="medium")
    panels = []
    for index in range(shown):
        axes = figure.add_subplot(num_rows, num_columns, index + 1)
        name = f"$x_{{{index + 1}}}$" if columns is None else columns[index]
        letters = int(LETTERS_PER_INCH * width)
        axes.set_title(
            name if columns is None else _in_two_lines(name, letters), fontsize="medium"
        )
        axes.tick_params(labelsize="small")
        axes.ticklabel_format(scilimits=(-4, 5), useMathText=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axis.get_offset_text().set_fontsize("small")
        panels.append(axes)
    return figure, panels


def _in_two_lines(name: str, letters: int) -> str:
    """The name, broken once at best behind a separator, and cut where it is still too long."""
    lines = [""]
    for piece in re.findall(r"[^\s_/.-]+[\s_/.-]*|[\s_/.-]+", str(name)):
        if lines[-1] and len(lines) == 1 and len(lines[-1]) + len(piece) > letters:
            lines.append("")
        lines[-1] += piece
    cut = [line if len(line) <= letters else f"{line[: letters - 1]}…" for line in lines]
    return plain("\n".join(line.strip() for line in cut))
