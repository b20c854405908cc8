"""Imputations against the conditional normal, which a masked linear Gaussian model knows."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FALSE_ALARM_RATE, MAX_Z
from scipy import stats
from test_missing import KINDS, NAN, exact_vae, missing_vae, some_missing
from torch import nn

import pyro_vae as pv
from pyro_vae import distributions, priors
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics.evidence.pareto import pareto_khat, smoothed_log_weights
from pyro_vae.evaluation import evaluating
from pyro_vae.imputation import impute


class WiderPosterior(nn.Module):
    """The exact posterior with its standard deviations multiplied: weights then vary."""

    takes_missing = True

    def __init__(self, exact, factor=1.3):
        super().__init__()
        self.exact, self.factor, self.event_shape = exact, factor, exact.event_shape

    def forward(self, x):
        q = self.exact(x)
        return distributions.CholeskyNormal(q.loc, scale_tril=self.factor * q.scale_tril)


@pytest.fixture(scope="module")
def masked_linear():
    torch.set_default_dtype(torch.float64)
    data = linear_gaussian(6, features=5, latent_dim=2, variance=0.4, seed=2)
    x = some_missing(data.x, seed=4)
    x[3] = NAN
    return data.truth, x


def conditional(truth, row):
    """Mean and covariance of the missing entries of a row given the others."""
    covariance = truth.weight @ truth.weight.mT + truth.variance * torch.eye(len(row))
    m, o = row.isnan().nonzero().flatten(), (~row.isnan()).nonzero().flatten()
    gain = torch.linalg.solve(covariance[o][:, o], covariance[o][:, m]).mT
    mean = truth.mean[m] + gain @ (row[o] - truth.mean[o])
    return m, mean, covariance[m][:, m] - gain @ covariance[o][:, m]


@pytest.mark.parametrize("exact", [True, False])
def test_imputations_are_the_conditional_normal(masked_linear, exact):
    truth, x = masked_linear
    vae = exact_vae(truth)
    if not exact:
        vae = vae.with_guide(WiderPosterior(vae.q_z_given_x))
    found = impute(vae, x, num_draws=4000, num_samples=4000, seed=1)
    assert float(found["pareto_khat"].max()) < 0.5
    assert exact == bool((found["ess"] > 3999).all())
    for i, row in enumerate(x):
        m, mean, covariance = conditional(truth, row)
        sd = covariance.diagonal().sqrt()
        draws = torch.from_numpy(found["x"][:, i].to_numpy())
        assert torch.equal(draws[:, ~row.isnan()], row[~row.isnan()].expand(4000, -1))
        if len(m) == 0:
            continue
        # Drawn twice: z from the weighted draws, and x from each. The errors add.
        se = sd / math.sqrt(4000) * math.sqrt(1 + 4000 / float(found["ess"][i]))
        assert ((draws[:, m].mean(0) - mean) / se).abs().max() < MAX_Z
        z = (torch.cov(draws[:, m].mT).reshape(len(m), -1) - covariance) * math.sqrt(1000)
        assert (z / torch.outer(sd, sd)).abs().max() < MAX_Z
        error = torch.from_numpy(found["mean_mcse"][i].to_numpy())[m]
        assert error.gt(0).all()
        exact_error = (torch.from_numpy(found["mean"][i].to_numpy())[m] - mean).abs()
        assert (exact_error / error).max() < MAX_Z
        np.testing.assert_allclose(found["sd"][i].to_numpy()[m], sd, rtol=0.1)


def test_observed_entries_have_themselves_as_mean(masked_linear):
    truth, x = masked_linear
    found = impute(exact_vae(truth), x, num_draws=3, num_samples=50)
    observed = ~x.isnan().numpy()
    assert (found["mean"].to_numpy()[observed] == x.numpy()[observed]).all()
    assert (found["sd"].to_numpy()[observed] == 0).all()
    assert (found["mean_mcse"].to_numpy()[observed] == 0).all()
    assert (found["sd"].to_numpy()[~observed] > 0).all()
    assert found["x"].dims == ("draw", "obs_id", "feature")
    assert dict(found.sizes) == {"draw": 3, "obs_id": 6, "feature": 5}


def test_result_depends_on_the_seed_and_not_on_chunks_or_the_global_state(masked_linear):
    truth, x = masked_linear
    vae = exact_vae(truth)
    state = torch.get_rng_state()
    one = impute(vae, x, num_draws=4, num_samples=60)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    again = impute(vae, x, num_draws=4, num_samples=60, chunk_size=7)
    other = impute(vae, x, num_draws=4, num_samples=60, seed=1)
    missing = x.isnan().numpy()
    for name in ("x", "mean", "sd", "mean_mcse", "ess", "pareto_khat"):
        np.testing.assert_allclose(one[name], again[name], rtol=1e-9, atol=1e-9)
    assert not np.allclose(one["x"].to_numpy()[:, missing], other["x"].to_numpy()[:, missing])


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_error_of_the_mean_and_sd_are_what_copies_of_a_row_show(masked_linear, factor):
    truth, x = masked_linear
    vae = exact_vae(truth)
    vae = vae.with_guide(WiderPosterior(vae.q_z_given_x, factor=factor))
    copies, num_samples = 500, 1000
    row = x[1]
    m, mean, covariance = conditional(truth, row)
    assert len(m) > 0
    found = impute(vae, row.expand(copies, -1), num_draws=1, num_samples=num_samples, seed=3)
    means, errors, sds = (found[name].to_numpy()[:, m] for name in ("mean", "mean_mcse", "sd"))
    # Each copy has draws of its own. False alarm: FALSE_ALARM_RATE for each missing entry.
    ratio = (copies - 1) * means.var(0, ddof=1) / np.square(errors).mean(0)
    low, high = stats.chi2.ppf([FALSE_ALARM_RATE / 2, 1 - FALSE_ALARM_RATE / 2], copies - 1)
    assert ((ratio > low) & (ratio < high)).all()
    assert (abs(means.mean(0) - mean.numpy()) / stats.sem(means)).max() < MAX_Z
    # The variance between S draws comes out smaller by about 1 / S of itself.
    variance = covariance.diagonal().numpy()
    expected = variance - (variance - truth.variance) / found["ess"].to_numpy().mean()
    assert (abs(np.square(sds).mean(0) - expected) / stats.sem(np.square(sds))).max() < MAX_Z


def test_weights_with_a_heavy_tail_are_smoothed(masked_linear):
    truth, x = masked_linear
    row = x[1:2]
    missing = row[0].isnan()
    vae = exact_vae(truth)
    vae = vae.with_guide(WiderPosterior(vae.q_z_given_x, factor=0.6))
    found = impute(vae, row, num_draws=1, num_samples=1000, seed=5)
    with evaluating(vae, 5, "imputation", 0, device=torch.device("cpu")):
        q = vae.encode(row)
        z = q.sample((1000,))[:, 0]
        log_q = q.log_prob(z.unsqueeze(1))[:, 0]
    means = truth.mean + z @ truth.weight.mT
    p = torch.distributions.Normal(means, math.sqrt(truth.variance))
    log_p = p.log_prob(row[0].nan_to_num())[:, ~missing].sum(1)
    log_p += torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    raw = (log_p - log_q).unsqueeze(1)
    weights = smoothed_log_weights(raw).softmax(0)
    ess, raw_ess = (1 / w.square().sum() for w in (weights, raw.softmax(0)))
    assert pareto_khat(raw) > 0.5
    assert abs(ess - raw_ess) > 1e-3 * ess
    np.testing.assert_allclose(found["ess"][0], ess, rtol=1e-6)
    np.testing.assert_allclose(found["pareto_khat"], pareto_khat(raw), rtol=1e-6)
    expected = (weights * means).sum(0)[missing]
    np.testing.assert_allclose(found["mean"][0].to_numpy()[missing], expected, rtol=1e-6)


def test_nothing_is_known_where_no_draw_has_a_density(masked_linear):
    truth, x = masked_linear
    x = x[:2].clone()
    x[:] = torch.where(torch.arange(5) < 2, 0.0, NAN)
    x[1, 0] = 1e200  # whose square is infinite
    found = impute(exact_vae(truth), x, num_draws=2, num_samples=200)
    for name in ("ess", "pareto_khat"):
        assert np.isnan(found[name].to_numpy()).tolist() == [False, True]
    for name in ("mean", "sd", "mean_mcse"):
        assert np.isnan(found[name].to_numpy()).sum(1).tolist() == [0, 3]
    assert np.isnan(found["x"].to_numpy()).sum((0, 2)).tolist() == [0, 6]
    assert (found["mean"][1, :2].to_numpy() == x[1, :2].numpy()).all()


def test_complete_rows_stay_as_they_are_and_so_does_x(masked_linear):
    truth, x = masked_linear
    x = torch.cat([x, torch.ones(1, 5)])
    before = x.clone()
    found = impute(exact_vae(truth), x, num_draws=2, num_samples=200)
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
    assert (found["x"][:, -1] == 1).all()
    assert (found["mean"][-1] == 1).all()
    assert (found["sd"][-1] == 0).all()
    assert float(found["pareto_khat"][-1]) == 0
    assert float(found["ess"][-1]) == 200


@pytest.mark.parametrize("name", KINDS)
def test_every_likelihood_imputes_in_its_support(name):
    vae = missing_vae(likelihood=KINDS[name])
    x = some_missing(vae.sample(4))
    found = impute(vae, x, num_draws=5, num_samples=30)
    drawn = torch.from_numpy(found["x"].to_numpy()).reshape(-1, 4)
    vae.p_x_given_z.check_support(drawn)
    assert drawn.isfinite().all()
    assert np.isfinite(found["mean"]).all()
    assert np.isfinite(found["sd"]).all()


def test_mask_in_place_of_nan_and_names_of_a_table():
    vae = pv.gaussian_vae(features=3, latent_dim=1, hidden=())
    x = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, math.inf], "c": [5.0, 6.0]})
    mask = pd.DataFrame({"c": [True, True], "b": [True, False], "a": [True, True]})
    found = impute(vae, x, mask=mask, num_draws=2, num_samples=30)
    assert not vae.missing
    assert list(found["feature"].to_numpy()) == ["a", "b", "c"]
    assert found["mean"].sel(feature="b").to_numpy()[0] == 3
    assert np.isfinite(found["mean"]).all()
    assert found["sd"].sel(feature="b").to_numpy()[1] > 0
    same = impute(vae, np.where(mask[["a", "b", "c"]], x, np.nan), mask="nan", num_draws=2,
                  num_samples=30)  # fmt: skip
    np.testing.assert_array_equal(found["x"], same["x"])
    masked = np.ma.masked_array(x.to_numpy(), ~mask[["a", "b", "c"]].to_numpy())
    again = impute(vae, masked, num_draws=2, num_samples=30)
    np.testing.assert_array_equal(found["x"], again["x"])


def test_what_cannot_be_imputed_is_refused():
    vae = pv.gaussian_vae(features=3, latent_dim=1)
    with pytest.raises(ValueError, match="x must not contain NaN"):
        impute(vae, [[1.0, NAN, 2.0]])
    with pytest.raises(TypeError, match=r"vae must be a pyro_vae\.VAE"):
        impute(nn.Linear(3, 1), [[1.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match="mask must have the shape of x"):
        impute(vae, [[1.0, NAN, 2.0]], mask=[True])
    with pytest.raises(ValueError, match="num_draws must"):
        impute(vae, [[1.0, 2.0, 2.0]], num_draws=0)


def test_a_guide_that_misses_the_posterior_is_told_of(masked_linear, caplog):
    truth, x = masked_linear
    vae = exact_vae(truth)
    impute(vae, x, num_draws=2, num_samples=100)
    assert caplog.text == ""
    narrow = vae.with_guide(WiderPosterior(vae.q_z_given_x, factor=0.1))
    impute(narrow, x, num_draws=2, num_samples=1000)
    assert "incomplete rows" in caplog.text


def test_images_and_float32_and_nothing_on_the_default_device():
    vae = pv.make_vae(
        features=(2, 8, 8),
        latent_dim=2,
        likelihood=pv.likelihoods.Gaussian,
        encoder=pv.networks.ConvEncoder,
        decoder=pv.networks.ConvDecoder,
        prior=priors.StandardNormal,
        missing=True,
    ).to(torch.float32)
    x = some_missing(torch.randn(3, 2, 8, 8, dtype=torch.float32))
    x[1] = NAN
    with torch.device("meta"):
        found = impute(vae, x, num_draws=2, num_samples=30, chunk_size=20)
    assert found["x"].dims == ("draw", "obs_id", "channel", "row", "col")
    assert np.isfinite(found["x"]).all()
