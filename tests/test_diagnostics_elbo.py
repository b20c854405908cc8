import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae

from pyro_vae import diagnostics, distributions, families
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics import elbo

DIAGONAL, FULL = families.DiagonalNormal, families.FullCovarianceNormal


class BestDiagonal(distributions.DistributionModule):
    """The diagonal guide that is closest to the posterior: FORMULAS (a)."""

    def __init__(self, truth):
        super().__init__()
        self.truth, self.event_shape = truth, torch.Size([truth.latent_dim])

    def forward(self, x):
        posterior = self.truth.posterior(x)
        variance = 1 / posterior.precision_matrix.diagonal(dim1=-2, dim2=-1)
        return dist.Normal(posterior.mean, variance.sqrt()).to_event(1)


def test_gap_of_the_best_diagonal_guide_is_the_closed_form():
    data = linear_gaussian(500, features=6, latent_dim=3, variance=0.2, seed=1)
    vae = linear_vae(data.truth, guide=BestDiagonal(data.truth))
    terms = diagnostics.elbo_terms(vae, data.x, num_samples=400)
    gap = (data.log_evidence - torch.from_numpy(terms["elbo"].to_numpy())).mean().item()
    row = diagnostics.elbo_summary(terms).loc["elbo"]
    expected = float(data.truth.best_diagonal_gap())
    assert expected > 0.1
    assert abs(gap - expected) < MAX_Z * row["mcse"]


@pytest.mark.parametrize("family", [DIAGONAL, FULL])
def test_kl_is_analytic_and_terms_add_up(family):
    vae, x = small_vae(family=family), torch.randn(7, 6)
    terms = diagnostics.elbo_terms(vae, x, num_samples=5)
    q = vae.encode(x)
    covariance = getattr(q, "covariance_matrix", q.variance.diag_embed()).detach()
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    kl = 0.5 * (trace + q.mean.detach().square().sum(-1) - 3 - torch.logdet(covariance))
    np.testing.assert_allclose(terms["kl"], kl, atol=1e-12)
    np.testing.assert_allclose(
        terms["elbo"], terms["expected_log_likelihood"] - terms["kl"], atol=1e-12
    )
    assert terms.attrs["kl_is_analytic"] == 1
    assert (terms["kl_mcse"] == 0).all()
    assert ("kl_per_dim" in terms) == (family is DIAGONAL)
    if family is DIAGONAL:
        np.testing.assert_allclose(terms["kl_per_dim"].sum("latent"), terms["kl"], atol=1e-12)


def test_monte_carlo_errors_are_those_of_repetitions():
    vae, x = small_vae(family=DIAGONAL, variance=0.3), torch.randn(3, 6)
    values, errors = [], []
    for seed in range(300):
        terms = diagnostics.elbo_terms(vae, x, num_samples=50, seed=seed)
        values.append(terms["elbo"].to_numpy())
        errors.append(terms["elbo_mcse"].to_numpy())
    ratio = np.std(values, axis=0) / np.sqrt(np.mean(np.square(errors), axis=0))
    # The s.d. of 300 normal values has a relative error of 1 / sqrt(600); draws are heavier.
    assert (abs(ratio - 1) < 2 * MAX_Z / math.sqrt(600)).all()


def test_result_does_not_depend_on_pieces_and_the_random_state_is_left_alone(monkeypatch):
    data = linear_gaussian(9, features=6, latent_dim=3, variance=0.2, seed=1)
    vae = linear_vae(data.truth)
    state = torch.get_rng_state()
    whole = diagnostics.elbo_terms(vae, data.x, num_samples=3)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(elbo, "ROWS_AT_A_TIME", 2)
    pieces = diagnostics.elbo_terms(vae, data.x, num_samples=3)
    assert pieces["elbo"].shape == whole["elbo"].shape
    np.testing.assert_allclose(pieces["kl"], whole["kl"], atol=1e-12)


def test_module_is_evaluated_in_evaluation_mode():
    vae, x = small_vae(family=DIAGONAL), torch.randn(5, 6)
    vae.q_z_given_x.encoder.layers.append(torch.nn.Dropout(0.9))
    first = diagnostics.elbo_terms(vae, x, seed=1)["kl"]
    second = diagnostics.elbo_terms(vae, x, seed=2)["kl"]
    np.testing.assert_array_equal(first, second)
    assert vae.training


def test_summary_has_both_errors():
    vae, x = small_vae(family=FULL), torch.randn(40, 6)
    terms = diagnostics.elbo_terms(vae, x, num_samples=8)
    summary = diagnostics.elbo_summary(terms)
    values = terms["elbo"].to_numpy()
    row = summary.loc["elbo"]
    assert abs(row["mean"] - values.mean()) < 1e-12
    assert abs(row["se"] - np.sqrt(np.var(values, ddof=1) / 40)) < 1e-12
    assert abs(row["mcse"] - np.sqrt((terms["elbo_mcse"] ** 2).mean() / 40)) < 1e-12
    assert summary.loc["kl", "mcse"] == 0


def test_one_draw_has_no_monte_carlo_error_to_tell():
    terms = diagnostics.elbo_terms(small_vae(family=FULL), torch.randn(3, 6), num_samples=1)
    assert np.isnan(terms["elbo_mcse"]).all()
    assert np.isfinite(terms["elbo"]).all()


def test_ledger_has_no_error_at_the_exact_posterior():
    data = linear_gaussian(9, features=6, latent_dim=3, variance=0.2, seed=1)
    terms = diagnostics.elbo_terms(linear_vae(data.truth), data.x, num_samples=2)
    np.testing.assert_allclose(terms["elbo"], data.log_evidence, atol=1e-10)
    assert terms["elbo_mcse"].max() < 1e-10


@pytest.mark.parametrize("num_samples", [0, -1, 1.5, True])
def test_number_of_draws_must_be_a_positive_integer(num_samples):
    with pytest.raises(ValueError, match="num_samples must be a positive integer"):
        diagnostics.elbo_terms(small_vae(family=FULL), torch.zeros(2, 6), num_samples=num_samples)
