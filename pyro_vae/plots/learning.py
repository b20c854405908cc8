"""The course of a fit."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from .arrays import FloatArray, plain

__all__ = ["history"]

TERMS = {
    "elbo": "ELBO",
    "expected_log_likelihood": r"$\mathrm{E}_q\,\log\,p(x\,|\,z)$",
    "kl": r"$\mathrm{KL}(q(z\,|\,x)\,\|\,p(z))$",
}
CURVES = {"": ("C0", "-", "training"), "validation_": ("C1", "--", "validation")}
REFERENCE_COLORS = ("C2", "C4", "C5", "0.25", "C6")
FIRST_SHARE = 0.1  # of the epochs may lie out of view
MARKED_EPOCHS = 10  # up to so many, each epoch is a point


def history(history: DataFrame, *, reference: Mapping[str, float] | None = None) -> Figure:
    r"""The ELBO and its two terms over the epochs, in nats per datum.

    On the left the ELBO with a band of :math:`\pm 2` standard errors. On the right the two terms
    whose difference it is: :math:`\mathbb E_q \log p(x \mid z)`, and below it
    :math:`\mathrm{KL}(q(z \mid x) \,\|\, p(z))`, whose axis begins at 0. Training is solid,
    validation dashed. The vertical axes are made for the last 90 % of the epochs and for the
    reference lines; a note names the epochs that are out of view.

    Args:
        history: ``FitResult.history``: columns ``epoch``, ``elbo``, ``expected_log_likelihood``
            and ``kl``, if there ``elbo_se``, and the same with the prefix ``validation_``.
        reference: Values of log p(x) or of a bound, in nats per datum, by their labels: dashed
            lines in the panel of the ELBO.

    Returns:
        A figure of three axes with a common epoch axis: ELBO, expected log likelihood, KL.

    Raises:
        ValueError: If ``history`` lacks a column or has no row, or a reference is not finite.

    Example:
        >>> rows = {"epoch": [1, 2], "elbo": [-3.0, 1.0], "expected_log_likelihood": [-1.0, 4.0]}
        >>> figure = history(DataFrame({**rows, "kl": [2.0, 3.0]}), reference={"PCA": 1.5})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['nats per datum', 'nats per datum', 'nats per datum']
    """
    prefixes = _check_history(history)
    levels = {plain(label): float(value) for label, value in (reference or {}).items()}
    for label, value in levels.items():
        if not math.isfinite(value):
            raise ValueError(f"reference must be finite; got {value} for {label!r}.")

    figure = Figure(figsize=(10.0, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1.0))
    elbo = figure.add_subplot(grid[:, 0])
    likelihood = figure.add_subplot(grid[0, 1], sharex=elbo)
    kl = figure.add_subplot(grid[1, 1], sharex=elbo)
    likelihood.tick_params(labelbottom=False)
    elbo.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for axes in (elbo, kl):
        axes.set_xlabel("epoch")
    epochs = history["epoch"].to_numpy(float)
    for axes, (term, title) in zip((elbo, likelihood, kl), TERMS.items(), strict=True):
        axes.set_title(title, loc="left")
        axes.set_ylabel("nats per datum")
        axes.grid(alpha=0.25)
        curves = [history[f"{prefix}{term}"].to_numpy(float) for prefix in prefixes]
        for prefix, curve in zip(prefixes, curves, strict=True):
            color, style, label = CURVES[prefix]
            marker = "o" if len(epochs) <= MARKED_EPOCHS else None
            axes.plot(epochs, curve, color=color, linestyle=style, marker=marker, label=label)
        if term == "elbo":
            bands = _last_bands(history, prefixes)
            _set_view(axes, epochs, curves, needed=list(levels.values()), wanted=bands)
        else:
            _set_view(axes, epochs, curves, bottom=0.0 if term == "kl" else None)
    handles: list[Artist] = [*elbo.get_lines()]
    handles += _draw_bands(elbo, history, prefixes)
    for index, (label, value) in enumerate(levels.items()):
        color = REFERENCE_COLORS[index % len(REFERENCE_COLORS)]
        label = f"{label}: {value:.2f}".replace(": -", ": −")
        handles.append(
            elbo.axhline(value, color=color, linestyle=(0, (7, 3)), linewidth=1.3, label=label)
        )
    letters = max(len(str(handle.get_label())) for handle in handles)
    num_columns = max(1, min(len(handles), 110 // (letters + 8)))
    figure.set_figheight(4.2 + 0.22 * math.ceil(len(handles) / num_columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=num_columns, frameon=False)
    return figure


def _check_history(history: DataFrame) -> list[str]:
    """The prefixes of the curves that are there."""
    prefixes = [prefix for prefix in CURVES if not prefix or f"{prefix}elbo" in history.columns]
    needed = ["epoch", *(f"{prefix}{term}" for prefix in prefixes for term in TERMS)]
    missing = [name for name in needed if name not in history.columns]
    if missing:
        raise ValueError(
            f"history must have the columns {', '.join(needed)}; got none named "
            f"{', '.join(missing)}. Pass FitResult.history."
        )
    if history.empty:
        raise ValueError("history must have at least one epoch; got no row.")
    return prefixes


def _draw_bands(axes: Axes, history: DataFrame, prefixes: Sequence[str]) -> list[Artist]:
    """Bands of 2 standard errors about the ELBO, where there are any, and their legend entry."""
    with_se = [prefix for prefix in prefixes if f"{prefix}elbo_se" in history.columns]
    for prefix in with_se:
        elbo = history[f"{prefix}elbo"].to_numpy(float)
        half = 2 * history[f"{prefix}elbo_se"].to_numpy(float)
        axes.fill_between(
            history["epoch"].to_numpy(float),
            elbo - half,
            elbo + half,
            color=CURVES[prefix][0],
            alpha=0.2,
            linewidth=0,
        )
    return [Patch(color="0.5", alpha=0.4, label="± 2 standard errors")] if with_se else []


def _last_bands(history: DataFrame, prefixes: Sequence[str]) -> list[float]:
    """The ends of the bands at the last epoch."""
    last = history.iloc[-1]
    return [
        float(last[f"{prefix}elbo"] + sign * 2 * last[f"{prefix}elbo_se"])
        for prefix in prefixes
        if f"{prefix}elbo_se" in history.columns
        for sign in (-1, 1)
    ]


def _set_view(
    axes: Axes,
    epochs: FloatArray,
    curves: Sequence[FloatArray],
    *,
    needed: Sequence[float] = (),
    wanted: Sequence[float] = (),
    bottom: float | None = None,
) -> None:
    """Limits that hold the last epochs and what is needed; a note of the epochs they cut off.

    ``wanted`` and as many of the first epochs as leave half of the axis to the others are in view
    too. The axis begins at ``bottom``, or at the lowest value if that is lower.
    """
    first = math.ceil(FIRST_SHARE * len(epochs)) if len(epochs) > 2 else 0
    fixed = np.array([*needed, *([] if bottom is None else [bottom])])
    values = late = _finite([*(curve[first:] for curve in curves), fixed])
    for start in range(first):
        more = _finite([*(curve[start:] for curve in curves), fixed])
        if not len(late) or np.ptp(more) <= 2 * np.ptp(late):
            values = more
            break
    more = _finite([values, np.array(wanted)])
    if len(values) and np.ptp(more) <= 2 * np.ptp(values):
        values = more
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    if bottom is not None:
        low = min(bottom, low + margin)
    axes.set_ylim(low, high)
    outside = np.logical_or.reduce([(curve < low) | (curve > high) for curve in curves])
    if outside.any():
        cut = epochs[outside]
        which = f"epoch {cut[0]:.0f}" if len(cut) == 1 else f"epochs {cut[0]:.0f}–{cut[-1]:.0f}"
        axes.set_title(f"{which} out of view", loc="right", fontsize="small", color="0.4")


def _finite(pieces: Sequence[FloatArray]) -> FloatArray:
    values = np.concatenate(pieces)
    return values[np.isfinite(values)]
