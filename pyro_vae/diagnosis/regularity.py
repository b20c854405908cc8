"""Whether the latent space is regular: continuous, and complete."""

import xarray as xr

from pyro_vae.diagnostics.latent_space.regularity import regularity as measured
from pyro_vae.diagnostics.latent_space.regularity import regularity_summary
from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.regularity import prior_draws, speeds
from pyro_vae.report import with_error

from .study import Study, grade, shown

__all__ = ["regularity"]

FEW, MANY = 0.1, 0.3
"""Share of the prior's draws by which less than expected lie where codes are, or decode to what a
code could be decoded to."""

SMOOTH, ROUGH = 5.0, 20.0
"""Squared change of the decoding for a small step, in that of a linear decoder."""

WORST = ("good", "doubtful", "bad")


def regularity(study: Study, question: str) -> Section:
    """Do close points decode to similar things, and does the prior avoid holes?"""
    codes = study.x if study.train is None else study.train
    held_out = None if study.train is None else study.x
    found = measured(study.vae, codes, held_out=held_out, seed=study.seed)
    at_prior: xr.Dataset = found.sel(source="prior")
    covered, error = float(at_prior["draws_covered"]), float(at_prior["draws_covered_se"])
    nominal = float(found.attrs["nominal_draws"])
    change = float(found["local_change"])
    alike = at_prior.sel(reference="reconstructions")
    precision, hoped = float(alike["precision"]), float(alike["precision_of_data"])
    completeness = grade(max(nominal - covered, hoped - precision), FEW, MANY)
    continuity = grade(change, SMOOTH, ROUGH)
    said = [
        {
            "good": "Complete: the prior's draws fall where data are encoded",
            "doubtful": "Not quite complete: some of the prior's draws fall beside the codes",
            "bad": "Incomplete: many of the prior's draws fall beside the codes",
        }[completeness],
        {
            "good": "close points decode to similar things.",
            "doubtful": "but close points may decode to rather different things."
            if completeness == "good"
            else "and close points may decode to rather different things.",
            "bad": "and close points decode to different things: the space is not continuous.",
        }[continuity],
    ]
    steps = []
    if completeness != "good":
        steps.append("A learned prior (mixture, vamp, flow) closes holes")
    if continuity != "good":
        steps.append("a larger variance c, or fewer latent dimensions, make the decoder smoother")
    next_step = "; ".join(steps)
    return Section(
        question,
        max(completeness, continuity, key=WORST.index),
        "; ".join(said),
        [
            Measure(
                "completeness: share of the prior's draws where codes are dense",
                covered,
                error,
                wanted=f"at least {nominal - FEW:.2f}, of {nominal:.2f} if they were codes",
            ),
            Measure(
                "of these decoded, like a reconstruction (precision)",
                precision,
                float(alike["precision_se"]),
                wanted=f"at least {hoped - FEW:.2f}, of {hoped:.2f} if they were codes",
            ),
            Measure(
                "continuity: change for a small step, 1 if the decoder is linear",
                change,
                float(found["local_change_se"]),
                wanted=f"at most {SMOOTH:g}",
            ),
            Measure(
                "unevenness of the change along segments between codes",
                float(found["unevenness"]),
                float(found["unevenness_se"]),
            ),
        ],
        next_step[:1].upper() + next_step[1:] + "." if next_step else "",
        tables=[_table(found)],
        pictures=[
            shown(
                prior_draws(found),
                "Codes of the data and draws from the prior: does a draw meet a hole?",
            ),
            shown(
                speeds({"this model": found}),
                "How fast the decoding changes along segments between codes, 1 if evenly.",
            ),
        ],
    )


def _table(found: xr.Dataset) -> Table:
    rows = [
        [
            str(figure).replace("_", " "),
            str(reference) or "–",
            with_error(row["value"], row["se"]),
            f"{row['ideal']:.2f}",
        ]
        for (figure, source, reference), row in regularity_summary(found).iterrows()
        if source in ("", "prior")
    ]
    return Table(
        "Continuity, and completeness for draws from the prior; ideal: of a linear decoder, or of "
        "draws distributed as the data",
        ("figure", "held against", "value", "ideal"),
        rows,
    )
