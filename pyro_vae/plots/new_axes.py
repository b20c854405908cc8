"""Axes of a figure of their own, for a picture that was given none."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["axes_or_new"]


def axes_or_new(ax: Axes | None, *, width: float = 6.4, height: float = 4.0) -> Axes:
    """``ax``, or the axes of a new figure of this size in inches.

    Example:
        >>> float(axes_or_new(None, width=3.0).get_figure().get_figwidth())
        3.0
    """
    if ax is not None:
        return ax
    axes: Axes = Figure(figsize=(width, height), layout="constrained").subplots()
    return axes
