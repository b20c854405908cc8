"""The ELBO and its distance from log p(x): what it is made of, and whether that is trusted."""

import math
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_vae.diagnostics import bits_per_dim, elbo_summary, evidence_summary
from pyro_vae.diagnostics.evidence.pareto import FEWEST_DRAWS
from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.evidence import khat
from pyro_vae.plots.ledgers import ledger as ledger_picture
from pyro_vae.report import standard_error, with_error

from .blame import cure
from .study import NATS, Study, grade, minus, share_error, shown

__all__ = ["distance", "ledger"]

NOISE = 1 / 3
"""Largest Monte Carlo error as a share of the standard error over data."""

OVERFIT = 3.0
"""Standard errors by which training rows may be better than new ones."""

FEW, MANY = 0.1, 0.5
"""Shares of data whose importance weights are not trusted: good up to the one, bad from the
other."""

TERM_NAMES = {
    "elbo": "ELBO",
    "expected_log_likelihood": "E_q log p(x|z)",
    "kl": "KL(q(z|x) || p(z))",
    "cross_entropy": "cross-entropy −E_q log p(z)",
    "entropy": "entropy −E_q log q(z|x)",
}

NO_DENSITY = (
    "x has values strictly between 0 and 1, where a Bernoulli likelihood is no normalized "
    "density: neither is log p(x), and no figure in nats compares with that of another likelihood."
)


def ledger(study: Study, question: str) -> Section:
    """The terms of the ELBO, with both their errors."""
    terms = study.terms
    summary = elbo_summary(terms)
    elbo = summary.loc["elbo"]
    measures = [Measure("ELBO", elbo["mean"], elbo["se"], NATS)]
    if not study.is_no_density:
        measures.append(_code_length(terms))
    measures.append(
        Measure(
            "Monte Carlo error of the ELBO",
            elbo["mcse"],
            unit=NATS,
            wanted=f"at most {NOISE * elbo['se']:.2g}, a third of the error over data",
        )
    )
    verdict, next_step = "good", ""
    likelihood, kl, whole = (
        minus(with_error(*summary.loc[name, ["mean", "se"]]))
        for name in ("expected_log_likelihood", "kl", "elbo")
    )
    sentence = f"ELBO = E_q log p(x|z) − KL(q(z|x) || p(z)) = ({likelihood}) − ({kl}) = {whole}."
    if not elbo["mcse"] <= NOISE * elbo["se"]:
        verdict, next_step = "doubtful", "Evaluate the ELBO with more draws for each datum."
        sentence += " The draws from q(z|x) make the figures noisier than the data do."
    lost = _lost_on_new_data(study, elbo)
    if lost is not None:
        wanted = f"at most {OVERFIT:g} standard errors"
        measures.append(Measure("training ELBO less this one", lost[0], lost[1], NATS, wanted))
        if lost[0] > OVERFIT * lost[1]:
            verdict = "doubtful"
            sentence += " Rows that it was trained on are described better than new ones."
            next_step = (
                "The fit learned training rows by heart: stop earlier (patience), take smaller "
                "networks, or more data."
            )
    if verdict == "good":
        sentence += " Judged are only the figures themselves: draws blur them little"
        sentence += "." if lost is None else ", and training rows fare no better than new ones."
    remarks = [f"Computed {study.on_rows()}."]
    if study.is_no_density:
        remarks.insert(0, f"{NO_DENSITY} Binarize x, or take --likelihood continuous_bernoulli.")
    return Section(
        question,
        verdict,
        sentence,
        measures,
        next_step,
        remarks,
        tables=[_ledger_table(summary)],
        pictures=[
            shown(
                ledger_picture(summary),
                "The terms of the ELBO as steps: each bar begins where the one above it ended, "
                "the last is the ELBO.",
            )
        ],
    )


def distance(study: Study, question: str) -> Section:
    """The distance from log p(x), and whether the importance weights bear it."""
    found = study.evidence
    summary = evidence_summary(found)
    share, threshold = summary.attrs["khat_share_above"], summary.attrs["khat_threshold"]
    count, num_samples = found.sizes["obs_id"], found.attrs["num_samples"]
    gap, evidence = summary.loc["inference_gap"], summary.loc["log_evidence"]
    apart = minus(with_error(gap["mean"], gap["se"]))
    measures = [
        Measure("log p(x) − ELBO", gap["mean"], gap["se"], NATS),
        Measure("log p(x)", evidence["mean"], evidence["se"], NATS),
        Measure("median effective share of the draws", float(found["ess"].median()) / num_samples),
    ]
    exact = _by_quadrature(study, found)
    measures += exact
    if num_samples < FEWEST_DRAWS or bool(found["pareto_khat"].isnull().all()):
        verdict = "no verdict"
        sentence = (
            f"Nothing says whether S = {num_samples} suffices: weights of so few draws have no "
            f"k-hat. The distance is at least {apart} nats, up to the error of the draws."
        )
        next_step = (
            f"Draw at least {FEWEST_DRAWS} times for each datum; num_samples=1000 is usual."
        )
    else:
        measures.insert(
            0,
            Measure(
                f"share of data with k-hat above {threshold:.2f}",
                share,
                share_error(share, count),
                wanted=f"at most {FEW:g}",
            ),
        )
        if share <= FEW:
            verdict, next_step = "good", ""
            sentence = (
                f"log p(x) exceeds the ELBO by {apart} nats, and the importance weights are "
                "light-tailed enough for that figure to be trusted."
            )
        else:
            verdict = grade(share, FEW, MANY)
            sentence = (
                f"The importance weights of {share:.0%} of the data have so heavy a tail that "
                "their log p(x) is too low by an unknown amount: the distance is at least "
                f"{apart} nats."
            )
            trusted = "Trust the quadrature." if exact else "Ask diagnostics.ais_log_evidence."
            next_step = f"{trusted} {cure(study)}"
    if exact and verdict != "good":
        sentence += f" By quadrature, which needs no weights, it is {minus(exact[0].text)} nats."
    return Section(
        question,
        verdict,
        sentence,
        measures,
        next_step,
        [
            *([NO_DENSITY] if study.is_no_density else []),
            f"Computed {study.on_rows()}.",
            *([study.exact] if isinstance(study.exact, str) and study.exact else []),
        ],
        tables=[_worst_rows(study, found)],
        pictures=[
            shown(
                khat(found),
                "How heavy the tail of each datum's importance weights is: below the threshold "
                "its log p(x) can be trusted.",
            )
        ],
    )


def _code_length(terms: xr.Dataset) -> Measure:
    bits = bits_per_dim(terms)
    name = "ELBO as a code length"
    if bits.mean < 0:
        name += ", negative, because it is of a density"
    return Measure(name, bits.mean, bits.se, "bits for each dimension of x")


def _by_quadrature(study: Study, found: xr.Dataset) -> list[Measure]:
    """The distance without importance weights, where z has one or two dimensions."""
    if isinstance(study.exact, str):
        return []
    log_p = study.exact["log_evidence"].to_numpy()
    same = found.isel(obs_id=study.index(study.num_gap_rows).cpu().numpy())
    on = study.on_rows(len(log_p))
    distance, bias = (log_p - same[name].to_numpy() for name in ("elbo", "log_evidence"))
    return [
        Measure(f"{name}, {on}", values.mean(), standard_error(values), NATS)
        for name, values in (
            ("log p(x) − ELBO by quadrature", distance),
            ("log p(x) by quadrature less that by importance sampling", bias),
        )
    ]


def _lost_on_new_data(study: Study, elbo: pd.Series) -> tuple[float, float] | None:
    if study.train_terms is None:
        return None
    trained = elbo_summary(study.train_terms).loc["elbo"]
    return trained["mean"] - elbo["mean"], math.hypot(trained["se"], elbo["se"])


def _ledger_table(summary: pd.DataFrame) -> Table:
    rows = [
        [
            TERM_NAMES[str(name)],
            with_error(row["mean"], row["se"]),
            f"{row['mcse']:.2g}",
            with_error(row["total"], row["total_se"]),
            "closed form" if row["is_analytic"] else "draws",
        ]
        for name, row in summary.iterrows()
    ]
    columns = ("term, nats", "per datum", "Monte Carlo error", "all rows together", "by")
    return Table("ELBO = E_q log p(x|z) − KL, KL = cross-entropy − entropy", columns, rows)


def _worst_rows(study: Study, found: xr.Dataset, count: int = 5) -> Table:
    order = np.argsort(-np.nan_to_num(found["pareto_khat"].to_numpy(), nan=np.inf))[:count]
    rows = []
    for index in order:
        row: Any = found.isel(obs_id=index)
        khat = float(row["pareto_khat"])
        rows.append(
            [
                str(study.number(int(index))),
                "–" if math.isnan(khat) else f"{khat:.2f}",
                f"{float(row['ess']):.0f}",
                with_error(float(row["log_evidence"]), float(row["mcse"])),
                f"{float(row['elbo']):.2f}",
            ]
        )
    columns = ("row", "k-hat", "effective draws", "log p(x), nats", "ELBO, nats")
    return Table(
        f"The rows with the heaviest weights, by their numbers among all {study.name} from 0 on",
        columns,
        rows,
    )
