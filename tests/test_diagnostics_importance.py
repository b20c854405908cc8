import logging
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from test_diagnostics_elbo import BestDiagonal
from test_traces_runs import TwoLevel

from pyro_vae import diagnostics, distributions, families
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics.evidence import importance


class Wide(distributions.DistributionModule):
    """The exact posterior with its scale multiplied: light tails of weights."""

    def __init__(self, truth, factor):
        super().__init__()
        self.truth, self.factor = truth, factor
        self.event_shape = torch.Size([truth.latent_dim])

    def forward(self, x):
        posterior = self.truth.posterior(x)
        return dist.MultivariateNormal(
            posterior.loc, scale_tril=self.factor * posterior.scale_tril
        )


def test_no_error_at_the_exact_posterior():
    data = linear_gaussian(9, features=6, latent_dim=3, variance=0.2, seed=1)
    evidence = diagnostics.log_evidence(linear_vae(data.truth), data.x, num_samples=100)
    np.testing.assert_allclose(evidence["log_evidence"], data.log_evidence, atol=1e-10)
    np.testing.assert_allclose(evidence["elbo"], data.log_evidence, atol=1e-10)
    np.testing.assert_allclose(evidence["ess"], 100, rtol=1e-9)
    assert evidence["mcse"].max() < 1e-10
    assert (evidence["pareto_khat"] < 0.5).all()
    assert diagnostics.evidence_summary(evidence).attrs["khat_share_above"] == 0


@pytest.mark.parametrize("smoothed", [False, True])
def test_errors_are_those_of_the_closed_form(smoothed):
    data = linear_gaussian(300, features=6, latent_dim=3, variance=0.2, seed=1)
    vae = linear_vae(data.truth, guide=Wide(data.truth, 1.3))
    evidence = diagnostics.log_evidence(vae, data.x, num_samples=400, smoothed=smoothed)
    z = (evidence["log_evidence"] - data.log_evidence.numpy()) / evidence["mcse"]
    assert abs(z).max() < 5.2  # 300 comparisons at 2e-7 each
    assert abs(float((z**2).mean()) - 1) < MAX_Z * math.sqrt(2 / 300) + 0.05
    elbo_gap = data.log_evidence.numpy() - evidence["elbo"]
    expected = 3 * (0.5 * (1.3**2 - 1) - math.log(1.3))  # KL of the wide guide, in each of k = 3
    assert abs(float(elbo_gap.mean()) - expected) < MAX_Z * float(
        np.sqrt((evidence["elbo_mcse"] ** 2).sum()) / 300
    )


def test_smoothed_evidence_is_the_mean_of_the_smoothed_weights():
    log_weights = 2 * torch.randn(500, 3)
    estimates = diagnostics.importance_estimates(log_weights, smoothed=True)
    smoothed = diagnostics.smoothed_log_weights(log_weights)
    expected = smoothed.exp().mean(0).log()
    torch.testing.assert_close(estimates["log_evidence"], expected, rtol=0, atol=1e-12)
    raw = diagnostics.importance_estimates(log_weights)
    assert ((estimates["log_evidence"] - raw["log_evidence"]).abs() > 1e-3).all()
    assert torch.equal(estimates["pareto_khat"], raw["pareto_khat"])


def test_bias_and_error_follow_the_chi_square_divergence():
    data = linear_gaussian(400, features=6, latent_dim=3, variance=0.2, seed=2)
    guide = BestDiagonal(data.truth)
    precision = data.truth.posterior(data.x[:1]).precision_matrix[0]
    scales = precision.diagonal().rsqrt()
    rho = scales[:, None] * precision * scales
    assert torch.linalg.eigvalsh(rho)[0] > 0.5  # k-hat below 1/2: finite variance
    chi_square = float(rho.det() / (2 * rho - torch.eye(3)).det().sqrt() - 1)
    evidence = diagnostics.log_evidence(
        linear_vae(data.truth, guide=guide), data.x, num_samples=1000
    )
    relative_variance = float((evidence["mcse"] ** 2).mean() * 1000)
    assert abs(relative_variance / chi_square - 1) < 0.1
    ess = float((1000 / evidence["ess"] - 1).mean())
    assert abs(ess / chi_square - 1) < 0.1


def test_elbo_is_below_the_evidence_which_grows_with_the_draws():
    vae, x = small_vae(family=families.DiagonalNormal, variance=0.3), torch.randn(200, 6)
    few = diagnostics.log_evidence(vae, x, num_samples=10)
    many = diagnostics.log_evidence(vae, x, num_samples=500)
    assert (few["elbo"] <= few["log_evidence"] + 1e-12).all()
    difference = many["log_evidence"] - few["log_evidence"]
    z = float(difference.mean() / (difference.std() / math.sqrt(200)))
    assert z > MAX_Z


def test_result_does_not_depend_on_the_chunk_nor_a_row_on_the_values_of_others():
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(7, 6)
    whole = diagnostics.log_evidence(vae, x, num_samples=100)
    chunks = diagnostics.log_evidence(vae, x, num_samples=100, chunk_size=11)
    other = x.clone()
    other[1:] = 0.5
    changed = diagnostics.log_evidence(vae, other, num_samples=100)
    for name in whole:
        np.testing.assert_allclose(chunks[name], whole[name], atol=1e-9)
        np.testing.assert_allclose(changed[name][0], whole[name][0], atol=1e-9)


def test_pieces_have_noise_of_their_own(monkeypatch):
    vae, x = small_vae(family=families.DiagonalNormal), torch.zeros(6, 6)
    monkeypatch.setattr(importance, "ROWS_AT_A_TIME", 3)
    evidence = diagnostics.log_evidence(vae, x, num_samples=20)
    assert len(np.unique(evidence["log_evidence"])) == 6


def test_untrustworthy_figures_are_said_aloud(caplog):
    data = linear_gaussian(20, features=6, latent_dim=3, variance=0.05, seed=1)
    narrow = linear_vae(data.truth, guide=Wide(data.truth, 0.3))  # k = 1 - 0.09
    with caplog.at_level(logging.WARNING):
        evidence = diagnostics.log_evidence(narrow, data.x, num_samples=2000)
    share = diagnostics.evidence_summary(evidence).attrs["khat_share_above"]
    assert share > 0.5
    assert "pareto_khat is above 0.70 for" in caplog.text
    assert f"for {round(20 * share)} of 20 data" in caplog.text


def test_too_few_draws_certify_nothing(caplog):
    vae, x = small_vae(family=families.DiagonalNormal, variance=0.1), 9 * torch.randn(5, 6)
    with caplog.at_level(logging.WARNING):
        evidence = diagnostics.log_evidence(vae, x, num_samples=20)
    assert np.isnan(evidence["pareto_khat"]).all()
    assert math.isnan(diagnostics.evidence_summary(evidence).attrs["khat_share_above"])
    assert "20 draws are too few for a pareto_khat" in caplog.text


def test_weights_that_are_not_finite_are_counted_and_told(caplog):
    class Impossible(TwoLevel):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                z1 = pyro.sample("z1", dist.Normal(z2.sum(-1), 0.5))
                log_prob = torch.where(x > 0, torch.zeros_like(z1), -math.inf)
                pyro.sample("x", dist.Delta(x, log_density=log_prob), obs=x)

    x = torch.tensor([1.0, -1.0, 2.0])
    with caplog.at_level(logging.WARNING):
        evidence = diagnostics.log_evidence(Impossible(), x, num_samples=100)
    assert np.isneginf(evidence["log_evidence"][1])
    assert diagnostics.evidence_summary(evidence).attrs["khat_share_above"] >= 1 / 3
    assert "not finite for 1 of 3 data" in caplog.text


def test_rounding_of_single_precision_is_no_tail():
    data = linear_gaussian(9, features=200, latent_dim=3, variance=0.2, seed=1)
    vae = linear_vae(data.truth)
    with torch.no_grad():
        log_weights = vae.log_importance_weights(data.x, num_samples=1000)
    noisy = (log_weights + 2e-5 * torch.randn(1000, 9)).float()
    khat = diagnostics.importance_estimates(noisy)["pareto_khat"]
    assert khat.tolist() == [0.0] * 9


def test_error_of_the_gap_is_that_of_repetitions():
    data = linear_gaussian(300, features=6, latent_dim=3, variance=0.2, seed=1)
    vae = linear_vae(data.truth, guide=Wide(data.truth, 1.3))
    values, errors = [], []
    for seed in range(40):
        evidence = diagnostics.log_evidence(vae, data.x, num_samples=200, seed=seed)
        values.append(evidence["gap"].to_numpy())
        errors.append(evidence["gap_mcse"].to_numpy())
    ratio = np.var(values, axis=0, ddof=1).mean() / np.square(errors).mean()
    assert abs(ratio - 1) < MAX_Z * math.sqrt(2 / (39 * 300)) + 0.05


def test_summary_has_means_and_both_errors():
    vae, x = small_vae(family=families.DiagonalNormal, variance=0.3), torch.randn(50, 6)
    evidence = diagnostics.log_evidence(vae, x, num_samples=200)
    summary = diagnostics.evidence_summary(evidence)
    gap = (evidence["log_evidence"] - evidence["elbo"]).to_numpy()
    assert abs(summary.loc["inference_gap", "mean"] - gap.mean()) < 1e-12
    assert abs(summary.loc["inference_gap", "se"] - gap.std(ddof=1) / math.sqrt(50)) < 1e-12
    error = math.sqrt(float((evidence["mcse"] ** 2).sum())) / 50
    assert abs(summary.loc["log_evidence", "mcse"] - error) < 1e-12
    assert summary.attrs["smallest_ess"] == float(evidence["ess"].min())


def test_one_draw_is_an_elbo_without_an_error_to_tell():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(3, 6)
    evidence = diagnostics.log_evidence(vae, x, num_samples=1)
    np.testing.assert_array_equal(evidence["log_evidence"], evidence["elbo"])
    assert np.isnan(evidence["mcse"]).all()


@pytest.mark.parametrize("name", ["num_samples", "chunk_size"])
def test_sizes_must_be_positive_integers(name):
    vae = small_vae(family=families.DiagonalNormal)
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        diagnostics.log_evidence(vae, torch.randn(3, 6), **{name: 0})
