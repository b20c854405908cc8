"""Batches: every row once an epoch, in an order that is a function of seed and epoch."""

import weakref

import numpy as np
import pytest
import torch
from conftest import MAX_Z
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from pyro_vae.batches import LoaderBatches, TensorBatches, batch, stacked, torch_data


def rows(num):
    """Rows that tell their own number: row i is (i, -i)."""
    return torch.stack([torch.arange(float(num)), -torch.arange(float(num))], dim=1)


def order(made, epoch):
    """Row numbers in the order in which an epoch brings them."""
    x = torch.cat([batch.x for batch in made.epoch(epoch)])
    assert torch.equal(x[:, 1], -x[:, 0])  # rows stay whole
    return x[:, 0].int().tolist()


def sizes(made):
    return [len(batch.x) for batch in made.epoch(0)]


def test_tensor_batches_bring_every_row_exactly_once_an_epoch():
    made = TensorBatches(rows(103), batch_size=10, seed=3)
    for epoch in range(4):
        assert sorted(order(made, epoch)) == list(range(103))


def test_tensor_batches_bring_another_order_each_epoch():
    made = TensorBatches(rows(50), batch_size=8, seed=3)
    orders = [tuple(order(made, epoch)) for epoch in range(6)]
    assert len({*orders, tuple(range(50))}) == 7


def test_tensor_batches_mix_rows_over_all_batches():
    # The number of first-half rows in the first of two batches is hypergeometric: mean 100,
    # variance 50.1. Over 40 epochs the mean z-score is standard normal but for discreteness.
    made = TensorBatches(rows(400), batch_size=200, seed=0)
    first = [sum(row < 200 for row in order(made, epoch)[:200]) for epoch in range(40)]
    variance = 200 * 0.5 * 0.5 * (400 - 200) / (400 - 1)
    z = (np.mean(first) - 100) / np.sqrt(variance / 40)
    assert abs(z) < MAX_Z
    assert np.std(first) > 3  # a fixed share would have none; 7.1 expected


def test_tensor_batches_order_is_a_function_of_seed_and_epoch_alone():
    first = TensorBatches(rows(50), batch_size=8, seed=3)
    again = TensorBatches(rows(50), batch_size=8, seed=3)
    orders = [order(first, epoch) for epoch in range(3)]
    torch.manual_seed(99)
    assert order(again, 2) == orders[2]  # without the epochs before it, in another global state
    assert [order(again, epoch) for epoch in range(3)] == orders
    assert order(TensorBatches(rows(50), batch_size=8, seed=4), 0) != orders[0]
    assert order(TensorBatches(rows(50), batch_size=50, seed=3), 0) == orders[0]


def test_tensor_batches_leave_the_global_random_state_alone(monkeypatch):
    monkeypatch.setattr(batch, "MAX_EVALUATED", 7)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    made = TensorBatches(rows(50), batch_size=8, seed=3)
    order(made, 0)
    made.some_rows()
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize(
    ("num", "batch_size", "merge_single", "expected"),
    [
        (10, 5, False, [5, 5]),
        (11, 5, False, [5, 5, 1]),
        (11, 5, True, [5, 6]),
        (12, 5, True, [5, 5, 2]),
        (3, 128, False, [3]),
        (1, 128, True, [1]),
        (1, 1, False, [1]),
        (3, 1, False, [1, 1, 1]),
        (3, 2, True, [3]),
    ],
)
def test_tensor_batches_have_the_sizes_asked_for(num, batch_size, merge_single, expected):
    made = TensorBatches(rows(num), batch_size=batch_size, seed=0, merge_single=merge_single)
    assert sizes(made) == expected
    assert len(made) == len(expected)
    assert sorted(order(made, 1)) == list(range(num))


def test_tensor_batches_never_share_memory_with_the_data():
    x = rows(4)
    for made in TensorBatches(x, batch_size=4, seed=0).epoch(0):
        made.x.zero_()
    assert torch.equal(x, rows(4))


def test_tensor_batches_evaluate_on_all_rows_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(batch, "MAX_EVALUATED", 20)
    x = rows(20)
    assert torch.equal(TensorBatches(x, batch_size=8, seed=0).some_rows().x, x)


def test_tensor_batches_evaluate_on_a_fixed_random_part_of_many_rows(monkeypatch):
    monkeypatch.setattr(batch, "MAX_EVALUATED", 20)
    made = TensorBatches(rows(500), batch_size=8, seed=0)
    some = made.some_rows().x
    order(made, 0)
    assert torch.equal(made.some_rows().x, some)
    numbers = some[:, 0].int().tolist()
    assert len(set(numbers)) == len(numbers) == 20
    assert not set(numbers) <= set(range(250))  # by chance: 2 ** -20 = 1e-6
    other = TensorBatches(rows(500), batch_size=8, seed=1).some_rows().x
    assert not torch.equal(other, some)


@pytest.mark.parametrize("kind", [TensorDataset, "tuple", "list", "tensor"], ids=str)
def test_loader_batches_take_the_first_entry_of_what_the_loader_yields(kind):
    x, y = rows(7), torch.arange(7)
    pairs = {
        "tuple": [(a, b) for a, b in zip(x, y, strict=True)],
        "list": [[a, b] for a, b in zip(x, y, strict=True)],
        "tensor": list(x),
    }
    dataset = TensorDataset(x, y) if kind is TensorDataset else pairs[kind]
    made = LoaderBatches(DataLoader(dataset, batch_size=3), prepare=lambda batch: batch)
    assert len(made) == 3
    assert [batch.x[:, 0].tolist() for batch in made.epoch(0)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_loader_batches_pass_through_prepare_whatever_the_epoch():
    given = []

    def prepare(batch):
        given.append(batch)
        return 10 * batch

    made = LoaderBatches(DataLoader(rows(4), batch_size=2), prepare=prepare)
    assert [b.x[:, 0].tolist() for b in made.epoch(0)] == [[0, 10], [20, 30]]
    assert [b.x[:, 0].tolist() for b in made.epoch(1)] == [[0, 10], [20, 30]]
    assert [b[:, 0].tolist() for b in given] == 2 * [[0, 1], [2, 3]]
    assert made.some_rows().x[:, 0].tolist() == [0, 10, 20, 30]


def test_loader_batches_evaluate_on_the_first_rows_of_the_first_epoch(monkeypatch):
    monkeypatch.setattr(batch, "MAX_EVALUATED", 5)
    loader = DataLoader(rows(40), batch_size=2, shuffle=True)
    made = LoaderBatches(loader, prepare=lambda batch: batch)
    first = order(made, 0)
    order(made, 1)
    assert made.some_rows().x[:, 0].int().tolist() == first[:5]
    assert sum(map(len, made._first._seen)) == 6  # no more is kept in memory than is needed


class Pictures(Dataset):
    """A dataset without tensors of its own, as torchvision's are."""

    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        return self.entries[index]


@pytest.mark.parametrize(
    "entries",
    [
        [(row, 3) for row in rows(5)],
        [row.numpy() for row in rows(5)],
        [[row.numpy(), "label"] for row in rows(5)],
    ],
    ids=["tuples of tensors", "arrays", "lists of arrays"],
)
def test_stacked_holds_the_x_of_every_entry_in_order(entries):
    assert torch.equal(stacked(Pictures(entries)), rows(5))


def test_stacked_numbers_are_a_vector():
    assert stacked(Pictures([1.5, 2.5])).tolist() == [1.5, 2.5]


def test_stacked_tensor_dataset_is_its_own_tensor():
    x = rows(5)
    assert stacked(TensorDataset(x, torch.zeros(5))) is x


def test_stacked_is_none_exactly_above_the_limit(monkeypatch):
    data = Pictures([row.to(torch.float32) for row in rows(6)])  # 6 rows of 2 x 4 bytes
    monkeypatch.setattr(torch_data, "MAX_STACKED_BYTES", 48)
    assert stacked(data).shape == (6, 2)
    monkeypatch.setattr(torch_data, "MAX_STACKED_BYTES", 47)
    assert stacked(data) is None
    x = rows(6)  # is in memory already
    assert stacked(TensorDataset(x)) is x


def test_stacked_keeps_no_list_of_rows():
    class Fresh(Pictures):
        def __getitem__(self, index):
            assert sum(row() is not None for row in self.entries) <= 2
            row = torch.full((2,), float(index))
            self.entries[index] = weakref.ref(row)
            return row

    assert stacked(Fresh([lambda: None] * 9))[:, 1].tolist() == list(range(9))


def test_stacked_types_are_those_that_hold_all_rows():
    found = stacked(Pictures([torch.tensor([1]), torch.tensor([2.5])]))
    assert found.tolist() == [[1.0], [2.5]]
    assert found.dtype == torch.float64


@pytest.mark.parametrize(
    ("num", "size", "expected"),
    [(17, 8, [8, 9]), (16, 8, [8, 8]), (9, 4, [4, 5]), (1, 8, [1]), (5, 1, [1, 1, 1, 2])],
)
def test_last_row_of_a_loader_is_merged_where_asked(num, size, expected):
    for loader in (
        DataLoader(rows(num), batch_size=size),
        DataLoader(
            rows(num),
            batch_sampler=BatchSampler(SequentialSampler(rows(num)), size, drop_last=False),
        ),
    ):
        made = LoaderBatches(loader, prepare=lambda batch: batch, merge_single=True)
        for index in range(2):
            found = [batch.x for batch in made.epoch(index)]
            assert [len(x) for x in found] == expected
            assert torch.equal(torch.cat(found), rows(num))
        if loader.batch_size is not None:
            assert len(made) == len(expected)


def test_whole_batches_of_a_loader_are_kept_where_it_drops_the_last():
    loader = DataLoader(rows(17), batch_size=8, drop_last=True)
    made = LoaderBatches(loader, prepare=lambda batch: batch, merge_single=True)
    assert [batch.num_global for batch in made.epoch(0)] == [8, 8]
    assert len(made) == 2


class DrawsPerBatch(SequentialSampler):
    """A sampler that asks the global random state again and again."""

    def __iter__(self):
        return (int(torch.randint(len(self.data_source), ())) for _ in self.data_source)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": DrawsPerBatch(rows(40))}])
def test_order_of_a_loader_is_one_on_all_processes(options):
    def read(seed, index, noise):
        loader = DataLoader(rows(40), batch_size=4, **options)
        made = LoaderBatches(
            loader, prepare=lambda batch: batch, part=lambda rows: rows, seed=seed
        )
        torch.manual_seed(noise)
        found = []
        for made_batch in made.epoch(index):
            found += made_batch.x[:, 0].tolist()
            torch.rand(noise)
        return found

    assert read(0, 1, 2) == read(0, 1, 3)
    assert read(0, 1, 2) != read(0, 2, 2)
    assert read(0, 1, 2) != read(1, 1, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: LoaderBatches(DataLoader(TensorDataset(rows(0))), prepare=lambda x: x),
            ValueError,
            "x must have at least one batch; got a DataLoader without any",
        ),
        (
            lambda: LoaderBatches(
                DataLoader(rows(3), batch_size=5, drop_last=True), prepare=lambda x: x
            ),
            ValueError,
            "x must have at least one batch",
        ),
        (
            lambda: LoaderBatches(
                DataLoader(rows(4), sampler=DistributedSampler(rows(4), 2, 0)),
                prepare=lambda x: x,
                part=lambda rows: rows,
            ),
            ValueError,
            "x must yield the same batches on every process; got a DataLoader with a "
            "DistributedSampler. Leave the sampler out: fit gives each process its part.",
        ),
        (
            lambda: LoaderBatches(
                DataLoader(
                    rows(4),
                    batch_sampler=BatchSampler(
                        DistributedSampler(rows(4), 2, 0), 2, drop_last=False
                    ),
                ),
                prepare=lambda x: x,
                part=lambda rows: rows,
            ),
            ValueError,
            "got a DataLoader with a DistributedSampler",
        ),
        (
            lambda: stacked(Pictures([torch.zeros(3), torch.zeros(1)])),
            ValueError,
            r"x must have rows of one shape; got \(1,\) at row 1 after \(3,\)",
        ),
        (lambda: stacked(Pictures([])), ValueError, "x must have at least one row.* got length 0"),
        (lambda: stacked(TensorDataset(rows(0))), ValueError, "the Dataset has no rows"),
        (
            lambda: stacked(Pictures([("word", 1)])),
            TypeError,
            "x must be a Dataset of tensors; got an entry of type str.*ToTensor",
        ),
        (
            lambda: stacked(Pictures([{"x": 1}])),
            TypeError,
            "x must be a Dataset of tensors; got an entry of type dict",
        ),
    ],
)
def test_batches_errors_say_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
