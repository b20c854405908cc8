"""The MNIST family: gray images of 28 x 28 pixels, read from torchvision's files."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .archives import Zip, unpack_gzip
from .arrays import as_tensor
from .dataset import Dataset
from .downloads import RemoteFile, data_root, fetch, missing_error
from .idx import read_idx
from .scaling import Scaling

__all__ = ["emnist", "fashion_mnist", "kmnist", "mnist"]

EMNIST_SPLITS = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")

MAX_IDX_BYTES = 2**30
"""Largest size of a file in a download; that of the largest, of EMNIST, is half of it."""


def mnist(
    *,
    root: str | os.PathLike[str] | None = None,
    train: bool = True,
    download: bool = False,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Handwritten digits, 60 000 to train on and 10 000 to test on.

    Args:
        root: Folder that holds ``MNIST/raw``; by default the environment variable
            ``PYRO_VAE_DATA``.
        train: Whether to load the training part or the test part.
        download: Whether to download files that are missing or damaged; nothing is downloaded
            without it.
        dtype: Floating type of ``x``; by default torch's default type.

    Returns:
        ``x`` of shape ``(N, 784)`` in [0, 1], raw gray values / 255, with labels 0 to 9 and image
        shape (28, 28).

    Raises:
        FileNotFoundError: If no root is given, or the files are not there.
        ValueError: If a file is truncated or damaged.
        OSError: If a download fails, or ``root`` cannot be written.

    Example:
        >>> mnist(root="no-such-folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: ... pass download=True ...

    References:
        LeCun, Bottou, Bengio and Haffner (1998), Gradient-Based Learning Applied to Document
        Recognition, Proc. IEEE 86(11). https://doi.org/10.1109/5.726791
    """
    prefix = "train" if train else "t10k"
    return _load("MNIST", "mnist", prefix, root=root, train=train, download=download, dtype=dtype)


def fashion_mnist(
    *,
    root: str | os.PathLike[str] | None = None,
    train: bool = True,
    download: bool = False,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Articles of clothing, 60 000 to train on and 10 000 to test on.

    Args:
        root: Folder that holds ``FashionMNIST/raw``; by default the environment variable
            ``PYRO_VAE_DATA``.
        train: Whether to load the training part or the test part.
        download: Whether to download files that are missing or damaged; nothing is downloaded
            without it.
        dtype: Floating type of ``x``; by default torch's default type.

    Returns:
        ``x`` of shape ``(N, 784)`` in [0, 1], raw gray values / 255, with labels 0 to 9 and image
        shape (28, 28).

    Raises:
        FileNotFoundError: If no root is given, or the files are not there.
        ValueError: If a file is truncated or damaged.
        OSError: If a download fails, or ``root`` cannot be written.

    Example:
        >>> fashion_mnist(root="no-such-folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: ... pass download=True ...

    References:
        Xiao, Rasul and Vollgraf (2017), Fashion-MNIST. https://arxiv.org/abs/1708.07747
    """
    prefix = "train" if train else "t10k"
    return _load(
        "FashionMNIST",
        "fashion_mnist",
        prefix,
        root=root,
        train=train,
        download=download,
        dtype=dtype,
    )


def kmnist(
    *,
    root: str | os.PathLike[str] | None = None,
    train: bool = True,
    download: bool = False,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Cursive Japanese characters of ten classes, 60 000 to train on and 10 000 to test on.

    Args:
        root: Folder that holds ``KMNIST/raw``; by default the environment variable
            ``PYRO_VAE_DATA``.
        train: Whether to load the training part or the test part.
        download: Whether to download files that are missing or damaged; nothing is downloaded
            without it.
        dtype: Floating type of ``x``; by default torch's default type.

    Returns:
        ``x`` of shape ``(N, 784)`` in [0, 1], raw gray values / 255, with labels 0 to 9 and image
        shape (28, 28).

    Raises:
        FileNotFoundError: If no root is given, or the files are not there.
        ValueError: If a file is truncated or damaged.
        OSError: If a download fails, or ``root`` cannot be written.

    Example:
        >>> kmnist(root="no-such-folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: ... pass download=True ...

    References:
        Clanuwat et al. (2018), Deep Learning for Classical Japanese Literature.
        https://arxiv.org/abs/1812.01718
    """
    prefix = "train" if train else "t10k"
    return _load(
        "KMNIST", "kmnist", prefix, root=root, train=train, download=download, dtype=dtype
    )


def emnist(
    split: str = "balanced",
    *,
    root: str | os.PathLike[str] | None = None,
    train: bool = True,
    download: bool = False,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Handwritten letters and digits; the files hold them transposed, here they are upright.

    Args:
        split: ``"balanced"`` (47 classes), ``"byclass"`` (62), ``"bymerge"`` (47), ``"letters"``
            (labels 1 to 26), ``"digits"`` or ``"mnist"``.
        root: Folder that holds ``EMNIST/raw``; by default the environment variable
            ``PYRO_VAE_DATA``.
        train: Whether to load the training part or the test part.
        download: Whether to download files that are missing or damaged (560 MB, all splits);
            nothing is downloaded without it.
        dtype: Floating type of ``x``; by default torch's default type.

    Returns:
        ``x`` of shape ``(N, 784)`` in [0, 1], raw gray values / 255, with labels and image shape
        (28, 28).

    Raises:
        FileNotFoundError: If no root is given, or the files are not there.
        ValueError: If ``split`` is unknown, or a file is truncated or damaged.
        OSError: If a download fails, or ``root`` cannot be written.

    Example:
        >>> emnist(root="no-such-folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: ... pass download=True ...

    References:
        Cohen, Afshar, Tapson and van Schaik (2017), EMNIST. https://arxiv.org/abs/1702.05373
    """
    if split not in EMNIST_SPLITS:
        raise ValueError(f"split must be one of {', '.join(EMNIST_SPLITS)}; got {split!r}.")
    prefix = f"emnist-{split}-{'train' if train else 'test'}"
    return _load(
        "EMNIST",
        f"emnist {split}",
        prefix,
        root=root,
        train=train,
        download=download,
        dtype=dtype,
    )


def _load(
    family: str,
    name: str,
    prefix: str,
    *,
    root: str | os.PathLike[str] | None,
    train: bool,
    download: bool,
    dtype: torch.dtype | None,
) -> Dataset:
    """One part of a data set that lies in ``root/<family>/raw``."""
    files = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    base = data_root(root)
    folder = base / family / "raw"
    missing = [file for file in files if not (folder / file).is_file()]
    if download and (missing or not _complete(folder, files)):
        _download(family, base)
        missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise missing_error(family, folder, missing)
    images = read_idx(folder / files[0], ndim=3)
    labels = read_idx(folder / files[1], ndim=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{folder} must hold one label per image; got {len(labels)} labels in {files[1]} and "
            f"{len(images)} images in {files[0]}."
        )
    if family == "EMNIST":
        images = images.swapaxes(1, 2)
    scaling = Scaling.divide(255)
    gray = as_tensor(
        images.reshape(len(images), -1), dtype=dtype or torch.get_default_dtype(), name="images"
    ).tensor
    return Dataset(
        f"{name} {'train' if train else 'test'}",
        scaling.apply(gray),
        labels=torch.from_numpy(labels),
        scaling=scaling,
        image_shape=images.shape[1:],
    )


def _complete(folder: Path, files: tuple[str, str]) -> bool:
    try:
        read_idx(folder / files[0], ndim=3)
        read_idx(folder / files[1], ndim=1)
    except ValueError:
        return False
    return True


def _download(family: str, base: Path) -> None:
    if family == "EMNIST":
        _download_emnist(base)
        return
    # torchvision takes seconds to import, and only a download needs it.
    from torchvision import datasets

    kinds = {
        "MNIST": datasets.MNIST,
        "FashionMNIST": datasets.FashionMNIST,
        "KMNIST": datasets.KMNIST,
    }
    kind = kinds[family]
    files = [
        RemoteFile(name, tuple(f"{mirror}{name}" for mirror in kind.mirrors), md5)
        for name, md5 in kind.resources
    ]

    def unpack(arrived: Path, unpacked: Path) -> None:
        for file in files:
            target = unpacked / file.name.removesuffix(".gz")
            unpack_gzip(arrived / file.name, target, most=MAX_IDX_BYTES)

    fetch(family, base, folder=f"{family}/raw", files=files, unpack=unpack)


def _download_emnist(base: Path) -> None:
    """One archive of all splits, each of its files compressed again."""
    from torchvision import datasets

    names = [
        f"emnist-{split}-{part}-{kind}-ubyte"
        for split in EMNIST_SPLITS
        for part in ("train", "test")
        for kind in ("images-idx3", "labels-idx1")
    ]
    archive = RemoteFile("gzip.zip", (datasets.EMNIST.url,), datasets.EMNIST.md5)

    def unpack(arrived: Path, unpacked: Path) -> None:
        with Zip.opened(arrived / archive.name) as opened:
            for name in names:
                with opened.member(f"gzip/{name}.gz") as packed:
                    unpack_gzip(packed, unpacked / name, most=MAX_IDX_BYTES)

    fetch("EMNIST", base, folder="EMNIST/raw", files=[archive], unpack=unpack)
