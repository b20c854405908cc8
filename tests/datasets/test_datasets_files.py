import io
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae.datasets import Scaling, from_file

X = np.arange(24).reshape(6, 4)
GRAY = X.astype(np.uint8)
WORDS = np.array(["v", "u", "v", "w", "u", "v"])


@pytest.fixture
def float32_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("float32_default")
def test_npy_is_read_scaled_and_cast(tmp_path):
    np.save(tmp_path / "gray.npy", GRAY)
    with torch.device("meta"):
        data = from_file(
            tmp_path / "gray.npy",
            scaling=Scaling.divide(16),
            image_shape=[2, 2],
            dtype=torch.float64,
        )
    assert np.array_equal(data.x.numpy(), X / 16)
    assert (data.image_shape, data.labels) == ((2, 2), None)
    assert str(data) == "gray: 6 rows of (4,), x = raw / 16"
    np.save(tmp_path / "double.npy", X / 16)
    assert from_file(str(tmp_path / "double.npy")).x.dtype == torch.float32


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("arrays", "options", "labels"),
    [
        ({"only": X}, {}, None),
        ({"x": X, "other": X + 1}, {}, None),
        ({"other": X + 1, "mine": X}, {"key": "mine"}, None),
        ({"only": X, "y": WORDS}, {"labels": "y"}, [1, 0, 1, 2, 0, 1]),
        ({"only": X, "y": np.array([7, 7, 3, 0, 0, 0])}, {"labels": "y"}, [7, 7, 3, 0, 0, 0]),
    ],
)
def test_npz_is_read_by_name_with_labels(tmp_path, save, arrays, options, labels):
    save(tmp_path / "data.npz", **arrays)
    data = from_file(tmp_path / "data.npz", **options)
    assert data.x.tolist() == X.tolist()
    assert (None if data.labels is None else data.labels.tolist()) == labels


def test_csv_keeps_column_names_and_numbers_labels_in_sorted_order(tmp_path):
    table = pd.DataFrame(X, columns=list("abcd"))
    table.insert(1, "species", WORDS)
    table.to_csv(tmp_path / "table.csv", index=False)
    data = from_file(tmp_path / "table.csv", labels="species")
    assert data.x.tolist() == X.tolist()
    assert data.columns == ("a", "b", "c", "d")
    assert data.labels.tolist() == [1, 0, 1, 2, 0, 1]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def saved(array, *, cut=None, flip=None):
    """Writes an array, optionally cut short or with one byte changed."""

    def write(path):
        if path.suffix == ".npz":
            np.savez(path, x=array)
        else:
            np.save(path, array)
        content = bytearray(path.read_bytes())
        if flip is not None:
            content[flip] ^= 0xFF
        path.write_bytes(content[:cut])

    return write


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def text(content):
    return lambda path: path.write_text(content)


def nothing(path):
    pass


GAPS = np.array([[1.0, np.nan], [2.0, 3.0]])
BOMB = np.array([[Bomb()]], dtype=object)
PICKLED = "must hold plain numbers; got pickled objects, which are never loaded"
DAMAGED = "must be a complete numpy file"
ERRORS = {
    "missing": ("x.npy", nothing, {}, FileNotFoundError, "got .*x.npy, no such file"),
    "folder": ("x.csv", lambda path: path.mkdir(), {}, FileNotFoundError, "x.csv, a folder"),
    "suffix": ("x.pkl", text("1"), {}, ValueError, "in .npy, .npz, .csv; got 'x.pkl'"),
    "empty npy": ("x.npy", text(""), {}, ValueError, "must hold data; got an empty file"),
    "empty csv": ("x.csv", text(""), {}, ValueError, "must hold data; got an empty file"),
    "header alone": ("x.csv", text("a,b\n"), {}, ValueError, "x.csv must have at least one row"),
    "npy bomb": ("x.npy", saved(BOMB), {}, ValueError, PICKLED),
    "npz bomb": ("x.npz", saved(BOMB), {}, ValueError, PICKLED),
    "pickle as npy": (
        "x.npy",
        lambda path: path.write_bytes(pickle.dumps(Bomb())),
        {},
        ValueError,
        DAMAGED,
    ),
    "pickle as npz": (
        "x.npz",
        lambda path: path.write_bytes(pickle.dumps(Bomb())),
        {},
        ValueError,
        PICKLED,
    ),
    "truncated npy": ("x.npy", saved(X, cut=-3), {}, ValueError, DAMAGED),
    "truncated header": ("x.npy", saved(X, cut=50), {}, ValueError, DAMAGED),
    "truncated npz": ("x.npz", saved(X, cut=-60), {}, ValueError, DAMAGED),
    "flipped npz": ("x.npz", saved(X, flip=175), {}, ValueError, f"{DAMAGED}.*CRC"),
    "npy as npz": (
        "x.npz",
        lambda path: path.write_bytes(npy_bytes(X)),
        {},
        ValueError,
        "must be an archive of arrays; got one array",
    ),
    "strings": ("x.npy", saved(WORDS), {}, TypeError, "x.npy must be real numbers; got dtype <U1"),
    "key": (
        "x.npz",
        saved(X),
        {"key": "y"},
        ValueError,
        "key must be one of 'x', the arrays in x.npz; got 'y'",
    ),
    "key of npy": ("x.npy", saved(X), {"key": "y"}, ValueError, "key must be left out"),
    "npz labels": ("x.npz", saved(X), {"labels": "y"}, ValueError, "labels must be one of 'x'"),
    "npy labels": ("x.npy", saved(X), {"labels": "y"}, ValueError, "labels must be left out"),
    "csv labels": (
        "x.csv",
        text("a,b\n1,2\n"),
        {"labels": "y"},
        ValueError,
        "labels must be one of the columns 'a', 'b' in x.csv; got 'y'",
    ),
    "missing label": (
        "x.csv",
        text("a,y\n1,u\n2,\n"),
        {"labels": "y"},
        ValueError,
        "labels must not be missing; got 1, the first at row 1",
    ),
    "words": (
        "x.csv",
        text("a,city\n1,Bonn\n"),
        {},
        TypeError,
        r"x.csv must have numeric columns only; got 'city'",
    ),
    "gap": ("x.csv", text("a,b\n1,2\n3,\n"), {}, ValueError, "NaN; got 1, the first at row 1, co"),
    "gap's mend": ("x.csv", text("a,b\n1,\n"), {}, ValueError, "missing=True .* fit --missing'"),
    "gap of npy": (
        "x.npy",
        saved(GAPS),
        {},
        ValueError,
        "NaN; got 1, the first at row 0, column 1",
    ),
    "infinity beside a gap": (
        "x.npy",
        saved(np.where(np.isnan(GAPS), np.inf, GAPS)),
        {"missing": True},
        ValueError,
        "must not contain infinite values; got 1",
    ),
    "other words for a gap": (
        "x.csv",
        text("a,b\n1,2\n3,?\n4,?\n"),
        {"missing": True},
        TypeError,
        r"numbers in column 'b', and an empty cell or NA .* got '\?' in row 1, the first of 2",
    ),
    "words and gaps": (
        "x.csv",
        text("a,city\n1,Bonn\n2,\n"),
        {"missing": True},
        TypeError,
        r"x.csv must have numeric columns only; got 'city'",
    ),
    "long row": (
        "x.csv",
        text("a,b\n1,2\n1,2,3\n"),
        {},
        ValueError,
        "Expected 2 fields in line 3",
    ),
    "long rows": ("x.csv", text("a,b\n1,2,3\n"), {}, ValueError, "as many fields in each row"),
    "row numbers": ("x.csv", text(",a\n0,1\n"), {}, ValueError, "write with index=False"),
    "encoding": (
        "x.csv",
        lambda path: path.write_bytes(b"\xff\xfea"),
        {},
        ValueError,
        "comma-separated table in UTF-8",
    ),
    "gray levels": (
        "x.npy",
        saved(GRAY),
        {},
        ValueError,
        r"x.npy must be scaled .* got uint8 values in \[0, 23\]\. Pass x.npy / 255",
    ),
    "image shape": (
        "x.npy",
        saved(X),
        {"image_shape": (3, 3)},
        ValueError,
        r"image_shape must be .* with 4 entries in all; got \(3, 3\)",
    ),
}


@pytest.mark.parametrize(
    ("name", "write", "options", "kind", "message"), ERRORS.values(), ids=list(ERRORS)
)
def test_from_file_raises_and_executes_nothing(
    tmp_path, monkeypatch, name, write, options, kind, message
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(kind, match=message):
        from_file(tmp_path / name, **options)
    assert not (tmp_path / "exploded").exists()


GAPPED = {
    "empty cells": "a,b\n1,\n2,3\n",
    "NA": "a,b\n1,NA\n2,3\n",
    "NaN": "a,b\n1,nan\n2,3\n",
    "spaces": "a,b\n1,  \n2, 3\n",
    "NA after a space": "a,b\n1, NA\n2, 3\n",
    "quoted": 'a,b\n"1",""\n"2","3"\n',
}


@pytest.mark.parametrize("content", GAPPED.values(), ids=GAPPED)
def test_cells_without_a_value_are_nan_where_values_may_be_missing(tmp_path, content):
    path = tmp_path / "gaps.csv"
    path.write_text(content)
    data = from_file(path, missing=True)
    assert torch.equal(data.x.isnan(), torch.from_numpy(np.isnan(GAPS)))
    assert torch.equal(data.x[~data.x.isnan()], torch.tensor([1.0, 2.0, 3.0]))
    assert repr(data) == "gaps: 2 rows of (2,), x = raw, 1 of 4 values missing"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_nan_of_an_array_is_missing_where_values_may_be(tmp_path, suffix):
    saved(GAPS)(tmp_path / f"x{suffix}")
    data = from_file(tmp_path / f"x{suffix}", missing=True)
    assert np.array_equal(data.x.numpy(), GAPS, equal_nan=True)


def test_missing_truth_values_and_labels_beside_them(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b,y\nTrue,1,u\n,2,v\nFalse,,u\n")
    data = from_file(path, labels="y", missing=True)
    assert np.array_equal(data.x, [[1, 1], [np.nan, 2], [0, np.nan]], equal_nan=True)
    assert data.labels.tolist() == [0, 1, 0]


def test_an_empty_line_of_a_single_column_is_a_row(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a\n1\n\n3\n")
    data = from_file(path, missing=True)
    assert np.array_equal(data.x, [[1], [np.nan], [3]], equal_nan=True)
