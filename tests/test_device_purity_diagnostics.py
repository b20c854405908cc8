"""Every diagnostic with the default device "meta" and data and modules on the CPU.

Any tensor made without saying where would land on "meta" and stop the computation.
"""

import numpy as np
import pytest
import torch
from helpers import small_vae

import pyro_vae as pv
from pyro_vae import baselines, diagnostics, families
from pyro_vae.diagnosis import diagnose

X = np.random.default_rng(0).normal(size=(50, 6))


def statistics():
    return {"mean": lambda x: x.mean(), "largest": lambda x: x.amax()}


CALLS = {
    "active_units": diagnostics.active_units,
    "aggregate_kl": diagnostics.aggregate_kl,
    "aggregate_margins": diagnostics.aggregate_margins,
    "ais_log_evidence": lambda vae, x: diagnostics.ais_log_evidence(
        vae, x, num_steps=5, num_chains=3
    ),
    "bdmc": lambda vae, x: diagnostics.bdmc(vae, 3, num_steps=5, num_chains=3),
    "collapse_report": diagnostics.collapse_report,
    "elbo_terms": diagnostics.elbo_terms,
    "gradient_signal_to_noise": lambda vae, x: diagnostics.gradient_signal_to_noise(
        vae, x, num_draws=20
    ),
    "guide_draws": lambda vae, x: diagnostics.guide_draws(vae, x[:2], num_samples=5),
    "inference_gaps": lambda vae, x: diagnostics.inference_gaps(
        vae,
        x[:4],
        num_steps=10,
        num_samples=30,
        families={"full": families.FullCovarianceNormal(2)},
    ),
    "linear_theory": lambda vae, x: diagnostics.linear_theory(
        vae.prepare(x).tensor, 2, variance=0.1
    ),
    "log_evidence": lambda vae, x: diagnostics.log_evidence(vae, x, num_samples=50, smoothed=True),
    "pit": lambda vae, x: diagnostics.pit(vae, x, num_samples=19),
    "posterior_nuts": lambda vae, x: diagnostics.posterior_nuts(
        vae, x[:1], num_chains=2, num_samples=5, num_warmup=5
    ),
    "posterior_pit": lambda vae, x: diagnostics.posterior_pit(vae, x, num_samples=19),
    "posterior_predictive_check": lambda vae, x: diagnostics.posterior_predictive_check(
        vae, x, statistics(), num_samples=9
    ),
    "prior_predictive_check": lambda vae, x: diagnostics.prior_predictive_check(
        vae, x, statistics(), num_samples=9
    ),
    "quadrature_log_evidence": lambda vae, x: diagnostics.quadrature_log_evidence(vae, x[:3]),
    "regularity": lambda vae, x: diagnostics.regularity(vae, x, num_samples=30, num_pairs=5),
    "sbc": lambda vae, x: diagnostics.sbc(vae, 10, 9),
}

REDUCTIONS = {  # of numbers or of what the others return
    "BitsPerDim",
    "bits_per_dim",
    "critical_log_gamma",
    "elbo_summary",
    "evidence_summary",
    "gamma_p_value",
    "gap_summary",
    "importance_estimates",
    "khat_threshold",
    "log_gamma",
    "pareto_khat",
    "reference_summary",
    "regularity_summary",
    "restarts",
    "smoothed_log_weights",
    "trend",
}


def test_every_diagnostic_is_here():
    assert set(diagnostics.__all__) == set(CALLS) | REDUCTIONS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CALLS)
def test_diagnostic_makes_nothing_on_the_default_device_and_leaves_the_world_alone(name, dtype):
    vae = small_vae(family=families.DiagonalNormal, latent_dim=2, variance=0.5).to(dtype)
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    state, kept = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.device("meta"):
        CALLS[name](vae, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], kept)
    assert vae.training
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())
    assert all(torch.equal(p, before[name]) for name, p in vae.state_dict().items())


def test_comparison_export_and_diagnosis_make_nothing_on_the_default_device():
    vae = small_vae(family=families.DiagonalNormal, latent_dim=2, variance=0.5)
    autoencoder = baselines.autoencoder(features=6, latent_dim=2, hidden=(8,))
    with torch.device("meta"):
        table = pv.compare({"a": vae, "b": vae}, X, num_samples=50, gap_rows=2)
        pv.to_arviz(vae, X, num_samples=4)
        diagnostics.regularity(autoencoder, X, num_samples=30, num_pairs=5)
        diagnose(vae, X, quick=True)
    assert table.loc["b", "elbo_difference"] == 0
