"""Where image data sets lie on disk, and how they get there whole or not at all."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

__all__ = ["VARIABLE", "data_root", "fetch", "missing_error"]

VARIABLE = "PYRO_VAE_DATA"

# Only needed to get at the data that they hold.
ARCHIVES = (".zip", ".gz")


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """The folder that holds the data sets: the argument, else the environment variable.

    Args:
        root: A folder, or ``None`` for the one that ``PYRO_VAE_DATA`` names.

    Returns:
        The folder, which need not exist yet.

    Raises:
        FileNotFoundError: If neither is given.
    """
    folder = os.fspath(root) if root is not None else os.environ.get(VARIABLE, "")
    if not folder:
        raise FileNotFoundError(
            f"root must name the folder of the data sets; got none. Pass root=..., or set the "
            f"environment variable {VARIABLE}. datasets.digits() needs no files."
        )
    return Path(folder).expanduser()


def missing_error(name: str, folder: Path, files: Sequence[str]) -> FileNotFoundError:
    """The error for a data set that is not there, with every way out.

    Args:
        name: Name of the data set.
        folder: Where its files were looked for.
        files: Names of those that are missing.

    Returns:
        An exception to raise.
    """
    listed = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
    return FileNotFoundError(
        f"{name} must be in {folder}; got no {listed} there. Pass root=... or set {VARIABLE} to "
        f"the folder that holds {name} in torchvision's layout, pass download=True, or use "
        "datasets.digits(), which is embedded."
    )


def fetch(name: str, root: Path, *, source: str, download: Callable[[str], object]) -> None:
    """Download a data set beside its place, then move what is complete into it.

    A download that breaks off leaves the place as it was: each file arrives by one rename, and
    only after all of them were downloaded, verified and unpacked.

    Args:
        name: Name of the data set, for errors.
        root: The folder that holds the data sets; it is made if need be.
        source: Where the data come from, for errors.
        download: Downloads and verifies the data set under the folder that it is given.

    Raises:
        OSError: If there is no network, the source fails, or ``root`` cannot be written.
    """
    staging: str | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = tempfile.mkdtemp(prefix=".download-", dir=root)
        # torchvision makes tensors while it verifies, and must not make them elsewhere.
        with torch.device("cpu"):
            download(staging)
        for path in sorted(Path(staging).rglob("*")):
            if path.is_file() and path.suffix not in ARCHIVES:
                target = root / path.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    # torchvision raises RuntimeError when every mirror failed or a checksum is wrong.
    except (
        OSError,
        RuntimeError,
        http.client.HTTPException,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
    ) as error:
        raise OSError(
            f"{name} could not be downloaded from {source} into {root}: "
            f"{type(error).__name__}: {str(error).strip().rstrip('.')}. No partial file was left "
            "behind. Look at the network and at the folder's permissions, or copy the files there "
            "by hand; datasets.digits() needs neither."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
