"""The directory of a fit: plain files, never written over, read back as they were."""

import csv
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pyro_vae
from pyro_vae.checkpoint import CheckpointError
from pyro_vae.environment import decides_bits, environment
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
    assert names(run.path) == ["config.toml"]


def test_environment_names_what_the_bits_depend_on():
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["packages"]["pyro-vae"] == pyro_vae.__version__
    assert facts["gpu"] is None or torch.cuda.is_available()
    assert json.loads(json.dumps(facts)) == facts
    decides = decides_bits(facts, torch.device("cpu"))
    assert decides["torch"] == facts["packages"]["torch"]
    assert decides["threads"] == str(torch.get_num_threads())
    assert decides["deterministic"] == str(torch.are_deterministic_algorithms_enabled())
    assert "numpy" not in decides


def test_environment_needs_no_metadata_of_packages(monkeypatch):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    packages = environment()["packages"]
    assert packages["pyro-vae"] == pyro_vae.__version__
    assert packages["torch"] == torch.__version__
    assert packages["numpy"] is None


def test_environment_reads_back_with_what_came_later(run):
    assert run.environment() is None
    run.write_environment({"seed": 3, "data": {"x": "ü"}, "gpu": None})
    assert run.environment() == {"seed": 3, "data": {"x": "ü"}, "gpu": None}
    for epoch in (4, 7):
        run.write_environment({"seed": 3, "after_epoch": epoch})
    found = json.loads((run.path / "environment.json").read_text("utf-8"))
    assert len(found.pop("sha256")) == 64
    assert found == run.environment()
    assert [each["after_epoch"] for each in found["resumed"]] == [4, 7]
    assert found["data"] == {"x": "ü"}


def test_history_reads_back_in_full_precision(run):
    assert run.history() is None
    run.write_history([])
    assert len(run.history()) == 0
    rows = [
        {"epoch": 1, "elbo": -1 / 3, "kl": 5e-324},
        {"epoch": 2, "elbo": math.nan, "kl": -math.inf},
    ]
    for row in rows:
        run.add_to_history(row)
    lines = (run.path / "metrics.jsonl").read_text("utf-8").splitlines()
    # What is not finite has no JSON.
    assert [json.loads(line) for line in lines] == [
        rows[0],
        {"epoch": 2, "elbo": None, "kl": None},
    ]
    found = run.history()
    assert list(found.columns) == ["epoch", "elbo", "kl"]
    assert found["elbo"][0] == -1 / 3
    assert found["kl"][0] == 5e-324
    run.write_history(rows[:1])  # as when a fit goes on from the first epoch's state
    assert list(run.history()["epoch"]) == [1]


def test_history_forgives_a_line_that_a_crash_cut_short_and_no_other(run):
    path = run.file("metrics.jsonl")
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert list(run.history()["epoch"]) == [1, 2]
    for content in (
        b'{"epoch": 1}\n{"epo\n{"epoch": 3}\n',
        b"[1]\n",
        b"\xff\n",
        b"[" * 99999 + b"\n",
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
            run.history()


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
    assert load_file(run.file("weights.safetensors")).keys() == {"weight", "bias"}


def test_continued_takes_a_directory_of_a_fit_and_removes_what_is_half_written(tmp_path):
    for name in ("config.toml", "state-last.pt", "state-previous.pt"):
        path = tmp_path / name.partition(".")[0]
        path.mkdir()
        (path / name).write_text("whole")
        if name == "config.toml":
            RunDirectory(path).write_config({"fit": {"seed": 0}})
        for left in (".pyro-vae-state-last-x1.pt", ".pyro-vae-state-previous.pt"):
            (path / left).write_text("half")
        mine = [".a-b.png", ".config-old.toml", ".notes", ".weights-y.safetensors"]
        for kept in mine:
            (path / kept).write_text("mine")
        run = RunDirectory.continued(str(path))
        assert run.path == path
        assert names(path) == [*mine, name]


def test_continued_makes_a_directory_where_there_is_none_and_takes_no_other(tmp_path):
    run = RunDirectory.continued(tmp_path / "a" / "b")
    assert names(run.path) == []
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    configs = {
        "other": "format = 1",
        "hugo": "[fit]\na = 1",
        "broken": "format = [",
        "words": 'format = "x"\n[fit]\n',
    }
    for name, text in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(text)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".a-b.png").write_text("mine")
    for name in ("file", "full", *configs, "hidden"):
        with pytest.raises(FileExistsError, match="run_dir must be new or empty"):
            RunDirectory.continued(tmp_path / name, name="run_dir")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "hidden" / ".a-b.png").read_text() == "mine"
    assert {name: (tmp_path / name / "config.toml").read_text() for name in configs} == configs


def test_files_stay_in_their_directory_when_the_process_goes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create("run")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    run.write_history([])
    run.states.save({})
    assert names(tmp_path / "other") == []
    assert "metrics.jsonl" in names(tmp_path / "run")


def test_history_is_as_before_where_a_line_does_not_fit(tmp_path):
    code = """
        import resource, signal
        from pyro_vae.run_directory import RunDirectory

        run = RunDirectory("run")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
        try:
            for epoch in range(99):
                run.add_to_history({"epoch": epoch, "elbo": -1 / 3})
        except OSError as error:
            print(error)
            print(len(run.history()) == epoch)
    """
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(pyro_vae.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    message, is_whole = done.stdout.splitlines()
    assert re.search(r"File too large.*Free some space.*run/metrics\.jsonl", message)
    assert is_whole == "True"
    assert (tmp_path / "run" / "metrics.jsonl").read_text().endswith("}\n")


def test_weights_of_plain_programs_read_back(run):
    class Programs:
        def __init__(self):
            self.net = nn.Linear(3, 2)

        def model(self, x):
            self.net(x)

        def guide(self, x):
            pass

    saved, loaded = Programs(), Programs()
    run.write_weights(saved)
    run.read_weights(loaded)
    assert torch.equal(loaded.net.weight, saved.net.weight)


def test_directory_that_may_not_be_written_to_raises_and_names_the_file(run, monkeypatch):
    run.write_config(CONFIG)
    before = run.config()

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refused)
            for write in (
                lambda: run.write_config({}),
                lambda: run.write_environment({}),
                lambda: run.write_history([]),
                lambda: run.write_weights(nn.Linear(2, 1)),
            ):
                with pytest.raises(PermissionError, match="bytes must fit .*Permission denied"):
                    write()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", refused)
        with pytest.raises(PermissionError, match=r"config\.toml"):
            run.write_config({})
    assert names(run.path) == ["config.toml"]
    assert run.config() == before


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
        (config_of(b"format = 1\n[data"), "config.toml of .*run is damaged: .*Expected"),
        (config_of(b"format = 1\nname = \"\xff\""), "config.toml of .*run is damaged: .*utf-8"),
        (config_of(b""), "run must be of format 1; .*run has format None.*with the version of"),
        (config_of(b"format = 2"), "run must be of format 1; .*run has format 2"),
    ],
)  # fmt: skip
def test_config_that_cannot_be_read_raises(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        RunDirectory(tmp_path / "run").config()
