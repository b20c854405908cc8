"""CelebA: photographs of faces, cropped and resized as they are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .archives import Zip
from .arrays import as_tensor
from .dataset import Dataset
from .downloads import DRIVE, RemoteFile, data_root, fetch, missing_error
from .scaling import Scaling

__all__ = ["celeba"]

SPLITS = {"train": ("0",), "valid": ("1",), "test": ("2",), "all": ("0", "1", "2")}

# Width and height of the aligned photographs, and of the square around the face that is kept.
PHOTOGRAPH = (178, 218)
CROP = 148

ARCHIVE, PARTITION = "img_align_celeba.zip", "list_eval_partition.txt"

MAX_LIST_BYTES = 2**25
"""Largest size of the list of images; that of CelebA has 2.8 MB."""

MAX_IMAGE_BYTES = 2**20
"""Largest size of an image in a download."""

FORMATS = ("JPEG", "PNG")
"""What photographs are read as; Pillow would hand others to programs outside of Python."""


def celeba(
    size: int = 64,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    download: bool = False,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Aligned photographs of celebrities in color, without labels.

    The central 148 x 148 pixels are resized to ``size`` x ``size`` with an antialiasing bilinear
    filter. All 162 770 training images take 8 GB as 64 x 64 float32: mind ``limit``.

    Args:
        size: Rows and columns of the result, at least 1.
        root: Folder that holds ``celeba/list_eval_partition.txt`` and
            ``celeba/img_align_celeba``; by default the environment variable ``PYRO_VAE_DATA``.
        split: ``"train"``, ``"valid"``, ``"test"`` or ``"all"``, as the authors split the data.
        limit: Load at most so many images, the first ones; by default all.
        download: Whether to download files that are missing (1.4 GB, needs the package gdown);
            nothing is downloaded without it.
        dtype: Floating type of ``x``; by default torch's default type.

    Returns:
        ``x`` of shape ``(N, 3, size, size)`` in [0, 1], raw values / 255, channels red, green,
        blue.

    Raises:
        FileNotFoundError: If no root is given, or files are not there.
        ValueError: If an argument is out of range, or a file is damaged.
        OSError: If a download fails, or ``root`` cannot be written.

    Example:
        >>> celeba(root="no-such-folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: ... pass download=True ...

    References:
        Liu, Luo, Wang and Tang (2015), Deep Learning Face Attributes in the Wild.
        https://arxiv.org/abs/1411.7766
    """
    if size < 1:
        raise ValueError(f"size must be at least 1; got {size}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all images; got {limit}.")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
    base = data_root(root)
    folder = base / "celeba"
    if download and _missing(folder, split, limit):
        _download(base)
    missing = _missing(folder, split, limit)
    if missing:
        raise missing_error("celeba", folder, missing)
    names = _partition(folder, split, limit)
    pixels = np.empty((len(names), 3, size, size), dtype=np.uint8)
    for row, name in enumerate(names):
        pixels[row] = _photograph(folder / "img_align_celeba" / name, size)
    scaling = Scaling.divide(255)
    raw = as_tensor(pixels, dtype=dtype or torch.get_default_dtype(), name="images").tensor
    return Dataset(
        f"celeba {split}", scaling.apply(raw), scaling=scaling, image_shape=(3, size, size)
    )


def _missing(folder: Path, split: str, limit: int | None) -> list[str]:
    """The files that are needed and not there."""
    if not (folder / PARTITION).is_file():
        return [PARTITION, "img_align_celeba"]
    names = [f"img_align_celeba/{name}" for name in _partition(folder, split, limit)]
    return [name for name in names if not (folder / name).is_file()]


def _partition(folder: Path, split: str, limit: int | None) -> list[str]:
    """Image names of a split; each line of the file is a name and 0, 1 or 2."""
    path = folder / PARTITION
    names: list[str] = []
    size = path.stat().st_size
    if size > MAX_LIST_BYTES:
        raise ValueError(f"{path} must have at most {MAX_LIST_BYTES} bytes; got {size}.")
    # Foreign bytes become a sign that no image name holds, and a line that is shown.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        # A name with a folder in it could lead anywhere.
        if len(words) != 2 or words[1] not in SPLITS["all"] or Path(words[0]).name != words[0]:
            raise ValueError(
                f"{path} must hold an image name and 0, 1 or 2 on each line; got {line!r} on "
                f"line {number}."
            )
        if words[1] in SPLITS[split]:
            names.append(words[0])
    if not names:
        raise ValueError(f"{path} must list images of split {split!r}; got none.")
    return names[:limit]


def _photograph(path: Path, size: int) -> np.ndarray[Any, Any]:
    """One image as unsigned bytes, shape ``(3, size, size)``."""
    # Pillow comes with torchvision, and only image files need it.
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
            # Before anything is unpacked, so that a forged size costs no memory.
            image = file.convert("RGB") if (width, height) == PHOTOGRAPH else None
    # Pillow's readers raise these for a damaged file, the last two for one of enormous size.
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ValueError(
            f"{path} must be a complete image; got {error}. Delete it, and use download=True or "
            "another copy."
        ) from error
    if image is None:
        raise ValueError(
            f"{path} must be an aligned photograph of 178 x 218 pixels; got {width} x {height}."
        )
    left, top = (width - CROP) // 2, (height - CROP) // 2
    square = image.crop((left, top, left + CROP, top + CROP))
    resized = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


def _download(base: Path) -> None:
    # torchvision takes seconds to import, and only a download needs it.
    from torchvision.datasets import CelebA

    files = [
        RemoteFile(name, (f"{DRIVE}{number}",), md5)
        for number, md5, name in CelebA.file_list
        if name in (ARCHIVE, PARTITION)
    ]
    fetch("celeba", base, folder="celeba", files=files, unpack=_unpack)


def _unpack(arrived: Path, unpacked: Path) -> None:
    """The list, and the images that it names."""
    shutil.copyfile(arrived / PARTITION, unpacked / PARTITION)
    photographs = unpacked / "img_align_celeba"
    photographs.mkdir()
    with Zip.opened(arrived / ARCHIVE) as archive:
        for name in _partition(arrived, "all", None):
            archive.unpack(f"img_align_celeba/{name}", photographs / name, most=MAX_IMAGE_BYTES)
