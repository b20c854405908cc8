"""Writing whole or not at all: whatever goes wrong, the old file stands and no other."""

import os
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pyro_vae
from pyro_vae.files import replaced_file, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replaced_file_puts_new_content_in_place_of_old(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replaced_file(path) as temporary:
        assert temporary.parent == tmp_path  # a rename must not cross file systems
        assert temporary.suffix == ".csv"  # numpy.save would add its own otherwise
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["table.csv"]


def test_replaced_file_takes_a_string_and_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with replaced_file("note.txt") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "note.txt").read_text() == "whole"


def write_half_and_raise(path, error):
    with replaced_file(path) as temporary:
        temporary.write_text("half of the new")
        raise error


@pytest.mark.parametrize("error", [KeyError(), KeyboardInterrupt(), OSError("disk full")])
def test_replaced_file_keeps_the_old_file_when_the_block_raises(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(type(error)) as raised:
        write_half_and_raise(path, error)
    assert raised.value is error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_replaced_file_leaves_nothing_when_the_block_raises_and_there_was_nothing(tmp_path):
    with pytest.raises(KeyError):
        write_half_and_raise(tmp_path / "table.csv", KeyError())
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device: '{path}'"),
        (OSError(2, "No such file", "other"), "[Errno 2] No such file: 'other'"),
        (OSError("in words"), "in words"),
    ],
    ids=["without a name", "with a name", "in words"],
)
def test_replaced_file_names_the_file_in_an_error_that_names_none(tmp_path, error, message):
    path = tmp_path / "table.csv"
    with pytest.raises(OSError, match=re.escape(message.format(path=path))) as raised:
        write_half_and_raise(path, error)
    assert str(raised.value) == message.format(path=path)


def test_replaced_file_works_when_the_writer_puts_another_file_in_its_place(tmp_path):
    path = tmp_path / "picture.png"
    with replaced_file(path) as temporary:
        other = tmp_path / "other"
        other.write_text("new")
        other.replace(temporary)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["picture.png"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_replaced_file_has_the_permissions_of_a_file_made_in_the_ordinary_way(tmp_path, mask):
    before = os.umask(mask)
    try:
        (tmp_path / "ordinary").write_text("")
        with replaced_file(tmp_path / "replaced") as temporary:
            temporary.write_text("")
        assert os.umask(mask) == mask  # which replaced_file has to set in order to read it
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("replaced", "ordinary")]
    assert modes == [0o666 & ~mask] * 2


def test_replaced_file_in_a_folder_that_is_not_there_raises(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="nowhere"),
        replaced_file(tmp_path / "nowhere" / "table.csv"),
    ):
        pass


FULL_DISK = """
    import resource, signal, sys, torch
    from torch import nn
    from pyro_vae.checkpoint import save_weights
    from pyro_vae.files import replaced_file

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        with replaced_file("table.csv") as temporary:
            temporary.write_text("x" * 6000)
    except OSError as error:
        print(error)
    try:
        save_weights(nn.Linear(100, 100), "weights.safetensors")
    except OSError as error:
        print(error)
    with replaced_file("small.csv") as temporary:
        temporary.write_text("fits")
"""


def test_full_disk_leaves_the_old_files_and_no_temporary_ones(tmp_path):
    (tmp_path / "table.csv").write_text("old table")
    (tmp_path / "weights.safetensors").write_text("old weights")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(pyro_vae.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == "[Errno 27] File too large: 'table.csv'"
    assert re.fullmatch(
        r"\[Errno 27\] \d+ bytes must fit where they are to be written; got 'File too large'\. "
        r"Free some space, .* is intact: 'weights\.safetensors'",
        second,
    )
    assert names(tmp_path) == ["small.csv", "table.csv", "weights.safetensors"]
    assert (tmp_path / "table.csv").read_text() == "old table"
    assert (tmp_path / "weights.safetensors").read_text() == "old weights"
    assert (tmp_path / "small.csv").read_text() == "fits"


def test_write_whole_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "note.txt"
    for content in (b"first", memoryview(b"second"), b""):
        write_whole(path, content)
        assert path.read_bytes() == bytes(content)
    assert names(tmp_path) == ["note.txt"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PermissionError(13, "No")]
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_write_whole_names_path_and_bytes_and_keeps_the_old_file(
    tmp_path, monkeypatch, error, call
):
    path = tmp_path / "note.txt"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)) as raised:
        write_whole(path, b"of eleven b")
    assert raised.value.errno == error.errno
    assert raised.value.filename == str(path)
    assert str(raised.value).startswith(f"[Errno {error.errno}] 11 bytes must fit where")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["note.txt"]


def test_directory_is_flushed_after_the_file_and_its_renaming(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def synced(handle):
        done.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replaced(*args):
        done.append("renamed")
        replace(*args)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_whole(tmp_path / "note.txt", b"whole")
    assert done == ["file", "renamed", "directory"]
