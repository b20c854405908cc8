"""Whether q(z|x) says how far off it is."""

import numpy as np
import xarray as xr

from pyro_vae.diagnostics.calibration.simulation_based import sbc
from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.calibration import coverage as coverage_picture
from pyro_vae.plots.calibration import rank_ecdf
from pyro_vae.report import with_error

from .blame import cure
from .study import Study, grade, minus, shown

__all__ = ["calibration"]

LEVEL = 0.9

FEW, MANY = 0.05, 0.15
"""Distance of a 90% interval's coverage from 90%: good, and bad."""

SHOWN = 12


def calibration(study: Study, question: str) -> Section:
    """Ranks of true codes among draws from q, for data that the model makes."""
    found = sbc(study.vae, study.size(1000, 200), 99, like=study.x, seed=study.seed)
    names = study.latent_names
    coverage = found["coverage"].sel(level=LEVEL).to_numpy()
    worst = int(np.abs(coverage - LEVEL).argmax())
    error = float(found["coverage_mcse"].sel(level=LEVEL)[worst])
    off = abs(float(coverage[worst]) - LEVEL)
    passes = found.attrs["verdict"] == "calibrated"
    lowest = min(float(found["log_gamma"].min()), float(found["log_gamma_log_joint"]))
    at = found.attrs["verdict_significance"]
    critical = float(found["critical_log_gamma_of_all"].sel(significance=at))
    verdict, next_step = grade(off, FEW, MANY), ""
    count = found.sizes["simulation"]
    covers = f"its 90% intervals cover the true {names[worst]} in {coverage[worst]:.0%}"
    if passes and verdict == "good":
        sentence = f"On data of the model itself q(z|x) is as wide as it should be: {covers}."
    elif passes:
        verdict = "no verdict"
        sentence = (
            f"{count} simulations are too few to tell: {covers} of them, which a calibrated q "
            "might do as well."
        )
        next_step = "Ask diagnostics.sbc with more simulations."
    elif verdict == "good":
        verdict = "doubtful" if float(found["log_gamma_log_joint"]) < critical else "good"
        sentence = f"The deviation is certain but small: {covers} of data of the model itself."
    else:
        word = "too narrow" if coverage[worst] < LEVEL else "too wide"
        sentence = f"On data of the model itself q(z|x) is {word} or off: {covers} of the cases."
    if verdict in {"doubtful", "bad"}:
        next_step = f"Do not read q's intervals as the posterior's. {cure(study)}"
    remarks = [
        f"Computed on {count} data that the model makes: this is about q, and whether the model "
        "describes yours is the question of the predictive checks."
    ]
    if bool(study.x.isnan().any()):
        remarks.append(
            "They lack what rows of your data lack, drawn at random: "
            f"{found.attrs['share_missing']:.0%} of the values."
        )
    if names[0] != "z_1":
        remarks.append(f"In the pictures z_1, z_2, ... are {', '.join(names)}.")
    return Section(
        question,
        verdict,
        sentence,
        [
            Measure(
                f"coverage of 90% intervals, {names[worst]}, the worst",
                float(coverage[worst]),
                error,
                wanted=f"{LEVEL - FEW:g} to {LEVEL + FEW:g}",
            ),
            Measure(
                "log gamma, the smallest of all ranks",
                lowest,
                wanted=minus(f"at least {critical:.2f} (a test at {at:.0%})"),
            ),
        ],
        next_step,
        remarks,
        tables=[_table(found, names)],
        pictures=[
            shown(
                coverage_picture(found),
                "How often q's central intervals contain the true z: below the diagonal q is too "
                "narrow.",
            ),
            shown(
                rank_ecdf(found),
                "Ranks of the truth among draws from q, against uniform ranks: outside the band q "
                "is not the posterior.",
            ),
        ],
    )


def _table(found: xr.Dataset, names: list[str]) -> Table:
    levels = found["level"].to_numpy()
    coverage, error = found["coverage"].to_numpy(), found["coverage_mcse"].to_numpy()
    order = np.argsort(-np.abs(coverage - levels).max(1))[:SHOWN]
    rows = [
        [names[j], *(with_error(c, e) for c, e in zip(coverage[j], error[j], strict=True))]
        for j in order
    ]
    return Table(
        "Share of simulated data whose true z lies in q's central interval",
        ["unit", *(f"{level:.0%} interval" for level in levels)],
        rows,
    )
