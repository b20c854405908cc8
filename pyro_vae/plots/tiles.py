"""Images put side by side into one."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from .arrays import FloatArray

__all__ = ["Scale", "as_images", "gap_pixels", "scale_of", "scale_text", "show_tiles", "tile"]

Scale = tuple[float, float]
"""Values that are shown black and white, as are those beyond."""


def as_images(rows: FloatArray, image_shape: Sequence[int], *, name: str) -> FloatArray:
    """``(N, D)`` to gray images ``(N, H, W)`` or color images ``(N, H, W, 3)``.

    Raises:
        ValueError: If ``image_shape`` is not (H, W), (1, H, W) or (3, H, W), or has not D entries.
    """
    shape = tuple(image_shape)
    if len(shape) not in {2, 3} or (len(shape) == 3 and shape[0] not in {1, 3}):
        raise ValueError(f"image_shape must be (H, W), (1, H, W) or (3, H, W); got {shape}.")
    if math.prod(shape) != rows.shape[1]:
        raise ValueError(
            f"image_shape must have as many entries as one datum of {name}; got {shape}, "
            f"{math.prod(shape)} entries, for {rows.shape[1]} features."
        )
    if len(shape) == 3 and shape[0] == 3:
        return np.moveaxis(rows.reshape(len(rows), *shape), 1, -1)
    return rows.reshape(len(rows), *shape[-2:])


def tile(images: FloatArray, *, num_columns: int, gap: int) -> FloatArray:
    """Images row by row in one array, with ``gap`` pixels of NaN between them.

    Args:
        images: ``(N, H, W)`` or ``(N, H, W, 3)``.
        num_columns: Images in a row; the last row may be shorter.
        gap: Pixels between two images.

    Returns:
        ``(R (H + gap) - gap, C (W + gap) - gap)`` and the color channels, if any.
    """
    num, height, width = images.shape[:3]
    num_rows = math.ceil(num / num_columns)
    shape = (num_rows * (height + gap) - gap, num_columns * (width + gap) - gap)
    canvas = np.full((*shape, *images.shape[3:]), np.nan)
    for index, image in enumerate(images):
        row, column = divmod(index, num_columns)
        top, left = row * (height + gap), column * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def gap_pixels(images: FloatArray) -> int:
    """Pixels between two images of this size."""
    return max(1, round(0.06 * max(images.shape[1:3])))


def scale_of(images: FloatArray, *, outliers: float = 0.0) -> Scale:
    """The range of the images; colors that lie in [0, 1] are shown as they are.

    Args:
        images: ``(N, H, W)`` or ``(N, H, W, 3)``.
        outliers: Share of the values, at either end, that may lie beyond the range.
    """
    low, high = np.quantile(images, [outliers, 1 - outliers]).tolist()
    if images.ndim == 4 and low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def scale_text(images: FloatArray, scale: Scale) -> str:
    """What the scale means, for a caption."""
    low, high = (f"{value:.2g}".replace("-", "−") for value in scale)
    if images.ndim == 4:
        return f"each color: none where $x$ ≤ {low}, full where $x$ ≥ {high}"
    return f"black: $x$ ≤ {low}, white: $x$ ≥ {high}"


def show_tiles(axes: Axes, canvas: FloatArray, scale: Scale) -> None:
    """Draw what :func:`tile` made: gray, or in color if it has channels; gaps stay empty."""
    low, high = scale
    if canvas.ndim == 3:
        gaps = np.isnan(canvas[..., :1])
        colors = np.clip((np.nan_to_num(canvas) - low) / (high - low), 0.0, 1.0)
        axes.imshow(np.concatenate([np.where(gaps, 0.0, colors), 1.0 - gaps], axis=-1))
    else:
        axes.imshow(canvas, cmap="gray", vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
