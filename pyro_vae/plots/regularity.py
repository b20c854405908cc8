"""How regular a latent space is: holes, speeds along segments, models side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from xarray import Dataset

from .arrays import FloatArray, plain
from .new_axes import axes_or_new
from .results import check_result

__all__ = ["prior_draws", "regularities", "speeds"]

SOURCE_NAMES = {"prior": "prior", "fitted_normal": "fitted normal"}

CONTINUITY = {
    "local_change": ("local change − 1", 1.0),
    "unevenness": ("unevenness of speed", 0.0),
    "path_over_chord": ("path over chord − 1", 1.0),
    "peak": ("peak speed − 1", 1.0),
}

SHARES = {"draws_covered": "draws where codes are", "codes_covered": "codes where draws are"}

FIGURES = ("precision", "recall", "coverage")

MAX_LINES = 40

LIMITS = (0.5, 99.5)
"""Percentiles of codes and draws that a picture reaches, with a margin."""


def prior_draws(found: Dataset, *, source: str = "prior", ax: Axes | None = None) -> Axes:
    """Encoded data and draws in the first two latent dimensions: does a draw meet a hole?

    Whether a draw is covered is judged in all dimensions, of which the picture shows two.

    Args:
        found: What :func:`pyro_vae.diagnostics.regularity` returned.
        source: Whose draws: ``prior`` or ``fitted_normal``.
        ax: Axes to draw on; those of a new figure unless given.

    Returns:
        The axes.

    Raises:
        TypeError: If ``found`` is no dataset.
        ValueError: If it is that of another diagnostic, or there is no such source.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> found = pv.diagnostics.regularity(vae, torch.randn(60, 3), num_samples=50, num_pairs=9)
        >>> prior_draws(found).get_xlabel()
        '$z_1$'
    """
    if source not in SOURCE_NAMES:
        raise ValueError(f"source must be one of {list(SOURCE_NAMES)}; got {source!r}.")
    check_result(found, ["code_z", "draw_z", "draw_is_covered"], name="found", source="regularity")
    axes = axes_or_new(ax, width=7.4, height=5.0)
    codes = _in_two(found["code_z"].to_numpy())
    draws = _in_two(found["draw_z"].sel(source=source).to_numpy())
    inside = found["draw_is_covered"].sel(source=source).to_numpy()
    name = found.attrs["prior"] if source == "prior" else "fitted normal"
    layers: list[tuple[FloatArray, dict[str, Any], str]] = [
        (codes, {"color": "0.7", "marker": "."}, "encoded data"),
        (draws[inside], {"color": "C0", "marker": "o"}, f"draws from {name}, covered"),
        (draws[~inside], {"color": "C3", "marker": "x"}, f"draws from {name}, not covered"),
    ]
    for points, style, label in layers:
        axes.plot(*points.T, linestyle="", markersize=3.5, alpha=0.7, label=label, **style)
    for values, limit in ((0, axes.set_xlim), (1, axes.set_ylim)):
        both = np.concatenate([codes[:, values], draws[:, values]])
        low, high = np.percentile(both, LIMITS)
        margin = 0.08 * (high - low) or 1.0
        limit(low - margin, high + margin)
    latent = found.sizes["latent"]
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$" if latent > 1 else "(the latent space has one dimension)")
    dims = f"; first 2 of {latent} dimensions shown" if latent > 2 else ""
    axes.set_title(
        f"{100 * inside.mean():.0f} % of draws lie where encoded data are dense\n"
        f"({100 * found.attrs['nominal_draws']:.0f} % if codes had their distribution{dims})",
        loc="left",
        fontsize="medium",
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, markerscale=2)
    return axes


def speeds(found: Mapping[str, Dataset]) -> list[Axes]:
    """Speed of the decoding along segments between encoded points, a panel for each model.

    Args:
        found: Name of each model to what :func:`pyro_vae.diagnostics.regularity` returned.

    Returns:
        The axes, one for each model.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> found = pv.diagnostics.regularity(vae, torch.randn(60, 3), num_samples=50, num_pairs=9)
        >>> [axes.get_xlabel() for axes in speeds({"VAE": found})]
        ['position on the segment']
    """
    _check_all(found, ["speed", "unevenness"])
    figure = Figure(figsize=(0.8 + 3.4 * len(found), 3.6), layout="constrained")
    panels: list[Axes] = list(
        figure.subplots(1, len(found), squeeze=False, sharey=True)[0]  # one scale for all
    )
    top = 2.0
    for axes, (name, dataset) in zip(panels, found.items(), strict=True):
        speed = dataset["speed"].to_numpy()
        speed = speed[np.isfinite(speed).all(1)]
        steps = (np.arange(speed.shape[1]) + 0.5) / speed.shape[1]
        for line in speed[:MAX_LINES]:
            axes.plot(steps, line, color="C0", alpha=0.35, linewidth=0.8)
        axes.axhline(1, color="0.2", linewidth=1.0, linestyle=(0, (6, 3)))
        if len(speed):
            top = max(top, float(speed[:MAX_LINES].max()) * 1.05)
        else:
            axes.text(0.5, 0.5, "no decoding moves", ha="center", transform=axes.transAxes)
        axes.set_title(
            f"{plain(name)}: unevenness {_with_error(dataset, 'unevenness')}",
            loc="left",
            fontsize="medium",
        )
        axes.set_xlim(0, 1)
        axes.set_xlabel("position on the segment")
        axes.grid(alpha=0.2)
    panels[0].set_ylim(0, top)
    panels[0].set_ylabel("speed over mean speed")
    figure.suptitle(
        "Decodings along segments between codes\n(dashed: an even speed)",
        fontsize="medium",
    )
    return panels


def regularities(found: Mapping[str, Dataset]) -> list[Axes]:
    """Figures of several models side by side, with two standard errors.

    Args:
        found: Name of each model to what :func:`pyro_vae.diagnostics.regularity` returned.

    Returns:
        The axes: continuity, completeness of the prior and of the fitted normal.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> found = pv.diagnostics.regularity(vae, torch.randn(60, 3), num_samples=50, num_pairs=9)
        >>> len(regularities({"VAE": found, "again": found}))
        3
    """
    _check_all(found, [*CONTINUITY, *SHARES, *FIGURES])
    figure = Figure(figsize=(12.6, 4.4 + 0.16 * len(found)), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.1)
    panels: list[Axes] = list(figure.subplots(1, 3))
    continuity = [
        (label, {name: _figure(d, figure_name, minus=zero) for name, d in found.items()}, 0.0)
        for figure_name, (label, zero) in CONTINUITY.items()
    ]
    _draw(panels[0], continuity, with_labels=True)
    panels[0].set_title(
        "Continuity: excess over a linear decoder\n(near 0: even)", loc="left", fontsize="medium"
    )
    panels[0].set_xlim(left=min(0.0, panels[0].get_xlim()[0]))
    for axes, (source, source_name) in zip(panels[1:], SOURCE_NAMES.items(), strict=True):
        at = {name: dataset.sel(source=source) for name, dataset in found.items()}
        first = next(iter(at.values()))
        rows = [
            (
                label,
                {name: _figure(dataset, share) for name, dataset in at.items()},
                float(first.attrs[f"nominal_{share.split('_')[0]}"]),
            )
            for share, label in SHARES.items()
        ]
        for of, of_name in (("data", "x"), ("reconstructions", "reconstr.")):
            for name in FIGURES:
                values = {m: _figure(d.sel(reference=of), name) for m, d in at.items()}
                ideal = (
                    float(first.attrs["expected_coverage"])
                    if name == "coverage"
                    else float(
                        np.mean([d[f"{name}_of_data"].sel(reference=of) for d in at.values()])
                    )
                )
                rows.append((f"{name}, {of_name}", values, ideal))
        _draw(axes, rows, with_labels=axes is panels[1])
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("share")
        axes.set_title(
            f"Completeness:\ndraws from the {source_name}", loc="left", fontsize="medium"
        )
    panels[0].set_xlabel("excess, ± 2 standard errors")
    handles = [
        Line2D([], [], color=f"C{i}", marker="o", linestyle="", label=plain(name))
        for i, name in enumerate(found)
    ]
    bar = Line2D([], [], color="0.2", marker="|", markersize=12, linestyle="")
    bar.set_label("ideal: linear decoder, draws distributed as data")
    figure.legend(handles=[*handles, bar], loc="outside lower center", ncols=8, frameon=False)
    return panels


Row = tuple[str, dict[str, tuple[float, float]], float]


def _check_all(found: Any, needed: list[str]) -> None:
    if not isinstance(found, Mapping) or isinstance(found, Dataset):
        raise TypeError(
            "found must be a mapping from the name of each model to what "
            f"diagnostics.regularity returned; got {type(found).__name__}."
        )
    if not found:
        raise ValueError("found must have at least one model; got none.")
    for name, dataset in found.items():
        check_result(dataset, needed, name=f"found[{name!r}]", source="regularity")


def _draw(axes: Axes, rows: list[Row], *, with_labels: bool) -> None:
    for index, (_, values, ideal) in enumerate(rows):
        axes.plot([ideal, ideal], [index - 0.35, index + 0.35], color="0.2", linewidth=1.6)
        offsets = (np.arange(len(values)) - (len(values) - 1) / 2) * 0.5 / max(1, len(values))
        for number, (offset, (value, error)) in enumerate(
            zip(offsets, values.values(), strict=True)
        ):
            axes.errorbar(
                value,
                index + offset,
                xerr=2 * np.nan_to_num(error),
                fmt="o",
                color=f"C{number}",
                markersize=4.5,
                capsize=2.5,
            )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows] if with_labels else [])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)


def _figure(dataset: Dataset, name: str, *, minus: float = 0.0) -> tuple[float, float]:
    return float(dataset[name]) - minus, float(dataset[f"{name}_se"])


def _with_error(dataset: Dataset, name: str) -> str:
    value, error = _figure(dataset, name)
    return f"{value:.3f} ± {error:.3f}"


def _in_two(points: FloatArray) -> FloatArray:
    if points.shape[1] == 1:
        return np.concatenate([points, np.zeros_like(points)], axis=1)
    return points[:, :2]
