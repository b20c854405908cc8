"""Two-level and enumerated programs of a user's own: ledger and evidence against closed forms."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from test_own_programs_mixture import Exact, SummedOut
from test_traces_runs import TwoLevel

from pyro_vae import diagnostics

MAX_OF_MANY = 5.5  # the largest of some hundred z-scores


def test_evidence_of_two_levels_is_the_closed_form():
    # x = z1 + 0.3 e, z1 = sum z2 + 0.5 e', z2 ~ N(0, I_2)
    x = 1.5 * torch.randn(100)
    expected = dist.Normal(0.0, (2 + 0.25 + 0.09) ** 0.5).log_prob(x)
    evidence = diagnostics.log_evidence(TwoLevel(), x, num_samples=2000)
    trusted = (evidence["pareto_khat"] < 0.5).values
    assert trusted.sum() > 30
    z = (evidence["log_evidence"] - expected.numpy()) / evidence["mcse"]
    assert abs(z[trusted]).max() < MAX_OF_MANY
    assert abs(float(z[trusted].mean())) < MAX_Z / trusted.sum() ** 0.5 + 0.3  # bias of the log


@pytest.mark.parametrize("make", [Exact, SummedOut])
def test_evidence_and_ledger_of_a_mixture_at_its_posterior_have_no_error(make):
    programs = make()
    x = programs.decoders.simulate(30)
    expected = programs.decoders.log_evidence(x)
    evidence = diagnostics.log_evidence(programs, x, num_samples=30)
    np.testing.assert_allclose(evidence["log_evidence"], expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(evidence["ess"], 30, rtol=1e-9)
    np.testing.assert_allclose(evidence["pareto_khat"], 0, atol=1e-9)
    terms = diagnostics.elbo_terms(programs, x, num_samples=30)
    np.testing.assert_allclose(terms["elbo"], expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(terms["site_elbo"].sum("site"), terms["elbo"], atol=1e-10)
    assert terms["elbo_mcse"].max() < 1e-10


def test_evidence_of_a_mixture_under_a_wrong_guide_is_right_within_its_error():
    programs = SummedOut()
    x = programs.decoders.simulate(60)
    expected = programs.decoders.log_evidence(x)
    exact = programs.decoders.posterior

    def wider(rows):
        means, scale_tril = exact(rows)
        return means, 1.3 * scale_tril

    programs.decoders.posterior = wider
    evidence = diagnostics.log_evidence(programs, x, num_samples=300)
    z = (evidence["log_evidence"] - expected.numpy()) / evidence["mcse"]
    assert evidence["mcse"].min() > 1e-3
    assert abs(z).max() < MAX_OF_MANY
