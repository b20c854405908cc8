"""Bounds on the log evidence of simulated data, and estimates of it side by side."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from xarray import Dataset

from .arrays import plain
from .new_axes import axes_or_new

__all__ = ["bdmc_brackets", "evidence_differences"]


def bdmc_brackets(bounds: Dataset, *, ax: Axes | None = None) -> Axes:
    r"""Bounds on log p(x) of each simulated datum, less their midpoint, the widest on the right.

    Bars are :math:`\pm 2` Monte Carlo standard errors of each bound. The title has the mean width
    with the standard error over the data: the error of AIS is no larger in expectation.

    Args:
        bounds: What :func:`pyro_vae.diagnostics.bdmc` returned.
        ax: Where to draw; a new figure's axes unless given.

    Returns:
        The axes.

    Example:
        >>> columns = {"lower": [-3.0, -5.0], "upper": [-2.0, -3.0]}
        >>> errors = {"lower_mcse": [0.1, 0.2], "upper_mcse": [0.1, 0.2]}
        >>> bounds = Dataset({k: ("simulation", v) for k, v in (columns | errors).items()})
        >>> print(bdmc_brackets(bounds).get_title(loc="left").splitlines()[1])
        upper - lower: 1.500 ± 0.500 nats on average
    """
    lower, upper = (bounds[name].to_numpy() for name in ("lower", "upper"))
    width = upper - lower
    order = np.argsort(width)
    rank = np.arange(1, len(width) + 1)
    ax = axes_or_new(ax, width=6.4, height=4.2)
    ax.vlines(rank, -width[order] / 2, width[order] / 2, color="0.75", linewidth=1.0)
    for name, sign, color, marker, label in (
        ("upper", 1, "C1", "v", "upper: from a posterior draw back to the prior"),
        ("lower", -1, "C0", "^", "lower: from the prior to the posterior (AIS)"),
    ):
        error = 2 * np.nan_to_num(bounds[f"{name}_mcse"].to_numpy()[order])
        ax.errorbar(
            rank + 0.12 * sign,
            sign * width[order] / 2,
            yerr=error,
            fmt=marker,
            color=color,
            markersize=4,
            elinewidth=0.8,
            label=f"{label}, ± 2 mcse",
        )
    ax.axhline(0.0, color="0.4", linewidth=0.8)
    spread = width.std(ddof=1) / np.sqrt(len(width)) if len(width) > 1 else np.nan
    ax.set_title(
        "Bidirectional Monte Carlo: where log p(x) of simulated data lies\n"
        f"upper - lower: {width.mean():.3f} ± {spread:.3f} nats on average",
        loc="left",
        fontsize="medium",
    )
    ax.set_xlabel("simulated datum, from the narrowest bracket to the widest")
    ax.set_ylabel("bound less midpoint (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(ax)
    return ax


def evidence_differences(
    estimates: Mapping[str, Dataset], *, reference: str, ax: Axes | None = None
) -> Axes:
    r"""Estimates of log p(x) less a reference, datum by datum, with :math:`\pm 2` standard errors.

    Args:
        estimates: Datasets with ``log_evidence`` over ``obs_id``, and ``mcse`` where there is one,
            by the names of the methods.
        reference: Name of the one that is subtracted, best one without Monte Carlo error. Its
            error, where it has one, is the band around 0.
        ax: Where to draw; a new figure's axes unless given.

    Returns:
        The axes.

    Raises:
        ValueError: If ``reference`` is not among the estimates, or they are not of the same data.

    Example:
        >>> exact = Dataset({"log_evidence": ("obs_id", [-1.0, -2.0])})
        >>> other = Dataset({"log_evidence": ("obs_id", [-1.5, -2.0])})
        >>> ax = evidence_differences({"grid": exact, "AIS": other}, reference="grid")
        >>> ax.get_ylabel()
        'difference from grid (nats)'
    """
    if reference not in estimates:
        raise ValueError(f"reference must be one of {sorted(estimates)}; got {reference!r}.")
    base = estimates[reference]["log_evidence"].to_numpy()
    others = {name: one for name, one in estimates.items() if name != reference}
    for name, one in others.items():
        if one.sizes["obs_id"] != len(base):
            raise ValueError(
                f"estimates must be of the same data; got {one.sizes['obs_id']} for {name!r} and "
                f"{len(base)} for {reference!r}."
            )
    ax = axes_or_new(ax, width=6.4, height=4.2)
    place = np.arange(len(base))
    if "mcse" in estimates[reference]:
        error = 2 * estimates[reference]["mcse"].to_numpy()
        label = plain(f"{reference}, ± 2 mcse")
        ax.fill_between(place, -error, error, color="0.85", linewidth=0, label=label)
    for number, (name, one) in enumerate(others.items()):
        shift = 0.5 * ((number + 0.5) / len(others) - 0.5)
        error = 2 * one["mcse"].to_numpy() if "mcse" in one else np.zeros(len(base))
        ax.errorbar(
            place + shift,
            one["log_evidence"].to_numpy() - base,
            yerr=np.nan_to_num(error),
            fmt="o",
            markersize=3.5,
            elinewidth=0.8,
            color=f"C{number}",
            label=plain(f"{name}, ± 2 mcse" if "mcse" in one else name),
        )
    ax.axhline(0.0, color="0.4", linewidth=0.8)
    ax.set_title(
        "Estimates of log p(x) against a reference\n"
        "bars that miss 0 on the lower side: a bound that is not tight",
        loc="left",
        fontsize="medium",
    )
    ax.set_xlabel("datum")
    ax.set_ylabel(f"difference from {plain(reference)} (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(ax)
    return ax


def _legend_below(ax: Axes) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(0.0, -0.16), frameon=False, fontsize="small")
