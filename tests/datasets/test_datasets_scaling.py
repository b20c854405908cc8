import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae.datasets import MappedDataset, Scaling, mapped

PER_FEATURE = Scaling(shift=[1.0, -2.0, 0.0], scale=torch.tensor([0.5, 3.0, 10.0]))


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        (Scaling.identity(), "x = raw"),
        (Scaling.divide(16), "x = raw / 16"),
        (Scaling(shift=3), "x = raw - 3"),
        (Scaling(shift=-3, scale=0.5), "x = (raw + 3) / 0.5"),
        (PER_FEATURE, "x = (raw - shift) / scale for each of (3,)"),
    ],
)
def test_scaling_says_what_it_does_and_survives_plain_numbers(scaling, text):
    assert str(scaling) == text
    again = Scaling.from_dict(json.loads(json.dumps(scaling.to_dict())))
    assert again == scaling
    assert hash(again) == hash(scaling)
    assert again != Scaling.divide(7)


def test_scaling_applies_its_formula_and_inverts_it():
    raw = torch.tensor([[2.0, 4.0, 5.0]], dtype=torch.float64)
    with torch.device("meta"):
        scaling = Scaling.from_dict(PER_FEATURE.to_dict())
        x = scaling.apply(raw)
        assert x.tolist() == [[2.0, 2.0, 0.5]]
        assert scaling.invert(x).tolist() == raw.tolist()
    assert raw.tolist() == [[2.0, 4.0, 5.0]]


@pytest.fixture
def float32_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("float32_default")
def test_scaling_of_integers_divides_in_the_default_type():
    x = Scaling.divide(255).apply(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
    assert x.dtype == torch.float32
    assert torch.allclose(x, torch.tensor([[0.0, 0.2, 1.0]]))


@pytest.mark.parametrize("scaling", [Scaling(2.0, 0.25), PER_FEATURE], ids=["scalar", "vector"])
def test_log_abs_det_turns_a_density_in_x_into_one_in_raw_units(scaling):
    # x ~ N(0, I) makes raw ~ N(shift, scale^2), whose density torch knows.
    raw = torch.tensor([[0.3, 1.7, -4.0]], dtype=torch.float64)
    shift, scale = (torch.as_tensor(part).double() for part in (scaling.shift, scaling.scale))
    expected = torch.distributions.Normal(shift, scale.expand(3)).log_prob(raw).sum()
    in_x = torch.distributions.Normal(0.0, 1.0).log_prob(scaling.apply(raw)).sum()
    assert abs(in_x - scaling.log_abs_det(3) - expected) < 1e-12


def test_standardize_gives_mean_0_and_population_sd_1():
    raw = torch.tensor([[1.0, 1e6], [2.0, 1e6 + 1], [6.0, 1e6 + 5]], dtype=torch.float64)
    scaling = Scaling.standardize(raw)
    assert scaling.to_dict()["shift"] == [3.0, 1e6 + 2]
    assert scaling.to_dict()["scale"] == pytest.approx([math.sqrt(14 / 3)] * 2)
    x = scaling.apply(raw)
    assert torch.allclose(x.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(x.var(0, correction=0), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("in_chunks", [False, True])
def test_standardize_uses_observed_values_alone(in_chunks, monkeypatch):
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 3 * 8 * 4)  # three rows
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(50, 4)) * [1.0, 100.0, 1e-3, 1.0] + [0.0, 5.0, 1.0, 1e4]
    raw[rng.random(raw.shape) < 0.3] = np.nan
    raw[:5, 1] = np.nan  # a whole piece, too
    raw[:, 3] = np.nan
    with pytest.raises(ValueError, match="must not contain NaN"):
        Scaling.standardize(raw)
    scaling = Scaling.standardize(MappedDataset("raw", raw) if in_chunks else raw, missing=True)
    assert np.allclose(scaling.shift[:3], np.nanmean(raw[:, :3], 0), rtol=1e-12)
    assert np.allclose(scaling.scale[:3], np.nanstd(raw[:, :3], 0), rtol=1e-10)
    assert (scaling.shift[3], scaling.scale[3]) == (0.0, 1.0)


@pytest.mark.parametrize("in_chunks", [False, True])
def test_what_was_observed_may_be_constant(in_chunks):
    raw = np.array([[1.0, math.nan], [2.0, 0.1], [math.nan, 0.1]])
    given = MappedDataset("raw", raw) if in_chunks else raw
    with pytest.warns(UserWarning, match="got constant columns 1, centered with scale 1"):
        scaling = Scaling.standardize(given, missing=True)
    assert scaling.to_dict() == {"shift": [1.5, 0.1], "scale": [0.5, 1.0]}


def test_standardize_warns_of_constant_columns_by_name():
    # The mean of three 0.1 is rounded, and their deviation 1e-17.
    table = pd.DataFrame({"a": range(3), "b": [0.1] * 3, "c": [5] * 3})
    with pytest.warns(UserWarning, match="got constant columns 'b', 'c', centered with scale 1"):
        scaling = Scaling.standardize(table)
    assert scaling.to_dict()["scale"][1:] == [1.0, 1.0]
    with pytest.warns(UserWarning, match="constant columns 1, 2"):
        Scaling.standardize(table.to_numpy())


def test_scaling_is_not_changed_by_the_tensor_it_came_from():
    scale = torch.ones(2, dtype=torch.float64)
    scaling = Scaling(scale=scale)
    scale.fill_(9.0)
    assert scaling.to_dict()["scale"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Scaling.divide(0), "scale must be positive and finite; got 0"),
        (lambda: Scaling(scale=[1.0, -2.0]), "scale must be positive and finite; got -2"),
        (lambda: Scaling.divide(math.inf), "scale must be positive and finite; got inf"),
        (lambda: Scaling(shift=math.nan), "shift must be finite; got nan"),
        (
            lambda: Scaling([1.0, 2.0], [1.0, 2.0, 3.0]),
            r"share a shape; got \[\(2,\), \(3,\)\]",
        ),
        (lambda: PER_FEATURE.log_abs_det(4), "num_features must be 3, .* got 4"),
        (lambda: Scaling.from_dict({"scale": 1.0}), r"keys shift and scale; got \['scale'\]"),
    ],
)
def test_scaling_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
