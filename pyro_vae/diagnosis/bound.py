"""The ELBO and its distance from log p(x): what it is made of, and whether that is trusted."""

import math
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_vae.diagnostics import bits_per_dim, elbo_summary, elbo_terms, evidence_summary
from pyro_vae.diagnostics.evidence.quadrature import quadrature_log_evidence
from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.evidence import khat
from pyro_vae.plots.ledgers import ledger as ledger_picture
from pyro_vae.report import standard_error, with_error

from .study import ELBO_DRAWS, NATS, Study, grade, shown

__all__ = ["distance", "ledger"]

NOISE = 1 / 3
"""Largest Monte Carlo error as a share of the standard error over data."""

OVERFIT = 3.0
"""Standard errors by which training rows may be better than new ones."""

FEW, MANY = 0.1, 0.5
"""Shares of data whose importance weights are not trusted: good up to the one, bad from the
other."""

QUADRATURE_ROWS, MOST_QUADRATURE_DIMENSIONS = 50, 2

TERM_NAMES = {
    "elbo": "ELBO",
    "expected_log_likelihood": "E_q log p(x|z)",
    "kl": "KL(q(z|x) || p(z))",
    "cross_entropy": "cross-entropy −E_q log p(z)",
    "entropy": "entropy −E_q log q(z|x)",
}


def ledger(study: Study, question: str) -> Section:
    """The terms of the ELBO, with both their errors."""
    terms = study.terms
    summary = elbo_summary(terms)
    elbo, bits = summary.loc["elbo"], bits_per_dim(terms)
    measures = [
        Measure("ELBO", elbo["mean"], elbo["se"], NATS),
        Measure("ELBO as a code length", bits.mean, bits.se, "bits for each dimension of x"),
        Measure(
            "Monte Carlo error of the ELBO",
            elbo["mcse"],
            unit=NATS,
            wanted=f"at most {NOISE * elbo['se']:.2g}, a third of the error over data",
        ),
    ]
    verdict, next_step = "good", ""
    sentence = (
        f"Of the {with_error(*summary.loc['expected_log_likelihood', ['mean', 'se']])} nats that "
        "the draws from q(z|x) explain, the KL takes "
        f"{with_error(*summary.loc['kl', ['mean', 'se']])} for naming z."
    )
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
    return Section(
        question,
        verdict,
        sentence,
        measures,
        next_step,
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
    count = found.sizes["obs_id"]
    gap, evidence = summary.loc["inference_gap"], summary.loc["log_evidence"]
    efficiency = float(found["ess"].median()) / found.attrs["num_samples"]
    measures = [
        Measure(
            f"share of data with k-hat above {threshold:.2f}",
            share,
            math.sqrt(share * (1 - share) / count),
            wanted=f"at most {FEW:g}",
        ),
        Measure("log p(x) − ELBO", gap["mean"], gap["se"], NATS),
        Measure("log p(x)", evidence["mean"], evidence["se"], NATS),
        Measure("median effective share of the draws", efficiency),
    ]
    exact, remarks = _by_quadrature(study)
    measures += exact
    if not share > FEW:
        verdict, next_step = "good", ""
        sentence = (
            f"log p(x) exceeds the ELBO by {with_error(gap['mean'], gap['se'])} nats, and the "
            "importance weights are light-tailed enough for that figure to be trusted."
        )
    else:
        verdict = grade(share, FEW, MANY)
        sentence = (
            f"The importance weights of {share:.0%} of the data have so heavy a tail that their "
            "log p(x) is too low by an unknown amount: the distance is at least "
            f"{with_error(gap['mean'], gap['se'])} nats."
        )
        next_step = (
            "Ask diagnostics.ais_log_evidence; then see whether a richer family or a larger "
            "encoder cures the weights."
        )
        if exact:
            sentence += (
                f" By quadrature, which needs no weights, it is {exact[0].text} nats on "
                f"{QUADRATURE_ROWS} of the rows."
            )
            next_step = (
                "Trust the quadrature. A richer family or a larger encoder cures the weights."
            )
    return Section(
        question,
        verdict,
        sentence,
        measures,
        next_step,
        remarks,
        tables=[_worst_rows(found)],
        pictures=[
            shown(
                khat(found),
                "How heavy the tail of each datum's importance weights is: below the threshold "
                "its log p(x) can be trusted.",
            )
        ],
    )


def _by_quadrature(study: Study) -> tuple[list[Measure], list[str]]:
    """The distance without importance weights, where z has one or two dimensions."""
    shape = getattr(study.vae, "latent_shape", ())
    if math.prod(shape) > MOST_QUADRATURE_DIMENSIONS or len(shape) == 0:
        return [], []
    try:
        with study.some_rows(QUADRATURE_ROWS) as rows:
            exact = quadrature_log_evidence(study.vae, rows, tolerance=0.01, seed=study.seed)
            terms = elbo_terms(study.vae, rows, num_samples=ELBO_DRAWS, seed=study.seed)
    except ValueError as error:
        return [], [f"No quadrature: {error}"]
    distance = (exact["log_evidence"] - terms["elbo"]).to_numpy()
    name = f"log p(x) − ELBO by quadrature, on {len(distance)} of the rows"
    return [Measure(name, distance.mean(), standard_error(distance), NATS)], []


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


def _worst_rows(found: xr.Dataset, count: int = 5) -> Table:
    order = np.argsort(-np.nan_to_num(found["pareto_khat"].to_numpy(), nan=np.inf))[:count]
    rows = []
    for index in order:
        row: Any = found.isel(obs_id=index)
        rows.append(
            [
                str(int(row["obs_id"])),
                f"{float(row['pareto_khat']):.2f}",
                f"{float(row['ess']):.0f}",
                with_error(float(row["log_evidence"]), float(row["mcse"])),
                f"{float(row['elbo']):.2f}",
            ]
        )
    columns = ("row", "k-hat", "effective draws", "log p(x), nats", "ELBO, nats")
    return Table("The rows with the heaviest weights", columns, rows)
