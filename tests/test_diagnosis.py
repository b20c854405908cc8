"""What one diagnosis is made of; and what happens when a question breaks down."""

import logging
from pathlib import Path

import pytest
import torch
from diagnosis_helpers import (
    ASKED,
    answers,
    best_diagonal,
    figure,
    quick,
    simulated,
    truth,
)
from helpers import linear_vae
from test_traces_runs import TwoLevel

import pyro_vae as pv
from pyro_vae.diagnosis import Diagnosis, diagnose, diagnosing
from pyro_vae.html_report import Section
from pyro_vae.seeding import seeded


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


def test_normal_guide_of_one_s_own_is_served(exact):
    assert answers(exact)["gap"].verdict == "good"


def test_without_a_history_convergence_does_not_apply(exact):
    assert answers(exact)["convergence"].verdict == "does not apply"


def test_quick_leaves_out_the_chains(exact):
    assert answers(exact)["nuts"] is None
    assert ASKED["nuts"] in diagnosing.QUESTIONS


def test_programs_of_one_s_own_get_answers_or_reasons():
    diagnosis = quick(TwoLevel(), 1.5 * torch.randn(60))
    found = answers(diagnosis)
    assert not diagnosis.has_failed, [s for s in diagnosis.sections if s.verdict == "failed"]
    assert found["ledger"].verdict == "good"
    assert found["units"].verdict == "does not apply"
    assert "latent" in found["units"].sentence
    (table,) = found["calibration"].tables
    assert {row[0] for row in table.rows} == {"z2[1]", "z2[2]", "z1"}
    assert any("z2[1], z2[2], z1" in remark for remark in found["calibration"].remarks)


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


def test_call_that_does_not_fit_is_a_failure(monkeypatch):
    def answer(study, question):
        return pv.diagnostics.elbo_terms(study.vae)  # no x: Python raises at our own line

    monkeypatch.setattr(diagnosing, "QUESTIONS", {"q": answer})
    monkeypatch.setattr(diagnosing, "PACKAGE", Path(__file__).parent)
    (section,) = quick(linear_vae(truth()), simulated(30)).sections
    assert section.verdict == "failed"


def test_messages_that_sections_put_into_words_are_no_remarks(monkeypatch):
    def answer(study, question):
        speaker = logging.getLogger("pyro_vae.diagnostics.example")
        speaker.warning("posterior_nuts: r-hat is above 1.01 for 1 of 3 data, up to 1.010")
        speaker.warning("log_evidence: not finite for 1 of 3 data")
        return Section(question, "good", "s")

    monkeypatch.setattr(diagnosing, "QUESTIONS", {"q": answer})
    (section,) = quick(linear_vae(truth()), simulated(30)).sections
    assert section.remarks == ["log_evidence: not finite for 1 of 3 data"]


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
    assert seen[0].numbers.tolist() == rows.long().tolist()
    assert seen[0].on_rows() == "on 10 of 100 rows"
    assert seen[0].on_codes() == "on 40 of 100 training rows"
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
