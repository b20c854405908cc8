"""Pictures of a simulation-based calibration."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from .arrays import FloatArray
from .new_axes import axes_or_new
from .results import check_result

__all__ = ["coverage", "rank_ecdf"]

MAX_NAMED = 8
"""So many curves have a color and a name of their own."""

JOINT = r"$\log\,p(x, z)$"


def rank_ecdf(calibration: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""How far the distribution of ranks is from uniform, with a simultaneous band.

    The share of ranks below i less i / (L + 1), at i = 1, ..., L: 0 where the guide is calibrated.
    A curve that goes up and then down again, a wave like that of a sine, is of a posterior that q
    makes too narrow; one that goes down and then up, of one too wide; one on one side, of a bias.

    Args:
        calibration: What ``diagnostics.sbc`` returned.
        ax: Axes to draw in; new ones unless given.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> axes = rank_ecdf(pv.diagnostics.sbc(vae, 20, 19))
        >>> axes.get_xlabel()
        'rank of the truth among draws from $q(z|x)$, as a share'
    """
    check_result(
        calibration, ["ranks", "rank_log_joint", "band_low"], name="calibration", source="sbc"
    )
    ax = axes_or_new(ax, width=7.0, height=4.4)
    num_draws = int(calibration.attrs["num_draws"])
    points = np.arange(1, num_draws + 1) / (num_draws + 1)
    ax.fill_between(
        points,
        calibration["band_low"] - points,
        calibration["band_high"] - points,
        color="0.85",
        linewidth=0,
        label=f"all stay within,\nprobability {1 - calibration.attrs['verdict_significance']:.0%}",
    )
    ax.axhline(0, color="0.4", linewidth=0.8)
    ranks = calibration["ranks"].to_numpy()
    for j in range(ranks.shape[1]):
        style = _style(j, ranks.shape[1])
        ax.plot(points, _below(ranks[:, j], num_draws) - points, linewidth=1.2, **style)
    joint = _below(calibration["rank_log_joint"].to_numpy(), num_draws)
    ax.plot(points, joint - points, color="black", linestyle="--", label=JOINT)
    ax.set_xlabel("rank of the truth among draws from $q(z|x)$, as a share")
    ax.set_ylabel("share of ranks below, less that share")
    ax.set_title(
        f"Ranks in {calibration.sizes['simulation']} simulations: {calibration.attrs['verdict']}",
        loc="left",
    )
    ax.set_xlim(0, 1)
    ax.grid(alpha=0.25)
    _legend_beside(ax)
    return ax


def coverage(calibration: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""How often the central intervals of q contain the truth, against how often they should.

    Points below the diagonal are of a q that is too narrow. Bars are :math:`\pm 2` standard errors
    of the simulation.

    Args:
        calibration: What ``diagnostics.sbc`` returned.
        ax: Axes to draw in; new ones unless given.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> axes = coverage(pv.diagnostics.sbc(vae, 20, 19))
        >>> axes.get_ylabel()
        'simulations whose true $z$ lies inside, %'
    """
    check_result(calibration, ["coverage", "coverage_mcse"], name="calibration", source="sbc")
    ax = axes_or_new(ax, width=6.4, height=4.4)
    levels = calibration["level"].to_numpy()
    values = calibration["coverage"].to_numpy()
    errors = calibration["coverage_mcse"].to_numpy()
    ax.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, label="calibrated")
    count = len(values)
    for j in range(count):
        # Side by side, or bars at one level hide each other.
        shift = 0.01 * (j - (count - 1) / 2) * min(1.0, 4 / count)
        ax.errorbar(
            levels + shift,
            values[j],
            yerr=2 * errors[j],
            fmt="o",
            markersize=4,
            linewidth=1.2,
            **_style(j, count),
        )
    low = min(float((values - 2 * errors).min()), float(levels.min()))
    bottom = max(0.0, min(low, float(levels.min()) - 0.05) - 0.05)
    ax.set_xlim(max(0.0, float(levels.min()) - 0.1), 1)
    ax.set_ylim(bottom, 1.02)
    ax.set_xticks(levels, [f"{100 * level:g}" for level in levels])
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    ax.set_xlabel("nominal probability of the central interval of $q(z|x)$, %")
    ax.set_ylabel("simulations whose true $z$ lies inside, %")
    ax.set_title("Coverage, ± 2 standard errors; below the line q is too narrow", loc="left")
    ax.grid(alpha=0.25)
    _legend_beside(ax)
    return ax


def _style(j: int, count: int) -> dict[str, Any]:
    """Color and name of a latent dimension; many share one of each."""
    if count <= MAX_NAMED:
        return {"color": f"C{j % 10}", "label": f"$z_{{{j + 1}}}$"}
    label = f"$z_1$ to $z_{{{count}}}$" if j == 0 else None
    return {"color": "C0", "alpha": 0.5, "label": label}


def _below(ranks: Any, num_draws: int) -> FloatArray:
    """Share of ranks below 1, ..., L."""
    counts = np.bincount(ranks, minlength=num_draws + 1)
    shares: FloatArray = counts.cumsum()[:-1] / len(ranks)
    return shares


def _legend_beside(ax: Axes) -> None:
    """A legend to the right, where it hides no curve."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize="small")
