"""One state of a fit to and from disk, with a digest beside it."""

import errno
import hashlib
import io
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pyro_vae.files import write_whole

from .errors import CheckpointError, reason_of

__all__ = [
    "FORMAT",
    "digest_file",
    "digests_beside",
    "packed",
    "read_state",
    "unpacked",
    "write_state",
]

FORMAT = 1
"""Number of the format of a state; a newer one is refused."""


MAX_DIGEST_BYTES = 1000
"""Most bytes of a file with a digest."""

MAX_OLD = 9
"""Most digests in it besides the first."""


def packed(content: Mapping[str, Any]) -> bytes:
    """A state as the bytes of its file.

    Args:
        content: Tensors, numbers, strings and None in dictionaries, lists and tuples.

    Example:
        >>> unpacked(packed({"epoch": 3}), "state.pt")["epoch"]
        3
    """
    # In memory first: torch tells of a full disk as a RuntimeError about positions in the file,
    # and gives the archive the name of the temporary file, so that equal states differ.
    file = io.BytesIO()
    torch.save({"format": FORMAT, **content}, file)
    return file.getvalue()


def unpacked(data: bytes, name: str) -> dict[str, Any]:
    """A state from the bytes of its file.

    Args:
        data: What :func:`packed` made.
        name: What to call the file in errors.

    Raises:
        CheckpointError: If they are damaged, would execute code, are no state, or are one of a
            newer format.

    Example:
        >>> unpacked(b"no state", "state.pt")
        Traceback (most recent call last):
        pyro_vae.checkpoint.errors.CheckpointError: resume must find a whole state; state.pt is
        damaged, or not one: File is not a zip file
    """
    try:
        _check_sums(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file makes the readers raise anything
        raise CheckpointError(
            f"resume must find a whole state; {name} is damaged, or not one: {reason_of(error)}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CheckpointError(f"resume must find a state of a fit; {name} holds something else.")
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"resume must find a state of format {FORMAT} or older; {name} has format "
            f"{content['format']}. Resume with the version of pyro_vae that wrote it."
        )
    return content


def write_state(content: Mapping[str, Any], path: str | Path, *, before: str | None) -> str:
    """Write a state and its digest, so that a crash at any moment leaves one that is whole.

    Beside ``path`` stands ``path.sha256``, in the form of ``sha256sum``. It is written first and
    names, in a comment, the digest of the file that is to be replaced: whichever of the two is
    there after a crash, it is known to be whole.

    Args:
        content: The state.
        path: The file to write or replace.
        before: Digest of the file that is there, if it is known.

    Returns:
        The digest.

    Raises:
        OSError: If the disk is full or the path cannot be written; the old file is intact.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state-last.pt"
        >>> digest = write_state({"epoch": 3}, path, before=None)
        >>> read_state(path)[0]["epoch"]
        3
    """
    path = Path(path)
    data = packed(content)
    digest = hashlib.sha256(data).hexdigest()
    write_digest(path, digest, before=before)
    write_whole(path, data)
    return digest


def write_digest(path: Path, digest: str, *, before: str | None) -> None:
    """Write the digest of a file that is about to be there in place of another.

    Where it is not known which one is there, as another process wrote it, it is any that is named
    so far: that process may have ended before it wrote what it had named first.
    """
    old = [] if before is None else [before]
    if before is None and path.is_file():
        with suppress(CheckpointError):
            old = digests_beside(path)[:MAX_OLD]
    lines = [f"{digest}  {path.name}\n", *(f"# {each}  the one before\n" for each in old)]
    write_whole(digest_file(path), "".join(lines).encode())


def digest_file(path: Path) -> Path:
    """Where the digest of a file stands.

    Example:
        >>> digest_file(Path("state-last.pt")).name
        'state-last.pt.sha256'
    """
    return path.with_name(f"{path.name}.sha256")


def read_state(path: str | Path) -> tuple[dict[str, Any], str]:
    """A state, and its digest.

    Args:
        path: What :func:`write_state` wrote.

    Raises:
        CheckpointError: If the file is not there, differs from its digest, is damaged or foreign,
            or of a newer format.

    Example:
        >>> read_state("none.pt")
        Traceback (most recent call last):
        pyro_vae.checkpoint.errors.CheckpointError: resume must find a whole state; none.pt cannot
        be read: No such file or directory
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise OSError(errno.EINVAL, "no regular file")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"resume must find a whole state; {path} cannot be read: {error.strerror}"
        ) from error
    content = unpacked(data, str(path))
    digests = digests_beside(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest not in digests:
        raise CheckpointError(
            f"resume must find a whole state; {path} differs from its sha256, so one of the two "
            "files is damaged."
        )
    return content, digest


def digests_beside(path: Path) -> list[str]:
    """Digests of a file, and of the one that it was to replace, as they stand beside it.

    Raises:
        CheckpointError: If there are none to be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state-last.pt"
        >>> digest = write_state({}, path, before=None)
        >>> digests_beside(path) == [digest]
        True
    """
    beside = digest_file(path)
    try:
        if beside.stat().st_size > MAX_DIGEST_BYTES or not beside.is_file():
            raise OSError(errno.EINVAL, "no short regular file")
        known = beside.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"resume must find a state's digest beside it; {beside} cannot be read: "
            f"{reason_of(error)}"
        ) from error
    return [word for line in known.splitlines() for word in line.removeprefix("#").split()[:1]]


def _check_sums(data: bytes) -> None:
    """Raise BadZipFile if an entry differs from its checksum, which torch does not compare."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # torch compresses nothing; what is compressed may unpack to more than there is memory.
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise zipfile.BadZipFile("it has compressed entries")
        # Of an entry that is marked as a folder torch reads no content, but whatever is in memory.
        folders = [info.filename for info in archive.infolist() if info.external_attr & 0x10]
        damaged = archive.testzip() or next(iter(folders), None)
    if damaged is not None:
        raise zipfile.BadZipFile(f"entry {damaged} differs from its checksum")
