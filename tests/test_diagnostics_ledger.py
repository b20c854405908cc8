"""The ledger: cross-entropy, entropy, sites, totals and bits."""

import math

import numpy as np
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from test_traces_runs import TwoLevel

from pyro_vae import diagnostics, families, priors
from pyro_vae.datasets import linear_gaussian


def entropy_of(vae, x):
    """Of a normal, from its covariance."""
    q = vae.encode(x)
    covariance = getattr(q, "covariance_matrix", q.variance.diag_embed()).detach()
    return 0.5 * torch.logdet(2 * math.pi * math.e * covariance)


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_entropy_and_cross_entropy_are_the_closed_forms(family):
    vae, x = small_vae(family=family), torch.randn(7, 6)
    terms = diagnostics.elbo_terms(vae, x, num_samples=5)
    q = vae.encode(x)
    second_moments = (q.variance + q.mean.square()).detach().sum(-1)
    cross_entropy = 0.5 * (second_moments + 3 * math.log(2 * math.pi))
    np.testing.assert_allclose(terms["entropy"], entropy_of(vae, x), atol=1e-12)
    np.testing.assert_allclose(terms["cross_entropy"], cross_entropy, atol=1e-12)
    assert terms["entropy_mcse"].max() == terms["cross_entropy_mcse"].max() == 0
    assert terms.attrs["entropy_is_analytic"] == terms.attrs["cross_entropy_is_analytic"] == 1
    if family is families.DiagonalNormal:
        for name in ("kl", "entropy", "cross_entropy"):
            np.testing.assert_allclose(
                terms[f"{name}_per_dim"].sum("latent"), terms[name], atol=1e-12
            )


def test_cross_entropy_with_a_mixture_prior_is_sampled_and_right():
    vae = small_vae(family=families.DiagonalNormal).with_prior(
        priors.GaussianMixture(3, num_components=2)
    )
    x = torch.randn(5, 6)
    terms = diagnostics.elbo_terms(vae, x, num_samples=4000)
    assert terms.attrs["entropy_is_analytic"] == 1
    assert terms.attrs["cross_entropy_is_analytic"] == 0
    with torch.no_grad():
        draws = -vae.p_z().log_prob(vae.encode(x).sample((100_000,)))
    z = (terms["cross_entropy"] - draws.mean(0).numpy()) / np.hypot(
        terms["cross_entropy_mcse"], draws.std(0).numpy() / math.sqrt(100_000)
    )
    assert abs(z).max() < MAX_Z


def test_terms_of_a_flow_are_sampled_and_add_up():
    vae, x = small_vae(family=families.Flow), torch.randn(5, 6)
    terms = diagnostics.elbo_terms(vae, x, num_samples=400)
    with torch.no_grad():
        q = vae.encode(x)
        draws = -q.log_prob(q.rsample((4000,)))
    z = (terms["entropy"] - draws.mean(0).numpy()) / np.hypot(
        terms["entropy_mcse"], draws.std(0).numpy() / math.sqrt(4000)
    )
    assert abs(z).max() < MAX_Z
    assert terms.attrs["entropy_is_analytic"] == terms.attrs["kl_is_analytic"] == 0
    np.testing.assert_allclose(terms["kl"], terms["cross_entropy"] - terms["entropy"], atol=1e-12)
    assert (terms["entropy_mcse"] > 0).all()
    assert not [name for name in terms if str(name).endswith("_per_dim")]


def test_sites_add_up_to_the_elbo_and_two_levels_have_three():
    x = torch.randn(6)
    terms = diagnostics.elbo_terms(TwoLevel(), x, num_samples=2000)
    assert terms["site"].values.tolist() == ["z2", "z1", "x"]
    np.testing.assert_allclose(terms["site_elbo"].sum("site"), terms["elbo"], atol=1e-12)
    # -KL of q(z2|x) = N((x, x), 0.49 I) from N(0, I), since z2 comes first in both programs.
    expected = -(0.49 + x.numpy() ** 2 - 1 - math.log(0.49))
    z = (terms["site_elbo"].sel(site="z2") - expected) / terms["site_elbo_mcse"].sel(site="z2")
    assert abs(z).max() < MAX_Z


def test_totals_are_the_means_for_all_the_data():
    data = linear_gaussian(40, features=6, latent_dim=3, variance=0.2, seed=1)
    terms = diagnostics.elbo_terms(linear_vae(data.truth), data.x)
    row = diagnostics.elbo_summary(terms).loc["elbo"]
    assert abs(row["total"] - float(data.log_evidence.sum())) < 1e-8
    assert abs(row["total_se"] - 40 * row["se"]) < 1e-12
    assert abs(row["total_se"] / math.sqrt(40) - terms["elbo"].values.std(ddof=1)) < 1e-10
    summary = diagnostics.elbo_summary(terms)
    assert summary["is_analytic"].tolist() == [False, False, True, True, True]


def test_bits_per_dim_are_the_mean_log_density_in_other_units():
    data = linear_gaussian(40, features=6, latent_dim=3, variance=0.2, seed=1)
    terms = diagnostics.elbo_terms(linear_vae(data.truth), data.x)
    bits = diagnostics.bits_per_dim(terms, unit=1 / 255)
    expected = -float(data.log_evidence.mean()) / (6 * math.log(2)) + math.log2(255)
    assert abs(bits.mean - expected) < 1e-10
    spread = float(data.log_evidence.std()) / math.sqrt(40) / (6 * math.log(2))
    assert abs(bits.se - spread) < 1e-10


def test_unit_of_bits_must_be_positive():
    data = linear_gaussian(4, features=6, latent_dim=3, variance=0.2, seed=1)
    terms = diagnostics.elbo_terms(linear_vae(data.truth), data.x)
    with pytest.raises(ValueError, match="unit must be positive; got 0"):
        diagnostics.bits_per_dim(terms, unit=0)
