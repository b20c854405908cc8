"""Whether the latent space uses its units, and whether its aggregate is the prior."""

import math

import numpy as np
import xarray as xr

from pyro_vae.diagnostics.aggregate.aggregate_margins import aggregate_margins
from pyro_vae.diagnostics.aggregate.decomposition import aggregate_kl
from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.aggregate import aggregate_margins as margins_picture
from pyro_vae.plots.aggregate import kl_parts, unit_kl, unit_variances
from pyro_vae.report import with_error

from .study import NATS, NEGLIGIBLE, Study, grade, shown

__all__ = ["prior", "units"]

FEW, MANY = 0.1, 0.3
"""KL of the aggregate posterior from the prior as a share of the mean KL: good, and bad."""

CLOSE = 1.0
"""Nats from log N at which the mutual information says more about N than about q."""

FAR = 2.0
"""Nats that the mean KL of each unit must be below log N for N rows to show its aggregate."""

SHOWN = 12
"""Latent units in the table, the most active ones."""

VERDICTS = {
    "as expected": "good",
    "more": "good",
    "fewer needed": "good",
    "collapse": "bad",
    "no theory": "no verdict",
}


def units(study: Study, question: str) -> Section:
    """Active units against what a linear VAE would use."""
    report = study.units
    said = report.attrs
    active, num_directions = said["num_active_directions"], report.sizes["direction"]
    verdict, next_step = VERDICTS[said["verdict"]], ""
    if verdict == "no verdict" and active > 0:
        verdict = "good" if active == num_directions else "no verdict"
    elif verdict == "no verdict":
        verdict = "bad"
    if verdict == "bad":
        next_step = (
            "Let the KL weight rise from 0 (--kl-warmup), give some nats free (--free-bits), or "
            "train longer."
        )
    elif active < num_directions:
        next_step = f"{active} latent dimensions would do as well as {num_directions}."
    wanted = f"{said['num_expected']} in the best linear VAE" if said["num_expected"] >= 0 else ""
    name = f"active latent directions of {num_directions}"
    measures = [Measure(name, active, wanted=wanted), Measure("active units", said["num_active"])]
    if "linear_elbo" in report:
        linear = float(report["linear_elbo"])
        measures.append(Measure("ELBO of the best linear VAE on the same rows", linear, unit=NATS))
    if "kl" in report:
        picture = shown(
            unit_kl(report),
            "Mean KL of each unit"
            + (" beside that of the best linear VAE." if "linear_kl" in report else "."),
        )
    else:
        picture = shown(unit_variances(report), "Variance of each unit's mean over the data.")
    return Section(
        question,
        verdict,
        said["advice"],
        measures,
        next_step,
        [f"Computed {study.on_codes()}."],
        tables=[_units_table(report, study.latent_names)],
        pictures=[picture],
    )


def prior(study: Study, question: str) -> Section:
    """The mean KL, divided into what z tells of x and how far off the prior is."""
    rows = study.codes
    found = aggregate_kl(study.vae, rows, num_samples=study.size(2000, 500), seed=study.seed)
    kl, off, information = (
        float(found[name]) for name in ("kl", "marginal_kl", "mutual_information")
    )
    log_n, count = found.attrs["log_num_data"], found.attrs["num_data"]
    allowed = max(FEW * kl, NEGLIGIBLE)
    wanted = f"at most {allowed:.2g}, the larger of a tenth of the KL and 0.1"
    # With few data the mutual information is cut off at log N, and all the rest looks like a
    # distance from the prior; that of single units does so only where they themselves are near.
    is_cut_off = information > log_n - CLOSE
    single = float(found["dimension_kl_sum"]) if "dimension_kl_sum" in found else math.nan
    units_tell = is_cut_off and math.isfinite(single) and _largest_unit_kl(study) <= log_n - FAR
    next_step = ""
    sentence = (
        f"Of the mean KL of {kl:.2f} nats, {information:.2f} are what z tells of x, and "
        f"{off:.2f} are the distance of the aggregate posterior from the prior"
    )
    if units_tell and single > allowed:
        verdict = grade(single / allowed, 1.0, MANY / FEW)
        sentence = (
            f"Unit by unit the codes are {single:.2f} nats from the prior, which the ELBO pays "
            f"for. What their dependence adds {count} rows cannot show."
        )
    elif is_cut_off:
        verdict = "no verdict"
        sentence = (
            f"{count} rows are too few to tell: they can show {log_n:.1f} nats of mutual "
            f"information, and the mean KL is {kl:.1f}."
        )
        if units_tell:
            sentence += f" Unit by unit the codes are {single:.2f} nats from the prior, a few."
        next_step = "Diagnose more rows: a larger num_data"
        next_step += ", or training rows." if study.train is None else "."
    else:
        verdict = grade(off / allowed, 1.0, MANY / FEW)
        sentence += (
            ": the codes follow the prior well."
            if verdict == "good"
            else ": that much the ELBO pays for a prior that the codes do not follow."
        )
    if verdict in {"doubtful", "bad"}:
        next_step = (
            "A learned prior can save these nats (--prior mixture:10, vamp:50 or flow:4); draws "
            "from the present one may decode to what no datum is like."
        )
    aggregate = _measure(
        found,
        "marginal_kl",
        "KL of the aggregate posterior from the prior"
        + (", at most: too few rows" if is_cut_off else ""),
        "" if is_cut_off else wanted,
    )
    shared = _measure(
        found,
        "mutual_information",
        "mutual information of x and z",
        f"at most {log_n - CLOSE:.2f} for {count} rows to tell, {CLOSE:g} below their log"
        if is_cut_off
        else f"log N = {log_n:.2f} caps it",
    )
    measures = [aggregate, shared]
    if found.attrs["margins_known"]:
        by_unit = _measure(
            found,
            "dimension_kl_sum",
            "KL of single units from the prior, their sum",
            wanted if units_tell else "",
        )
        dependence = _measure(found, "total_correlation", "dependence between the units")
        measures += [dependence, by_unit]
        if units_tell and verdict != "no verdict":
            measures = [by_unit, shared]  # the rest is not known
    if is_cut_off and verdict == "no verdict":
        measures = [shared]
        if units_tell:
            measures.append(by_unit)
    pictures = [shown(kl_parts(found), "The mean KL and what it is spent on.")]
    if found.attrs["margins_known"]:
        pictures.append(
            shown(
                margins_picture(aggregate_margins(study.vae, rows, seed=study.seed)),
                "Density of each unit over the data's codes and under the prior: where the prior "
                "is above, its draws fall where no codes are.",
            )
        )
    remarks = [f"Computed {study.on_codes()}."]
    return Section(question, verdict, sentence, measures, next_step, remarks, pictures=pictures)


def _largest_unit_kl(study: Study) -> float:
    """The mean KL of the unit that tells most, infinite where it is not known."""
    return float(study.units["kl"].max()) if "kl" in study.units else math.inf


def _measure(found: xr.Dataset, name: str, words: str, wanted: str = "") -> Measure:
    return Measure(words, float(found[name]), float(found[f"{name}_mcse"]), "nats", wanted)


def _units_table(report: xr.Dataset, names: list[str]) -> Table:
    variance, error = report["variance"].to_numpy(), report["variance_se"].to_numpy()
    order = np.argsort(-variance)[:SHOWN]
    columns = ["unit", "variance of its mean", "active"]
    rows = [
        [names[j], with_error(variance[j], error[j]), "yes" if report["active"][j] else "no"]
        for j in order
    ]
    if "kl" in report:
        columns.append("mean KL, nats")
        for row, j in zip(rows, order, strict=True):
            row.append(with_error(float(report["kl"][j]), float(report["kl_mcse"][j])))
    shown = "" if len(order) == len(variance) else f", the {SHOWN} most active ones"
    return Table(f"Units of z{shown}", columns, rows)
