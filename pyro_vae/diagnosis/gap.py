"""Whose fault the distance between ELBO and log p(x) is."""

import numpy as np
import pandas as pd
import xarray as xr

from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.gaps import gap_bars, gaps_per_datum
from pyro_vae.report import with_error

from .blame import FEW, MANY, Blame, blame, cure
from .study import FULL, NATS, Study, grade, minus, shown

__all__ = ["gap"]

UNTRUSTED = 0.1
"""Share of data with an untrusted log p(x) up to which the gap may be called small."""


def gap(study: Study, question: str) -> Section:
    """The gap's two parts, and what a full covariance would buy."""
    gaps, found = study.gaps, blame(study)
    summary, count = found.summary, gaps.sizes["obs_id"]
    whole, family, encoder = (
        summary.loc[f"{name}_gap"] for name in ("inference", "approximation", "amortization")
    )
    share = whole["mean"] / found.kl if found.kl > 0 else float("inf")
    if found.fault == "none":
        verdict, next_step = "good", ""
        sentence = (
            f"The bound is tight: {_nats(whole)} of gap, where the KL is {found.kl:.2f} nats; "
            f"{_nats(family)} of the gap for the family and {_nats(encoder)} for the encoder."
        )
    else:
        verdict, next_step = grade(share, FEW, MANY), cure(study)
        sentence = _blamed(found.fault, whole, family, encoder)
    untrusted = _untrusted(gaps)
    if untrusted > UNTRUSTED * count:
        if verdict == "good":
            verdict, next_step = "doubtful", "Ask diagnostics.ais_log_evidence for log p(x)."
            sentence = f"What is seen of the gap is small: {_nats(whole)}."
        sentence += (
            f" But k-hat is above {gaps.attrs['khat_threshold']:.2f} for {untrusted} of {count} "
            "rows, whose log p(x) is too low by an unknown amount: gap and family's part are at "
            "least what is said."
        )
    return Section(
        question,
        verdict,
        sentence,
        [
            Measure(
                "gap",
                whole["mean"],
                whole["se"],
                NATS,
                f"at most {found.allowed:.2g}, the larger of a tenth of the KL and 0.1",
            ),
            Measure("the family's part (approximation gap)", family["mean"], family["se"], NATS),
            Measure("the encoder's part (amortization gap)", encoder["mean"], encoder["se"], NATS),
        ],
        next_step,
        _remarks(study, found, count),
        tables=[_table(summary)],
        pictures=[
            shown(
                gap_bars(gaps),
                "The gap, cut at the best member of each family; whiskers are two Monte Carlo "
                "standard errors, for these rows and not for new ones.",
            ),
            shown(
                gaps_per_datum(gaps),
                "The family's and the encoder's part for each datum, whiskers are two Monte Carlo "
                "standard errors; crosses are not to be trusted.",
            ),
        ],
    )


def _remarks(study: Study, found: Blame, count: int) -> list[str]:
    gaps, summary = study.gaps, found.summary
    by = "quadrature" if gaps.attrs["evidence"] == "given" else "importance sampling"
    remarks = [
        f"Computed {study.on_rows(count)}, log p(x) by {by}. Each row gets its own q(z|x), "
        "optimized from the encoder's answer: up to Monte Carlo error the encoder's part is at "
        "least, the family's at most what is said."
    ]
    if f"{FULL}: gain" in summary.index:
        gain = summary.loc[f"{FULL}: gain"]
        remarks.append(f"A full covariance for each datum would gain {_nats(gain)}.")
    left, error = (gaps[name].to_numpy() for name in ("unfinished", "unfinished_mcse"))
    tolerance = gaps.attrs["unfinished_tolerance"]
    surely = int((left - 3 * error > tolerance).sum())
    if surely or left.mean() - 3 * np.sqrt(np.square(error).sum()) / count > tolerance:
        remarks.append(
            f"The search has about {left.mean():.2g} nats left on average, surely for {surely} "
            "rows, which are the encoder's though the family gets them. "
            "diagnostics.inference_gaps with more num_steps would tell."
        )
    return remarks


def _untrusted(gaps: xr.Dataset) -> int:
    """Number of rows whose log p(x) the weights do not bear; none where it was not theirs."""
    if "pareto_khat" not in gaps:
        return 0
    return int((~(gaps["pareto_khat"].to_numpy() <= gaps.attrs["khat_threshold"])).sum())


def _blamed(fault: str, whole: pd.Series, family: pd.Series, encoder: pd.Series) -> str:
    return {
        "encoder": (
            f"Of a gap of {_nats(whole)} the encoder has {_nats(encoder)}: a better q(z|x) is in "
            "the family, and the network does not find it for these rows."
        ),
        "family": (
            f"Of a gap of {_nats(whole)} the family has {_nats(family)}: even its best member is "
            "far from the posterior."
        ),
        "both": (
            f"Family and encoder share a gap of {_nats(whole)}: {_nats(family)} and "
            f"{_nats(encoder)}."
        ),
    }[fault]


def _table(summary: pd.DataFrame) -> Table:
    rows = [
        [
            str(name).replace("_", " "),
            with_error(row["mean"], row["se"]),
            f"{row['mcse']:.2g}",
        ]
        for name, row in summary.iterrows()
    ]
    return Table(
        "log p(x) − ELBO = approximation gap + amortization gap",
        ("nats per datum", "mean", "Monte Carlo error"),
        rows,
    )


def _nats(row: pd.Series) -> str:
    return f"{minus(with_error(row['mean'], row['se']))} nats"
