"""Verdicts of models whose answer theory knows; and what happens when a question breaks down."""

import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import linear_vae
from test_traces_runs import TwoLevel
from torch import nn

import pyro_vae as pv
from pyro_vae import families, guides
from pyro_vae.datasets import LinearGaussian
from pyro_vae.diagnosis import Diagnosis, diagnose, diagnosing, posterior
from pyro_vae.html_report import Section
from pyro_vae.seeding import seeded

ASKED = {
    "ledger": "What is the ELBO made of?",
    "distance": "How far is it from log p(x)?",
    "gap": "Whose fault is the distance?",
    "units": "Does the latent space use its units?",
    "prior": "Do the codes follow the prior?",
    "calibration": "Is q(z|x) calibrated?",
    "nuts": "Is q(z|x) the posterior?",
    "regularity": "Is the latent space regular?",
    "statistics": "Does the model describe the data?",
    "features": "Does it describe each feature?",
    "convergence": "Has training converged?",
}

WEIGHT = torch.tensor([[2.0, 1.2], [1.2, 2.0], [1.6, 1.4], [1.0, 1.0]], dtype=torch.float64)


def truth():
    """Its posterior's coordinates are correlated: a diagonal guide cannot be right."""
    return LinearGaussian(WEIGHT, torch.zeros(4), variance=0.5)


def simulated(count):
    return torch.randn(count, 2) @ WEIGHT.T + math.sqrt(0.5) * torch.randn(count, 4)


def best_diagonal():
    """Guide with the posterior's mean and the best diagonal variances, 1 / L_jj."""
    model = truth()
    precision = (torch.eye(2) + WEIGHT.T @ WEIGHT / 0.5).to(WEIGHT)
    encoder = nn.Linear(4, 4)
    family = families.DiagonalNormal(2)
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.bias.zero_()
        encoder.weight[:2] = torch.linalg.solve(precision, WEIGHT.T) / 0.5
        encoder.bias[2:] = _unconstrained(family, precision.diagonal().rsqrt())
    return linear_vae(model, guide=guides.AmortizedGuide(family, encoder))


def _unconstrained(family, scale):
    """Parameters at which the family has this scale, by bisection on its own map."""
    low, high = torch.full((2,), -30.0), torch.full((2,), 30.0)
    for _ in range(80):
        middle = (low + high) / 2
        found = family(torch.cat([torch.zeros(2), middle])).variance.sqrt()
        low, high = (
            torch.where(found < scale, middle, low),
            torch.where(found < scale, high, middle),
        )
    return middle


def answers(diagnosis):
    """Sections by their short names."""
    return {
        name: next((s for s in diagnosis.sections if s.question == question), None)
        for name, question in ASKED.items()
    }


def figure(section, start):
    return next(m for m in section.measures if m.name.startswith(start))


def ask(name, vae, x, *, train=None, history=None):
    """One question alone, as a quick diagnosis asks it."""
    study = diagnosing.Study(vae, x, train, history, 200, 0, is_quick=True)
    return diagnosing.QUESTIONS[ASKED[name]](study, ASKED[name])


def quick(vae, x, **options):
    return diagnose(vae, x, quick=True, num_samples=options.pop("num_samples", 200), **options)


@pytest.fixture(scope="module")
def exact():
    """The exact posterior as guide, on data of the model itself."""
    # Made before conftest looks at the world of the first test, so it puts its own back.
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with seeded(1):
        vae, x, train = linear_vae(truth()), simulated(300), simulated(600)
    found = diagnose(vae, x, train=train, num_samples=200, quick=True)
    torch.set_default_dtype(dtype)
    return found


def test_exact_posterior_has_no_gap_and_good_verdicts(exact):
    found = answers(exact)
    assert not exact.has_failed
    assert figure(found["distance"], "log p(x) − ELBO").value == pytest.approx(0, abs=1e-9)
    assert figure(found["distance"], "share of data with k-hat").value == 0
    for name in ("ledger", "distance", "prior", "calibration", "regularity", "statistics"):
        assert found[name].verdict == "good", found[name]
    # 64-bit draws of the right model: a false alarm at 5 % in four features is no surprise.
    assert figure(found["features"], "share").value <= 0.25


def test_guide_without_a_family_is_told_apart_from_a_failure(exact):
    gap = answers(exact)["gap"]
    assert gap.verdict in {"good", "does not apply"}  # a normal guide of one's own is served


def test_diagonal_guide_on_correlated_posterior_is_the_family_s_fault():
    vae, x = best_diagonal(), simulated(60)
    precision = torch.eye(2).to(WEIGHT) + WEIGHT.T @ WEIGHT / 0.5
    scale = precision.diagonal().rsqrt()
    correlation = scale[:, None] * precision * scale
    expected = -0.5 * torch.logdet(correlation).item()
    gap = ask("gap", vae, x)
    family, encoder = figure(gap, "the family"), figure(gap, "the encoder")
    assert family.value == pytest.approx(expected, abs=0.02)
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


def test_crippled_encoder_is_the_encoder_s_fault():
    vae = best_diagonal()
    with torch.no_grad():
        vae.q_z_given_x.encoder.weight.mul_(0.5)
    gap = ask("gap", vae, simulated(60))
    assert gap.verdict == "bad"
    assert "the encoder has" in gap.sentence
    assert figure(gap, "the encoder").value > 5 * figure(gap, "the family").value


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
    ],
)
def test_convergence_follows_the_trend_of_the_elbo(elbo, verdict):
    history = pd.DataFrame({"epoch": np.arange(1, 41), "elbo": elbo, "elbo_se": 0.5})
    history = history.assign(expected_log_likelihood=elbo + 1, kl=1.0)
    section = ask("convergence", best_diagonal(), simulated(30), history=history)
    assert section.verdict == verdict


def test_without_a_history_convergence_does_not_apply(exact):
    assert answers(exact)["convergence"].verdict == "does not apply"


def test_quick_leaves_out_the_chains(exact):
    assert answers(exact)["nuts"] is None
    assert ASKED["nuts"] in diagnosing.QUESTIONS


def test_nuts_agrees_with_the_exact_posterior(monkeypatch):
    monkeypatch.setattr(
        posterior, "CHAINS", {"num_chains": 2, "num_samples": 60, "num_warmup": 60}
    )
    section = ask("nuts", linear_vae(truth()), simulated(1))
    assert figure(section, "largest distance").value < 0.6  # 120 dependent draws
    assert 1 <= figure(section, "largest factor").value < 1.6
    assert section.verdict in {"good", "doubtful"}


def test_programs_of_one_s_own_get_answers_or_reasons():
    diagnosis = quick(TwoLevel(), 1.5 * torch.randn(60))
    found = answers(diagnosis)
    assert not diagnosis.has_failed, [s for s in diagnosis.sections if s.verdict == "failed"]
    assert found["ledger"].verdict == "good"
    assert found["units"].verdict == "does not apply"
    assert "latent" in found["units"].sentence


def broken(error):
    def answer(study, question):
        raise error

    return answer


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("z")])
def test_unexpected_error_fails_its_question_alone(error, monkeypatch, caplog):
    ledger = diagnosing.QUESTIONS[ASKED["ledger"]]
    few = {ASKED["distance"]: broken(error), ASKED["ledger"]: ledger}
    monkeypatch.setattr(diagnosing, "QUESTIONS", few)
    with caplog.at_level(logging.ERROR):
        diagnosis = quick(linear_vae(truth()), simulated(30))
    found = answers(diagnosis)
    assert diagnosis.has_failed
    assert found["distance"].verdict == "failed"
    assert found["distance"].sentence == f"failed: {type(error).__name__}: {error}"
    assert found["ledger"].verdict == "good"
    assert caplog.records[0].exc_info[1] is error


def test_value_error_of_torch_is_a_failure_and_not_a_question_that_does_not_apply(monkeypatch):
    def answer(study, question):
        torch.distributions.Normal(0.0, -torch.ones(1), validate_args=True)

    monkeypatch.setattr(diagnosing, "QUESTIONS", {"q": answer})
    of_torch = quick(linear_vae(truth()), simulated(30))
    assert [s.verdict for s in of_torch.sections] == ["failed"]

    def refuse(study, question):
        pv.diagnostics.elbo_terms(study.vae, study.x, num_samples=0)

    monkeypatch.setattr(diagnosing, "QUESTIONS", {"q": refuse})
    of_the_package = quick(linear_vae(truth()), simulated(30))
    assert [s.verdict for s in of_the_package.sections] == ["does not apply"]
    assert "num_samples must be" in of_the_package.sections[0].sentence


def test_messages_of_diagnostics_become_remarks(monkeypatch, capfd):
    def answer(study, question):
        logging.getLogger("pyro_vae.diagnostics.example").warning("k-hat of %d", 7)
        return Section(question, "good", "s")

    monkeypatch.setattr(diagnosing, "QUESTIONS", {"q": answer})
    speaker = logging.getLogger("pyro_vae.diagnostics")
    before = speaker.handlers[:], speaker.propagate
    (section,) = quick(linear_vae(truth()), simulated(30)).sections
    assert section.remarks == ["k-hat of 7"]
    assert capfd.readouterr().err == ""
    assert (speaker.handlers, speaker.propagate) == before


def test_world_and_model_are_left_alone_and_figures_repeat():
    vae, x = best_diagonal().train(), simulated(30)
    state = torch.get_rng_state()
    first = quick(vae, x)
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    assert all(p.grad is None and p.requires_grad for p in vae.q_z_given_x.parameters())
    torch.rand(1)
    second = quick(vae, x)
    assert str(first) == str(second)


def test_every_question_runs_with_another_default_device():
    vae, x = best_diagonal(), simulated(40)
    with torch.device("meta"):
        diagnosis = quick(vae, x)
    assert not diagnosis.has_failed, [s for s in diagnosis.sections if s.verdict == "failed"]


def test_rows_are_a_random_subset_of_the_size_asked_for(monkeypatch):
    seen = []

    def answer(study, question):
        seen.append(study)
        return Section(question, "good", "s")

    monkeypatch.setattr(diagnosing, "QUESTIONS", {"q": answer})
    x = torch.arange(400.0).reshape(100, 4)
    diagnose(linear_vae(truth()), x, train=x, num_data=10)
    rows = seen[0].x[:, 0] / 4
    assert len(rows.unique()) == 10
    assert rows.max() > 20  # not the first ten
    assert torch.equal(rows, rows.sort().values)
    assert len(seen[0].train) == 40


@pytest.mark.parametrize("options", [{"num_data": 0}, {"num_samples": 0}])
def test_sizes_that_do_not_fit_raise(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        diagnose(linear_vae(truth()), simulated(10), **options)


def test_diagnosis_shows_itself(exact, tmp_path):
    exact.html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<section") == len(exact.sections)
    for section in exact.sections:
        assert section.question in str(exact)
    frame = exact._repr_html_()
    assert frame.startswith("<iframe sandbox srcdoc=")
    assert "<section" not in frame  # escaped
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_what_to_do_stands_below_the_table():
    text = str(Diagnosis([Section("Fine?", "bad", "No.", next_step="Mend it.")]))
    assert text.splitlines()[-2:] == ["what to do", "- Fine? Mend it."]


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
