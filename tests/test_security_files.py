"""A pickle that would run code, in every place where the package reads a file."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from command_line import TINY, ran, run
from test_security_downloads import write_celeba, write_family
from torch import nn

from pyro_vae import datasets
from pyro_vae.checkpoint import CheckpointError, StateFiles, load_weights
from pyro_vae.config_file import config_words
from pyro_vae.run_directory import RunDirectory


class Bomb:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def torch_file(bomb, **options):
    file = io.BytesIO()
    torch.save(bomb, file, **options)
    return file.getvalue()


def numpy_file(save, bomb):
    file = io.BytesIO()
    save(file, np.array([[bomb]], dtype=object))
    return file.getvalue()


def zip_file(bomb):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "archive/data.pkl", "x.npy", "x"):
            archive.writestr(name, pickle.dumps(bomb))
    return file.getvalue()


BOMBS: dict[str, Callable[[Bomb], bytes]] = {
    **{f"protocol {n}": partial(pickle.dumps, protocol=n) for n in (0, 2, 5)},
    "gzip": lambda bomb: gzip.compress(pickle.dumps(bomb)),
    "torch": torch_file,
    "torch, a state": lambda bomb: torch_file({"format": 1, "weight": bomb}),
    "torch before zip": lambda bomb: torch_file(bomb, _use_new_zipfile_serialization=False),
    "npy": partial(numpy_file, np.save),
    "npz": partial(numpy_file, np.savez),
    "zip": zip_file,
}


def in_place(name, read):
    """Reads a file that has to have this name."""

    def call(bomb):
        path = bomb.with_name(name)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(bomb, path)
        read(path)

    return call


def idx(part):
    def call(bomb):
        root = bomb.parent / "root"
        write_family(root, "MNIST")
        shutil.copy(bomb, root / "MNIST" / "raw" / f"train-{part}-ubyte")
        datasets.mnist(root=root)

    return call


def celeba(file):
    def call(bomb):
        root = bomb.parent / "root"
        write_celeba(root)
        shutil.copy(bomb, root / "celeba" / file)
        datasets.celeba(8, root=root)

    return call


def state(bomb):
    folder = bomb.parent
    digest = hashlib.sha256(bomb.read_bytes()).hexdigest()
    shutil.copy(bomb, folder / "state-last.pt")
    (folder / "state-last.pt.sha256").write_text(f"{digest}  state-last.pt\n")
    StateFiles(folder).load()


def weights(bomb):
    load_weights(nn.Linear(2, 1), bomb)


class Reader(NamedTuple):
    """Reads the file that it is given, in the place of what it should be."""

    call: Callable[[Path], object]
    errors: type[Exception] | tuple[type[Exception], ...]


WRONG = (ValueError, TypeError)

READERS = {
    ".npy": Reader(in_place("x.npy", datasets.from_file), WRONG),
    ".npz": Reader(in_place("x.npz", datasets.from_file), WRONG),
    ".csv": Reader(in_place("x.csv", datasets.from_file), WRONG),
    "mapped .npy": Reader(in_place("x.npy", datasets.memory_mapped), WRONG),
    "IDX images": Reader(idx("images-idx3"), ValueError),
    "IDX labels": Reader(idx("labels-idx1"), ValueError),
    "CelebA's list": Reader(celeba("list_eval_partition.txt"), ValueError),
    "CelebA's photographs": Reader(celeba("img_align_celeba/000001.jpg"), ValueError),
    "--config": Reader(
        in_place("config.toml", lambda path: config_words(path, ["latent-dim"])), ValueError
    ),
    "weights": Reader(weights, CheckpointError),
    "weights.safetensors": Reader(in_place("weights.safetensors", weights), CheckpointError),
    "weights.pt": Reader(in_place("weights.pt", weights), CheckpointError),
    "state-last.pt": Reader(state, CheckpointError),
    "metrics.jsonl": Reader(
        in_place("metrics.jsonl", lambda path: RunDirectory(path.parent).history()),
        CheckpointError,
    ),
    "environment.json": Reader(
        in_place("environment.json", lambda path: RunDirectory(path.parent).environment()),
        CheckpointError,
    ),
    "config.toml": Reader(
        in_place("config.toml", lambda path: RunDirectory(path.parent).config()), CheckpointError
    ),
}


@pytest.fixture
def bomb(tmp_path):
    return Bomb(tmp_path / "exploded")


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_reader_refuses_a_pickle_and_runs_nothing(tmp_path, bomb, reader, content):
    path = tmp_path / "bomb"
    path.write_bytes(content(bomb))
    with pytest.raises(reader.errors) as caught:
        reader.call(path)
    assert str(tmp_path) in str(caught.value) or "x." in str(caught.value)  # which file
    assert "\n" not in str(caught.value)
    assert not bomb.marker.exists()


@pytest.mark.parametrize(
    "read",
    [
        lambda data: pickle.loads(data["protocol 0"]),
        lambda data: pickle.loads(gzip.decompress(data["gzip"])),
        lambda data: torch.load(io.BytesIO(data["torch"]), weights_only=False),
        lambda data: torch.load(io.BytesIO(data["torch before zip"]), weights_only=False),
        lambda data: np.load(io.BytesIO(data["npy"]), allow_pickle=True),
        lambda data: np.load(io.BytesIO(data["npz"]), allow_pickle=True)["arr_0"],
    ],
)
def test_bomb_goes_off_where_pickles_are_trusted(bomb, read):
    read({name: content(bomb) for name, content in BOMBS.items()})
    assert bomb.marker.is_dir()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of the command line, and its data beside it."""
    folder = tmp_path_factory.mktemp("fitted")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    torch.set_default_dtype(torch.float32)  # conftest puts it back
    ran("fit", "--data", folder / "x.npy", *TINY, "--out", folder / "run")
    return folder


@pytest.fixture
def copy(fitted, tmp_path):
    torch.set_default_dtype(torch.float32)
    shutil.copytree(fitted / "run", tmp_path / "run")
    shutil.copy(fitted / "x.npy", tmp_path / "x.npy")
    text = (tmp_path / "run" / "config.toml").read_text("utf-8")
    _, _, text = text.partition("\n")  # the digest, which whoever changes a file deletes
    (tmp_path / "run" / "config.toml").write_text(text.replace(str(fitted), str(tmp_path)))
    return tmp_path


COMMANDS = {
    "info": lambda folder: ("info", folder / "run"),
    "sample": lambda folder: ("sample", folder / "run", "--out", folder / "new.npy"),
    "reconstruct": lambda folder: ("reconstruct", folder / "run", "--out", folder / "new.npy"),
    "diagnose": lambda folder: ("diagnose", folder / "run", "--quick"),
    "compare": lambda folder: ("compare", folder / "run", folder / "other"),
    "config": lambda folder: ("fit", "--config", folder / "run", *TINY, "--out", folder / "new"),
    "resume": lambda folder: ("fit", "--resume", folder / "run", "--quiet"),
}

READ_BY = {
    "run/config.toml": COMMANDS.keys(),
    "run/environment.json": ["info"],
    "run/weights.safetensors": ["sample", "reconstruct", "diagnose", "compare"],
    "run/metrics.jsonl": ["diagnose", "compare"],
    "run/state-last.pt": ["resume"],
    "x.npy": ["reconstruct", "diagnose", "compare", "config"],
}
"""What each command reads of a run, a stranger's perhaps."""


@pytest.mark.parametrize(
    ("file", "command"),
    [(file, command) for file, commands in READ_BY.items() for command in commands],
)
def test_command_answers_a_pickle_with_one_line_and_runs_nothing(copy, bomb, file, command):
    if command == "compare":
        shutil.copytree(copy / "run", copy / "other")
    if file == "run/state-last.pt":
        (copy / "run" / "state-previous.pt").unlink()
    (copy / file).write_bytes(pickle.dumps(bomb, protocol=0))
    answer = run(*COMMANDS[command](copy))
    assert answer.status == 2, answer.out
    assert answer.err.startswith(
        f"pyro-vae {'fit' if command in {'config', 'resume'} else command}:"
    )
    assert "Traceback" not in answer.err
    assert not bomb.marker.exists()


def test_commands_are_fine_without_the_pickle(copy):
    """So that the test above refuses what it says it refuses."""
    for command in ("info", "sample", "reconstruct"):
        ran(*COMMANDS[command](copy))
