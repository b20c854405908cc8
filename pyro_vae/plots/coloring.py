"""Labels to colors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba_array
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from .arrays import FloatArray, finite_array, plain, to_numpy

__all__ = ["Coloring", "color_by_label"]

MAX_CATEGORIES = 20


@dataclass(frozen=True)
class Coloring:
    """A color for each datum, and what the colors mean."""

    colors: FloatArray  # (N, 4)
    categories: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, int))  # (N,)
    names: tuple[str, ...] = ()
    scale: ScalarMappable | None = None

    def groups(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Name and members of each category, in order."""
        for index, name in enumerate(self.names):
            yield name, np.equal(self.categories, index)

    def handles(self) -> list[Line2D]:
        """Legend entries of the categories."""
        return [
            Line2D([], [], color=self.colors[members][0], marker="o", linestyle="", label=name)
            for name, members in self.groups()
        ]


def color_by_label(
    labels: Any, names: Sequence[str] | Mapping[Any, str] | None, num_data: int
) -> Coloring:
    """Colors of ``num_data`` data by their labels; one color if ``labels`` is None.

    Raises:
        ValueError: If labels and data differ in number, a category has no name, or there
            are more than twenty categories.
    """
    if labels is None:
        return Coloring(np.tile(to_rgba_array("C0"), (num_data, 1)))
    values = to_numpy(labels)
    if values.shape != (num_data,):
        raise ValueError(
            f"labels must have shape ({num_data},), one for each mean; got {values.shape}."
        )
    if values.dtype.kind == "f":
        values = finite_array(values, name="labels")
    elif values.dtype.kind not in "biuU":
        values = values.astype(str)
    levels, categories = np.unique(values, return_inverse=True)
    is_number = values.dtype.kind in "iuf"
    is_continuous = is_number and (
        len(levels) > MAX_CATEGORIES or not np.array_equal(levels, np.round(levels))
    )
    if is_continuous:
        if names is not None:
            raise ValueError(
                f"label_names must come with categories; got labels with {len(levels)} values. "
                f"Up to {MAX_CATEGORIES} integers, or strings, are categories."
            )
        scale = ScalarMappable(Normalize(float(levels.min()), float(levels.max())), "viridis")
        return Coloring(scale.to_rgba(values), scale=scale)
    if len(levels) > MAX_CATEGORIES:
        raise ValueError(
            f"labels must have at most {MAX_CATEGORIES} categories; got {len(levels)}."
        )
    palette = matplotlib.colormaps["tab10" if len(levels) <= 10 else "tab20"]
    texts = tuple(_category_name(level, names) for level in levels.tolist())
    return Coloring(palette(categories), categories.astype(np.int64), texts)


def _category_name(level: Any, names: Sequence[str] | Mapping[Any, str] | None) -> str:
    if names is None:
        return plain(f"{level:g}" if isinstance(level, float) else level)
    if isinstance(names, Mapping):
        if level in names:
            return plain(names[level])
    elif not isinstance(level, str) and 0 <= level < len(names):
        return plain(names[int(level)])
    raise ValueError(f"label_names must name every label; got no name for {level!r}.")
