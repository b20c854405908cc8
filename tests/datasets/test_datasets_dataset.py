import math

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.datasets import (
    Dataset,
    Scaling,
    checked_rows,
    digits,
    linear_gaussian,
)


def numbered(num_data=10, *, event_shape=(4,)):
    x = torch.arange(num_data, dtype=torch.float64).reshape(-1, *[1] * len(event_shape))
    return Dataset(
        "numbered",
        x.expand(-1, *event_shape),
        labels=torch.arange(num_data) % 3,
        scaling=Scaling.divide(2),
        image_shape=(2, 2),
    )


def test_dataset_describes_itself_in_one_line():
    data = numbered()
    assert repr(data) == "numbered: 10 rows of (4,), x = raw / 2, labels 3 classes"
    assert str(data) == repr(data)
    assert (len(data), data.num_data, data.num_features, data.event_shape) == (10, 10, 4, (4,))


def test_split_is_a_partition_that_keeps_rows_and_labels_together():
    train, test = numbered(50).split(held_out=0.3, seed=4)
    assert (len(train), len(test)) == (35, 15)
    rows = torch.cat([train.x[:, 0], test.x[:, 0]])
    assert sorted(rows.tolist()) == list(range(50))
    assert rows.tolist() != list(range(50))
    for part in (train, test):
        assert torch.equal(part.labels, part.x[:, 0].long() % 3)
    assert test.name == "numbered (held out)"


def test_split_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = numbered(50).split(seed=3)[1].x
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.manual_seed(1)
    assert torch.equal(numbered(50).split(seed=3)[1].x, first)
    assert not torch.equal(numbered(50).split(seed=5)[1].x, first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize(
    "indices",
    [
        [7, 2],
        (7, 2),
        range(7, -3, -5),
        np.array([7, 2]),
        torch.tensor([7, 2]),
        slice(7, 1, -5),
        pd.Series([7, 2]),
    ],
    ids=lambda indices: type(indices).__name__,
)
def test_subset_takes_rows_in_order(indices):
    with torch.device("meta"):
        part = numbered_on_cpu().subset(indices)
    assert part.x[:, 0].tolist() == [7.0, 2.0]
    assert part.labels.tolist() == [1, 2]


def numbered_on_cpu():
    with torch.device("cpu"):
        return numbered()


def test_subset_takes_a_mask():
    data = numbered()
    assert data.subset(data.labels == 2).x[:, 0].tolist() == [2.0, 5.0, 8.0]
    assert data.subset(np.array([True] + [False] * 9)).x[:, 0].tolist() == [0.0]


def test_reshape_is_row_major_and_keeps_units():
    x = torch.arange(8.0).reshape(2, 4)
    data = Dataset("d", x, scaling=Scaling(shift=torch.arange(4.0)), image_shape=(2, 2))
    image = data.reshape(1, 2, 2)
    assert image.event_shape == (1, 2, 2)
    assert image.x[1, 0].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert torch.equal(image.raw.flatten(1), data.raw)
    assert torch.equal(image.flatten().x, x)


def test_rescale_keeps_the_raw_data():
    data = digits(dtype=torch.float64)
    mean = data.raw.mean(0)
    scaled = data.rescale(Scaling(shift=mean, scale=4.0))
    assert torch.allclose(scaled.x.mean(0), torch.zeros(64, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(scaled.raw, data.raw, atol=1e-12)
    assert scaled.image_shape == (8, 8)


def test_to_changes_the_floating_type_alone():
    data = numbered().to(dtype=torch.float32)
    assert data.x.dtype == torch.float32
    assert data.labels.dtype == torch.int64
    assert data.scaling == Scaling.divide(2)


def test_dataset_of_a_table_keeps_its_columns():
    data = Dataset("table", pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), labels=[1, 0])
    assert data.columns == ("a", "b")
    assert data.labels.tolist() == [1, 0]
    assert data.split(held_out=0.5)[0].columns == ("a", "b")
    assert data.reshape(2, 1).columns is None


def test_dataset_takes_bytes_that_are_0_and_1():
    assert Dataset("binary", np.array([[0, 1]], dtype=np.uint8)).x.tolist() == [[0.0, 1.0]]


def test_checked_rows_match_the_columns_of_a_data_set_by_name():
    data = Dataset("ab", torch.tensor([[1.0, 2.0]]), columns=("a", "b"))
    swapped = checked_rows(data, columns=("b", "a"))
    assert swapped.tensor.tolist() == [[2.0, 1.0]]
    assert swapped.columns == ("b", "a")
    assert checked_rows(data).columns == ("a", "b")
    assert checked_rows([[1.0, 2.0]]).columns is None
    with pytest.raises(ValueError, match="rows must have the columns .* without 'c'"):
        checked_rows(data, columns=("a", "c"), name="rows")


def test_subset_of_simulated_data_keeps_latent_values_and_truth():
    data = linear_gaussian(20, seed=3, dtype=torch.float64)
    part = data.split(held_out=0.25)[1]
    rows = [data.x[:, 0].tolist().index(value) for value in part.x[:, 0].tolist()]
    assert torch.equal(part.z, data.z[rows])
    assert torch.allclose(part.log_evidence, data.log_evidence[rows], atol=1e-12)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: numbered().split(held_out=0.0),
            ValueError,
            "held_out must be a fraction .* got 0.0 of 10 rows",
        ),
        (lambda: numbered().split(held_out=3), ValueError, "got 3 of 10 rows"),
        (lambda: numbered().split(held_out=float("nan")), ValueError, "got nan of 10 rows"),
        (lambda: numbered().split(held_out=0.01), ValueError, "got 0.01 of 10 rows"),
        (lambda: numbered().split(held_out=0.99), ValueError, "got 0.99 of 10 rows"),
        (lambda: numbered().subset([]), ValueError, "at least one row"),
        (lambda: numbered().subset(3), ValueError, r"one dimension; got shape \(\)"),
        (lambda: numbered().subset([10]), IndexError, "out of bounds"),
        (
            lambda: numbered().reshape(3, 3),
            ValueError,
            r"must have 4 entries in all; got \(3, 3\) for data of event shape \(4,\)",
        ),
        (
            lambda: Dataset("d", torch.ones(3, 4), labels=[1, 2]),
            ValueError,
            r"one entry per row of x; got shape \(2,\) for 3 rows",
        ),
        (
            lambda: Dataset("d", torch.ones(2, 4), labels=["a", "b"]),
            TypeError,
            "labels must be integers; got dtype <U1",
        ),
        (
            lambda: Dataset("d", torch.ones(2, 4), labels=torch.ones(2)),
            TypeError,
            "labels must be integers; got dtype torch.float",
        ),
        (
            lambda: Dataset("d", torch.ones(2, 4), image_shape=(3, 3)),
            ValueError,
            r"with 4 entries in all; got \(3, 3\)",
        ),
        (
            lambda: Dataset("d", torch.ones(2, 4), columns=("a",)),
            ValueError,
            r"columns must name each feature; got 1 names for event shape \(4,\)",
        ),
        (
            lambda: Dataset("d", torch.ones(2, 4), scaling=Scaling(scale=[1.0, 2.0])),
            ValueError,
            r"scaling must have the event shape of x; got \(2,\)",
        ),
        (
            lambda: Dataset("d", np.array([[0, 200]], dtype=np.uint8)),
            ValueError,
            r"x must be scaled .* got uint8 values in \[0, 200\]",
        ),
        (lambda: Dataset("d", torch.tensor([[float("nan")]])), ValueError, "must not contain NaN"),
    ],
)
def test_dataset_raises(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def with_gaps():
    x = torch.arange(12.0).reshape(4, 3)
    x[1, 2] = x[3, 0] = torch.nan
    return Dataset("gaps", x, columns=("a", "b", "c"), missing=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.split(held_out=0.5, seed=1)[0],
        lambda data: data.subset([1, 3]),
        lambda data: data.subset([0]),
        lambda data: data.reshape(3, 1),
        lambda data: data.flatten(),
        lambda data: data.to(dtype=torch.float32),
        lambda data: data.rescale(Scaling.standardize(data.raw, missing=True)),
        lambda data: data.in_memory(),
    ],
)
def test_missing_values_stay_missing(change):
    changed = change(with_gaps())
    assert changed.missing
    gaps = int(changed.x.isnan().sum())
    assert changed.num_missing == gaps
    assert repr(changed).endswith(f", {gaps} of {changed.x.numel()} values missing")


def test_infinity_is_no_missing_value():
    with pytest.raises(ValueError, match="x must not contain infinite values; got 1"):
        Dataset("d", torch.tensor([[math.inf, math.nan]]), missing=True)


def test_a_dataset_with_missing_values_is_fitted_as_it_is():
    data = with_gaps()
    vae = pv.gaussian_vae(features=3, latent_dim=1, hidden=(), missing=True)
    by_nan = pv.gaussian_vae(features=3, latent_dim=1, hidden=(), missing=True)
    by_nan.load_state_dict(vae.state_dict())
    options = {"epochs": 2, "progress": False}
    pv.fit(vae, data, **options)
    pv.fit(by_nan, data.x, mask="nan", **options)
    for one, other in zip(vae.parameters(), by_nan.parameters(), strict=True):
        assert torch.equal(one, other)
    plain = pv.gaussian_vae(features=3, latent_dim=1, hidden=())
    pv.fit(plain, data.subset([0, 2]), **options)
    assert plain.missing  # though these two rows are complete
