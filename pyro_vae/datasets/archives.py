"""Unpacking what was downloaded: named members alone, each to a place and a size that we choose.

An archive's own paths are never used, so that none can lead out of the folder.
"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

__all__ = ["Zip", "unpack_gzip"]

CHUNK_BYTES = 2**20


class Readable(Protocol):
    """What is read in pieces."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none at the end."""


def unpack_gzip(source: Path | IO[bytes], target: Path, *, most: int) -> None:
    """What a gzip file holds, as a file.

    Args:
        source: The compressed file, or one that is open.
        target: Where the content goes; its folder exists.
        most: Largest size of the content in bytes.

    Raises:
        ValueError: If there is more than that; no file is left then.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "abc.gz").write_bytes(gzip.compress(b"abc"))
        >>> unpack_gzip(folder / "abc.gz", folder / "abc", most=3)
        >>> (folder / "abc").read_bytes()
        b'abc'
    """
    with gzip.open(source, "rb") as content:
        _copy(content, target, most=most)


class Zip:
    """A zip archive out of which named members are taken.

    Args:
        archive: The open archive.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Zip]:
        """The archive in a file, closed when the block ends.

        Example:
            >>> import tempfile
            >>> folder = Path(tempfile.mkdtemp())
            >>> with zipfile.ZipFile(folder / "a.zip", "w") as made:
            ...     made.writestr("inner/abc", b"abc")
            >>> with Zip.opened(folder / "a.zip") as archive:
            ...     archive.unpack("inner/abc", folder / "abc", most=3)
            >>> (folder / "abc").read_bytes()
            b'abc'
        """
        with zipfile.ZipFile(path) as archive:
            yield cls(archive)

    @contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        """The content of a member, to be read in pieces.

        Raises:
            ValueError: If there is no such member.
        """
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            raise ValueError(f"archive must hold {name}; got none of that name.") from None
        with self._archive.open(info) as content:
            yield content

    def unpack(self, name: str, target: Path, *, most: int) -> None:
        """A member as a file.

        Args:
            name: Name of the member.
            target: Where it goes; its folder exists.
            most: Largest size in bytes, of what comes out and not of what the archive promises.

        Raises:
            ValueError: If there is no such member, or it is larger; no file is left then.
        """
        with self.member(name) as content:
            _copy(content, target, most=most)


def _copy(content: Readable, target: Path, *, most: int) -> None:
    written = 0
    try:
        with target.open("wb") as file:
            while chunk := content.read(CHUNK_BYTES):
                written += len(chunk)
                if written > most:
                    raise ValueError(
                        f"{target.name} must unpack to at most {most} bytes; got more."
                    )
                file.write(chunk)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
