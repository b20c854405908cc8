"""Writing files so that a crash or a full disk leaves either the old file or the new one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replaced_file", "write_whole"]


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    The temporary file is flushed to the disk before it is renamed, which is one indivisible step,
    and the directory after it. If the block raises, ``path`` is as it was and the temporary file
    is gone.

    Args:
        path: The file to write or replace; an OSError from the block names it.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replaced_file(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; a result is not
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as when the disk is full
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file that is there whole or not at all; an old one is replaced or stays.

    Args:
        path: The file.
        content: What it shall hold.

    Raises:
        OSError: If the disk is full or the path cannot be written: path and bytes that were
            needed, with the error number of the system.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_whole(target, b"whole")
        >>> target.read_bytes()
        b'whole'
    """
    try:
        with replaced_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(
            error.errno,
            f"{len(content)} bytes must fit where they are to be written; got "
            f"{error.strerror!r}. Free some space, or name another directory. What the file held "
            "before is intact",
            str(path),
        ) from error


def _sync_directory(path: Path) -> None:
    """Make a renaming last through a power cut, where the system lets a directory be opened."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # as on Windows
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems sync no directories
        pass
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
