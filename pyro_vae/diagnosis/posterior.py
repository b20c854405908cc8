"""q(z|x) against the posterior of a few data that NUTS finds."""

import math
from typing import Any

import numpy as np
import xarray as xr

from pyro_vae.diagnostics.reference.nuts import posterior_nuts
from pyro_vae.diagnostics.reference.summary import guide_draws, reference_summary
from pyro_vae.html_report import Measure, Picture, Section, Table
from pyro_vae.plots.reference import posterior_pairs
from pyro_vae.report import with_error

from .blame import cure
from .study import Study, grade, shown

__all__ = ["posterior"]

ROWS = 3

CHAINS = {"num_chains": 2, "num_samples": 150, "num_warmup": 150}

MOST_PICTURES, MOST_UNITS = 2, 3

LARGEST_R_HAT = 1.1
"""Chains are short: what they say of the mean is meant to a tenth of a standard deviation."""

FEW, MANY = 0.5, 1.0
"""Distance of the means in posterior standard deviations, and of the log standard deviations."""


def posterior(study: Study, question: str) -> Section:
    """Means and standard deviations of q(z|x) beside those of NUTS."""
    numbers = [study.number(int(index)) for index in study.index(ROWS)]
    with study.some_rows(ROWS) as rows:
        chains = posterior_nuts(study.vae, rows, seed=study.seed, **CHAINS)
        found = reference_summary(chains, study.vae, rows, seed=study.seed)
        draws = guide_draws(study.vae, rows, seed=study.seed)
    pictures = _pictures(chains, draws, numbers)
    table = _table(found, numbers, study.latent_names)
    # Without an r-hat, as of chains that stand still, nothing says that they agree.
    r_hat = np.nan_to_num(found["r_hat"].to_numpy(), nan=np.inf).max(1)
    agree = r_hat <= LARGEST_R_HAT
    shift = np.abs(found["mean_shift"].to_numpy())
    ratio = np.abs(np.log(found["sd_ratio"].to_numpy()))
    count, apart = len(agree), int((~agree).sum())
    mixed = Measure("largest r-hat", float(r_hat.max()), wanted=f"at most {LARGEST_R_HAT:g}")
    remarks = _remarks(study, found, numbers)
    next_step = ""
    if not agree.any():
        return Section(
            question,
            "doubtful",
            f"The chains of all {count} rows disagree: their posteriors may have several modes, "
            "which a q(z|x) with one mode cannot have.",
            [mixed],
            "Run diagnostics.posterior_nuts with more draws and look at the chains; a flow as "
            "family can have several modes.",
            remarks,
            tables=[table],
            pictures=pictures,
        )
    worst_shift, worst_ratio = float(shift[agree].max()), float(ratio[agree].max())
    verdict = grade(max(worst_shift, worst_ratio), FEW, MANY)
    if verdict == "good":
        sentence = (
            f"For {count - apart} of {count} rows q(z|x) has the posterior's mean and width."
        )
    else:
        sentence = (
            f"q(z|x) is up to {worst_shift:.1f} posterior standard deviations off the mean that "
            f"NUTS finds, and its width is up to {math.exp(worst_ratio):.1f} times too narrow or "
            "too wide."
        )
        next_step = f"For statements about single data use NUTS. {cure(study)}"
    measures = [
        Measure(
            "largest distance of the means",
            worst_shift,
            unit="posterior sd",
            wanted=f"at most {FEW:g}",
        ),
        Measure(
            "largest factor between the widths",
            math.exp(worst_ratio),
            wanted=f"at most {math.exp(FEW):.2f}",
        ),
    ]
    if worst_ratio > worst_shift:
        measures.reverse()
    measures.append(mixed)
    if apart:
        if verdict == "good":
            verdict = "doubtful"
            measures.insert(0, measures.pop())  # what decides
        sentence += (
            f" The chains of {apart} of {count} rows disagree: several modes, of which q(z|x) "
            "may have one."
        )
        next_step = next_step or "Run diagnostics.posterior_nuts on these rows with more draws."
    return Section(
        question,
        verdict,
        sentence,
        measures,
        next_step,
        remarks,
        tables=[table],
        pictures=pictures,
    )


def _remarks(study: Study, found: xr.Dataset, numbers: list[int]) -> list[str]:
    diverging = int(found["divergences"].sum())
    remarks = [
        f"Computed {study.on_rows(len(numbers))}, by their numbers from 0 on: "
        f"{', '.join(map(str, numbers))}. {CHAINS['num_chains']} chains of "
        f"{CHAINS['num_samples']} draws each: rows with an r-hat above {LARGEST_R_HAT:g} do not "
        "count."
    ]
    if diverging:
        remarks.append(
            f"{diverging} transitions diverged: the chains may miss a narrow part of the "
            "posterior."
        )
    return remarks


def _pictures(chains: Any, draws: xr.DataArray, numbers: list[int]) -> list[Picture]:
    posterior_draws = chains["posterior"]["z"]
    return [
        shown(
            posterior_pairs(
                posterior_draws.sel(obs_id=index),
                draws.sel(obs_id=index),
                latents=range(min(MOST_UNITS, posterior_draws.sizes["latent"])),
                title=f"row {number}: NUTS as points, q as contours",
            ),
            f"Row {number}: draws of z by NUTS, a color for each chain, and regions that hold "
            "50% and 90% of q(z|x).",
        )
        for index, number in enumerate(numbers[:MOST_PICTURES])
    ]


def _table(found: xr.Dataset, numbers: list[int], names: list[str], most: int = 4) -> Table:
    rows = []
    for index, number in enumerate(numbers):
        for unit, name in enumerate(names[:most]):
            row: Any = found.isel(obs_id=index, latent=unit)
            rows.append(
                [
                    f"row {number}, {name}",
                    with_error(float(row["nuts_mean"]), float(row["nuts_mean_mcse"])),
                    with_error(float(row["q_mean"]), float(row["q_mean_mcse"])),
                    with_error(float(row["nuts_sd"]), float(row["nuts_sd_mcse"])),
                    with_error(float(row["q_sd"]), float(row["q_sd_mcse"])),
                    f"{float(row['r_hat']):.3f}",
                ]
            )
    columns = ("", "mean by NUTS", "mean of q", "sd by NUTS", "sd of q", "r-hat")
    return Table("Posterior and q(z|x), in units of z, with Monte Carlo errors", columns, rows)
