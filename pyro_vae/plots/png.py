"""Figures to disk."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.files import replaced_file

__all__ = ["figure_of", "save"]


def save(
    picture: Figure | Axes | Sequence[Axes], path: str | os.PathLike[str], *, dpi: int = 150
) -> None:
    """Write a picture as a PNG file, whole or not at all.

    The picture is written beside ``path`` and then renamed, so that whoever reads ``path`` finds
    the old picture or the new one and never half of one.

    Args:
        picture: What a function of this package returned: a figure, axes, or a list of axes.
        path: The file, ending in ``.png``; one that exists is replaced.
        dpi: Pixels per inch.

    Raises:
        ValueError: If ``path`` does not end in ``.png`` or ``dpi`` is not positive.
        FileNotFoundError: If its folder does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Figure(figsize=(2, 1)), Path(folder, "empty.png"))
        ...     os.listdir(folder)
        ['empty.png']
    """
    target = Path(path).expanduser()
    if target.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png; got {target.name!r}.")
    if not dpi > 0:
        raise ValueError(f"dpi must be positive; got {dpi}.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in a folder that exists; got {target}.")
    with replaced_file(target) as partial:
        figure_of(picture).savefig(partial, format="png", dpi=dpi)


def figure_of(picture: Figure | Axes | Sequence[Axes]) -> Figure:
    """The figure on which axes lie.

    Example:
        >>> figure = Figure()
        >>> figure_of([figure.subplots()]) is figure
        True
    """
    if isinstance(picture, Figure):
        return picture
    axes = picture if isinstance(picture, Axes) else picture[0]
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("picture must lie on a figure; got axes that were removed from theirs.")
    return figure
