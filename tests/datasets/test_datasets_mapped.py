"""Data that stay in their file are those of from_file, row for row."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from pyro_vae.datasets import Dataset, MappedDataset, Scaling, from_file, memory_mapped
from pyro_vae.datasets import mapped as mapped_file
from pyro_vae.datasets import pages as pages_file

GRAY = np.random.default_rng(0).integers(0, 256, (31, 4, 2), dtype=np.uint8)
REAL = np.random.default_rng(1).standard_normal((31, 3))


@pytest.fixture
def npy(tmp_path):
    def write(array):
        path = tmp_path / "data.npy"
        np.save(path, array)
        return path

    return write


ARRAYS = {
    "gray": GRAY,
    "float64": REAL,
    "float32": REAL.astype(np.float32),
    "float16": REAL.astype(np.float16),
    "foreign byte order": REAL.astype(">f4"),
    "columns first": np.asfortranarray(REAL),
    "uint16": GRAY.astype(np.uint16),
    "bool": GRAY > 100,
    "vector": REAL[:, 0],
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("scaling", [Scaling.divide(255), Scaling(shift=1.5, scale=2.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_those_of_from_file(npy, name, scaling, dtype):
    path = npy(ARRAYS[name])
    whole = from_file(path, scaling=scaling, dtype=dtype)
    data = memory_mapped(path, scaling=scaling, dtype=dtype)
    rows = torch.randperm(31)[:20]
    assert torch.equal(data.read(rows), whole.x[rows])
    assert torch.equal(data.in_memory().x, whole.x)
    assert (len(data), data.event_shape, data.num_features) == (
        len(whole),
        whole.event_shape,
        whole.num_features,
    )
    numbers, chunks = zip(*data.chunks(), strict=True)
    assert torch.equal(torch.cat(chunks), whole.x)
    assert torch.equal(torch.cat(numbers), torch.arange(31))


def test_parts_are_those_of_a_data_set(npy):
    path = npy(GRAY)
    options = {"scaling": Scaling.divide(255), "image_shape": (4, 2)}
    whole, data = from_file(path, **options), memory_mapped(path, **options)
    for part, expected in zip(data.split(seed=3), whole.split(seed=3), strict=True):
        assert str(part.in_memory()) == str(expected)
        assert torch.equal(part.in_memory().x, expected.x)
        again = part.subset(slice(3, 6)).subset([2, 0])
        assert torch.equal(again.in_memory().x, expected.subset([5, 3]).x)
    picked = torch.arange(31) % 2 == 0
    assert torch.equal(data.subset(picked).in_memory().x, whole.subset(picked).x)
    assert torch.equal(data.subset([-1]).x.in_memory().x, whole.subset([-1]).x)
    images = data.reshape(1, 4, 2).flatten().reshape(2, 4)
    assert torch.equal(images.in_memory().x, whole.x.reshape(-1, 2, 4))
    assert data.image_shape == whole.image_shape
    assert str(data) == "data: 31 rows of (4, 2) in a file, x = raw / 255"


def test_chunks_of_a_part_go_through_the_file_in_its_order(npy, monkeypatch):
    monkeypatch.setattr(mapped_file, "CHUNK_BYTES", 8 * 3 * 4)  # four rows
    data = memory_mapped(npy(REAL), dtype=torch.float64)
    part = data.subset([20, 3, 11, 30, 0, 7])
    pieces = list(part.chunks())
    assert [numbers.tolist() for numbers, _ in pieces] == [[0, 3, 7, 11], [20, 30]]
    for numbers, x in pieces:
        assert np.array_equal(x.numpy(), REAL[numbers])
    assert [len(x) for _, x in data.chunks()] == [4] * 7 + [3]


def test_standardizing_is_that_of_the_data_in_memory(npy, monkeypatch):
    monkeypatch.setattr(mapped_file, "CHUNK_BYTES", 8 * 3 * 4)
    array = REAL.copy()
    array[:, 1] = 7.0
    data = memory_mapped(npy(array), dtype=torch.float64)
    with pytest.warns(UserWarning, match="constant columns 1"):
        found = Scaling.standardize(data.raw)
    with pytest.warns(UserWarning, match="constant columns 1"):
        expected = Scaling.standardize(array)
    torch.testing.assert_close(found.shift, expected.shift, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-13, atol=0)
    array[17, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN; got 1, the first at row 17, column 2"):
        Scaling.standardize(memory_mapped(npy(array)))


@pytest.mark.filterwarnings("error")
def test_pages_are_given_back_and_read_again(npy, monkeypatch):
    monkeypatch.setattr(pages_file, "MAX_RESIDENT_BYTES", 100)
    data = memory_mapped(npy(REAL), dtype=torch.float64)
    assert data._pages._map is not None
    for _ in range(3):
        assert np.array_equal(data.read(torch.arange(31)).numpy(), REAL)


def test_private_changes_of_a_map_are_kept(npy, monkeypatch):
    # Giving pages of a copy-on-write map back would lose what was written to them.
    monkeypatch.setattr(pages_file, "MAX_RESIDENT_BYTES", 100)
    array = np.load(npy(REAL), mmap_mode="c")
    array[5] = 99.0
    data = MappedDataset("changed", array)
    for _ in range(3):
        assert data.read(torch.tensor([5, 6])).tolist() == [[99.0] * 3, REAL[6].tolist()]


def test_nothing_that_is_read_shares_memory_with_the_file(npy):
    for mode in ("r", "r+", "c"):
        data = MappedDataset("shared", np.load(npy(REAL), mmap_mode=mode))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for x in [data.read(torch.arange(31)), *(x for _, x in data.chunks())]:
                x.zero_()
        assert np.array_equal(data.in_memory().x.numpy(), REAL)


def test_whole_data_are_an_array_for_what_takes_arrays_alone(npy):
    data = memory_mapped(npy(GRAY), scaling=Scaling.divide(255), dtype=torch.float64)
    np.testing.assert_array_equal(np.asarray(data), data.in_memory().x.numpy())
    assert np.asarray(data, dtype=np.float32).dtype == np.float32


def test_copies_read_the_same(npy):
    data = memory_mapped(npy(REAL), dtype=torch.float64).subset([3, 1])
    assert torch.equal(copy.copy(data).in_memory().x, data.in_memory().x)


def test_data_in_memory_are_in_memory():
    data = Dataset("mine", torch.zeros(3, 2))
    assert data.in_memory() is data


def test_values_that_overflow_are_placed_in_the_file(npy, monkeypatch):
    monkeypatch.setattr(mapped_file, "CHUNK_BYTES", 8 * 3 * 4)  # four rows
    array = REAL.copy()
    array[17, 2] = -1e39
    path = npy(array)
    data = memory_mapped(path, dtype=torch.float32)
    message = "data must fit into float32, .* got 1 that overflow .* row 17, column 2. Rescale"
    for call in (
        lambda: list(data.chunks()),
        lambda: list(data.subset([3, 17, 1]).chunks()),
        lambda: data.read(torch.tensor([30, 17, 2])),
        lambda: data.subset([20, 17]).in_memory(),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="of rows 16 to 19; those after them are not checked"):
        list(data.chunks())
    with pytest.raises(ValueError, match="must fit into float32, .* row 17, column 2. Rescale"):
        from_file(path, dtype=torch.float32)
    array[16, 0] = np.nan  # tells more, and is told first in memory as well
    data = memory_mapped(npy(array), dtype=torch.float32)
    assert sum(int(x.isnan().sum()) for _, x in data.chunks()) == 1


class Bomb:
    def __reduce__(self):
        raise AssertionError("ran")


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda path: path.write_bytes(b""), ValueError, "must hold data; got an empty file"),
        (lambda path: path.write_bytes(b"\x93NUMPY"), ValueError, "must be a complete numpy file"),
        (lambda path: np.save(path, REAL[:0]), ValueError, "data must have at least one row"),
        (lambda path: np.save(path, REAL[:, :0]), ValueError, "at least one feature"),
        (lambda path: np.save(path, REAL + 1j), TypeError, "data must be real numbers"),
        (lambda path: np.save(path, np.array(["a", "b"])), TypeError, "data must be real"),
        (
            lambda path: path.write_bytes(pickle.dumps([1, 2])),
            ValueError,
            "must be a complete numpy file",
        ),
        (
            lambda path: np.save(path, np.array([{}, 1], dtype=object), allow_pickle=True),
            ValueError,
            "pickled objects, which are never loaded",
        ),
        (lambda path: None, FileNotFoundError, "path must be a file; got .*no such file"),
    ],
)
def test_memory_mapped_refuses_other_files(tmp_path, write, error, message):
    path = tmp_path / "data.npy"
    write(path)
    with pytest.raises(error, match=message):
        memory_mapped(path)


def test_mapped_errors_say_what_came(npy):
    data = memory_mapped(npy(REAL))
    for call, message in [
        (lambda: memory_mapped("x.csv"), r"path must end in .npy; got 'x.csv'"),
        (lambda: memory_mapped(npy(REAL), image_shape=(2, 2)), "image_shape must be .* 3 entries"),
        (lambda: data.reshape(4), "event_shape must have 3 entries"),
        (lambda: data.split(held_out=2.0), "held_out must be a fraction"),
        (lambda: data.subset([]), "data must have at least one row"),
        (lambda: memory_mapped(npy(GRAY)).in_memory(), "x must be scaled"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(IndexError):
        data.subset([31])
