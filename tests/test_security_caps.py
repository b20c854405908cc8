"""What a small file may make of memory: declared sizes are looked at before anything is made."""

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run

from pyro_vae import config_file, toml
from pyro_vae.commands import data_choice
from pyro_vae.config_file import check_settings, check_sizes, config_words
from pyro_vae.datasets import declared, from_file, memory_mapped
from pyro_vae.likelihoods import Gaussian
from pyro_vae.ready_made import make_vae

SMALL = 3_000_000
"""Bytes that reading a header may take."""


@pytest.fixture(autouse=True)
def little_memory():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SMALL


def npy(shape, descr="<f8", data=b"", version=(1, 0)):
    """A file of numpy's that says what it likes."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(header)) + header + data


FORGED = {
    "rows": npy((10**12, 4)),
    "rows and columns": npy((2**40, 2**40)),
    "beyond 64 bits": npy((2**62, 2**62)),
    "one row less": npy((4, 2), data=bytes(3 * 16)),
    "negative": npy((-(10**12), 4)),
    "negative twice": npy((-4, -2), data=bytes(64)),
    "items of no size": npy((10**12,), "|V0"),
    "large items": npy((2,), "|V1000000000"),
    "array in each item": npy((2,), ("<f8", (10**9,))),
    "words": npy((2,), "<U1000000000"),
    "version": npy((2, 2), data=bytes(32), version=(3, 0)),
    "brackets": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
    "operators": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"-" * 8999 + b"1",
    "a call": b"\x93NUMPY\x01\x00" + struct.pack("<H", 30) + b"{'descr': __import__('os').x} \n",
    "no end": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr': ''' " + b" " * 46,
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("read", [from_file, memory_mapped])
def test_forged_npy_is_refused(tmp_path, content, read):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy must be a complete numpy file; got "):
        read(path)


def zipped(members, kind=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("labels", [None, "y"])
def test_forged_array_of_an_archive_is_refused(tmp_path, content, labels):
    path = tmp_path / "x.npz"
    good = npy((4, 2), data=bytes(64))
    path.write_bytes(
        zipped({"x.npy": good if labels else content, "y.npy": content if labels else good})
    )
    with pytest.raises(ValueError, match=r"x\.npz must be a complete numpy file; got "):
        from_file(path, labels=labels)


def test_forged_array_by_the_name_of_an_archive_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(FORGED["rows"])
    with pytest.raises(ValueError, match=r"must be an archive of arrays; got one array"):
        from_file(tmp_path / "x.npz")


def bomb(path, size=2**31):
    """An archive of 2 MB that unpacks to 2 GiB of zeros, and says so."""
    header = npy((size // 8, 1))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            file.write(header)
            for _ in range(size >> 20):
                file.write(bytes(2**20))


@pytest.mark.slow  # ten seconds to compress it
def test_zip_bomb_is_refused_by_what_it_declares(tmp_path):
    bomb(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"x.npy unpacks from 2\d+ bytes to 2147483\d+, more"):
        from_file(tmp_path / "x.npz")


def test_archive_unpacks_to_so_much_or_so_many_times_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(declared, "MAX_UNPACKED_BYTES", 100_000)
    zeros, noise = np.zeros((20_000, 1)), np.random.default_rng(0).random((20_000, 1))
    np.savez_compressed(tmp_path / "zeros.npz", zeros)
    np.savez_compressed(tmp_path / "few.npz", zeros[:10_000])
    np.savez_compressed(tmp_path / "noise.npz", noise)
    np.savez(tmp_path / "plain.npz", zeros)
    with pytest.raises(ValueError, match="unpacks from .* to 160128, more than"):
        from_file(tmp_path / "zeros.npz")
    for name, rows in (("few", 10_000), ("noise", 20_000), ("plain", 20_000)):
        assert len(from_file(tmp_path / f"{name}.npz")) == rows


def test_archive_that_declares_less_than_it_unpacks_to_is_cut_and_refused(tmp_path):
    content = bytearray(zipped({"x.npy": npy((100_000, 1), data=bytes(800_000))}))
    real, said = (struct.pack("<I", size) for size in (800_128, 928))
    assert content.count(real) == 2  # in the local header and in the directory
    (tmp_path / "x.npz").write_bytes(content.replace(real, said))
    with pytest.raises(ValueError, match="Bad CRC-32 for file 'x.npy'"):
        from_file(tmp_path / "x.npz")


def test_short_lines_are_not_filled_up_to_an_enormous_table(tmp_path, monkeypatch):
    monkeypatch.setattr(declared, "MAX_UNPACKED_BYTES", 10**6)
    path = tmp_path / "x.csv"
    columns, rows = 500, 1000  # 4 MB of float64 in 4 kB
    path.write_text(",".join(f"c{n}" for n in range(columns)) + "\n" + "1\n" * rows)
    with pytest.raises(ValueError, match="500 columns and up to 1002 rows in .* too few"):
        from_file(path)
    path.write_text("a\n" + ",".join("1" * columns) + "\n" + "1\n" * rows)  # names of rows
    with pytest.raises(ValueError, match="as many fields in each row as in the header"):
        from_file(path)


def test_complete_tables_are_not_taken_for_short_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(declared, "MAX_UNPACKED_BYTES", 1)
    path = tmp_path / "x.csv"
    for text in ("a\n1\n2", "a,b\n1,2\n3,4\n", "a,b\r\n1,2\r\n"):
        path.write_bytes(text.encode())
        assert from_file(path).x[0, 0] == 1


@pytest.fixture
def pipe(tmp_path):
    """A pipe that nobody writes to: who opens it waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv", "config.toml"])
@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_pipes_and_devices_are_not_opened(tmp_path, pipe, name, target):
    path = tmp_path / name
    path.symlink_to(pipe if target == "pipe" else target)
    read = toml.read if name == "config.toml" else from_file
    with pytest.raises((ValueError, FileNotFoundError), match="no regular file"):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [" + "[" * 5000, "nested too deep|must be a TOML file"),
        ("x = " + "{a=" * 5000, "nested too deep|must be a TOML file"),
        ("x = " + "1" * 5000, "config must be a TOML file; got .*: Exceeds the limit"),
        ("\0", "config must be a TOML file"),
        ("model = 3", r"config must have a table \[model\]; got 3"),
        ("fit = []", r"config must have a table \[fit\]"),
        ('fit.out = "/home"', "must not hold 'out'; got '/home'. Say it on the command line"),
        ("fit.override = true", "must not hold 'override'"),
        ('[fit]\nresume = "run"', "must not hold 'resume'"),
        ("[model]\nhiden = 3", "config must hold settings of 'pyro-vae fit'; got 'hiden'"),
    ],
)
def test_config_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        config_words(path, ["hidden", "out", "override", "resume"])


def test_large_toml_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(toml, "MAX_BYTES", 2**20)
    path = tmp_path / "config.toml"
    path.write_text("#" * 2**20)
    assert toml.read(path) == {}
    path.write_text("#" * (2**20 + 1))
    with pytest.raises(ValueError, match="which has more than 1 MiB"):
        toml.read(path)


MODEL = {
    "latent_dim": 2,
    "hidden": [400],
    "networks": "mlp",
    "prior": "standard",
    "likelihood": "gaussian",
    "family": "diagonal",
    "learn_variance": True,
    "variance_per_feature": False,
    "variance_of_z": False,
    "dtype": "float32",
}
CONFIG = {
    "data": {"source": "digits", "held_out": 0.2, "event_shape": [784]},
    "model": MODEL,
    "fit": {"seed": 0},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": [10**9]},
        {"hidden": [10**6, 10**6]},
        {"hidden": [1] * 1001},
        {"prior": "vamp:10000000"},
        {"prior": "mixture:2000000000"},
        {"prior": "flow:100000"},
        {"family": "spline:1e9"},
        {"family": "full", "latent_dim": 10**5},
        {"family": "lowrank:100000", "latent_dim": 10**5},
        {"likelihood": "categorical:10000000"},
        {"event_shape": [10**10]},
        {"event_shape": [10**5, 10**5]},
        {"event_shape": [10**10], "hidden": [], "latent_dim": 1},
        {"event_shape": [1] * 5000},
        {"event_shape": [3, 100_000, 100_000], "networks": "conv"},
        {"hidden": [30_000, 30_000], "dtype": "float64"},
        {"variance_of_z": True, "hidden": [2**20], "event_shape": [300]},
    ],
    ids=str,
)
def test_enormous_networks_are_refused(changes):
    changes = dict(changes)
    shape = changes.pop("event_shape", [784])
    config = {
        **CONFIG,
        "data": {**CONFIG["data"], "event_shape": shape},
        "model": {**MODEL, **changes},
    }
    with pytest.raises(ValueError, match="model must have at most (4 GiB|1000 hidden layers)"):
        check_settings(config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden": []},
        {"hidden": [4096] * 8},
        {"prior": "vamp:500"},
        {"family": "full", "latent_dim": 200},
        {"family": "lowrank:900", "latent_dim": 100},
        {"family": "continuous-bernoulli"},
        {"likelihood": "categorical:256"},
        {"prior": "student:4.0"},
        {"prior": "spline:8", "family": "flow:8"},
    ],
    ids=str,
)
def test_ordinary_networks_are_not_refused(changes):
    check_settings({**CONFIG, "model": {**MODEL, **changes}})


def test_counted_are_the_parameters_of_the_networks(monkeypatch):
    vae = make_vae(features=30, latent_dim=3, hidden=(20, 7), likelihood=Gaussian)
    found = sum(p.numel() for p in vae.parameters() if p.dim() == 2)
    model = {**MODEL, "latent_dim": 3, "hidden": [20, 7]}
    size = 4 * (found + 20 * 30)  # two numbers a feature are allowed for
    monkeypatch.setattr(config_file, "MAX_PARAMETER_BYTES", size)
    check_sizes(model, [30])
    monkeypatch.setattr(config_file, "MAX_PARAMETER_BYTES", size - 1)
    with pytest.raises(ValueError, match="30 features, 3 latent dimensions and 2 hidden layers"):
        check_sizes(model, [30])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(("model", key, None) for key in MODEL),
        ("data", "source", 3),
        ("data", "held_out", 7),
        ("data", "held_out", float("nan")),
        ("data", "event_shape", "784"),
        ("data", "event_shape", [0]),
        ("data", "columns", [1]),
        ("data", "scaling", []),
        ("data", "divide", "4"),
        ("data", "root", ["a"]),
        ("model", "hidden", [True]),
        ("model", "hidden", [400.0]),
        ("model", "latent_dim", 2**41),
        ("model", "latent_dim", -1),
        ("model", "learn_variance", "yes"),
        ("model", "variance", float("inf")),
        ("fit", "seed", "0"),
    ],
)
def test_setting_of_another_kind_is_refused_by_its_name(section, key, value):
    config = {**CONFIG, section: {**CONFIG[section], key: value}}
    with pytest.raises(ValueError, match=rf"config must have {section}\.{key}"):
        check_settings(config)


@pytest.mark.parametrize("config", [{}, {**CONFIG, "model": 3}, {**CONFIG, "fit": []}], ids=str)
def test_sections_that_are_no_tables_are_refused(config):
    with pytest.raises(ValueError, match=r"config must have a table \["):
        check_settings(config)


@pytest.mark.parametrize("dtype", ["load", "float16", "nn", "__doc__", "int64"])
def test_dtype_is_one_of_a_table(dtype):
    assert data_choice.DTYPES == {"float32": torch.float32, "float64": torch.float64}
    with pytest.raises(ValueError, match=f"dtype must be one of float32, float64; got '{dtype}'"):
        data_choice.load({**CONFIG, "model": {**MODEL, "dtype": dtype}})


def test_command_refuses_enormous_networks_before_there_is_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((10, 4)))
    Path("c.toml").write_text('[data]\nsource = "x.npy"\n[model]\nhidden = [1000000000]\n')
    answer = run("fit", "--config", "c.toml", "--quiet")
    assert answer.status == 2
    assert "model must have at most 4 GiB of parameters; got" in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.toml", "x.npy"]
