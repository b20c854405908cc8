"""Whether the latent space is regular: continuous, and complete."""

import math
from dataclasses import dataclass

import xarray as xr

from pyro_vae.diagnostics.latent_space.regularity import regularity as measured
from pyro_vae.diagnostics.latent_space.regularity import regularity_summary
from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.regularity import prior_draws, speeds
from pyro_vae.report import with_error

from .study import Study, grade, shown

__all__ = ["certain_grade", "regularity"]

FEW, MANY = 0.1, 0.3
"""Share of the prior's draws by which less than expected lie where codes are, or decode to what a
code could be decoded to."""

SMOOTH, ROUGH = 5.0, 20.0
"""Squared change of the decoding for a small step, in that of a linear decoder."""

CERTAIN = 2.0
"""Standard errors beyond a threshold from which on it counts as passed."""

WORST = ("good", "doubtful", "bad")

FIGURES = {
    "draws_covered": "share of draws where codes are dense",
    "codes_covered": "share of codes where draws are dense",
    "precision": "share of decoded draws like a reconstruction (precision)",
    "local_change": "change for a small step",
    "unevenness": "unevenness along segments between codes",
    "path_over_chord": "length of these segments, decoded, over the distance of their ends",
    "peak": "largest speed on them over the mean",
}


@dataclass(frozen=True)
class _Criterion:
    """A figure that is judged, with what its failing means and what cures it."""

    verdict: str
    measure: Measure
    sentence: str
    step: str


def certain_grade(value: float, error: float, good: float, bad: float) -> str:
    """Grade of a figure that passes a threshold only by two standard errors.

    Example:
        >>> certain_grade(0.2, 0.01, 0.1, 0.3), certain_grade(0.2, 0.06, 0.1, 0.3)
        ('doubtful', 'good')
    """
    return grade(value - CERTAIN * error, good, bad)


def regularity(study: Study, question: str) -> Section:
    """Do close points decode to similar things, and does the prior avoid holes?"""
    held_out = None if study.train is None else study.x
    found = measured(study.vae, study.codes, held_out=held_out, seed=study.seed)
    # What fails stands first, and the sentence is about it; a sort keeps the order of equals.
    criteria = sorted(_criteria(found), key=lambda c: -WORST.index(c.verdict))
    verdict = criteria[0].verdict
    sentence = (
        "Complete and continuous: the prior's draws fall where data are encoded, and close points "
        "decode to similar things."
        if verdict == "good"
        else " ".join(c.sentence for c in criteria if c.verdict != "good")
    )
    steps = dict.fromkeys(c.step for c in criteria if c.verdict != "good")
    unevenness = Measure(
        "unevenness of the change along segments between codes",
        float(found["unevenness"]),
        float(found["unevenness_se"]),
    )
    halves = "; one half is held against the other" if held_out is None else ""
    remarks = [
        f"Codes are computed {study.on_codes()}{halves}"
        + ("." if held_out is None else f", and held against those {study.on_rows()}."),
        f"A threshold counts as missed by {CERTAIN:g} standard errors. More figures are in "
        "diagnostics.regularity.",
    ]
    return Section(
        question,
        verdict,
        sentence,
        [*(c.measure for c in criteria), unevenness],
        " ".join(steps),
        remarks,
        tables=[_table(found)],
        pictures=[
            shown(
                prior_draws(found),
                "Codes of the data and draws from the prior: does a draw meet a hole? One set of "
                f"draws; the share in the table is the mean of {found.attrs['num_repetitions']}.",
            ),
            shown(
                speeds({"this model": found}),
                "How fast the decoding changes along segments between codes, 1 if evenly.",
            ),
        ],
    )


def _criteria(found: xr.Dataset) -> list[_Criterion]:
    at_prior: xr.Dataset = found.sel(source="prior")
    nominal = float(found.attrs["nominal_draws"])
    covered, error = float(at_prior["draws_covered"]), float(at_prior["draws_covered_se"])
    alike = at_prior.sel(reference="reconstructions")
    precision, precision_error = float(alike["precision"]), float(alike["precision_se"])
    hoped = float(alike["precision_of_data"])
    both = math.hypot(precision_error, float(alike["precision_of_data_se"]))
    change, change_error = float(found["local_change"]), float(found["local_change_se"])
    of_covered = certain_grade(nominal - covered, error, FEW, MANY)
    of_precision = certain_grade(hoped - precision, both, FEW, MANY)
    of_change = certain_grade(change, change_error, SMOOTH, ROUGH)
    word = {"good": "", "doubtful": "Some", "bad": "Many"}
    closes = "A learned prior (mixture, vamp, flow) closes holes."
    return [
        _Criterion(
            of_covered,
            Measure(
                "completeness: share of the prior's draws where codes are dense",
                covered,
                error,
                wanted=f"at least {nominal - FEW:.2f}, of {nominal:.2f} if they were codes",
            ),
            f"{word[of_covered]} of the prior's draws fall where no codes are.",
            closes,
        ),
        _Criterion(
            of_precision,
            Measure(
                "share of the prior's draws decoded like a reconstruction (precision)",
                precision,
                precision_error,
                wanted=f"at least {hoped - FEW:.2f}, of {hoped:.2f} if they were codes",
            ),
            f"{word[of_precision]} of the prior's draws are decoded to what no datum is like.",
            closes,
        ),
        _Criterion(
            of_change,
            Measure(
                "continuity: change for a small step, 1 if the decoder is linear",
                change,
                change_error,
                wanted=f"at most {SMOOTH:g}",
            ),
            "Close points decode to different things: the space is not continuous."
            if of_change == "bad"
            else "Close points may decode to rather different things.",
            "A larger variance c, or fewer latent dimensions, make the decoder smoother.",
        ),
    ]


def _table(found: xr.Dataset) -> Table:
    summary = regularity_summary(found)
    rows = []
    for (figure, source, reference), row in summary.iterrows():
        if figure in FIGURES and source in ("", "prior") and reference in ("", "reconstructions"):
            value = with_error(row["value"], row["se"])
            rows.append([FIGURES[figure], value, f"{row['ideal']:.2f}"])
    return Table(
        "Continuity, and completeness for draws from the prior; ideal: of a linear decoder, or of "
        "draws distributed as the data",
        ("figure", "value", "ideal"),
        rows,
    )
