"""The directory of a fit: plain files, never written over, read back as they were."""

import csv
import json
import platform
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pyro_vae
from pyro_vae.checkpoint import CheckpointError
from pyro_vae.run_directory import RunDirectory

CONFIG = {"data": {"source": "ü.csv", "shape": [8, 8]}, "model": {"variance": 1e-300}, "x": None}


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_create_makes_the_directory_and_its_parents(tmp_path):
    run = RunDirectory.create(str(tmp_path / "a" / "b"))
    assert run.path == tmp_path / "a" / "b"
    assert names(run.path) == []
    assert RunDirectory.create(run.path).path == run.path  # still empty


def test_create_numbered_finds_the_next_free_name(tmp_path):
    made = [RunDirectory.create_numbered(tmp_path / "runs", "digits") for _ in range(3)]
    assert [run.path.name for run in made] == ["digits", "digits-2", "digits-3"]
    made[1].path.rmdir()
    (tmp_path / "runs" / "other").write_text("a file of that name")
    assert RunDirectory.create_numbered(tmp_path / "runs", "digits").path == made[1].path
    assert RunDirectory.create_numbered(tmp_path / "runs", "other").path.name == "other-2"


def test_config_reads_back_without_none_and_with_its_format(run):
    run.write_config(CONFIG)
    expected = {"format": 1, **{key: CONFIG[key] for key in ("data", "model")}}
    assert run.config() == expected
    assert RunDirectory(str(run.path)).config() == expected
    assert names(run.path) == ["config.toml", "environment.json"]


def test_environment_names_what_the_bits_depend_on(run):
    run.write_config(CONFIG)
    environment = run.environment()
    assert environment == json.loads((run.path / "environment.json").read_text("utf-8"))
    assert environment["python"] == platform.python_version()
    assert environment["threads"] == torch.get_num_threads()
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["packages"]["numpy"] == np.__version__
    assert environment["packages"]["pyro-vae"] == pyro_vae.__version__
    assert environment["gpu"] is None or torch.cuda.is_available()


def test_table_reads_back_in_full_precision(run):
    table = pd.DataFrame(
        {"epoch": [1, 2], "elbo": [-1 / 3, 1e-300], 'naïve, "x"': [np.pi, np.nan]}
    )
    run.write_table("history.csv", table)
    run.write_table("indexed.csv", table.set_index("epoch"), index=True)
    for name in ("history.csv", "indexed.csv"):
        # Not by pandas, whose reader rounded floats by default until version 3.
        with run.file(name).open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert header == list(table.columns)
        assert [[float(cell or "nan") for cell in row] for row in rows] == [
            [1.0, -1 / 3, np.pi],
            [2.0, 1e-300, pytest.approx(np.nan, nan_ok=True)],
        ]


def test_report_reads_back_and_is_empty_before(run):
    assert run.report() == ""
    run.write_report("ELBO -1.0 ± 0.1\nlast\n")
    assert run.report() == "ELBO -1.0 ± 0.1\nlast\n"
    assert (run.path / "report.txt").read_bytes() == "ELBO -1.0 ± 0.1\nlast\n".encode()


def test_weights_read_back(run):
    saved, loaded = nn.Linear(3, 2), nn.Linear(3, 2)
    run.write_weights(saved)
    run.read_weights(loaded)
    assert torch.equal(loaded.weight, saved.weight)
    assert torch.load(run.file("weights.pt"), weights_only=True).keys() == {"weight", "bias"}


def test_files_are_replaced_as_a_whole(run, monkeypatch):
    run.write_config(CONFIG)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}

    class Broken(pd.DataFrame):
        def to_csv(self, path, **options):
            path.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.write_table("config.toml", Broken())
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def existing_file(path):
    path.write_text("mine")


def full_directory(path):
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def hidden_file(path):
    path.mkdir()
    (path / ".hidden").write_text("mine")


@pytest.mark.parametrize("occupy", [existing_file, full_directory, hidden_file])
def test_create_never_writes_over_anything(tmp_path, occupy):
    path = tmp_path / "run"
    occupy(path)
    content = {p: p.read_text() for p in (path, *path.rglob("*")) if p.is_file()}
    message = (
        f"out must be new or empty, since a run is never written over; got {re.escape(str(path))}"
    )
    with pytest.raises(FileExistsError, match=message):
        RunDirectory.create(path)
    assert {p: p.read_text() for p in (path, *path.rglob("*")) if p.is_file()} == content


def no_directory(path):
    pass


def a_file(path):
    path.write_text("format = 1")


def no_config(path):
    path.mkdir()


def config_of(content):
    def make(path):
        path.mkdir()
        (path / "config.toml").write_bytes(content)

    return make


FOREIGN = "run must be a directory that 'pyro-vae fit' wrote; .*run has no config.toml"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_directory, FOREIGN),
        (a_file, FOREIGN),
        (no_config, FOREIGN),
        (config_of(b"format = 1\n[data"), "config.toml of .*run is damaged: Expected"),
        (config_of(b"format = 1\nname = \"\xff\""), "config.toml of .*run is damaged: .*utf-8"),
        (config_of(b""), "run must be of format 1; .*run has format None.*with the version of"),
        (config_of(b"format = 2"), "run must be of format 1; .*run has format 2"),
    ],
)  # fmt: skip
def test_config_that_cannot_be_read_raises(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        RunDirectory(tmp_path / "run").config()
