"""How far importance weights can be trusted, datum by datum."""

import numpy as np
from matplotlib.axes import Axes
from xarray import Dataset

from .new_axes import axes_or_new

__all__ = ["khat"]

USABLE = 0.5
"""Below it the weights have a finite variance."""


def khat(evidence: Dataset, *, ax: Axes | None = None) -> Axes:
    r"""Pareto k-hat of every datum, from the best to the worst.

    Below 1/2 the weights have a finite variance; above the threshold, which grows with the number
    of draws, the datum's log evidence is not to be trusted; above 1 the weights of a sample say
    nothing about their mean.

    Args:
        evidence: What :func:`pyro_vae.diagnostics.log_evidence` returned.
        ax: Axes to draw on; those of a new figure unless given.

    Returns:
        The axes.

    Example:
        >>> columns = {"pareto_khat": ("obs_id", [0.9, 0.1])}
        >>> axes = khat(Dataset(columns, attrs={"khat_threshold": 0.7, "num_samples": 5000}))
        >>> axes.get_title(loc="left")
        'k-hat is above 0.70 for 1 of 2 data (S = 5000)'
    """
    axes = axes_or_new(ax, width=6.8, height=3.6)
    found = evidence["pareto_khat"].to_numpy()
    values = np.sort(found[np.isfinite(found)])
    threshold = float(evidence.attrs["khat_threshold"])
    share = (np.arange(len(values)) + 0.5) / max(1, len(found))  # infinite ones lie beyond
    bad = values > threshold
    axes.plot(100 * share[~bad], values[~bad], ".", color="C0", markersize=4)
    axes.plot(100 * share[bad], values[bad], ".", color="C3", markersize=4)
    levels = {USABLE: "1/2: finite variance below"}
    levels[threshold] = f"{threshold:.2f}: to be trusted below"
    if len(values) and values[-1] > 0.9:
        levels[1.0] = "1: finite mean below"
    styles = ((0, (1, 2)), (0, (6, 3)), (0, (6, 2, 1, 2)))
    for style, (level, label) in zip(styles, sorted(levels.items()), strict=False):
        axes.axhline(level, color="0.3", linewidth=1.0, linestyle=style, label=label)
    axes.legend(loc="upper left", frameon=False, fontsize="small")
    low = min(-0.1, values[0]) if len(values) else -0.1
    high = max(1.1 * threshold, values[-1]) if len(values) else 1.0
    axes.set_ylim(low - 0.05, high + 0.1)
    axes.set_xlim(0, 100)
    axes.set_xlabel("data, from the smallest k-hat to the largest (%)")
    axes.set_ylabel(r"Pareto $\hat k$ of the weights")
    num_samples = evidence.attrs["num_samples"]
    axes.set_title(
        f"k-hat is above {threshold:.2f} for {bad.sum() + np.isposinf(found).sum()} of "
        f"{len(found)} data (S = {num_samples})",
        loc="left",
        fontsize="medium",
    )
    return axes
