"""Models side by side: what one gains over another on the same data."""

import numpy as np
from matplotlib.axes import Axes
from pandas import DataFrame

from .arrays import plain
from .new_axes import axes_or_new

__all__ = ["comparison"]

BOUNDS = {"log_evidence": ("log evidence", "C0", "o"), "elbo": ("ELBO", "C1", "s")}


def comparison(table: DataFrame, *, ax: Axes | None = None) -> Axes:
    """Paired differences of ELBO and log evidence from the reference, with two standard errors.

    Args:
        table: What :func:`pyro_vae.compare` returned.
        ax: Axes to draw on; those of a new figure unless given.

    Returns:
        The axes.

    Example:
        >>> columns = [f"{b}_difference{s}" for b in BOUNDS for s in ("", "_se")]
        >>> table = DataFrame(1.0, index=["a", "b"], columns=columns)
        >>> table.attrs = {"reference": "a", "num_data": 5}
        >>> comparison(table).get_xlabel()
        'gain over a, nats per datum'
    """
    reference = table.attrs["reference"]
    names = [name for name in table.index if name != reference] or [reference]
    axes = axes_or_new(ax, width=7.2, height=1.4 + 0.55 * len(names))
    for offset, (bound, (label, color, marker)) in zip((-0.12, 0.12), BOUNDS.items(), strict=True):
        axes.errorbar(
            table.loc[names, f"{bound}_difference"].to_numpy(float),
            np.arange(len(names)) + offset,
            xerr=2 * np.nan_to_num(table.loc[names, f"{bound}_difference_se"].to_numpy(float)),
            fmt=marker,
            color=color,
            capsize=3,
            label=label,
        )
    axes.axvline(0, color="0.3", linewidth=0.9)
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    count = table.attrs["num_data"]
    axes.set_xlabel(f"gain over {plain(reference)}, nats per datum")
    axes.set_title(
        f"mean of {count} paired differences ± 2 standard errors", loc="left", fontsize="medium"
    )
    axes.grid(axis="x", alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes
