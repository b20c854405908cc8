"""Data and what a model makes of them: reconstructions and draws."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .arrays import FloatArray, check_count, finite_rows
from .panels import feature_panels
from .tiles import as_images, gap_pixels, scale_of, scale_text, show_tiles, tile

__all__ = ["reconstructions", "samples"]

CAPTION: dict[str, Any] = {"fontsize": "small", "color": "0.4"}
GRID_INCHES = 5.0
MIN_BINS, MAX_BINS = 8, 40
OUTLIERS = 0.01  # share of the drawn pixels, at either end, beyond black and white


def reconstructions(
    x: Any,
    reconstruction: Any,
    *,
    image_shape: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    max_shown: int = 10,
) -> Figure:
    """Held-out data and their reconstructions.

    With ``image_shape`` two rows of images: the first ``max_shown`` data above their
    reconstructions, on one gray scale (or color scale) that covers the range of the data, with a
    caption that gives it. Without it one panel for each of the first twelve features: the
    reconstruction of each datum against its value, in units of the feature, and the dashed
    diagonal on which both are equal.

    Args:
        x: Data, ``(N, *event_shape)``.
        reconstruction: For example ``vae.reconstruct(x)``, of the same shape.
        image_shape: (H, W) or (1, H, W) for gray, (3, H, W) for color images.
        columns: Names of the features, for the panels.
        max_shown: Images in a row. The panels show every datum.

    Returns:
        A figure of one axes for images, else of one axes per feature.

    Raises:
        ValueError: If the shapes do not fit together, or a value is not finite.
        TypeError: If the values are not numeric.

    Example:
        >>> x = np.arange(8.0).reshape(2, 4)
        >>> figure = reconstructions(x, x, image_shape=(2, 2))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['held-out $x$', 'reconstruction']
        >>> len(reconstructions(x, x).axes)
        4
    """
    rows = finite_rows(x, name="x")
    rebuilt = finite_rows(reconstruction, name="reconstruction")
    if rows.shape != rebuilt.shape:
        raise ValueError(
            f"reconstruction must have as many rows and features as x; got {rebuilt.shape} for x "
            f"of {rows.shape}."
        )
    check_count(max_shown, "max_shown")
    if image_shape is None:
        return _scatter(rows, rebuilt, columns)
    shown = min(max_shown, len(rows))
    images = as_images(np.concatenate([rows[:shown], rebuilt[:shown]]), image_shape, name="x")
    scale = scale_of(images[:shown])
    height, width = images.shape[1:3]
    gap = gap_pixels(images)
    # Rows at least as high as their labels.
    inches = max(min(1.0, 11.0 / shown), 0.22 * width / height)
    size = (max(inches * shown + 1.4, 4.0), 2.1 * inches * height / width + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    show_tiles(axes, tile(images, num_columns=shown, gap=gap), scale)
    center = (height - 1) / 2
    axes.set_yticks([center, center + height + gap], ["held-out $x$", "reconstruction"])
    axes.tick_params(length=0)
    axes.set_xlabel(scale_text(images, scale), **CAPTION)
    return figure


def samples(
    draws: Any,
    *,
    image_shape: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    data: Any = None,
    max_shown: int = 64,
    title: str = "draws",
) -> Figure:
    """Draws from a model, beside data if there are any.

    With ``image_shape`` a grid of the first ``max_shown`` draws, and at its right one of ``data``,
    on one gray scale (or color scale): the range of the data, without data that of the draws but
    for 1 % at either end. Without it a histogram for each of the first twelve features, of all
    draws and all data, as densities (per unit of the feature) in the same bins.

    Args:
        draws: For example ``vae.sample(64)``, shape ``(S, *event_shape)``.
        image_shape: (H, W) or (1, H, W) for gray, (3, H, W) for color images.
        columns: Names of the features, for the histograms.
        data: Data to compare with, ``(N, *event_shape)``.
        max_shown: Images in a grid.
        title: What the draws are, for example means of p(x|z): above their grid, or in the
            legend of the histograms.

    Returns:
        A figure of one axes for each grid of images, else of one axes per feature.

    Raises:
        ValueError: If the shapes do not fit together, or a value is not finite.
        TypeError: If the values are not numeric.

    Example:
        >>> figure = samples(np.arange(12.0).reshape(4, 3), columns=["length", "width", "weight"])
        >>> [axes.get_title() for axes in figure.axes]
        ['length', 'width', 'weight']
    """
    rows = finite_rows(draws, name="draws")
    others = None if data is None else finite_rows(data, name="data")
    if others is not None and others.shape[1] != rows.shape[1]:
        raise ValueError(
            f"data must have as many features as draws; got {others.shape[1]} and {rows.shape[1]}."
        )
    check_count(max_shown, "max_shown")
    if image_shape is None:
        return _histograms(rows, others, columns, title)
    grids = [(title, as_images(rows[:max_shown], image_shape, name="draws"))]
    scale = scale_of(grids[0][1], outliers=OUTLIERS)
    if others is not None:
        grids.append(("data", as_images(others[:max_shown], image_shape, name="data")))
        scale = scale_of(grids[1][1])
    most = max(len(images) for _, images in grids)
    num_columns = math.ceil(math.sqrt(most))
    num_rows = math.ceil(most / num_columns)
    height, width = grids[0][1].shape[1:3]
    grid_height = GRID_INCHES * num_rows * height / (num_columns * width)
    figure = Figure(figsize=(GRID_INCHES * len(grids), grid_height + 0.55), layout="constrained")
    figure.set_layout_engine("constrained", wspace=0.04)
    for index, (name, images) in enumerate(grids):
        axes = figure.add_subplot(1, len(grids), index + 1)
        show_tiles(axes, tile(images, num_columns=num_columns, gap=gap_pixels(images)), scale)
        axes.set_title(name)
    figure.supxlabel(scale_text(grids[0][1], scale), **CAPTION)
    return figure


def _scatter(x: FloatArray, rebuilt: FloatArray, columns: Sequence[str] | None) -> Figure:
    figure, panels = feature_panels(x.shape[1], columns, width=2.4, height=2.5)
    size = float(np.clip(2000 / len(x), 2, 16))
    for index, axes in enumerate(panels):
        across, up = x[:, index], rebuilt[:, index]
        low, high = min(across.min(), up.min()), max(across.max(), up.max())
        margin = 0.05 * (high - low) or 0.5
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color="0.3", linewidth=1, linestyle="--")
        axes.scatter(across, up, s=size, alpha=0.6, linewidth=0, rasterized=True)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
    figure.supxlabel("held-out $x$")
    figure.supylabel("reconstruction")
    return figure


def _histograms(
    draws: FloatArray, data: FloatArray | None, columns: Sequence[str] | None, title: str
) -> Figure:
    figure, panels = feature_panels(draws.shape[1], columns, width=2.4, height=1.9)
    for index, axes in enumerate(panels):
        values = [draws[:, index]] + ([] if data is None else [data[:, index]])
        edges = _bin_edges(values)
        if data is not None:
            density, _ = np.histogram(data[:, index], edges, density=True)
            axes.stairs(density, edges, fill=True, color="0.78", label="data")
        density, _ = np.histogram(draws[:, index], edges, density=True)
        axes.stairs(density, edges, color="C0", linewidth=1.4, label=title)
    figure.supxlabel("$x$")
    figure.supylabel("density")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _bin_edges(groups: Sequence[FloatArray]) -> FloatArray:
    """Common bins, as many as the smallest group can bear; few integers have one bin each.

    The number is Rice's, twice the cube root of the number of values.
    """
    values = np.concatenate(groups)
    low, high = float(values.min()), float(values.max())
    if high - low <= MAX_BINS and np.array_equal(values, np.round(values)):
        return np.arange(low - 0.5, high + 1.0)
    bins = math.ceil(2 * min(map(len, groups)) ** (1 / 3))
    return np.linspace(low, high, min(max(bins, MIN_BINS), MAX_BINS) + 1)
