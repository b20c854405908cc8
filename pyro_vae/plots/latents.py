"""Where q(z|x) puts the data in the latent space."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import NDArray

from .arrays import FloatArray, check_count, finite_array, finite_rows, to_numpy
from .coloring import Coloring, color_by_label

__all__ = ["latent"]

NUM_BINS = 400
PRIOR_RADII = (1, 2)
OUTER = (0.025, 0.975)
"""Quantiles of draws from the prior that a picture reaches: a heavy tail would fill it."""
DRAWS_STYLE: dict[str, Any] = {
    "color": "0.75",
    "linestyle": "",
    "marker": ".",
    "markersize": 3,
    "markeredgewidth": 0,
}
PRIOR_STYLE: dict[str, Any] = {"color": "0.2", "linestyle": ":", "linewidth": 1.3}


def latent(
    means: Any,
    covariances: Any,
    labels: Any = None,
    *,
    dims: Sequence[int] | None = None,
    label_names: Sequence[str] | Mapping[Any, str] | None = None,
    max_ellipses: int = 300,
    prior: Any = None,
) -> Figure:
    r"""The means of q(z|x) with their uncertainty, against the prior.

    In two dimensions a scatter of the means. An ellipse is the contour at 1 standard deviation,
    :math:`(z - \mu)^\top \Sigma^{-1} (z - \mu) = 1`, which holds 39 % of the probability of q(z|x)
    in these two dimensions. Dotted circles show the prior N(0, I) in the same way, at 1 and 2
    standard deviations; gray points another prior. In one dimension the density of the aggregate
    posterior, the average of q(z|x) over the data, against that of the prior, and below it each
    mean with a bar of :math:`\pm 1` standard deviation.

    Args:
        means: Means of q(z|x), ``(N, k)``.
        covariances: Covariance matrices, ``(N, k, k)``, or variances, ``(N, k)``.
        labels: One of each datum, ``(N,)``. Strings, booleans and up to twenty integers are
            categories with a color each; other numbers give a continuous color scale.
        dims: Indices, from 0, of the one or two dimensions to show; by default both of two, and
            of more the two whose means have the largest variance, that one first. The axes name
            them z_1, z_2, ..., from 1.
        label_names: Names of the categories: a mapping, or a sequence indexed by integer labels.
        max_ellipses: Ellipses or bars of so many data at most, evenly spaced in their order.
        prior: Draws from the prior, ``(M, k)``, where it is not N(0, I); some 2000 show it well.

    Returns:
        A figure of one axes (and a color bar) in two dimensions, of two axes in one.

    Raises:
        ValueError: If shapes do not fit together, a value is not finite, or a covariance matrix is
            not symmetric and positive semidefinite.
        TypeError: If means or covariances are not numeric.

    Example:
        >>> covariances = np.array([[[4.0, 0.0], [0.0, 1.0]]])
        >>> figure = latent(np.zeros((1, 2)), covariances)
        >>> ellipses = figure.axes[0].collections[0]
        >>> ellipses.get_widths(), ellipses.get_heights()  # two standard deviations across
        (array([4.]), array([2.]))
    """
    means = _check_means(means)
    covariances = _check_covariances(covariances, means)
    check_count(max_ellipses, "max_ellipses", least=0)
    k, dims = means.shape[1], _choose_dims(dims, means)
    means, covariances = means[:, dims], covariances[:, dims][:, :, dims]
    coloring = color_by_label(labels, label_names, len(means))
    chosen = np.unique(
        np.linspace(0, len(means) - 1, min(max_ellipses, len(means))).round().astype(int)
    )
    draws = None if prior is None else _check_draws(prior, k)[:, dims]
    names = [f"$z_{{{index + 1}}}$" for index in dims]
    if len(dims) == 1:
        return _one_dimension(means[:, 0], covariances[:, 0, 0], coloring, chosen, names[0], draws)
    return _two_dimensions(means, covariances, coloring, chosen, names, draws)


def _two_dimensions(
    means: FloatArray,
    covariances: FloatArray,
    coloring: Coloring,
    chosen: NDArray[np.int64],
    names: Sequence[str],
    draws: FloatArray | None,
) -> Figure:
    eigenvalues, eigenvectors = np.linalg.eigh(covariances[chosen])
    # Rounding can leave a semidefinite matrix with an eigenvalue of -1e-17.
    minor, major = 2 * np.sqrt(np.clip(eigenvalues, 0, None)).T
    low, high = _view(means, covariances, chosen, draws)
    figure = _figure(coloring, tall_to_wide=float((high[1] - low[1]) / (high[0] - low[0])))
    axes = figure.add_subplot()
    fill, edge = _alphas(means, major, minor)
    axes.add_collection(
        EllipseCollection(
            major,
            minor,
            np.rad2deg(np.arctan2(eigenvectors[:, 1, 1], eigenvectors[:, 0, 1])),
            units="xy",
            offsets=means[chosen],
            offset_transform=axes.transData,
            facecolors=_faded(coloring.colors[chosen], fill),
            edgecolors=_faded(coloring.colors[chosen], edge),
            linewidths=0.6,
        ),
        autolim=False,
    )
    axes.scatter(means[:, 0], means[:, 1], **_points(coloring, 6000))
    if draws is None:
        shown = Line2D([], [], label="prior N(0, I),\n1 and 2 s.d.", **PRIOR_STYLE)
        for radius in PRIOR_RADII:
            axes.add_patch(Circle((0, 0), radius, fill=False, zorder=3, **PRIOR_STYLE))
    else:
        in_legend = {**DRAWS_STYLE, "markersize": 6}
        shown = Line2D([], [], label=f"{len(draws)} draws\nfrom the prior", **in_legend)
        axes.plot(draws[:, 0], draws[:, 1], zorder=0, scalex=False, scaley=False, **DRAWS_STYLE)
    # One of the two ranges is widened to fill the axes, which auto=True permits.
    axes.set_xlim(low[0], high[0], auto=True)
    axes.set_ylim(low[1], high[1], auto=True)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel=names[0], ylabel=names[1])
    what = ", ellipses at 1 standard deviation" if len(chosen) else ""
    axes.set_title(f"Means of $q(z|x)${what}")
    handles = coloring.handles()
    if len(chosen):
        share = f",\n{len(chosen)} of {len(means)} data" if len(chosen) < len(means) else ""
        handles.append(
            Line2D(
                [],
                [],
                color="0.5" if coloring.names else "C0",
                marker="o",
                markersize=11,
                linestyle="",
                alpha=0.4,
                label=f"1 s.d. of $q(z|x)${share}",
            )
        )
    handles.append(shown)
    _explain(figure, [axes], coloring, handles)
    return figure


def _one_dimension(
    means: FloatArray,
    variances: FloatArray,
    coloring: Coloring,
    chosen: NDArray[np.int64],
    name: str,
    draws: FloatArray | None,
) -> Figure:
    figure = _figure(coloring, tall_to_wide=1.0)
    grid = figure.add_gridspec(2, 1, height_ratios=(1.0, 1.3))
    top = figure.add_subplot(grid[0])
    bottom = figure.add_subplot(grid[1], sharex=top)
    top.tick_params(labelbottom=False)
    scales = np.sqrt(np.clip(variances, 0, None))
    reach = (-3.0, 3.0) if draws is None else np.quantile(draws, OUTER)
    low = min(float(reach[0]), float((means - 2 * scales).min()))
    high = max(float(reach[1]), float((means + 2 * scales).max()))
    edges = np.linspace(low, high, NUM_BINS + 1)
    centers = (edges[1:] + edges[:-1]) / 2

    handles = coloring.handles()
    for handle, (_, members) in zip(handles, coloring.groups(), strict=True):
        share = _average_density(means[members], scales[members], edges) * members.mean()
        top.plot(centers, share, color=handle.get_color(), linewidth=1.2)
    whole: dict[str, Any] = {"color": "0.1" if coloring.names else "C0", "linewidth": 1.8}
    top.plot(centers, _average_density(means, scales, edges), **whole)
    if draws is None:
        label = "prior N(0, 1)"
        top.plot(centers, np.exp(-(centers**2) / 2) / np.sqrt(2 * np.pi), **PRIOR_STYLE)
    else:
        label = f"{len(draws)} draws from the prior"
        share, edges = np.histogram(draws, bins=60, range=(low, high))
        top.stairs(share / len(draws) / np.diff(edges), edges, **PRIOR_STYLE)
    top.set(ylabel="density", xlim=(low, high))
    top.set_ylim(bottom=0)
    top.set_title("Average of $q(z|x)$" + (", and each label's share" if coloring.names else ""))

    order = np.argsort(means, kind="stable")
    if coloring.names:
        order = order[np.argsort(coloring.categories[order], kind="stable")]
    rank = np.empty(len(means))
    rank[order] = np.arange(1, len(means) + 1)
    ends = np.stack([means - scales, means + scales], axis=1)[chosen]
    bars = np.stack([ends, np.broadcast_to(rank[chosen, None], ends.shape)], axis=2)
    colors = _faded(coloring.colors[chosen], 0.4)
    bottom.add_collection(LineCollection(list(bars), colors=colors, linewidths=0.8))
    bottom.scatter(means, rank, **_points(coloring, 3000))
    bottom.set(xlabel=name, ylabel=f"data by {'label and ' if coloring.names else ''}mean")
    bottom.set_title("Means of $q(z|x)$, bars of ± 1 standard deviation")
    handles.append(Line2D([], [], label="all data", **whole))
    handles.append(Line2D([], [], label=label, **PRIOR_STYLE))
    _explain(figure, [top, bottom], coloring, handles)
    return figure


def _view(
    means: FloatArray,
    covariances: FloatArray,
    chosen: NDArray[np.int64],
    draws: FloatArray | None,
) -> tuple[FloatArray, FloatArray]:
    """Lower and upper corner of what holds the means, the ellipses and most of the prior."""
    scales = np.sqrt(np.clip(covariances[chosen][:, [0, 1], [0, 1]], 0, None))
    circles = float(max(PRIOR_RADII)) * np.array([[-1.0, -1.0], [1.0, 1.0]])
    prior = circles if draws is None else np.quantile(draws, OUTER, axis=0)
    low = np.concatenate([means, means[chosen] - scales, prior]).min(0)
    high = np.concatenate([means, means[chosen] + scales, prior]).max(0)
    margin = 0.03 * (high - low).max()
    return low - margin, high + margin


def _alphas(means: FloatArray, major: FloatArray, minor: FloatArray) -> tuple[float, float]:
    """Opacity of fill and edge of the ellipses: less, the more of them lie upon each other."""
    spread = 4 * np.pi * float(np.prod(means.std(0)))
    layers = float((major * minor).sum()) * np.pi / 4 / max(spread, 1e-12)
    fill = min(0.12, 0.6 / max(layers, 1e-12))
    # Eight bits of opacity cannot show less than 0.01: edges alone then.
    return fill if fill >= 0.01 else 0.0, float(np.clip(4 * fill, 0.15, 0.5))


def _figure(coloring: Coloring, *, tall_to_wide: float) -> Figure:
    """A figure for axes of about 6 inches, with room for the legend or the color bar."""
    ratio = float(np.clip(tall_to_wide, 0.5, 1.2))
    wide, tall = min(6.0, 6.0 / ratio), min(6.0, 6.0 * ratio)
    if coloring.names:
        letters = max(len(name) for name in coloring.names)
        legend_tall = 0.21 * (len(coloring.names) + 5)
        size = (wide + max(1.3, 0.085 * letters) + 1.0, max(tall + 0.6, legend_tall))
    else:
        size = (wide + 0.6 + (0.8 if coloring.scale is not None else 0.0), tall + 1.0)
    return Figure(figsize=size, layout="constrained")


def _points(coloring: Coloring, area: float) -> dict[str, Any]:
    """Style of the means, which share ``area`` square points."""
    return {
        "s": float(np.clip(area / len(coloring.colors), 2, 22)),
        "c": coloring.colors,
        "linewidth": 0,
        "alpha": 0.85,
        "rasterized": True,
    }


def _average_density(means: FloatArray, scales: FloatArray, edges: FloatArray) -> FloatArray:
    """Mean over the data of q(z|x) averaged in each bin, so that no narrow q is missed."""
    total = np.zeros(len(edges))
    for rows in np.array_split(np.arange(len(means)), -(-len(means) // 1000)):
        spread = np.maximum(scales[rows], 1e-12)[:, None]
        standard = torch.from_numpy((edges - means[rows, None]) / spread)
        total += torch.special.ndtr(standard).numpy().sum(0)
    return np.diff(total) / np.diff(edges) / len(means)


def _explain(
    figure: Figure, panels: list[Axes], coloring: Coloring, handles: list[Line2D]
) -> None:
    """Legend outside the axes, and the color bar of continuous labels."""
    if coloring.scale is not None:
        figure.colorbar(coloring.scale, ax=panels, label="label")
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles)}
    if coloring.names:
        where = {"loc": "outside right upper"}
    small = "small" if len(coloring.names) > 12 else None
    figure.legend(handles=handles, frameon=False, fontsize=small, **where)


def _faded(colors: FloatArray, alpha: float) -> FloatArray:
    return np.concatenate([colors[:, :3], np.full((len(colors), 1), alpha)], axis=1)


def _check_means(values: Any) -> FloatArray:
    if np.ndim(to_numpy(values)) != 2:
        raise ValueError(f"means must have shape (N, k); got {to_numpy(values).shape}.")
    return finite_rows(values, name="means")


def _check_covariances(values: Any, means: FloatArray) -> FloatArray:
    """Covariance matrices, ``(N, k, k)``."""
    covariances = finite_array(values, name="covariances")
    num_data, k = means.shape
    if covariances.shape == (num_data, k):
        covariances = covariances[:, :, None] * np.eye(k)
    elif covariances.shape != (num_data, k, k):
        raise ValueError(
            f"covariances must have shape {(num_data, k, k)} or, for variances, {(num_data, k)} "
            f"to go with the means; got {covariances.shape}."
        )
    # Relative to the matrix; float32 has seven digits.
    size = 1e-4 * np.abs(covariances).max(axis=(1, 2))
    skew = np.abs(covariances - covariances.swapaxes(1, 2)).max(axis=(1, 2)) > size
    if skew.any():
        raise ValueError(
            f"covariances must be symmetric; got {covariances[skew.argmax()].tolist()} at row "
            f"{skew.argmax()}. Pass q.covariance_matrix, not q.scale_tril."
        )
    smallest = np.linalg.eigvalsh(covariances)[:, 0]
    if (smallest < -size).any():
        row = int((smallest < -size).argmax())
        raise ValueError(
            f"covariances must be positive semidefinite; got the eigenvalue {smallest[row]:.3g} "
            f"at row {row}."
        )
    return covariances


def _check_draws(values: Any, k: int) -> FloatArray:
    if np.ndim(to_numpy(values)) != 2 or np.shape(to_numpy(values))[1] != k:
        raise ValueError(
            f"prior must be draws of shape (M, {k}), as the means; got "
            f"{np.shape(to_numpy(values))}."
        )
    return finite_rows(values, name="prior")


def _choose_dims(dims: Sequence[int] | None, means: FloatArray) -> list[int]:
    k = means.shape[1]
    if dims is None:
        return list(range(k)) if k <= 2 else np.argsort(-means.var(0), kind="stable")[:2].tolist()
    chosen = list(dims)
    if len(chosen) not in {1, 2} or len(set(chosen)) < len(chosen):
        raise ValueError(f"dims must be one or two different dimensions; got {tuple(chosen)}.")
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < k for i in chosen):
        raise ValueError(
            f"dims must be indices from 0 to {k - 1}, the dimensions of z; got {tuple(chosen)}."
        )
    return chosen
