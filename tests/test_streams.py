"""Streams without a length: epochs of num_data rows, put together from whatever comes."""

import threading

import pytest
import torch
from helpers import small_vae
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import pyro_vae as pv
from pyro_vae import families, guides
from pyro_vae.batches import StreamBatches, batch
from pyro_vae.sources import DataSource
from pyro_vae.training_loop import TrainingLoop

CPU = torch.device("cpu")
X = torch.arange(6 * 40.0, dtype=torch.float64).reshape(40, 6)


class Stream(IterableDataset):
    """Rows of x, or blocks of some sizes, in order; counts how often it was opened."""

    def __init__(self, x=X, *, sizes=None, labels=False, endless=False):
        self.x, self.sizes, self.labels, self.endless = x, sizes, labels, endless
        self.opened = 0

    def __iter__(self):
        self.opened += 1
        info = get_worker_info()
        x = self.x if info is None else self.x[info.id :: info.num_workers]
        while True:
            for item in x if self.sizes is None else x.split(self.sizes):
                yield (item, 0) if self.labels else item
            if not self.endless:
                return


class Sized(Stream):
    def __len__(self):
        return len(self.x)


def made():
    torch.manual_seed(4)
    return small_vae(family=families.DiagonalNormal)


def batches_of(x, vae=None, **options):
    options = {"batch_size": 8, "seed": 0, "num_data": 40, **options}
    return DataSource(made() if vae is None else vae, CPU).batches(x, **options)


def epoch(batches, index):
    """Row numbers and sizes of the batches of an epoch."""
    found = [b.x for b in batches.epoch(index)]
    rows = [] if not found else (torch.cat(found)[:, 0] / 6).int().tolist()
    return rows, [len(x) for x in found]


def prefetching():
    return [t for t in threading.enumerate() if t.name == "pyro_vae prefetch"]


@pytest.mark.parametrize(
    "x",
    [
        Stream(),
        Stream(labels=True),
        Stream(sizes=7),
        DataLoader(Stream(), batch_size=None),
        DataLoader(Stream(sizes=11), batch_size=None),
        DataLoader(Stream(sizes=7, labels=True), batch_size=None),
    ],
    ids=["rows", "pairs", "blocks", "loader of rows", "loader of blocks", "loader of pairs"],
)
def test_batches_are_put_together_from_whatever_comes(x, caplog):
    batches = batches_of(x, batch_size=9)
    assert isinstance(batches, StreamBatches)
    assert len(batches) == 5
    for index in range(3):
        assert epoch(batches, index) == (list(range(40)), [9, 9, 9, 9, 4])
    assert not caplog.messages


def test_loader_over_a_stream_brings_its_own_batch_size():
    batches = batches_of(DataLoader(Stream(), batch_size=16), batch_size=3)
    assert len(batches) == 3
    assert epoch(batches, 0) == (list(range(40)), [16, 16, 8])


def test_workers_bring_every_row_and_are_read_ahead():
    batches = batches_of(DataLoader(Stream(), batch_size=6, num_workers=2), batch_size=6)
    rows, sizes = epoch(batches, 0)
    assert sorted(rows) == list(range(40))
    assert sizes == [6] * 6 + [4]  # each worker's last batch has two rows
    reading = batches.epoch(1)
    next(reading)
    assert len(prefetching()) == 1
    reading.close()
    batches.close()
    assert not prefetching()


def test_longer_stream_goes_on_in_the_next_epoch():
    stream = Stream(endless=True)
    batches = batches_of(stream, num_data=15)
    assert [epoch(batches, i)[0] for i in range(3)] == [
        [*range(15)],
        [*range(15, 30)],
        [*range(30, 40), *range(5)],
    ]
    assert stream.opened == 1


def test_stream_that_ends_early_ends_the_epoch_and_is_told_once(caplog):
    stream = Stream()
    batches = batches_of(stream, num_data=25)
    assert epoch(batches, 0) == ([*range(25)], [8, 8, 8, 1])
    assert epoch(batches, 1) == ([*range(25, 40)], [8, 7])
    assert epoch(batches, 2) == ([*range(25)], [8, 8, 8, 1])
    assert epoch(batches, 3)[0] == [*range(25, 40)]
    assert stream.opened == 2
    assert caplog.messages == [
        "x ended after 15 of the num_data = 25 rows of epoch 2, which ends there; the next epoch "
        "reads it from its start."
    ]


def test_stream_with_a_length_tells_it():
    assert len(batches_of(Sized(), num_data=None)) == 5
    assert len(batches_of(Sized(), num_data=17)) == 3


def test_evaluated_rows_are_the_first_of_the_first_epoch(monkeypatch):
    monkeypatch.setattr(batch, "MAX_EVALUATED", 10)
    batches = batches_of(Stream(endless=True), num_data=16)
    for index in range(5, 8):  # a fit may go on from there
        epoch(batches, index)
        assert torch.equal(batches.some_rows().x, X[:10])


def test_single_row_is_not_left_where_a_network_normalizes():
    vae = made()
    vae.q_z_given_x.encoder.layers.insert(1, nn.BatchNorm1d(8))
    assert epoch(batches_of(Stream(), vae, batch_size=13), 0)[1] == [13, 13, 14]
    assert epoch(batches_of(Stream(), vae, batch_size=13, num_data=50), 0)[1] == [13, 13, 13]


def test_parts_of_stream_batches_make_up_the_batches():
    parts = [
        list(batches_of(Stream(), part=lambda rows, r=r: rows[r::2]).epoch(0)) for r in range(2)
    ]
    for whole, one, two in zip(X.split(8), *parts, strict=True):
        assert torch.equal(one.x, whole[::2])
        assert torch.equal(two.x, whole[1::2])
        assert one.num_global == two.num_global == len(whole)


class Shuffled(Stream):
    """Rows drawn from the whole with torch's global random state, one by one."""

    def __iter__(self):
        while True:
            yield self.x[torch.randint(len(self.x), ())]


@pytest.mark.parametrize("in_loader", [False, True])
def test_stream_that_draws_brings_the_same_rows_to_all_processes(in_loader):
    def read(seed, noise):
        stream = DataLoader(Shuffled(), batch_size=3) if in_loader else Shuffled()
        batches = batches_of(stream, num_data=20, seed=seed, part=lambda rows: rows)
        torch.manual_seed(noise)
        found = []
        for index in range(3):
            found.append([])
            for b in batches.epoch(index):
                found[-1] += (b.x[:, 0] / 6).int().tolist()
                torch.rand(noise)  # a process's own noise
        return found

    one = read(0, 1)
    assert one == read(0, 2)
    assert one != read(1, 1)
    assert one[0] != one[1]
    assert len(set(one[0])) > 5


def test_steps_on_a_stream_are_those_on_a_loader_of_the_same_rows(monkeypatch):
    # fit makes its batches itself: hand it others.
    x = torch.randn(40, 6)

    def fitted(given, num_data):
        vae, init = made(), TrainingLoop.__init__
        found = DataSource(vae, CPU).batches(given, batch_size=8, seed=0, num_data=num_data)

        def with_batches(self, vae, svi, optim, batches, *args, **kwargs):
            init(self, vae, svi, optim, found, *args, **kwargs)

        monkeypatch.setattr(TrainingLoop, "__init__", with_batches)
        pv.fit(vae, x, epochs=2, progress=False)
        monkeypatch.undo()
        return torch.cat([p.detach().flatten() for p in vae.parameters()])

    # With a generator of its own, from which it draws its seed and not from the noise.
    expected = fitted(DataLoader(x, batch_size=8, generator=torch.Generator()), None)
    assert torch.equal(fitted(Stream(x, sizes=7), 40), expected)
    assert not torch.equal(fitted(Stream(x.flip(0)), 40), expected)


def test_batches_of_a_stream_are_checked_as_they_come():
    bad = X.clone()
    bad[20, 3] = torch.nan
    reading = batches_of(Stream(bad)).epoch(0)
    assert torch.equal(next(reading).x, X[:8])
    next(reading)
    with pytest.raises(ValueError, match="x must not contain NaN"):
        next(reading)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: batches_of(Stream(), num_data=None),
            ValueError,
            "num_data must be given for an IterableDataset, which has no length",
        ),
        (
            lambda: batches_of(DataLoader(Stream(), batch_size=4), num_data=None),
            ValueError,
            "num_data must be given",
        ),
        (lambda: batches_of(Stream(), num_data=0), ValueError, "num_data must be a positive"),
        (lambda: batches_of(Stream(), num_data=2.5), ValueError, "num_data must be a positive"),
        (
            lambda: epoch(batches_of(Stream(X[:0])), 0),
            ValueError,
            "x must have at least one row; got a stream without any",
        ),
        (
            lambda: batches_of(
                Stream(), made().with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), 40))
            ),
            ValueError,
            "parameters for each datum, which has to know the rows of a batch; got a Iterable",
        ),
        (
            lambda: DataSource(made(), CPU).tensor(Stream(), name="validation"),
            TypeError,
            "validation must have a length; got an IterableDataset",
        ),
        (
            lambda: next(batches_of(Stream(X[:, :5])).epoch(0)),
            ValueError,
            r"x must have event shape \(6,\); got \(5,\)",
        ),
        (
            lambda: next(batches_of(Words()).epoch(0)),
            TypeError,
            "got an entry of type str",
        ),
    ],
)
def test_stream_errors_say_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()


class Words(IterableDataset):
    def __iter__(self):
        yield "word", 1


def test_nothing_of_a_stream_is_made_on_the_default_device():
    batches = batches_of(Stream())
    with torch.device("meta"):
        assert {b.x.device for b in batches.epoch(0)} == {CPU}
        assert batches.some_rows().x.device == CPU
