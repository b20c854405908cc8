"""Data in files, large data in memory, and parts for several processes: one fit for all."""

import copy
import gc
import logging
import threading
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small_vae
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pyro_vae as pv
from pyro_vae import datasets, families, guides, likelihoods
from pyro_vae.batches import GatheredBatches, LoaderBatches, TensorBatches, batch, torch_data
from pyro_vae.datasets import Scaling
from pyro_vae.evaluation import evaluate
from pyro_vae.sources import DataSource, LazyRows, pieces, scan
from pyro_vae.sources.scan import Sample

CPU = torch.device("cpu")
X = torch.randn(67, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Watched(np.memmap):
    """A map that remembers the largest part of it that was read at once, in bytes."""

    most = 0

    def __getitem__(self, index):
        got = super().__getitem__(index)
        Watched.most = max(Watched.most, getattr(got, "nbytes", 0))
        return got


def mapped(path, array, mode="r"):
    np.save(path, array)
    Watched.most = 0
    return np.load(path, mmap_mode=mode).view(Watched)


def made(**options):
    torch.manual_seed(4)
    return small_vae(family=families.DiagonalNormal, **options)


def fitted(x, vae=None, **options):
    """Parameters and history of a short fit."""
    vae = made() if vae is None else vae
    options = {"epochs": 2, "batch_size": 8, "seed": 3, "progress": False, **options}
    history = pv.fit(vae, x, **options).history.drop(columns="seconds")
    return torch.cat([p.detach().flatten() for p in vae.parameters()]), history


def assert_same_fit(one, other):
    assert torch.equal(one[0], other[0])
    pd.testing.assert_frame_equal(one[1], other[1], check_exact=True)


def prefetching():
    return [t for t in threading.enumerate() if t.name == "pyro_vae prefetch"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["f8", "f4", ">f4", "f2", "i4", "columns first"])
def test_fit_to_a_mapped_file_is_bitwise_that_in_memory(tmp_path, kind, dtype):
    array = 10 * X.numpy()
    array = np.asfortranarray(array) if kind == "columns first" else array.astype(kind)
    expected = fitted(np.array(array), made().to(dtype))
    assert_same_fit(fitted(mapped(tmp_path / "x.npy", array), made().to(dtype)), expected)
    assert not prefetching()


def test_fit_to_scaled_gray_levels_in_a_file_is_bitwise_that_in_memory(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (67, 2, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", levels)
    options = {"scaling": Scaling.divide(255), "dtype": torch.float32}
    whole = datasets.from_file(tmp_path / "x.npy", **options).flatten()
    data = datasets.memory_mapped(tmp_path / "x.npy", **options).flatten()
    (train, held_out), parts = whole.split(), data.split()
    for dtype in (torch.float32, torch.float64):
        expected = fitted(train, made().to(dtype))
        assert_same_fit(fitted(parts[0], made().to(dtype)), expected)
        assert_same_fit(fitted(parts[0].x, made().to(dtype)), expected)
    source = DataSource(made(), CPU)
    rows = source.rows(parts[1], name="validation")
    assert evaluate(made(), rows, seed=0) == evaluate(made(), held_out.x.double(), seed=0)


def test_file_is_never_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MAX_EVALUATED", 16)
    monkeypatch.setattr(datasets.mapped, "CHUNK_BYTES", 8 * 6 * 10)
    x = mapped(tmp_path / "x.npy", X.numpy())
    whole = x.nbytes
    fitted(x)
    assert 0 < Watched.most <= whole * 16 / 67
    Watched.most = 0
    rows = DataSource(made(), CPU).rows(x, name="x")
    evaluate(made(), rows[:8], seed=0)
    assert 0 < Watched.most <= whole * 10 / 67


def test_lazy_rows_stand_for_a_tensor_row_by_row(tmp_path):
    rows = DataSource(made(), CPU).rows(mapped(tmp_path / "x.npy", X.numpy()), name="x")
    assert isinstance(rows, LazyRows)
    assert (rows.shape, rows.dtype, rows.device, len(rows)) == (X.shape, X.dtype, CPU, 67)
    for piece, expected in zip(rows.split(10), X.split(10), strict=True):
        assert torch.equal(piece, expected)
    for part, expected in zip(rows.tensor_split(3), X.tensor_split(3), strict=True):
        assert torch.equal(torch.cat(list(part.split(100))), expected)
    index = torch.tensor([5, 66, 5, 0])
    assert torch.equal(rows[index], X[index])
    assert torch.equal(rows[10:20].index_select(0, index[-1:]), X[10:11])
    assert rows.new_zeros(3, 0, dtype=torch.float32).dtype == torch.float32
    assert DataSource(made(), CPU).rows(X, name="x").data_ptr() == X.data_ptr()
    with pytest.raises(AttributeError):
        rows.mean()
    with pytest.raises(ValueError, match="dim must be 0"):
        rows.index_select(1, index)


def test_diagnostics_of_a_mapped_file_are_those_of_the_data(tmp_path):
    x = mapped(tmp_path / "x.npy", X.numpy())
    terms = pv.diagnostics.elbo_terms(made(), x, num_samples=3)
    assert terms.equals(pv.diagnostics.elbo_terms(made(), X, num_samples=3))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((50, 3), np.nan, r"x must not contain NaN; got 2, the first at row 50, column 3\. Drop"),
        ((50, 3), np.inf, r"x must not contain infinite values; got 2, the first at row 50, col"),
    ],
)
@pytest.mark.parametrize("is_file", [True, False])
def test_values_that_are_not_finite_are_counted_over_all_and_placed(
    tmp_path, monkeypatch, place, value, message, is_file
):
    monkeypatch.setattr(datasets.mapped, "CHUNK_BYTES", 8 * 6 * 10)
    monkeypatch.setattr(pieces, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(pieces, "PIECE_NUMBERS", 60)
    array = X.numpy().copy()
    array[place] = array[66, 0] = value
    x = mapped(tmp_path / "x.npy", array) if is_file else array
    vae = made()
    before = fitted(X, copy.deepcopy(vae), epochs=1)
    with pytest.raises(ValueError, match=message):
        fitted(x, vae)
    assert_same_fit(fitted(X, vae, epochs=1), before)  # no step was taken


@pytest.mark.parametrize("is_file", [True, False])
def test_values_outside_the_support_are_placed_in_the_whole(tmp_path, monkeypatch, is_file):
    monkeypatch.setattr(datasets.mapped, "CHUNK_BYTES", 8 * 6 * 10)
    monkeypatch.setattr(pieces, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(pieces, "PIECE_NUMBERS", 60)
    array = X.abs().numpy()
    array[43, 2] = -1.0
    x = mapped(tmp_path / "x.npy", array) if is_file else array
    vae = pv.make_vae(features=6, latent_dim=2, hidden=(3,), likelihood=likelihoods.LogNormal)
    with pytest.raises(ValueError, match=r"first at row 43, column 2.*rows 40 to 49; those after"):
        fitted(x, vae)
    part = datasets.MappedDataset("x", np.array(array)).subset([1, 43, 60])
    with pytest.raises(ValueError, match=r"first at row 43, column 2"):
        fitted(part, vae)


@pytest.mark.parametrize("is_file", [True, False])
def test_other_shapes_and_gray_levels_are_refused_as_in_memory(tmp_path, monkeypatch, is_file):
    monkeypatch.setattr(datasets.mapped, "CHUNK_BYTES", 8 * 6 * 10)
    monkeypatch.setattr(pieces, "MAX_WHOLE_BYTES", 10)
    monkeypatch.setattr(pieces, "PIECE_NUMBERS", 60)
    for array, message in [
        (np.zeros((67, 5)), r"event shape \(6,\); got \(5,\) \(x has shape \(67, 5\)\)"),
        (np.full((67, 6), 200, dtype=np.uint8), r"x must be scaled .* \[200, 200\]"),
    ]:
        x = mapped(tmp_path / "x.npy", array) if is_file else array
        with pytest.raises(ValueError, match=message):
            fitted(x)


def test_constant_features_of_a_file_are_those_of_the_data(tmp_path, monkeypatch):
    # Feature 1 varies in one row of 5000 alone, which no sample by distance would meet.
    array = torch.randn(5000, 6).numpy()
    array[:, [1, 4]] = 2.0
    array[3334, 1] = 3.0
    monkeypatch.setattr(datasets.mapped, "CHUNK_BYTES", 8 * 6 * 100)
    monkeypatch.setattr(pieces, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(pieces, "PIECE_NUMBERS", 600)
    for x in (mapped(tmp_path / "x.npy", array), array):
        vae = made(variance=torch.ones(6), learn_variance=True)
        with pytest.warns(UserWarning, match=r"1 feature\(s\) are constant \(4\)"):
            DataSource(vae, CPU).batches(x, batch_size=8, seed=0)


def test_sample_keeps_few_rows_and_no_piece_alive():
    sample = Sample(10_000)
    x = torch.zeros(10_000, 3)
    x[7, 0] = x[7, 1] = 1.0
    piece = x.clone()
    alive = weakref.ref(piece)
    sample.add(piece)
    del piece
    gc.collect()
    assert alive() is None
    assert sample.x.shape == (2001, 3)
    assert (sample.x.amax(0) == x.amax(0)).all()


def test_sample_of_many_pieces_is_that_of_the_whole():
    x = torch.arange(10_000.0)[:, None]
    for size in (1, 3, 5, 7, 10_000):  # the step is 5
        sample = Sample(len(x))
        for piece in x.split(size):
            sample.add(piece)
        found = sample.x[:, 0].unique()
        assert set(x[::5, 0].tolist()) <= set(found.tolist())
        assert len(sample.x) <= 2001


def test_sample_of_long_rows_takes_no_more_memory_than_its_limit(monkeypatch):
    monkeypatch.setattr(scan, "MAX_SAMPLE_BYTES", 10 * 40 * 8)
    sample = Sample(60)
    for piece in torch.eye(60, 40).split(7):  # each row brings a feature that varies
        sample.add(piece)
    assert sample.x.nbytes <= 10 * 40 * 8
    assert len(sample.x) >= 5


def test_last_row_of_a_loader_is_merged_where_a_network_normalizes():
    vae = made()
    vae.q_z_given_x.encoder.layers.insert(1, nn.BatchNorm1d(8))
    batches = DataSource(vae, CPU).batches(DataLoader(X[:17], batch_size=8), batch_size=8, seed=0)
    assert [len(b.x) for b in batches.epoch(0)] == [8, 9]
    fitted(DataLoader(X[:17], batch_size=8), vae)
    batches = DataSource(made(), CPU).batches(
        DataLoader(X[:17], batch_size=8), batch_size=8, seed=0
    )
    assert [len(b.x) for b in batches.epoch(0)] == [8, 8, 1]


def test_generator_is_no_data():
    with pytest.raises(TypeError, match="x must have a length or be an IterableDataset; got gen"):
        fitted((row for row in X), num_data=10)


def test_overflow_in_a_file_is_said_as_in_memory(tmp_path):
    array = X.numpy().copy()
    array[50, 3] = array[60, 1] = 1e39
    np.save(tmp_path / "x.npy", array)
    message = (
        r"x must fit into float32, whose largest value is 3.403e\+38; got 2 that overflow to "
        r"infinity, the first at row 50, column 3\. Rescale x"
    )
    for x in (
        array,
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        datasets.memory_mapped(tmp_path / "x.npy", dtype=torch.float32),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(x, made().float())


class OwnPrepare(pv.VAE):
    """Programs that change more of the data than their type."""

    def prepare(self, x, *, columns=None, name="x"):
        assert threading.current_thread() is threading.main_thread()
        return super().prepare(np.asarray(x) / 2, columns=columns, name=name)


def test_programs_with_a_preparation_of_their_own_have_it_applied(tmp_path):
    vae = made()
    own = OwnPrepare(prior=vae.p_z, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    assert_same_fit(fitted(mapped(tmp_path / "x.npy", X.numpy()), own), fitted(X / 2))


def test_cast_of_a_file_is_said_once(tmp_path, caplog):
    fitted(mapped(tmp_path / "x.npy", X.numpy().astype("f4")))
    assert caplog.messages == [
        "x was cast from float32 to float64, the type of the programs' parameters."
    ]


def test_nothing_of_a_file_is_made_on_the_default_device(tmp_path):
    x = mapped(tmp_path / "x.npy", X.numpy().astype("f4"))
    vae = made()
    with torch.device("meta"):
        found = fitted(x, vae)
        rows = DataSource(vae, CPU).rows(x, name="x")
        scores = evaluate(vae, rows, seed=0)
    assert np.isfinite(found[1]["elbo"]).all()
    assert np.isfinite(scores["elbo"])


def test_per_datum_guide_knows_the_rows_of_a_file(tmp_path):
    vae = made().with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), 67))
    expected = fitted(X, copy.deepcopy(vae))
    x = mapped(tmp_path / "x.npy", X.numpy())
    assert_same_fit(fitted(x, vae), expected)
    with pytest.raises(ValueError, match="x must be the 67 rows .* got 60 rows"):
        fitted(x[:60], vae)


def test_one_row_is_refused_where_a_network_normalizes(tmp_path):
    vae = made()
    vae.q_z_given_x.encoder.layers.insert(1, nn.BatchNorm1d(8))
    x = mapped(tmp_path / "x.npy", X.numpy())
    with pytest.raises(ValueError, match="at least two rows where a network normalizes"):
        fitted(x[:1], vae)
    assert_same_fit(fitted(x[:65], copy.deepcopy(vae)), fitted(X[:65], vae))


def test_thread_ends_when_a_fit_to_a_file_is_left(tmp_path):
    x = mapped(tmp_path / "x.npy", X.numpy())
    vae = made()

    class Stop(Exception):
        pass

    def fail(*_):
        raise Stop

    vae.q_z_given_x.encoder.register_forward_hook(
        lambda module, args, y: fail() if module.training and module.weightless else None
    )
    vae.q_z_given_x.encoder.weightless = True
    with pytest.raises(Stop):
        fitted(x, vae)
    gc.collect()
    assert not prefetching()
    batches = DataSource(made(), CPU).batches(x, batch_size=4, seed=0)
    epoch = batches.epoch(0)
    next(epoch)
    assert len(prefetching()) == 1
    epoch.close()
    assert not prefetching()


def test_error_while_a_file_is_read_reaches_the_fit(tmp_path):
    class Damaged(np.memmap):
        is_read = False

        def __getitem__(self, index):
            if Damaged.is_read and isinstance(index, np.ndarray):
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    np.save(tmp_path / "x.npy", X.numpy())
    x = np.load(tmp_path / "x.npy", mmap_mode="r").view(Damaged)
    batches = DataSource(made(), CPU).batches(x, batch_size=4, seed=0)
    Damaged.is_read = True
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches.epoch(0))
    assert not prefetching()


# Large data in memory


def test_data_of_the_right_type_are_not_copied(monkeypatch):
    for limit in (2**26, 100):
        monkeypatch.setattr(pieces, "MAX_WHOLE_BYTES", limit)
        source = DataSource(made(), CPU)
        assert source.tensor(X, name="x").data_ptr() == X.data_ptr()
        assert source.tensor(X.numpy(), name="x").data_ptr() == X.data_ptr()
        assert source.tensor(datasets.Dataset("x", X), name="x").data_ptr() == X.data_ptr()
        assert source.batches(X, batch_size=4, seed=0).x.data_ptr() == X.data_ptr()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.float(),
        lambda x: x.numpy().astype("f4"),
        lambda x: x.numpy().astype(">f8"),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: x.numpy()[::-1],
        lambda x: x.clone().requires_grad_(),
        lambda x: x.T.contiguous().T,
        lambda x: datasets.Dataset("x", x.float()),
        lambda x: pd.DataFrame(x.numpy(), columns=list("abcdef")),
        lambda x: datasets.Dataset("x", x, columns=tuple("abcdef")),
    ],
)
def test_data_in_pieces_are_those_of_the_whole(monkeypatch, caplog, make):
    x = make(X)
    expected = DataSource(made(), CPU).tensor(x, name="x")
    messages = caplog.messages.copy()
    monkeypatch.setattr(pieces, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(pieces, "PIECE_NUMBERS", 60)
    source = DataSource(made(), CPU)
    found = source.tensor(x, name="x")
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert caplog.messages == messages * 2
    assert (source.columns is None) == (getattr(x, "columns", None) is None)
    own = OwnPrepare(prior=made().p_z, likelihood=made().p_x_given_z, guide=made().q_z_given_x)
    if isinstance(x, np.ndarray):
        assert torch.equal(DataSource(own, CPU).tensor(x, name="x"), expected / 2)


def test_columns_of_large_data_are_matched_by_name(monkeypatch):
    vae = made()
    vae.columns = tuple("fedcba")
    data = datasets.Dataset("x", X, columns=tuple("abcdef"))
    expected = DataSource(vae, CPU).tensor(data, name="x")
    monkeypatch.setattr(pieces, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(pieces, "PIECE_NUMBERS", 60)
    assert torch.equal(DataSource(vae, CPU).tensor(data, name="x"), expected)
    assert torch.equal(expected, X.flip(1))


# Torch Datasets that are too large


class Entries(Dataset):
    def __init__(self, x, noise=0.0):
        self.x, self.noise = x, noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = self.noise * torch.rand(()) if self.noise else 0.0
        return self.x[index] + noise, index


def test_fit_to_a_dataset_too_large_for_memory_is_that_in_memory(monkeypatch):
    monkeypatch.setattr(torch_data, "MAX_STACKED_BYTES", 10)
    batches = DataSource(made(), CPU).batches(Entries(X), batch_size=8, seed=0)
    assert isinstance(batches, GatheredBatches)
    assert_same_fit(fitted(Entries(X)), fitted(X))


def test_dataset_that_draws_leaves_the_global_random_state_alone(monkeypatch):
    monkeypatch.setattr(torch_data, "MAX_STACKED_BYTES", 10)
    noisy = Entries(X, noise=0.1)
    first = fitted(noisy)
    vae = made()
    state = torch.get_rng_state()
    again = fitted(noisy, vae)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_fit(again, first)
    assert not torch.equal(first[0], fitted(X)[0])


# Parts for several processes


def test_parts_of_batches_make_up_the_batches(tmp_path):
    x = mapped(tmp_path / "x.npy", X.numpy())
    for given, kind in [(X, TensorBatches), (x, GatheredBatches), (None, LoaderBatches)]:
        data = DataLoader(X, batch_size=8) if given is None else given

        def batches(part=None, data=data):
            return DataSource(made(), CPU).batches(data, batch_size=8, seed=0, part=part)

        assert type(batches()) is kind
        parts = [list(batches(lambda rows, r=r: rows[r::3]).epoch(1)) for r in range(3)]
        for whole, *shares in zip(batches().epoch(1), *parts, strict=True):
            assert {share.num_global for share in shares} == {len(whole.x)} == {whole.num_global}
            together = torch.empty_like(whole.x)
            for r, share in enumerate(shares):
                together[r::3] = share.x
                if whole.rows is not None:
                    assert torch.equal(share.rows, whole.rows[r::3])
            assert torch.equal(together, whole.x)


def test_part_may_be_empty(tmp_path):
    x = mapped(tmp_path / "x.npy", X.numpy())
    for data in (X, x, DataLoader(X, batch_size=8)):
        batches = DataSource(made(), CPU).batches(
            data, batch_size=8, seed=0, part=lambda rows: rows[:0]
        )
        found = list(batches.epoch(0))
        assert {tuple(b.x.shape) for b in found} == {(0, 6)}
        assert sum(b.num_global for b in found) == 67


def test_all_processes_evaluate_on_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MAX_EVALUATED", 16)
    x = mapped(tmp_path / "x.npy", X.numpy())
    for data in (X, x, DataLoader(X, batch_size=8)):
        some = []
        for r in range(2):
            batches = DataSource(made(), CPU).batches(
                data, batch_size=8, seed=0, part=lambda rows, r=r: rows[r::2]
            )
            list(batches.epoch(0))
            some.append(batches.some_rows())
            batches.close()
        assert torch.equal(some[0].x, some[1].x)
        assert {s.num_global for s in some} == {16}


def test_loader_with_workers_brings_the_same_batches():
    loader = DataLoader(Entries(X), batch_size=8, num_workers=1)
    batches = DataSource(made(), CPU).batches(loader, batch_size=1, seed=0)
    epoch = batches.epoch(0)
    assert torch.equal(next(epoch).x, X[:8])
    assert len(prefetching()) == 1
    assert torch.equal(torch.cat([b.x for b in epoch]), X[8:])
    epoch = batches.epoch(1)
    next(epoch)
    epoch.close()
    assert not prefetching()


def test_length_is_known(caplog):
    caplog.set_level(logging.INFO)
    for data in (X, DataLoader(X, batch_size=8)):
        with pytest.raises(ValueError, match=r"num_data must be left out .* 67; got 5"):
            DataSource(made(), CPU).batches(data, batch_size=8, seed=0, num_data=5)
        DataSource(made(), CPU).batches(data, batch_size=8, seed=0, num_data=67)
