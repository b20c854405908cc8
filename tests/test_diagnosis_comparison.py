"""What is said of a table of models, and what is not."""

import math

import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae import families
from pyro_vae.diagnosis import comparison_sections, comparison_table

NAN = math.nan


def row(*, elbo=0.0, log_p=0.0, error=0.1, khat=0.0, gap=1.0, family=0.25, encoder=0.75):
    """One row of a table, differences and all."""
    found = {"khat_share_above": khat, "active_units": 2, "parameters": 9, "seconds": 1.0}
    for name, difference in (("elbo", elbo), ("log_evidence", log_p)):
        found |= {name: difference - 7.0, f"{name}_se": 0.5}
        found |= {f"{name}_difference": difference, f"{name}_difference_se": error}
    for name, value in (
        ("inference_gap", 99.0),
        ("inference_gap_of_rows", gap),
        ("approximation_gap", family),
        ("amortization_gap", encoder),
    ):
        found |= {name: value, f"{name}_se": 0.125}
    return found


def table(rows, **attrs):
    found = pd.DataFrame.from_dict(rows, orient="index")
    usual = {
        "reference": next(iter(rows)),
        "measure": "density",
        "same_model": [next(iter(rows))],
        "num_data": 100,
        "num_samples": 1000,
        "gap_rows": 20,
        "khat_threshold": 2 / 3,
        "seed": 0,
    }
    found.attrs = usual | attrs
    return found


def answer(number, rows, **attrs):
    return comparison_sections(table(rows, **attrs))[number]


# --- which is better ---------------------------------------------------------------------------


def test_log_evidence_ranks_models_whose_weights_are_light():
    found = answer(0, {"a": row(), "b": row(elbo=-3, log_p=2), "c": row(elbo=3, log_p=-2)})
    assert found.verdict == "good"
    assert found.sentence == (
        "b is better than a (2.00 ± 0.10 nats); c is worse than a (-2.00 ± 0.10 nats)."
    )
    assert [m.name[:8] for m in found.measures] == ["log p(x)"] * 2


@pytest.mark.parametrize("khat", [0.3, NAN])
def test_higher_elbo_alone_does_not_make_a_better_model(khat):
    """Not even where both are alike in heavy weights: what log p(x) lacks is unknown in both."""
    rows = {"diagonal": row(khat=khat), "full": row(khat=khat, elbo=2, log_p=2)}
    found = answer(0, rows)
    assert found.verdict == "doubtful"
    assert found.sentence == (
        "full has the higher ELBO, by 2.00 ± 0.10 nats: a better model, a tighter guide, or both; "
        "these rows cannot say which."
    )
    assert "ais_log_evidence" in found.next_step
    rows["full"] = row(khat=khat, elbo=-2)
    assert answer(0, rows).sentence.startswith("diagonal has the higher ELBO, by 2.00 ± 0.10")


def test_higher_elbo_of_several_models_says_higher_than_which():
    rows = {"a": row(khat=0.6), "b": row(elbo=2), "c": row(elbo=-1), "d": row(elbo=0.1)}
    found = answer(0, rows)
    assert found.verdict == "doubtful"
    assert found.sentence == (
        "d is not to be told from a by ELBO (0.10 ± 0.10 nats); b has a higher ELBO than a, by "
        "2.00 ± 0.10 nats; a has a higher ELBO than c, by 1.00 ± 0.10 nats: a better model, a "
        "tighter guide, or both; these rows cannot say which."
    )


@pytest.mark.parametrize("khat", [0.0, 0.3])
@pytest.mark.parametrize(
    ("elbo", "said", "verdict"),
    [
        (2.0, "; the guide of full is tighter by 2.00 ± 0.10 nats.", "good"),
        (-2.0, "; the guide of diagonal is tighter by 2.00 ± 0.10 nats.", "good"),
        (0.1, ", and their guides are not to be told from each other (0.10 ± 0.10 nats).",
         "doubtful"),
    ],
)  # fmt: skip
def test_two_guides_of_one_model_are_ranked_as_guides(khat, elbo, said, verdict):
    rows = {"diagonal": row(khat=khat), "full": row(elbo=elbo, log_p=9)}
    found = answer(0, rows, same_model=["diagonal", "full"])
    assert found.sentence == f"full and diagonal are the same model{said}"
    assert found.verdict == verdict
    assert found.measures[0].value == elbo


def test_refitted_guide_of_one_model_is_not_called_a_better_model():
    x = torch.randn(200, 1) @ torch.randn(1, 6) + 0.3 * torch.randn(200, 6)
    diagonal = pv.gaussian_vae(features=6, latent_dim=2, hidden=(8,))
    pv.fit(diagonal, x, epochs=3, progress=False)
    family = families.FullCovarianceNormal(2)
    full = diagonal.with_guide(diagonal.q_z_given_x.with_family(family))
    pv.fit(full, x, epochs=20, train="guide", progress=False)
    found = comparison_sections(
        pv.compare({"diagonal": diagonal, "full": full}, x, num_samples=100, gap_rows=0)
    )[0]
    assert "full and diagonal are the same model" in found.sentence
    assert "better" not in found.sentence


def test_gain_that_is_not_finite_ranks_nothing():
    found = answer(0, {"a": row(), "b": row(log_p=NAN)})
    assert found.verdict == "doubtful"
    assert found.sentence == "the log p(x) of b or of a is not finite."


def test_one_model_alone_is_not_ranked():
    assert answer(0, {"a": row()}).verdict == "does not apply"


# --- trust -------------------------------------------------------------------------------------


def test_light_weights_are_trusted():
    found = answer(1, {"a": row(khat=0.02), "b": row(khat=0.07)})
    assert found.verdict == "good"
    assert found.sentence == (
        "Yes, the weights are light: at most 7% of a model's rows are above 0.67 in k-hat."
    )


@pytest.mark.parametrize(
    ("shares", "said", "verdict"),
    [
        ((0.28, 0.22), "Neither: 28% (a) and 22% (b) of rows are above 0.67 in k-hat", "doubtful"),
        ((0.28, 0.02), "Not that of a: 28% (a) of rows are above 0.67", "doubtful"),
        ((0.28, 0.6, 0.2), "None: 28% (a), 60% (b) and 20% (c) of rows are above 0.67", "bad"),
        ((0.02, 0.28, 0.6), "Not that of b and c: 28% (b) and 60% (c) of rows", "bad"),
    ],
)
def test_heavy_weights_are_told_of_all_that_have_them(shares, said, verdict):
    found = answer(1, {name: row(khat=share) for name, share in zip("abc", shares, strict=False)})
    assert found.sentence.startswith(said)
    assert found.verdict == verdict


def test_where_there_is_no_khat_there_is_no_verdict():
    found = answer(1, {"a": row(khat=NAN), "b": row(khat=NAN)}, num_samples=20)
    assert found.verdict == "no verdict"
    assert found.sentence == (
        "20 draws for each row give a and b no k-hat: nothing says whether to trust log p(x)."
    )
    assert "--num-samples 1000" in found.next_step
    assert found.measures == []
    assert comparison_table(table({"a": row(khat=NAN)})).rows[0][5] == "–"


def test_heavy_weights_of_one_are_told_though_another_has_no_khat():
    found = answer(1, {"a": row(khat=NAN), "b": row(khat=0.3), "c": row()})
    assert found.verdict == "doubtful"
    assert found.sentence.startswith("Not that of b: 30% (b)")
    assert "give a no k-hat" in found.sentence
    assert answer(1, {"a": row(khat=NAN), "c": row()}).verdict == "no verdict"


# --- whose fault -------------------------------------------------------------------------------


def test_gap_and_its_parts_are_of_the_same_rows():
    rows = {
        "a": row(),
        "b": row(gap=2.0, family=1.5, encoder=0.5),
        "c": row(gap=0.05, family=0.04, encoder=0.01),
        "d": row(gap=NAN, family=NAN, encoder=NAN),
    }
    found = answer(2, rows)
    assert found.sentence == (
        "On the first 20 rows: in a mostly the encoder's (0.75 ± 0.12 of 1.00 ± 0.12 nats); in b "
        "mostly the family's (1.50 ± 0.12 of 2.00 ± 0.12 nats); c has next to none (0.05 ± 0.12 "
        "nats); d has no known family."
    )
    for cells in found.tables[0].rows[:3]:
        gap, family, encoder = (float(cell.split()[0]) for cell in cells[1:])
        assert gap == family + encoder
    assert found.tables[0].rows[3] == ["d", "–", "–", "–"]


def test_gap_that_was_not_asked_for_is_not_said_to_be_unknown():
    unasked = {name: {k: v for k, v in row().items() if "gap" not in k} for name in "ab"}
    assert "Not asked" in answer(2, unasked, gap_rows=0).sentence
    unknown = {name: row(gap=NAN, family=NAN, encoder=NAN) for name in "ab"}
    found = answer(2, unknown)
    assert (found.verdict, found.sentence) == (
        "does not apply",
        "No guide's family is known here.",
    )


# --- the table ---------------------------------------------------------------------------------


def test_every_column_has_a_head_of_its_own():
    found = comparison_table(table({"a": row(), "b": row(elbo=1, log_p=2, khat=0.57)}))
    assert len(set(found.columns)) == len(found.columns)
    cells = dict(zip(found.columns, found.rows[1], strict=True))
    assert cells["ELBO gain"] == "1.00 ± 0.10"
    assert cells["log p(x) gain"] == "2.00 ± 0.10"
    assert cells["k-hat above"] == "57%"
    assert "gains over a" in found.caption
