"""Writing files so that a crash or a full disk leaves either the old file or the new one."""

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # as on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["UNFINISHED", "WANT_SPACE", "Lock", "explained", "replaced_file", "write_whole"]

UNFINISHED = ".pyro-vae-"
"""How names of temporary files begin, which a killed process may leave behind."""

WANT_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


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
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f"{UNFINISHED}{path.stem}-", suffix=path.suffix
    )
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
        raise explained(error, path, len(content)) from error


def explained(error: OSError, path: str | Path, num_bytes: int) -> OSError:
    """An error of the system with the path, the bytes that were needed, and what to do.

    Args:
        error: It.
        path: The file that was to be written.
        num_bytes: Bytes that were to be written.

    Example:
        >>> str(explained(OSError(errno.ENOSPC, "No space"), "state.pt", 7)).partition(";")[0]
        '[Errno 28] 7 bytes must fit where they are to be written'
    """
    mend = "Free some space, or name" if error.errno in WANT_SPACE else "Name"
    return type(error)(
        error.errno,
        f"{num_bytes} bytes must fit where they are to be written; got {error.strerror!r}. {mend} "
        "another directory. What the file held before is intact",
        str(path),
    )


class Lock:
    """A file that one process holds at a time, and whose lock ends with that process.

    The processes that one starts do not inherit it. Where the system or the file system has no
    such locks, everyone gets it.

    Args:
        path: The file; it is made, and removed in the end.

    Example:
        >>> import tempfile
        >>> lock = Lock(Path(tempfile.mkdtemp()) / ".lock")
        >>> lock.take()
        True
        >>> lock.release()
        >>> lock.path.exists()
        False
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._finalizer: Callable[[], object] | None = None

    def take(self) -> bool:
        """Take the lock if it is free; whether this process has it now."""
        if self._finalizer is not None:
            return True
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # which whoever writes beside it tells better
                return True
            if not _is_locked(handle):
                os.close(handle)
                return False
            if _is_at(handle, self.path):
                break
            os.close(handle)  # its holder has removed it since
        self._finalizer = weakref.finalize(self, _release, handle, self.path, os.getpid())
        return True

    def release(self) -> None:
        """Let others take it."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None


def _is_locked(handle: int) -> bool:
    """Lock an open file; False if another process has."""
    if fcntl is None:
        return True
    try:
        # Of the kind that belongs to the process: a worker that outlives it does not hold it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _release(handle: int, path: Path, process: int) -> None:
    if os.getpid() != process:  # a copy of it, which holds nothing
        return
    if _is_at(handle, path):
        with suppress(OSError):
            path.unlink()
    os.close(handle)


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
