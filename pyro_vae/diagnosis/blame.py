"""Whose fault the gap is, and what to do about q(z|x): one answer for all questions."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from pyro_vae import families
from pyro_vae.diagnostics.gaps.inference_gaps import gap_summary

from .study import FEWEST_ROWS, NEGLIGIBLE, Study

__all__ = ["FEW", "MANY", "Blame", "blame", "cure"]

FEW, MANY = 0.1, 0.3
"""Gap as a share of the KL: good up to the one, bad beyond the other. Both are divergences from
q(z|x), to the posterior and to the prior; the one is what the guide misses, the other what it
found."""

MOST, LEAST = 2 / 3, 1 / 3
"""Shares of the gap from which on the encoder alone has it, and up to which the family has."""


@dataclass(frozen=True)
class Blame:
    """What :func:`blame` found.

    Attributes:
        fault: "family", "encoder", "both", or "none" where the gap is small.
        summary: What ``gap_summary`` says.
        kl: Mean KL of all rows, in nats.
        allowed: Gap up to which the bound is tight, in nats.
    """

    fault: str
    summary: pd.DataFrame
    kl: float
    allowed: float


def blame(study: Study) -> Blame:
    """Whether family or encoder has the gap.

    Raises:
        ValueError: If the gap of these programs cannot be divided.
    """
    summary = gap_summary(study.gaps)
    whole, encoder = (summary.loc[f"{name}_gap"] for name in ("inference", "amortization"))
    kl = float(study.terms["kl"].mean())
    allowed = max(FEW * kl, NEGLIGIBLE)
    if whole["mean"] <= max(allowed, 2 * whole["mcse"]):
        return Blame("none", summary, kl, allowed)
    part = encoder["mean"] / whole["mean"]
    fault = "encoder" if part > MOST else "family" if part < LEAST else "both"
    return Blame(fault, summary, kl, allowed)


def cure(study: Study) -> str:
    """What makes q(z|x) better, as one sentence with its point."""
    try:
        fault = blame(study).fault if len(study.x) >= FEWEST_ROWS else "unknown"
    except Exception:  # the question of the gap itself says what is wrong
        fault = "unknown"
    richer = _richer(study.vae)
    return {
        "family": f"Take {richer}; the encoder is not at fault.",
        "encoder": (
            "Train longer or on more data, take a larger encoder, or refine q for each datum "
            "(guides.PerDatumGuide); a richer family alone will not help."
        ),
        "both": f"Take {richer}, and a larger or longer trained encoder.",
        "none": (
            "On average over these rows q(z|x) is close to the posterior, so neither another "
            "family nor another encoder would gain much; weight its draws where a single datum "
            "matters."
        ),
        "unknown": (
            "A richer family or a better trained encoder brings q(z|x) closer to the posterior; "
            "which of the two is not known here."
        ),
    }[fault]


def _richer(vae: Any) -> str:
    own = getattr(getattr(vae, "q_z_given_x", None), "family", None)
    if isinstance(own, families.Flow):
        return "a flow of more steps"
    if isinstance(own, families.FullCovarianceNormal):
        return "a richer family: --family flow"
    return "a richer family: --family full, lowrank:R or flow"
