"""Missing values in diagnostics: judged where they are, or refused with a reason."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import linear_vae
from test_missing import ExactMaskedPosterior, exact_vae, missing_vae, some_missing
from torch import nn

import pyro_vae as pv
from pyro_vae import diagnostics as dg
from pyro_vae import families, guides, likelihoods, networks, priors
from pyro_vae.datasets import Dataset, linear_gaussian

NAN = math.nan


@pytest.fixture(scope="module")
def data():
    torch.set_default_dtype(torch.float64)
    return linear_gaussian(50, features=5, latent_dim=2, variance=0.4, seed=2)


# --- what needs complete rows -----------------------------------------------------------------


def test_a_refusal_warns_of_complete_rows_and_of_imputed_ones():
    vae, x = missing_vae(), some_missing(torch.randn(30, 4))
    for call in (
        lambda: dg.pit(vae, x),
        lambda: dg.posterior_pit(vae, x),
        lambda: dg.prior_predictive_check(vae, x, {"mean": torch.mean}),
        lambda: dg.regularity(vae, x),
        lambda: dg.linear_theory(x, 2, variance=1.0),
    ):
        with pytest.raises(ValueError, match="missing completely at random") as raised:
            call()
        assert "the model judges its own draws" in str(raised.value)
        assert "impute" not in str(raised.value).replace("in imputed ones", "")


@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian, likelihoods.LogNormal])
def test_pit_of_complete_features_is_that_of_the_same_x_without_gaps(likelihood):
    vae = missing_vae(likelihood=likelihood)
    complete = vae.sample(60).double()
    x = complete.clone()
    x[::2, 1], x[1::3, 3] = NAN, NAN
    frame = pd.DataFrame(x.numpy(), columns=list("abcd"))
    expected = dg.pit(vae, complete, features=[0, 2], num_samples=19)
    assert expected.attrs["cdf_is_averaged"] == 1
    assert expected.identical(dg.pit(vae, x, features=[0, 2], num_samples=19))
    named = dg.pit(vae, frame, features=["c", "a"], num_samples=19)
    np.testing.assert_array_equal(named["rank"].sel(feature="c"), expected["rank"][:, 1])
    for features in ([0, 1], None, {"first": lambda x: x[:, 0]}):
        with pytest.raises(ValueError, match=r"Ask pit for features=\[...\] that every row has"):
            dg.pit(vae, x, features=features, num_samples=19)
    with pytest.raises(ValueError, match=r"must be complete") as raised:
        dg.posterior_pit(vae, x, features=[0, 2], num_samples=19)
    assert "Ask pit" not in str(raised.value)


# --- simulation-based calibration -------------------------------------------------------------


def test_sbc_passes_a_guide_that_is_exact_whatever_is_missing(data):
    x = some_missing(data.x)
    x[3] = NAN  # q is the prior there
    vae, state = exact_vae(data.truth), torch.get_rng_state()
    found = dg.sbc(vae, 1000, 99, like=x, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert found.attrs["verdict"] == "calibrated"
    # A share of S rows drawn with replacement.
    shares = x.isnan().double().mean(1)
    error = float(shares.std()) / math.sqrt(1000)
    assert abs(found.attrs["share_missing"] - float(shares.mean())) < 5 * error
    assert found.identical(dg.sbc(vae, 1000, 99, like=x, seed=3))
    masked = np.ma.masked_invalid(x.numpy())
    assert found.identical(dg.sbc(vae, 1000, 99, like=masked, seed=3))


def test_sbc_fails_a_guide_that_takes_missing_values_for_zeros_only_where_there_are_some(data):
    vae = linear_vae(data.truth)
    vae.declare_missing()
    alone = dg.sbc(vae, 1000, 99)
    assert alone.attrs["verdict"] == "calibrated"
    assert alone.attrs["share_missing"] == 0
    assert dg.sbc(vae, 1000, 99, like=data.x).attrs["verdict"] == "calibrated"
    found = dg.sbc(vae, 1000, 99, like=some_missing(data.x))
    assert found.attrs["verdict"] == "not calibrated"
    # It takes a zero for a measurement, and is too sure.
    assert float(found["coverage"].sel(level=0.9).min()) < 0.85


def test_sbc_imposes_whole_patterns_of_rows_and_hides_the_values(data):
    seen = []

    class Watched(ExactMaskedPosterior):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    vae = exact_vae(data.truth).with_guide(Watched(data.truth))
    like = data.x[:3].clone()
    like[0, :2], like[1, 4] = NAN, NAN
    dg.sbc(vae, 300, 9, like=like)
    patterns = {tuple(row) for x in seen for row in x.isnan().tolist()}
    assert patterns == {tuple(row) for row in like.isnan().tolist()}


def test_gaps_stay_on_the_device_of_the_data():
    vae, x = missing_vae(), some_missing(torch.randn(9, 4))
    x[:, 0] = 1.0
    with torch.device("meta"):
        assert dg.sbc(vae, 20, 9, like=x).attrs["share_missing"] > 0
        assert dg.pit(vae, x, features=[0], num_samples=9)["rank"].max() <= 9


def test_sbc_refuses_gaps_where_none_are_declared(data):
    with pytest.raises(ValueError, match="like must not contain NaN"):
        dg.sbc(linear_vae(data.truth), 10, 9, like=some_missing(data.x))


# --- pseudo-inputs ----------------------------------------------------------------------------


def masked_guide(features=3):
    family = families.DiagonalNormal(2)
    encoder = networks.WithMask(nn.Linear(2 * features, family.num_params))
    return guides.AmortizedGuide(family, encoder)


GAPS = torch.tensor([[1.0, NAN, NAN], [3.0, 2.0, NAN], [NAN, 6.0, NAN]], dtype=torch.float64)
FILLED = [[1.0, 4.0, 0.0], [2.0, 6.0, 0.0], [3.0, 2.0, 0.0]]


@pytest.mark.parametrize("kind", ["tensor", "masked", "table", "dataset"])
def test_pseudo_inputs_of_data_with_gaps_start_at_column_means(kind):
    given = {
        "tensor": GAPS,
        "masked": np.ma.masked_array(GAPS.nan_to_num(nan=1e30).numpy(), GAPS.isnan().numpy()),
        "table": pd.DataFrame(GAPS.numpy(), columns=list("abc")),
        "dataset": Dataset("gaps", GAPS, missing=True),
    }[kind]
    kept, guide = GAPS.clone(), masked_guide()
    with torch.device("meta"):
        prior = priors.VampPrior.from_data(guide, given, num_components=3, missing=True)
    assert sorted(prior.pseudo_inputs.tolist()) == FILLED
    assert torch.equal(GAPS.nan_to_num(7.0), kept.nan_to_num(7.0))
    with pytest.raises(ValueError, match=r"unless missing=True; got 5 that are NaN or masked"):
        priors.VampPrior.from_data(masked_guide(), given, num_components=3)


def test_a_vae_of_missing_data_fits_with_pseudo_inputs_from_them():
    vae = missing_vae()
    x = some_missing(torch.randn(40, 4))
    prior = priors.VampPrior.from_data(vae.q_z_given_x, x, num_components=5, missing=True)
    fit = pv.fit(vae.with_prior(prior), x, epochs=2, progress=False)
    assert np.isfinite(fit.history["elbo"]).all()
