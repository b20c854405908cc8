"""Whose fault the distance between ELBO and log p(x) is."""

from typing import Any

import pandas as pd

from pyro_vae import families
from pyro_vae.diagnostics.gaps.inference_gaps import gap_summary, inference_gaps
from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.gaps import gap_bars, gaps_per_datum
from pyro_vae.report import with_error

from .study import NATS, NEGLIGIBLE, Study, grade, shown

__all__ = ["gap"]

FEW, MANY = 0.1, 0.3
"""Gap as a share of the KL: good up to the one, bad beyond the other. Both are divergences from
q(z|x), to the posterior and to the prior; the one is what the guide misses, the other what it
found."""

FULL = "full covariance"

MOST_DIMENSIONS = 32
"""Largest latent dimension for which a full covariance is tried."""


def gap(study: Study, question: str) -> Section:
    """The gap's two parts, and what a full covariance would buy."""
    with study.some_rows(study.size(100, 25)) as rows:
        gaps = inference_gaps(
            study.vae,
            rows,
            families=_others(study.vae),
            num_samples=study.size(1000, 300),
            num_steps=study.size(300, 100),
            seed=study.seed,
        )
    summary = gap_summary(gaps)
    whole, family, encoder = (
        summary.loc[f"{name}_gap"] for name in ("inference", "approximation", "amortization")
    )
    kl = float(study.terms["kl"].mean())
    share = whole["mean"] / kl if kl > 0 else float("inf")
    allowed = max(FEW * kl, NEGLIGIBLE)
    if whole["mean"] <= max(allowed, 2 * whole["mcse"]):
        verdict, next_step = "good", ""
        sentence = (
            f"The bound is tight: {_nats(whole)} of gap beside a KL of {kl:.2f} nats, "
            f"{_nats(family)} of it for the family and {_nats(encoder)} for the encoder."
        )
    else:
        verdict = grade(share, FEW, MANY)
        sentence, next_step = _blame(whole, family, encoder)
    remarks = [
        f"On {len(rows)} of the rows, each with its own q(z|x) optimized from the encoder's "
        "answer: the encoder's part is at least, the family's at most what is said."
    ]
    if f"{FULL}: gain" in summary.index:
        gain = summary.loc[f"{FULL}: gain"]
        remarks.append(f"A full covariance for each datum would gain {_nats(gain)}.")
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
                f"at most {allowed:.2g}, a tenth of the KL or 0.1",
            ),
            Measure("the family's part (approximation gap)", family["mean"], family["se"], NATS),
            Measure("the encoder's part (amortization gap)", encoder["mean"], encoder["se"], NATS),
        ],
        next_step,
        remarks,
        tables=[_table(summary)],
        pictures=[
            shown(gap_bars(gaps), "The gap, cut at the best member of each family."),
            shown(
                gaps_per_datum(gaps),
                "The family's and the encoder's part for each datum; crosses are not to be "
                "trusted.",
            ),
        ],
    )


def _others(vae: Any) -> dict[str, families.Family]:
    """A full covariance, where the guide has none and it is small enough to be tried."""
    shape: tuple[int, ...] = tuple(getattr(vae, "latent_shape", ()))
    own = getattr(getattr(vae, "q_z_given_x", None), "family", None)
    fits = len(shape) == 1 and 2 <= shape[0] <= MOST_DIMENSIONS
    if not fits or isinstance(own, families.FullCovarianceNormal | families.Flow):
        return {}
    full = families.FullCovarianceNormal(shape[0])
    return {FULL: full.to(next(vae.parameters()))}


def _blame(whole: pd.Series, family: pd.Series, encoder: pd.Series) -> tuple[str, str]:
    part = encoder["mean"] / whole["mean"]
    if part > 2 / 3:
        return (
            f"Of a gap of {_nats(whole)} the encoder has {_nats(encoder)}: a better q(z|x) is in "
            "the family, and the network does not find it for these rows.",
            "Train longer or on more data, take a larger encoder, or refine q for each datum "
            "(guides.PerDatumGuide); a richer family alone will not help.",
        )
    if part < 1 / 3:
        return (
            f"Of a gap of {_nats(whole)} the family has {_nats(family)}: even its best member is "
            "far from the posterior.",
            "Take a richer family: --family full, lowrank:R or flow; the encoder is not at fault.",
        )
    return (
        f"Family and encoder share a gap of {_nats(whole)}: {_nats(family)} and {_nats(encoder)}.",
        "A richer family (--family full or flow) and a larger or longer trained encoder.",
    )


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
    return f"{with_error(row['mean'], row['se'])} nats"
