"""Verdicts of models whose answer theory knows."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from diagnosis_helpers import (
    WEIGHT,
    _unconstrained,
    ask,
    best_diagonal,
    figure,
    quick,
    simulated,
    truth,
)
from helpers import linear_vae

import pyro_vae as pv
from pyro_vae.datasets import LinearGaussian
from pyro_vae.diagnosis import bound, calibration, diagnosing, gap, posterior, regularity


def test_diagonal_guide_on_correlated_posterior_is_the_family_s_fault():
    vae, x = best_diagonal(), simulated(60)
    precision = torch.eye(2).to(WEIGHT) + WEIGHT.T @ WEIGHT / 0.5
    scale = precision.diagonal().rsqrt()
    correlation = scale[:, None] * precision * scale
    expected = -0.5 * torch.logdet(correlation).item()
    gap = ask("gap", vae, x)
    family, encoder = figure(gap, "the family"), figure(gap, "the encoder")
    # The family's figure is from exact evidence: what is left is the noise of 25 * 300 draws.
    assert family.value == pytest.approx(expected, abs=0.06)
    assert abs(encoder.value) < 0.02
    assert "the family has" in gap.sentence
    assert "--family full" in gap.next_step
    # Marginal posterior variances exceed 1 / L_jj by 1 / (1 - r^2): 90 % intervals are too narrow.
    r = correlation[0, 1].item()
    normal = torch.distributions.Normal(0.0, 1.0)
    half = normal.icdf(torch.tensor(0.95)) * math.sqrt(1 - r * r)
    calibration = ask("calibration", vae, x)
    coverage = figure(calibration, "coverage")
    expected = 2 * normal.cdf(half).item() - 1
    assert abs(coverage.value - expected) < 4.3 * coverage.error + 0.03  # the worst of two
    assert calibration.verdict == "bad"
    for section in (calibration, ask("distance", vae, x)):
        assert "encoder is not at fault" in section.next_step or section.verdict == "good"


def test_crippled_encoder_is_the_encoder_s_fault():
    vae = best_diagonal()
    with torch.no_grad():
        vae.q_z_given_x.encoder.weight.mul_(0.5)
    gap = ask("gap", vae, simulated(60))
    assert gap.verdict == "bad"
    assert "the encoder has" in gap.sentence
    assert figure(gap, "the encoder").value > 5 * figure(gap, "the family").value
    for name in ("distance", "calibration"):
        section = ask(name, vae, simulated(60))
        assert section.verdict == "bad"
        assert "a richer family alone will not help" in section.next_step


def test_guide_that_ignores_x_is_called_collapsed_and_uncalibrated():
    vae = best_diagonal()
    with torch.no_grad():
        vae.q_z_given_x.encoder.weight.zero_()
        vae.q_z_given_x.encoder.bias[2:] = _unconstrained(vae.q_z_given_x.family, torch.ones(2))
    units = ask("units", vae, simulated(60))
    assert units.verdict == "bad"
    assert figure(units, "active latent directions").value == 0
    assert "--kl-warmup" in units.next_step
    # Its ranks of z are uniform, those of log p(x, z) are not.
    calibration = ask("calibration", vae, simulated(60))
    assert calibration.verdict == "doubtful"
    assert abs(figure(calibration, "coverage").value - 0.9) < 0.1


def test_data_beyond_the_model_are_not_described():
    vae, x = linear_vae(truth()), 3 * simulated(60)
    statistics = ask("statistics", vae, x)
    assert statistics.verdict == "bad"
    assert "standard deviation" in statistics.sentence
    assert ask("features", vae, x).verdict == "bad"


def test_better_training_rows_are_called_learned_by_heart():
    x = simulated(60)
    ledger = ask("ledger", linear_vae(truth()), x, train=0.1 * x)
    assert ledger.verdict == "doubtful"
    assert "learned training rows by heart" in ledger.next_step


@pytest.mark.parametrize(
    ("elbo", "verdict"),
    [
        (np.linspace(-50, -10, 40), "doubtful"),  # still rises by more than its error
        (np.full(40, -10.0) + np.tile([0.01, -0.01], 20), "good"),
        (np.linspace(-10, -50, 40), "bad"),
        (-10 - 40 * np.exp(-np.arange(40) / 4), "good"),  # levels off
    ],
)
def test_convergence_follows_the_trend_of_the_elbo(elbo, verdict):
    history = pd.DataFrame({"epoch": np.arange(1, 41), "elbo": elbo, "elbo_se": 0.5})
    history = history.assign(expected_log_likelihood=elbo + 1, kl=1.0)
    section = ask("convergence", best_diagonal(), simulated(30), history=history)
    assert section.verdict == verdict


def test_nuts_agrees_with_the_exact_posterior(monkeypatch):
    monkeypatch.setattr(
        posterior, "CHAINS", {"num_chains": 2, "num_samples": 60, "num_warmup": 60}
    )
    section = ask("nuts", linear_vae(truth()), simulated(1))
    assert figure(section, "largest distance").value < 0.5  # 120 dependent draws
    assert 1 <= figure(section, "largest factor").value < 1.6
    assert figure(section, "largest r-hat").value < posterior.LARGEST_R_HAT
    assert section.verdict == "good"


def test_negligible_distances_are_no_fault_where_the_kl_is_zero():
    # A decoder that ignores z: prior, posterior and guide are one, up to a hundredth of a nat.
    vae = best_diagonal()
    with torch.no_grad():
        vae.p_x_given_z.decoder.weight.mul_(1e-3)
        vae.q_z_given_x.encoder.weight.zero_()
        vae.q_z_given_x.encoder.bias[:2] = 0.05
        vae.q_z_given_x.encoder.bias[2:] = _unconstrained(vae.q_z_given_x.family, torch.ones(2))
    assert ask("gap", vae, simulated(40)).verdict == "good"
    assert ask("prior", vae, simulated(40)).verdict == "good"


def narrow(count):
    """A linear model whose q(z|x) is its very narrow posterior, and data of it."""
    x = torch.randn(count, 2) @ WEIGHT.T + 1e-2 * torch.randn(count, 4)
    return linear_vae(LinearGaussian(WEIGHT, torch.zeros(4), variance=1e-4)), x


def test_few_rows_do_not_blame_the_prior():
    section = ask("prior", *narrow(60))
    assert section.verdict == "no verdict"
    assert "60 rows are too few to tell" in section.sentence
    assert not any("distance" in m.name or "single units" in m.name for m in section.measures)
    assert section.measures[0].wanted.startswith(f"at most {math.log(60) - 1:.2f} ")


def test_units_off_the_prior_are_told_where_their_aggregate_cannot_be():
    # Each unit is far off the prior, and its KL of 3 nats is far below log 400.
    model = LinearGaussian(torch.eye(8), torch.zeros(8), variance=0.3)
    section = ask("prior", linear_vae(model), 3 * torch.randn(400, 8))
    assert section.verdict == "bad"
    assert section.measures[0].name.startswith("KL of single units")
    assert section.measures[0].wanted.startswith("at most ")
    assert section.measures[0].value > float(section.measures[0].wanted.split()[2].strip(","))
    assert "Unit by unit" in section.sentence


@pytest.mark.parametrize("num_samples", [1, 24])
def test_too_few_draws_for_a_khat_get_no_verdict(num_samples):
    study = diagnosing.Study(best_diagonal(), simulated(30), None, None, num_samples, 0, True)
    section = bound.distance(study, "q")
    assert section.verdict == "no verdict"
    assert "have no k-hat" in section.sentence
    assert not any("k-hat" in m.name or "-" in m.wanted for m in section.measures)


def test_quadrature_and_importance_sampling_are_held_against_each_other_on_the_same_rows():
    study = diagnosing.Study(best_diagonal(), simulated(60), None, None, 200, 0, is_quick=True)
    section = bound.distance(study, "q")
    index = study.index(study.num_gap_rows).numpy()
    exact = study.exact["log_evidence"].to_numpy()
    found = study.evidence.isel(obs_id=index)
    bias = figure(section, "log p(x) by quadrature less").value
    assert bias == pytest.approx((exact - found["log_evidence"].to_numpy()).mean())
    distance = figure(section, "log p(x) − ELBO by quadrature").value
    assert distance == pytest.approx((exact - found["elbo"].to_numpy()).mean())


def test_gap_is_not_called_small_where_the_weights_do_not_bear_its_evidence(monkeypatch):
    study = diagnosing.Study(linear_vae(truth()), simulated(30), None, None, 200, 0, is_quick=True)
    assert gap.gap(study, "q").verdict == "good"
    heavy = study.gaps.assign(pareto_khat=("obs_id", np.full(study.num_gap_rows, 0.9)))
    study.gaps = heavy
    section = gap.gap(study, "q")
    assert section.verdict == "doubtful"
    assert "at least" in section.sentence


def test_gap_takes_quadrature_where_z_is_small():
    study = diagnosing.Study(best_diagonal(), simulated(30), None, None, 200, 0, is_quick=True)
    assert study.gaps.attrs["evidence"] == "given"
    assert any("log p(x) by quadrature" in remark for remark in gap.gap(study, "q").remarks)


def test_gray_values_under_a_bernoulli_are_said_to_have_no_density():
    vae = pv.bernoulli_vae(features=6, latent_dim=2, hidden=()).double()
    x = torch.rand(40, 6)
    ledger = ask("ledger", vae, x)
    assert "no normalized density" in ledger.remarks[0]
    assert not any("code length" in m.name for m in ledger.measures)
    statistics = ask("statistics", vae, x)
    assert statistics.verdict == "bad"
    assert "binarize x, or take --likelihood continuous_bernoulli" in statistics.next_step
    assert "bounds" not in statistics.next_step
    assert "no normalized" in quick(vae, x).facts["log p(x)"]
    assert not any("density" in remark for remark in ask("ledger", vae, x.round()).remarks)


def test_terms_add_up_with_signs_and_negative_code_lengths_are_explained():
    ledger = ask("ledger", *narrow(40))
    terms = [float(t) for t in re.findall(r"[(=] ?(\d+\.\d+) ±", ledger.sentence)]
    assert terms[0] - terms[1] == pytest.approx(terms[2], abs=0.02)
    assert "negative, because it is of a density" in figure(ledger, "ELBO as a code").name
    assert "= (−" in ask("ledger", linear_vae(truth()), simulated(40)).sentence


def test_smallest_p_value_is_a_bound_where_no_draw_reaches_the_data():
    section = ask("statistics", linear_vae(truth()), 3 * simulated(60))
    smallest = figure(section, "smallest p-value")
    assert smallest.text == f"≤ {5 * 2 / 300:.3g}"
    assert "the least that 299 draws can show" in smallest.wanted


def test_coverage_outside_its_limits_is_never_good(monkeypatch):
    real = calibration.sbc

    def few(vae, num_simulations, num_draws, **options):
        found = real(vae, 20, num_draws, **options)
        return found.assign(coverage=xr.full_like(found["coverage"], 0.8))

    monkeypatch.setattr(calibration, "sbc", few)
    section = ask("calibration", linear_vae(truth()), simulated(30))
    assert section.verdict == "no verdict"
    assert section.sentence.startswith("20 simulations are too few to tell")


def regularity_found(**changes):
    """Figures of a regular space, some of them changed."""
    found = {
        "draws_covered": (("source",), [0.94]),
        "draws_covered_se": (("source",), [0.02]),
        "precision": (("source", "reference"), [[0.9]]),
        "precision_se": (("source", "reference"), [[0.01]]),
        "precision_of_data": (("reference",), [0.92]),
        "precision_of_data_se": (("reference",), [0.01]),
        "local_change": 1.5,
        "local_change_se": 0.1,
    }
    coords = {"source": ["prior"], "reference": ["reconstructions"]}
    found = xr.Dataset(found, coords, {"nominal_draws": 0.95})
    return found.assign({n: xr.full_like(found[n], value) for n, value in changes.items()})


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ["good", "good", "good"]),
        ({"draws_covered": 0.84, "draws_covered_se": 0.02}, ["good", "good", "good"]),
        ({"draws_covered": 0.84, "draws_covered_se": 0.001}, ["doubtful", "good", "good"]),
        ({"precision": 0.5}, ["good", "bad", "good"]),
        ({"local_change": 30.0, "local_change_se": 20.0}, ["good", "good", "good"]),
        ({"local_change": 30.0, "local_change_se": 1.0}, ["good", "good", "bad"]),
    ],
)
def test_regularity_is_doubted_only_beyond_two_standard_errors(changes, verdicts):
    criteria = regularity._criteria(regularity_found(**changes))
    assert [c.verdict for c in criteria] == verdicts


def test_sentence_and_first_figure_are_of_the_criterion_that_fails(monkeypatch):
    criteria = regularity._criteria(regularity_found(local_change=30.0, local_change_se=1.0))
    monkeypatch.setattr(regularity, "_criteria", lambda found: criteria)
    section = ask("regularity", linear_vae(truth()), simulated(60))
    assert section.verdict == "bad"
    assert section.measures[0].name.startswith("continuity")
    assert (
        section.sentence == "Close points decode to different things: the space is not continuous."
    )
