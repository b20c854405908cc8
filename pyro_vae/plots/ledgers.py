"""What the ELBO is made of."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from pandas import DataFrame

from .new_axes import axes_or_new

__all__ = ["ledger"]

STEPS = {
    "expected_log_likelihood": (r"$\mathrm{E}_q\,\log\,p(x\,|\,z)$", 1, "C0"),
    "cross_entropy": (r"$-$ cross-entropy  $-\mathrm{E}_q\,\log\,p(z)$", -1, "C3"),
    "entropy": (r"$+$ entropy  $-\mathrm{E}_q\,\log\,q(z\,|\,x)$", 1, "C2"),
}


def ledger(summary: DataFrame, *, ax: Axes | None = None) -> Axes:
    r"""The terms of the ELBO as steps from 0 to the ELBO, in nats per datum.

    Read it from the top: each bar begins where the one above it ended. Whiskers are two standard
    errors of the term's mean, for a claim about new data.

    Args:
        summary: What :func:`pyro_vae.diagnostics.elbo_summary` returned.
        ax: Axes to draw on; those of a new figure unless given.

    Returns:
        The axes.

    Raises:
        TypeError: If ``summary`` is no table.
        ValueError: If a term or its mean or error is missing.

    Example:
        >>> terms = ["elbo", "expected_log_likelihood", "kl", "cross_entropy", "entropy"]
        >>> summary = DataFrame({"mean": [1.0, 3.0, 2.0, 5.0, 3.0], "se": 0.1}, index=terms)
        >>> [float(bar.get_width()) for bar in ledger(summary).patches]
        [3.0, -5.0, 3.0, 1.0]
    """
    _check(summary)
    axes = axes_or_new(ax, width=7.6, height=3.0)
    labels: list[str] = []
    begin, ends = 0.0, [0.0]
    for term, (label, sign, color) in STEPS.items():
        step = sign * float(summary.loc[term, "mean"])
        _bar(axes, len(labels), begin, step, float(summary.loc[term, "se"]), color)
        labels.append(label)
        begin += step
        ends.append(begin)
    elbo, error = float(summary.loc["elbo", "mean"]), float(summary.loc["elbo", "se"])
    _bar(axes, len(labels), 0.0, elbo, error, "0.35")
    labels.append("= ELBO")
    for row, end in enumerate(ends[1:]):
        axes.plot([end, end], [row, row + 1], color="0.5", linewidth=0.8, zorder=1)
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("nats per datum")
    axes.set_title("What the ELBO is made of (± 2 standard errors)", loc="left", fontsize="medium")
    axes.grid(axis="x", alpha=0.25)
    axes.margins(x=0.16)
    return axes


def _check(summary: Any) -> None:
    if not isinstance(summary, DataFrame):
        raise TypeError(
            "summary must be what diagnostics.elbo_summary returned, a table; got "
            f"{type(summary).__name__}. elbo_summary takes what elbo_terms returned."
        )
    missing = {*STEPS, "elbo"} - set(summary.index) | {"mean", "se"} - set(summary.columns)
    if missing:
        raise ValueError(
            "summary must be what diagnostics.elbo_summary returned; got a table without "
            f"{', '.join(sorted(missing))}."
        )


def _bar(axes: Axes, row: int, begin: float, step: float, error: float, color: str) -> None:
    axes.barh(row, step, left=begin, height=0.55, color=color, alpha=0.8, zorder=2)
    end = begin + step
    if np.isfinite(error):
        axes.errorbar(end, row, xerr=2 * error, color="0.15", capsize=3, linewidth=1.1, zorder=3)
    side = 1 if step >= 0 else -1
    pad = 2 * error if np.isfinite(error) else 0.0
    axes.annotate(
        f"{step:+.2f}" if row < len(STEPS) else f"{step:.2f}",
        (end + side * pad, row),
        xytext=(6 * side, 0),
        textcoords="offset points",
        va="center",
        ha="left" if side > 0 else "right",
        fontsize="small",
    )
