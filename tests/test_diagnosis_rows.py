"""Which rows a diagnosis is about, and what it says of few."""

import re

import numpy as np
import pytest
from diagnosis_helpers import ASKED, answers, ask, best_diagonal, quick, simulated, truth
from helpers import linear_vae

from pyro_vae.diagnosis import blame, bound, diagnose, diagnosing, posterior


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 3, 19])
def test_few_rows_get_figures_and_no_verdict(count):
    diagnosis = quick(best_diagonal(), simulated(count))
    assert not diagnosis.has_failed, [s for s in diagnosis.sections if s.verdict == "failed"]
    for section in diagnosis.sections:
        if section.question not in diagnosing.NEED_NO_ROWS:
            assert section.verdict in {"no verdict", "does not apply"}
            assert not any(np.isnan(m.value) for m in section.measures)
        shown = [cell for table in section.tables for row in table.rows for cell in row]
        assert not any("nan" in cell.split() for cell in shown)
    assert answers(diagnosis)["ledger"].sentence.startswith(f"{count} row")


def test_verdicts_come_with_twenty_rows():
    found = answers(quick(linear_vae(truth()), simulated(20)))
    assert found["distance"].verdict == "good"


def study_of_some(count, numbers):
    x = simulated(count)
    return diagnosing.Study(
        best_diagonal(), x, None, None, 200, 0, True, numbers, 100, name="held-out rows"
    )


def test_rows_with_heavy_weights_are_named_by_their_numbers_in_all_data():
    numbers = np.arange(30) * 3 + 7
    study = study_of_some(30, numbers)
    section = bound.distance(study, "q")
    (table,) = section.tables
    khat = study.evidence["pareto_khat"].to_numpy()
    assert int(table.rows[0][0]) == numbers[khat.argmax()]
    assert "held-out rows" in table.caption
    assert "Computed on 30 of 100 held-out rows." in section.remarks


def test_chains_are_of_the_rows_that_they_name(monkeypatch):
    chains = {"num_chains": 2, "num_samples": 10, "num_warmup": 10}
    monkeypatch.setattr(posterior, "CHAINS", chains)
    monkeypatch.setattr(posterior, "ROWS", 2)
    section = posterior.posterior(study_of_some(5, np.array([4, 8, 15, 16, 23])), "q")
    assert [row[0] for row in section.tables[0].rows[::2]] == ["row 4, z_1", "row 23, z_1"]
    assert section.pictures[1].caption.startswith("Row 23:")
    assert "on 2 of 100 held-out rows" in section.remarks[0]


def test_every_section_says_on_what_it_is_computed():
    diagnosis = diagnose(
        linear_vae(truth()),
        simulated(60),
        train=simulated(130),
        num_data=30,
        num_samples=100,
        quick=True,
        name="held-out rows",
    )
    assert diagnosis.facts["diagnosed"].startswith("30 of 60 held-out rows")
    for section in diagnosis.sections:
        if section.verdict != "does not apply":
            said = " ".join(section.remarks)
            assert re.search(
                r"on (25|30) of 60 held-out rows|on 120 of 130 training rows|on 200 data", said
            )
    remarks = answers(diagnosis)["units"].remarks
    assert remarks[0] == "Computed on 120 of 130 training rows."


def test_asking_one_question_is_what_the_diagnosis_does():
    vae, x = linear_vae(truth()), simulated(30)
    assert (
        ask("ledger", vae, x).sentence
        == diagnose(vae, x, num_samples=200, quick=True)
        .sections[list(ASKED).index("ledger")]
        .sentence
    )


def test_advice_does_not_divide_the_gap_of_few_rows():
    for count, fault in ((19, "not known"), (20, "the encoder is not at fault")):
        study = diagnosing.Study(best_diagonal(), simulated(count), None, None, 200, 0, True)
        assert fault in blame.cure(study)
