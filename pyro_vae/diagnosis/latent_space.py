"""Whether the latent space uses its units, and whether its aggregate is the prior."""

import numpy as np
import xarray as xr

from pyro_vae.diagnostics.aggregate.aggregate_margins import aggregate_margins
from pyro_vae.diagnostics.aggregate.collapse import collapse_report
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
    rows = study.x if study.train is None else study.train
    report = collapse_report(study.vae, rows, seed=study.seed)
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
            unit_kl(report), "Mean KL of each unit beside that of the best linear VAE."
        )
    else:
        picture = shown(unit_variances(report), "Variance of each unit's mean over the data.")
    return Section(
        question,
        verdict,
        said["advice"],
        measures,
        next_step,
        tables=[_units_table(report)],
        pictures=[picture],
    )


def prior(study: Study, question: str) -> Section:
    """The mean KL, divided into what z tells of x and how far off the prior is."""
    rows = study.x if study.train is None else study.train
    found = aggregate_kl(study.vae, rows, num_samples=study.size(2000, 500), seed=study.seed)
    kl, off, information = (
        float(found[name]) for name in ("kl", "marginal_kl", "mutual_information")
    )
    log_n, count = found.attrs["log_num_data"], found.attrs["num_data"]
    # With few data the mutual information is cut off at log N, and all the rest looks like a
    # distance from the prior; that of single units is no part of this.
    is_cut_off = information > log_n - CLOSE
    certain = float(found["dimension_kl_sum"]) if "dimension_kl_sum" in found else 0.0
    allowed = max(FEW * kl, NEGLIGIBLE)
    verdict = grade((certain if is_cut_off else off) / allowed, 1.0, MANY / FEW)
    next_step = ""
    sentence = (
        f"Of the mean KL of {kl:.2f} nats, {information:.2f} are what z tells of x, and "
        f"{off:.2f} are the distance of the aggregate posterior from the prior"
    )
    if is_cut_off and verdict == "good":
        verdict = "no verdict"
        sentence = (
            f"{count} rows are too few to tell: they can show {log_n:.1f} nats of mutual "
            f"information, and the mean KL is {kl:.1f}. Unit by unit the codes are {certain:.2f} "
            "nats from the prior."
        )
    elif verdict == "good":
        sentence += ": the codes follow the prior well."
    else:
        sentence += ": that much the ELBO pays for a prior that the codes do not follow."
        next_step = (
            "A learned prior can save these nats (--prior mixture:10, vamp:50 or flow:4); draws "
            "from the present one may decode to what no datum is like."
        )
    wanted = "" if is_cut_off else f"at most {allowed:.2g}, a tenth of the KL or 0.1"
    measures = [
        _measure(found, "marginal_kl", "KL of the aggregate posterior from the prior", wanted),
        _measure(
            found,
            "mutual_information",
            "mutual information of x and z",
            f"log N = {log_n:.2f} caps it",
        ),
    ]
    if found.attrs["margins_known"]:
        measures += [
            _measure(found, "total_correlation", "of the first: dependence between the units"),
            _measure(found, "dimension_kl_sum", "KL of single units from the prior, their sum"),
        ]
        if is_cut_off:  # what is known for certain stands first
            measures.insert(0, measures.pop())
    pictures = [shown(kl_parts(found), "The mean KL and what it is spent on.")]
    if found.attrs["margins_known"]:
        pictures.append(
            shown(
                margins_picture(aggregate_margins(study.vae, rows, seed=study.seed)),
                "Density of each unit over the data's codes and under the prior: where the prior "
                "is above, its draws fall where no codes are.",
            )
        )
    return Section(question, verdict, sentence, measures, next_step, pictures=pictures)


def _measure(found: xr.Dataset, name: str, words: str, wanted: str = "") -> Measure:
    return Measure(words, float(found[name]), float(found[f"{name}_mcse"]), "nats", wanted)


def _units_table(report: xr.Dataset) -> Table:
    variance, error = report["variance"].to_numpy(), report["variance_se"].to_numpy()
    order = np.argsort(-variance)[:SHOWN]
    columns = ["unit", "variance of its mean", "active"]
    rows = [
        [f"z_{j + 1}", with_error(variance[j], error[j]), "yes" if report["active"][j] else "no"]
        for j in order
    ]
    if "kl" in report:
        columns.append("mean KL, nats")
        for row, j in zip(rows, order, strict=True):
            row.append(with_error(float(report["kl"][j]), float(report["kl_mcse"][j])))
    shown = "" if len(order) == len(variance) else f", the {SHOWN} most active ones"
    return Table(f"Units of z{shown}", columns, rows)
