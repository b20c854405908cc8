"""What a decoder makes of a two-dimensional latent space."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray
from torch import Tensor

from .arrays import FloatArray, check_count, finite_rows
from .panels import feature_panels
from .tiles import as_images, scale_of, scale_text, show_tiles, tile

__all__ = ["plane"]

REACH = 3.0  # heat maps show [-3, 3]^2
FINER = 4  # a heat map has so many times the points of a picture of images
WIDTH = 6.6  # inches of the picture of images
LABEL_INCHES = (0.43, 0.16)  # width and height of a tick label
OUTLIERS = 0.005  # share of the pixels, at either end, beyond black and white
RULE: dict[str, Any] = {"color": "white", "linewidth": 0.6}
SHOWN = 500
"""Draws from the prior over a heat map."""
TITLE = "mean of $p(x|z)$"


def plane(
    decode: Callable[[Tensor], Tensor],
    *,
    image_shape: Sequence[int] | None = None,
    size: int = 15,
    columns: Sequence[str] | None = None,
    reference: Tensor | None = None,
    prior: Any = None,
) -> Figure:
    r"""The decoded means over a two-dimensional latent space.

    With ``image_shape`` one image at each of ``size ** 2`` points of a grid whose lines are evenly
    spaced quantiles of the prior N(0, I): :math:`z = \Phi^{-1}(u)`, :math:`u = (i + 1/2) /
    \text{size}`. Equal areas of the picture then have equal prior probability. Of another prior
    the quantiles of its draws in each coordinate are taken. The gray scale (or color scale) covers
    the values but for 0.5 % at either end.

    Without it a heat map of each of the first twelve features over :math:`[-3, 3]^2`, each with
    its own color bar in units of the feature, and dotted circles at 1 and 2 standard deviations of
    the prior. Of another prior some draws take the place of the circles.

    Args:
        decode: Maps z, ``(M, 2)``, to means of p(x|z), ``(M, *event_shape)``; ``vae.decode``.
        image_shape: (H, W) or (1, H, W) for gray, (3, H, W) for color images.
        size: Images per axis; a heat map has four times as many points.
        columns: Names of the features, for the heat maps.
        reference: Tensor whose type and device z gets; float32 on the CPU if None.
        prior: Draws from the prior, ``(M, 2)``, where it is not N(0, I); some 2000 show it well.

    Returns:
        A figure of one axes for images, else of two axes per feature, map and color bar.

    Raises:
        ValueError: If ``decode`` does not return one row for each z, the shapes do not fit
            together, or a mean is not finite.

    Example:
        >>> figure = plane(lambda z: z.repeat(1, 2), image_shape=(2, 2), size=3)
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['−0.97', '0.00', '0.97']
    """
    check_count(size, "size", least=2)
    if reference is None:
        reference = torch.zeros((), dtype=torch.float32, device="cpu")
    draws = None if prior is None else finite_rows(prior, name="prior")
    if draws is not None and draws.shape[1:] != (2,):
        raise ValueError(f"prior must be draws of shape (M, 2); got {draws.shape}.")
    if image_shape is None:
        return _heat_maps(decode, FINER * size, columns, reference, draws)
    u = torch.arange(size, dtype=torch.float64, device="cpu").add(0.5).div(size)
    ticks = np.tile(torch.special.ndtri(u).numpy(), (2, 1))
    if draws is not None:
        ticks = np.quantile(draws, u.numpy(), axis=0).T
    means = _decoded(decode, ticks, reference)
    # Images are laid out from the top, z_2 grows upward.
    rows = means.reshape(size, size, -1)[::-1].reshape(size * size, -1)
    images = as_images(rows, image_shape, name="decode(z)")
    height, width = images.shape[1:3]
    scale = scale_of(images, outliers=OUTLIERS)
    tall = WIDTH * height / width
    figure = Figure(figsize=(WIDTH + 0.9, tall + 1.1), layout="constrained")
    axes = figure.add_subplot()
    show_tiles(axes, tile(images, num_columns=size, gap=0), scale)
    for line in range(1, size):
        axes.axvline(line * width - 0.5, **RULE)
        axes.axhline(line * height - 0.5, **RULE)
    shown = _thinned(size, int(WIDTH / LABEL_INCHES[0]))
    axes.set_xticks(shown * width + (width - 1) / 2, _labels(ticks[0, shown]))
    shown = _thinned(size, int(tall / LABEL_INCHES[1]))
    axes.set_yticks((size - 1 - shown) * height + (height - 1) / 2, _labels(ticks[1, shown]))
    axes.tick_params(labelsize="small")
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$")
    axes.set_title(f"{TITLE} at quantiles of the prior")
    figure.supxlabel(scale_text(images, scale), fontsize="small", color="0.4")
    return figure


def _labels(ticks: FloatArray) -> list[str]:
    # Adding zero turns -0.0 into 0.0.
    return [f"{round(z, 2) + 0.0:.2f}".replace("-", "−") for z in ticks.tolist()]


def _thinned(size: int, fits: int) -> NDArray[np.int64]:
    """Indices below ``size``, about ``fits`` at most, symmetric about the middle."""
    step = -(-size // max(fits, 1))
    lower = np.arange(0, (size + 1) // 2, step)
    between = size - 1 - 2 * lower  # from an index to its mirror image
    lower = lower[(between >= step) | (between == 0)]
    return np.union1d(lower, size - 1 - lower)


def _heat_maps(
    decode: Callable[[Tensor], Tensor],
    resolution: int,
    columns: Sequence[str] | None,
    reference: Tensor,
    draws: FloatArray | None,
) -> Figure:
    corners = np.array([[-REACH, -REACH], [REACH, REACH]])
    if draws is not None:
        corners = np.quantile(draws, (0.005, 0.995), axis=0)
    ticks = np.linspace(corners[0], corners[1], resolution).T
    means = _decoded(decode, ticks, reference)
    figure, panels = feature_panels(
        means.shape[1],
        columns,
        width=2.9,
        height=2.3,
        notes=(
            TITLE,
            "dotted: 1 and 2 s.d. of the prior" if draws is None else "dots: draws from the prior",
        ),
    )
    half = (ticks[:, 1] - ticks[:, 0]) / 2
    low, high = ticks[:, 0] - half, ticks[:, -1] + half
    for index, axes in enumerate(panels):
        image = axes.imshow(
            means[:, index].reshape(resolution, resolution),
            origin="lower",
            extent=(low[0], high[0], low[1], high[1]),
            aspect="equal" if draws is None else "auto",
            interpolation="bilinear",
        )
        if draws is None:
            for radius in (1, 2):
                axes.add_patch(Circle((0, 0), radius, fill=False, linestyle=":", color="white"))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(FixedLocator([-2, 0, 2]))
        else:
            axes.plot(*draws[:SHOWN].T, linestyle="", marker=".", markersize=1.5, color="white")
        axes.set(xlim=ticks[0, [0, -1]], ylim=ticks[1, [0, -1]])
        bar = figure.colorbar(image, ax=axes)
        bar.ax.tick_params(labelsize="small")
    figure.supxlabel("$z_1$")
    figure.supylabel("$z_2$")
    return figure


def _decoded(
    decode: Callable[[Tensor], Tensor], ticks: FloatArray, reference: Tensor
) -> FloatArray:
    """Means at all pairs of ticks, ``(T ** 2, D)``; z_1 runs fastest, both ascend.

    Ticks are those of z_1 and those of z_2, ``(2, T)``.
    """
    second, first = np.meshgrid(ticks[1], ticks[0], indexing="ij")
    grid = np.stack([first.ravel(), second.ravel()], axis=1)
    with torch.no_grad():
        z = torch.tensor(grid, dtype=reference.dtype, device=reference.device)
        means = decode(z)
    shape = tuple(np.shape(means))
    if not shape or shape[0] != len(grid):
        raise ValueError(
            f"decode must return one row for each z; got shape {shape} for z of shape "
            f"{tuple(z.shape)}."
        )
    return finite_rows(means, name="decode(z)")
