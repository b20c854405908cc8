"""What may be missing is said once, checked at the door, and reaches programs as NaN."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from test_missing import KINDS, NAN, missing_vae, some_missing
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae import baselines, datasets, guides, likelihoods
from pyro_vae import diagnostics as dg
from pyro_vae.datasets import Dataset, as_tensor, checked_rows, observed_entries
from pyro_vae.sources import DataSource
from pyro_vae.sources.scan import Sample

CPU = torch.device("cpu")
COMPLETE = torch.arange(12.0).reshape(4, 3)
MASK = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]]).bool()
SEEN = torch.where(MASK, COMPLETE.double(), NAN)


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5))


def vae_of_three(**options):
    return pv.gaussian_vae(features=3, latent_dim=1, hidden=(), **options)


def read(vae, x, mask=None):
    """All rows of x as a fit would read them, in their order."""
    batches = DataSource(vae, CPU).batches(x, batch_size=2, seed=0, mask=mask)
    found = batches.some_rows()
    return found.x


# --- what prepare takes -----------------------------------------------------------------------


def test_nan_is_refused_where_nothing_may_be_missing_and_names_the_mask():
    with pytest.raises(ValueError, match=r'x must not contain NaN; got 3.*mask="nan" in pyro_va'):
        vae_of_three().encode(SEEN)
    assert vae_of_three(missing=True).encode(SEEN).mean.isfinite().all()
    with pytest.raises(ValueError, match="x must not contain infinite values; got 1, the first"):
        vae_of_three(missing=True).encode([[1.0, NAN, math.inf]])


@pytest.mark.parametrize(
    "x",
    [
        SEEN,
        SEEN.float(),
        SEEN.numpy(),
        SEEN.tolist(),
        np.ma.masked_array(COMPLETE.numpy(), ~MASK.numpy()),
        np.ma.masked_array(COMPLETE.numpy().astype(int), ~MASK.numpy()),
        np.ma.masked_array(np.where(MASK, COMPLETE, np.inf), ~MASK.numpy()),
        pd.DataFrame(SEEN.numpy()),
        pd.DataFrame(SEEN.numpy()).astype("Int64"),
    ],
)
def test_all_kinds_of_data_may_have_missing_values(x):
    seen = vae_of_three(missing=True).prepare(x).tensor
    assert same(seen, SEEN)


def test_masked_arrays_are_refused_where_nothing_may_be_missing():
    masked = np.ma.masked_array(COMPLETE.numpy(), ~MASK.numpy())
    with pytest.raises(TypeError, match="pyro_vae.fit takes masked arrays"):
        vae_of_three().encode(masked)


def test_support_and_gray_levels_are_those_of_observed_entries():
    vae = pv.bernoulli_vae(features=3, latent_dim=1, missing=True)
    x = torch.tensor([[0.0, 1.0, NAN]])
    assert same(vae.prepare(x).tensor, x)
    with pytest.raises(
        ValueError,
        match=r"got values in \[0, 3\], 1 of them outside, the first at row 0, column 1",
    ):
        vae.prepare(torch.tensor([[0.0, 3.0, NAN]]))
    assert same(vae.prepare([[0.0, 3.0, 1.0]], mask=[[1, 0, 1]]).tensor[0], x[0, [0, 2, 1]])
    gray = np.array([[0, 200, 1]], dtype=np.uint8)
    with pytest.raises(ValueError, match=r"got uint8 values in \[0, 200\]"):
        vae_of_three(missing=True).prepare(gray, mask=[[1, 1, 0]])
    vae_of_three(missing=True).prepare(gray, mask=[[1, 0, 1]])


def test_overflow_is_told_beside_missing_values():
    x = torch.tensor([[1e39, NAN, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="x must fit into float32"):
        as_tensor(x, dtype=torch.float32, missing=True)
    seen = as_tensor(x, dtype=torch.float32, observed=torch.tensor([[False, False, True]]))
    assert seen.tensor.isnan().tolist() == [[True, True, False]]


# --- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.int(),
        MASK.to(torch.uint8),
        MASK.numpy(),
        MASK.tolist(),
        MASK.numpy().astype(int),
        np.asfortranarray(MASK.numpy()),
        MASK.double(),
        MASK.numpy().astype("float32"),
        MASK.numpy().astype(object),
        pd.DataFrame(MASK.numpy()),
        pd.DataFrame(MASK.numpy().astype(int)),
        pd.DataFrame(MASK.numpy().astype(float)),
        pd.DataFrame(MASK.numpy().astype(object)),
        pd.DataFrame(MASK.numpy()).astype("boolean"),
        pd.DataFrame(MASK.numpy()).astype({0: "boolean", 1: "Int64"}),
    ],
)
def test_masks_of_all_kinds(mask):
    x = COMPLETE
    if isinstance(mask, pd.DataFrame):
        x = pd.DataFrame(x.numpy())
    assert torch.equal(observed_entries(mask, x), MASK)


def test_masks_of_series_are_taken_and_missing_values_in_masks_are_not():
    series = pd.Series([True, False]).astype("boolean")
    assert observed_entries(series, torch.zeros(2)).tolist() == [True, False]
    with pytest.raises(ValueError, match="got missing values"):
        observed_entries(pd.Series([True, None]).astype("boolean"), torch.zeros(2))
    table = pd.DataFrame(COMPLETE.numpy())
    for kind in ("boolean", object):
        mask = pd.DataFrame(MASK.numpy()).astype(kind).mask(~MASK.numpy(), None)
        with pytest.raises(ValueError, match="got missing values"):
            observed_entries(mask, table)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK[:3], r"mask must have the shape of x, \(4, 3\).*got \(3, 3\)"),
        (MASK[:, 0], r"got \(4,\)"),
        (MASK.double() / 2, r"got values in \[0, 0.5\]"),
        (torch.where(MASK, 1.0, NAN), "got NaN"),
        (np.array([[None] * 3] * 4), "mask must hold True"),
        (pd.DataFrame(MASK.numpy()), r"mask must be an array where x has.*mask.to_numpy\(\)"),
        (MASK.int() * 2, r"got values in \[0, 2\]"),
        (np.ma.masked_array(MASK.numpy()), "got a masked array"),
        ([["yes"] * 3] * 4, "mask must hold True"),
        ("NaN", "or 'nan'; got 'NaN'"),
    ],
)
def test_wrong_masks_are_refused(mask, message):
    vae = vae_of_three()
    for call in (
        lambda: DataSource(vae, CPU).batches(COMPLETE, batch_size=2, seed=0, mask=mask),
        lambda: DataSource(vae, CPU).rows(COMPLETE, name="x", mask=mask),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not vae.missing


def test_nan_where_the_mask_says_observed_is_refused():
    with pytest.raises(ValueError, match="mask must be True only where x was observed; got True"):
        read(vae_of_three(), SEEN, MASK | (torch.arange(12).reshape(4, 3) == 2))
    names = ["a", "b", "c"]
    table = pd.DataFrame(SEEN.numpy(), columns=names)
    data = Dataset("abc", SEEN, columns=tuple(names), missing=True)
    for x, mask in (
        (SEEN, ~MASK),
        (SEEN.numpy(), SEEN.isnan().numpy()),
        (table, table.isna()),
        (table, table.isna().to_numpy()),
        (data, ~MASK),
    ):
        with pytest.raises(ValueError, match="got True at 3 NaN.*isna.*Pass ~mask"):
            read(vae_of_three(), x, mask)
    # Of columns that are not taken nothing is said.
    mask = MASK.numpy() | [False, False, True]
    assert same(checked_rows(table, mask=mask, columns=["b", "a"]).tensor, SEEN[:, [1, 0]])


@pytest.mark.parametrize("piece", [2**30, 48])
def test_data_without_any_observed_value_are_refused_and_leave_the_vae(piece, monkeypatch):
    monkeypatch.setattr("pyro_vae.sources.pieces.MAX_WHOLE_BYTES", piece)
    monkeypatch.setattr("pyro_vae.sources.pieces.PIECE_NUMBERS", 6)
    vae = vae_of_three()
    for x, mask in ((COMPLETE, torch.zeros(4, 3).bool()), (torch.full((4, 3), NAN), "nan")):
        with pytest.raises(
            ValueError, match="x must have an observed value; got none in 4 rows of"
        ):
            read(vae, x, mask)
    assert not vae.missing
    assert same(vae_of_three(missing=True).encode([[NAN] * 3]).mean, torch.zeros(1, 1))


@pytest.mark.parametrize("missing", [1, "yes", None, np.True_])
def test_missing_of_a_vae_must_be_a_bool(missing):
    with pytest.raises(ValueError, match="missing must be True or False; got "):
        vae_of_three(missing=missing)


def test_columns_of_tables_and_masks_are_matched_by_name():
    names = ["a", "b", "c"]
    x = pd.DataFrame(COMPLETE.numpy(), columns=names)
    mask = pd.DataFrame(MASK.numpy(), columns=names)
    for given in (mask, mask[["c", "a", "b"]], mask.to_numpy()):
        assert same(checked_rows(x, mask=given).tensor, SEEN)
        order = ("b", "c", "a")
        assert same(checked_rows(x, mask=given, columns=order).tensor, SEEN[:, [1, 2, 0]])
    assert same(
        checked_rows(x.assign(d=1.0), mask=mask.assign(d=True).to_numpy(), columns=names).tensor,
        SEEN,
    )
    data = Dataset("abc", COMPLETE, columns=tuple(names))
    for given in (mask[["b", "a", "c"]], mask.to_numpy()):
        assert same(checked_rows(data, mask=given).tensor, SEEN)
        assert same(checked_rows(data, mask=given, columns=("c", "b", "a")).tensor, SEEN.flip(1))
    with pytest.raises(ValueError, match="got a table without 'c'"):
        checked_rows(x, mask=mask[["a", "b"]])
    with pytest.raises(ValueError, match="mask must have the rows of x in their order"):
        checked_rows(x, mask=mask.iloc[::-1])
    vae = vae_of_three()
    vae.columns = ("c", "a", "b")
    assert same(read(vae, x, mask), SEEN[:, [2, 0, 1]])


# --- sources ----------------------------------------------------------------------------------


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from SEEN


@pytest.mark.parametrize(
    ("x", "mask"),
    [
        (COMPLETE, MASK),
        (COMPLETE.numpy(), MASK.numpy()),
        (COMPLETE.int(), MASK),
        (torch.where(MASK, COMPLETE, math.inf), MASK),
        (pd.DataFrame(COMPLETE.numpy()), pd.DataFrame(MASK.numpy())),
        (Dataset("x", COMPLETE), MASK),
        (TensorDataset(COMPLETE, torch.zeros(4)), MASK),
        (SEEN, "nan"),
        (pd.DataFrame(SEEN.numpy()), "nan"),
        (TensorDataset(SEEN), "nan"),
        (np.ma.masked_array(COMPLETE.numpy(), ~MASK.numpy()), None),
        (np.ma.masked_array(SEEN.numpy(), ~MASK.numpy()), "nan"),
    ],
)
@pytest.mark.parametrize("piece", [2**30, 48])
def test_sources_bring_nan_where_something_is_missing(x, mask, piece, monkeypatch):
    monkeypatch.setattr("pyro_vae.sources.pieces.MAX_WHOLE_BYTES", piece)
    monkeypatch.setattr("pyro_vae.sources.pieces.PIECE_NUMBERS", 6)
    before = x.copy() if isinstance(x, np.ndarray) else None
    vae = vae_of_three()
    assert same(read(vae, x, mask), SEEN)
    assert vae.missing
    assert before is None or np.array_equal(x, before, equal_nan=True)
    assert same(DataSource(vae, CPU).rows(SEEN, name="validation"), SEEN)
    user = Programs()
    assert same(read(user, x, mask), SEEN)


class Programs:
    """Programs of a user's own, which say nothing of missing values."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            observed = ~x[:, 0].isnan()
            p = pyro.distributions.Normal(z, 1.0).mask(observed)
            pyro.sample("x", p, obs=x[:, 0].nan_to_num(0.0))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))


def test_large_data_with_nan_are_not_copied(monkeypatch):
    monkeypatch.setattr("pyro_vae.sources.pieces.MAX_WHOLE_BYTES", 1)
    monkeypatch.setattr("pyro_vae.sources.pieces.PIECE_NUMBERS", 6)
    x = SEEN.clone()
    found = DataSource(vae_of_three(missing=True), CPU).rows(x, name="x")
    assert found.data_ptr() == x.data_ptr()


def test_files_loaders_and_streams_have_nan_for_what_is_missing(tmp_path):
    np.save(tmp_path / "x.npy", SEEN.numpy())
    mapped = datasets.memory_mapped(tmp_path / "x.npy")
    vae = vae_of_three()
    assert same(read(vae, mapped, "nan"), SEEN)
    assert same(next(iter(DataSource(vae, CPU).rows(mapped, name="x").split(9))), SEEN)
    loader = DataLoader(TensorDataset(SEEN), batch_size=4)
    stream = Endless()
    for x, num_data in ((loader, None), (stream, 4)):
        vae = vae_of_three()
        batches = DataSource(vae, CPU).batches(
            x, batch_size=4, seed=0, num_data=num_data, mask="nan"
        )
        assert same(next(iter(batches.epoch(0))).x, SEEN)
        batches.close()
    for x, kind in ((mapped, "file"), (loader, "DataLoader"), (stream, "Endless")):
        vae = vae_of_three()
        with pytest.raises(ValueError, match=f"mask must be 'nan' for a {kind}.*got a Tensor"):
            DataSource(vae, CPU).batches(x, batch_size=2, seed=0, num_data=None, mask=MASK)
        assert not vae.missing
    with pytest.raises(ValueError, match="x must not contain NaN"):
        DataSource(vae_of_three(), CPU).rows(mapped, name="x")


def test_a_refused_fit_leaves_the_vae_as_it_was_and_autoencoders_take_none():
    vae = vae_of_three()
    with pytest.raises(ValueError, match="infinite"):
        read(vae, torch.full((2, 3), math.inf), "nan")
    assert not vae.missing
    autoencoder = baselines.LinearAutoencoder(3, 1)
    with pytest.raises(ValueError, match="x must be complete for LinearAutoencoder"):
        read(autoencoder, SEEN, "nan")
    with pytest.raises(ValueError, match="x must not contain NaN"):
        autoencoder.encode(SEEN)
    with pytest.raises(ValueError, match="x must not contain NaN"):
        baselines.PCA(1).fit(SEEN)


# --- features ---------------------------------------------------------------------------------


def test_features_without_any_value_are_told_by_name():
    vae = vae_of_three(missing=True)
    vae.columns = ("a", "b", "c")
    x = SEEN.clone()
    x[:, 1] = NAN
    with pytest.warns(UserWarning, match=r"1 feature\(s\) have no observed value \(b\): nothing"):
        vae.check_data(x)


def test_constant_features_are_those_of_their_observed_values():
    vae = vae_of_three(missing=True)
    vae.p_x_given_z = likelihoods.Gaussian(
        vae.p_x_given_z.decoder, (3,), variance=np.ones(3), learn_variance=True
    )
    x = torch.tensor([[1.0, 5.0, NAN], [2.0, NAN, 3.0], [NAN, 5.0, 4.0]])
    with pytest.warns(UserWarning, match=r"1 feature\(s\) are constant \(1\): their learned"):
        vae.check_data(x)
    ends = likelihoods.ContinuousBernoulli(torch.nn.Identity(), (2,))
    with pytest.warns(UserWarning, match=r"1 feature\(s\) are constant at 0 or 1 \(1\)"):
        ends.check_data(torch.tensor([[0.5, NAN], [0.1, 1.0], [NAN, 1.0]]))
    with pytest.warns(UserWarning, match="x holds 0 and 1 alone"):
        ends.check_data(torch.tensor([[1.0, NAN], [0.0, 1.0]]))


@pytest.mark.parametrize("size", [7, 500, 5000])
def test_a_sample_of_rows_has_the_constant_features_of_all_observed_values(size):
    x = torch.randn(5000, 4)
    x[:, 1] = 7.0
    x[1:, 2] = NAN  # seen once
    x[:, 3] = NAN
    x[4001, 3], x[4003, 3] = 1.0, 2.0  # varies, in two rows that even distances miss
    x[torch.rand(5000) < 0.3, 1] = NAN
    sample = Sample(5000)
    for piece in x.split(size):
        sample.add(piece)
    found = likelihoods.data_checks.constant_features(sample.x)[0]
    assert found.tolist() == [False, True, True, False]


# --- diagnostics ------------------------------------------------------------------------------


def test_what_compares_data_with_draws_refuses_missing_values():
    vae, x = missing_vae(), some_missing(torch.randn(30, 4))
    for call in (
        lambda: dg.pit(vae, x),
        lambda: dg.posterior_pit(vae, x),
        lambda: dg.prior_predictive_check(vae, x, {"mean": torch.mean}),
        lambda: dg.posterior_predictive_check(vae, x, {"mean": torch.nanmean}),
        lambda: dg.regularity(vae, x),
        lambda: dg.linear_theory(x, 2, variance=1.0),
    ):
        with pytest.raises(ValueError, match=r"x must be complete for .* missing values"):
            call()


def test_diagnostics_by_rows_take_missing_values():
    vae, x = missing_vae(), some_missing(torch.randn(30, 4))
    x[7] = NAN
    report = dg.collapse_report(vae, x)
    assert report.attrs["verdict"] == "no theory"
    assert "x has missing values" in report.attrs["advice"]
    for found in (
        dg.active_units(vae, x),
        dg.aggregate_kl(vae, x, num_samples=20),
        dg.log_evidence(vae, x, num_samples=50),
        dg.inference_gaps(vae, x[6:8], num_samples=30),
    ):
        assert all(np.isfinite(values).all() for values in found.values())
    evidence = dg.log_evidence(vae, x[7:8], num_samples=50)
    assert abs(float(evidence["log_evidence"][0])) < 1e-12
    table = pv.compare({"one": vae, "two": vae}, x[:5], num_samples=50, gap_rows=2)
    assert len(table) == 2


def test_bits_are_counted_for_observed_dimensions():
    vae, x = missing_vae(), some_missing(torch.randn(30, 4))
    terms = dg.elbo_terms(vae, x, num_samples=2)
    observed = int((~x.isnan()).sum())
    bits = -float(terms["elbo"].sum()) / observed / math.log(2)
    assert dg.bits_per_dim(terms).mean == pytest.approx(bits)
    assert dg.elbo_terms(vae, torch.randn(3, 4), num_samples=2).attrs["num_features"] == 4


# --- devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*KINDS, "per datum"])
def test_nothing_is_made_on_the_default_device(name, dtype):
    vae = missing_vae(likelihood=KINDS.get(name, likelihoods.Gaussian)).to(dtype)
    if name == "per datum":
        table = guides.PerDatumGuide(pv.families.FullCovarianceNormal(2), 9)
        vae = vae.with_guide(table.to(dtype))
    x = some_missing(vae.sample(9))
    x[2] = NAN
    mask, complete = ~x.isnan(), x.nan_to_num(0.5)
    with torch.device("meta"):
        found = vae.prepare(complete, mask=mask).tensor
        source = DataSource(vae, torch.device("cpu"))
        batches = source.batches(complete, batch_size=4, seed=0, mask=mask)
        fit = pv.fit(vae, x, epochs=2, batch_size=4, progress=False)
        terms = dg.elbo_terms(vae, x, num_samples=2)
        made = [found, batches.some_rows().x, vae.encode(x).mean, vae.reconstruct(x)]
        made += [vae.log_importance_weights(x, num_samples=3)]
    assert all(tensor.device.type == "cpu" for tensor in made)
    assert {tensor.dtype for tensor in made} == {dtype}
    assert np.isfinite(terms["elbo"]).all()
    assert np.isfinite(fit.history["elbo"]).all()


def test_per_datum_parameters_of_rows_without_values_stay_where_they_are():
    vae = missing_vae()
    vae = vae.with_guide(guides.PerDatumGuide(pv.families.DiagonalNormal(2), 6))
    x = some_missing(torch.randn(6, 4))
    x[2] = NAN
    pv.fit(vae, x, epochs=3, progress=False)
    moved = vae.q_z_given_x.table.detach().abs().sum(1)
    assert moved[2] == 0
    assert (moved[[0, 1, 3, 4, 5]] > 0).all()
    family = partial(pv.families.LowRankNormal, rank=1)
    assert missing_vae(family=family).encode(x).mean.isfinite().all()


# --- a fit ------------------------------------------------------------------------------------


def test_fit_takes_a_mask_and_declares_that_values_are_missing():
    complete = torch.randn(20, 4)
    x = some_missing(complete)
    mask = ~x.isnan()
    histories = []
    for given, option in (
        (x, {"mask": "nan"}),
        (torch.where(mask, complete, math.inf), {"mask": mask}),
        (np.ma.masked_array(complete.numpy(), ~mask.numpy()), {}),
    ):
        torch.manual_seed(0)
        vae = missing_vae()
        vae.missing = False
        fit = pv.fit(vae, given, epochs=2, batch_size=8, progress=False, validation=x, **option)
        assert vae.missing
        histories.append(fit.history[["elbo", "validation_elbo"]].to_numpy())
    np.testing.assert_array_equal(histories[0], histories[1])
    np.testing.assert_array_equal(histories[0], histories[2])
    user = Programs()
    with pytest.raises(ValueError, match="x must not contain NaN"):
        pv.fit(user, x, epochs=1, progress=False)
