"""Where image data sets lie on disk, and how they get there whole or not at all."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .checksums import SHA256, sha256_of

__all__ = ["DRIVE", "VARIABLE", "RemoteFile", "data_root", "fetch", "missing_error"]

VARIABLE = "PYRO_VAE_DATA"

DRIVE = "https://drive.google.com/uc?id="
"""How addresses on Google Drive begin, which torchvision leaves to the package gdown."""

FAILURES = (
    OSError,
    RuntimeError,  # torchvision: a wrong MD5 sum, no gdown
    ValueError,
    http.client.HTTPException,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
)
"""What goes wrong in downloading and unpacking."""


class NotArrivedError(OSError):
    """What each address of a file answered."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        name: Its name, under which its SHA-256 sum is known.
        urls: Where it is; the next is tried where one fails.
        md5: The sum that torchvision compares.
    """

    name: str
    urls: tuple[str, ...]
    md5: str


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


def fetch(
    name: str,
    root: Path,
    *,
    folder: str,
    files: Sequence[RemoteFile],
    unpack: Callable[[Path, Path], None],
) -> None:
    """Download a data set beside its place, then move what is complete into it.

    A download that breaks off leaves the place as it was: each file arrives by one rename, and
    only after all of them were downloaded, found to have the sums in :data:`SHA256`, and unpacked.
    torchvision transfers the files; it unpacks nothing.

    Args:
        name: Name of the data set, under which its sums are known.
        root: The folder that holds the data sets; it is made if need be.
        folder: Where in it the unpacked files go.
        files: What to download.
        unpack: Makes files in the second folder out of the downloads in the first.

    Raises:
        OSError: If there is no network, no source has what was asked for, or ``root`` cannot be
            written. Address, file and target are named.
    """
    staging: Path | None = None
    source, target, what = _sources(files), root, ""
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
        arrived, unpacked = staging / "arrived", staging / "unpacked"
        arrived.mkdir()
        unpacked.mkdir()
        target = root / folder
        for file in files:
            source, what = _sources([file]), f"{file.name}: "
            _download(name, file, arrived)
        source, what = _sources(files), ""
        unpack(arrived, unpacked)
        for path in sorted(unpacked.rglob("*")):
            if path.is_file():
                place = target / path.relative_to(unpacked)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
    except FAILURES as error:
        raise OSError(
            f"{name} could not be downloaded from {source} into {target}: {what}{_said(error)}. "
            "No partial file was left behind. Look at the network and at the folder's "
            "permissions, or copy the files there by hand; datasets.digits() needs neither."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _download(name: str, file: RemoteFile, folder: Path) -> None:
    """One file from the first address that has it."""
    reasons: list[str] = []
    path = folder / file.name
    for url in file.urls:
        try:
            _transfer(url, folder, file)
            found, wanted = sha256_of(path), SHA256[name][file.name]
            if found == wanted:
                return
            reasons.append(f"its SHA-256 sum must be {wanted}; got {found}")
        except FAILURES as error:
            reasons.append(_said(error))
        path.unlink(missing_ok=True)
    raise NotArrivedError("; ".join(reasons))


def _transfer(url: str, folder: Path, file: RemoteFile) -> None:
    # torchvision takes seconds to import, and only a download needs it.
    from torchvision.datasets import utils

    if url.startswith(DRIVE):
        utils.download_file_from_google_drive(
            url.removeprefix(DRIVE), folder, filename=file.name, md5=file.md5
        )
    else:
        utils.download_url(url, folder, filename=file.name, md5=file.md5)


def _sources(files: Sequence[RemoteFile]) -> str:
    urls = [url for file in files for url in file.urls]
    return ", ".join(f"{url} (Google Drive)" if url.startswith(DRIVE) else url for url in urls)


def _said(error: BaseException) -> str:
    text = str(error).strip().rstrip(".")
    return text if isinstance(error, NotArrivedError) else f"{type(error).__name__}: {text}"
