"""Ask every question of one fitted VAE."""

import logging
import math
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.files import replaced_file
from pyro_vae.html_report import Section, html_page, verdicts_text
from pyro_vae.seeding import generator
from pyro_vae.sources import DataSource, resolve_device

from . import (
    bound,
    calibration,
    convergence,
    description,
    gap,
    latent_space,
    posterior,
    regularity,
)
from .messages import collected_messages
from .study import FEWEST_ROWS, Study

__all__ = ["Diagnosis", "diagnose"]

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent.parent

QUESTIONS: dict[str, Callable[[Study, str], Section]] = {
    "What is the ELBO made of?": bound.ledger,
    "How far is it from log p(x)?": bound.distance,
    "Whose fault is the distance?": gap.gap,
    "Does the latent space use its units?": latent_space.units,
    "Do the codes follow the prior?": latent_space.prior,
    "Is q(z|x) calibrated?": calibration.calibration,
    "Is q(z|x) the posterior?": posterior.posterior,
    "Is the latent space regular?": regularity.regularity,
    "Does the model describe the data?": description.statistics,
    "Does it describe each feature?": description.features,
    "Has training converged?": convergence.convergence,
}

SLOW = {"Is q(z|x) the posterior?"}
"""What a quick diagnosis leaves out."""

NEED_NO_ROWS = {
    "Is q(z|x) calibrated?",
    "Is q(z|x) the posterior?",
    "Has training converged?",
}
"""What is answered without many rows of x."""

OF_CODES = {"Does the latent space use its units?", "Do the codes follow the prior?"}
"""What is answered on training rows, if there are any."""

SAID = (
    "log_evidence: pareto_khat",
    "aggregate_kl: mutual_information",
    "inference_gaps: ",
    "posterior_nuts: ",
)
"""How messages of diagnostics begin that the sections put into words of their own."""

LEAD = (
    "A verdict for each question, the figure that it rests on with its standard error, and what "
    "to do next. Thresholds are rules of thumb, named beside the figures."
)


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found.

    ``print(diagnosis)`` shows a table, a notebook the whole page, ``html(path)`` writes it.

    Attributes:
        sections: Questions with their answers, in the order in which they were asked.
        facts: What was diagnosed, names to values.
        title: Headline of the page.
    """

    sections: list[Section] = field(repr=False)
    facts: Mapping[str, str] = field(default_factory=dict, repr=False)
    title: str = "Diagnosis of a VAE"

    @property
    def has_failed(self) -> bool:
        """Whether a question could not be answered for an error that should not be."""
        return any(section.verdict == "failed" for section in self.sections)

    def html(self, path: str | os.PathLike[str]) -> None:
        """Write the page: one file, whole or not at all, that needs no other."""
        with replaced_file(Path(path)) as temporary:
            temporary.write_text(self._page, encoding="utf-8")

    def __str__(self) -> str:
        """The verdicts as a table, and below it what to do."""
        steps = [f"- {s.question} {s.next_step}" for s in self.sections if s.next_step]
        todo = ["", "what to do", *steps] if steps else []
        return "\n".join([verdicts_text(self.sections), *todo])

    def _repr_html_(self) -> str:
        # A frame of its own keeps the page's style from the notebook's.
        return (
            f'<iframe sandbox srcdoc="{escape(self._page)}" title="{escape(self.title)}" '
            'style="width:100%;height:44rem;border:1px solid #d0d7de"></iframe>'
        )

    @cached_property
    def _page(self) -> str:
        return html_page(self.title, self.sections, lead=LEAD, facts=self.facts)


def diagnose(
    vae: Any,
    x: Any,
    *,
    train: Any = None,
    history: pd.DataFrame | None = None,
    num_data: int = 500,
    num_samples: int = 1000,
    seed: int = 0,
    quick: bool = False,
    title: str = "Diagnosis of a VAE",
    facts: Mapping[str, str] | None = None,
    name: str = "rows",
    tell: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Run the diagnostics of a fitted VAE and word their verdicts.

    Each question is asked on its own: one that does not apply to this VAE says so, and one whose
    diagnostic breaks down leaves the others alone and counts as failed. Fewer than 20 rows get
    figures but no verdict.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data". What needs a VAE
            says that it does not apply.
        x: Data, ``(N, *event_shape)``, that the fit has not seen.
        train: Training data, which some answers are held against.
        history: ``fit.history``, without which convergence is not judged.
        num_data: Largest number of rows of x that are used, a random subset; of training rows,
            which cost less, four times as many.
        num_samples: Number S of draws from q(z|x) for each datum.
        seed: Seed of subset and draws; the global random state is left alone.
        quick: Fewer rows and draws, and no Markov chains.
        title: Headline of the page.
        facts: What else the page says of the VAE: names to values.
        name: What the page calls the rows of x, as "held-out rows".
        tell: Called with each question before it is asked.

    Returns:
        Questions with their verdicts, which print as a table and show themselves in a notebook.

    Raises:
        ValueError: If an argument does not fit.
        TypeError: If x is not numeric.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> found = diagnose(vae, torch.randn(20, 3), num_samples=100, quick=True)
        >>> found.sections[0].question, found.has_failed
        ('What is the ELBO made of?', False)
    """
    num_data = positive_integer(num_data, "num_data")
    num_samples = positive_integer(num_samples, "num_samples")
    rows, numbers, num_rows = _rows(vae, x, "x", num_data, seed)
    trained, num_train = None, None
    if train is not None:
        trained, _, num_train = _rows(vae, train, "train", 4 * num_data, seed)
    study = Study(
        vae=vae,
        x=rows,
        train=trained,
        history=history,
        num_samples=num_samples,
        seed=seed,
        is_quick=quick,
        numbers=numbers,
        num_rows=num_rows,
        num_train=num_train,
        name=name,
    )
    sections = []
    for question, answer in QUESTIONS.items():
        if quick and question in SLOW:
            continue
        if tell is not None:
            tell(question)
        sections.append(_answered(study, question, answer))
    on = study.on_rows().removeprefix("on ")
    own = {"diagnosed": f"{on}, {num_samples} draws for each, seed {seed}"}
    if study.is_no_density:
        own["log p(x)"] = bound.NO_DENSITY
    return Diagnosis(sections, {**(facts or {}), **own}, title)


def _rows(vae: Any, x: Any, name: str, num_data: int, seed: int) -> tuple[Tensor, np.ndarray, int]:
    """Up to so many rows, in their order; their numbers; and of how many they are."""
    rows = DataSource(vae, resolve_device(vae, "auto")).tensor(x, name=name)
    if len(rows) <= num_data:
        return rows, np.arange(len(rows)), len(rows)
    order = torch.randperm(len(rows), generator=generator(seed, f"rows of {name}"), device="cpu")
    chosen = order[:num_data].sort().values
    return rows[chosen.to(rows.device)], chosen.numpy(), len(rows)


def _answered(study: Study, question: str, answer: Callable[[Study, str], Section]) -> Section:
    """The answer, or in words why there is none."""
    with collected_messages() as messages:
        try:
            section = answer(study, question)
        except (ValueError, TypeError, NotImplementedError) as error:
            if not _was_refused(error):
                return _failed(question, error)
            return Section(question, "does not apply", str(error))
        except Exception as error:
            return _failed(question, error)
    news = [message for message in messages if not message.startswith(SAID)]
    section = replace(section, remarks=[*section.remarks, *news])
    count = len(study.codes if question in OF_CODES else study.x)
    is_exempt = question in NEED_NO_ROWS or section.verdict == "does not apply"
    return section if is_exempt or count >= FEWEST_ROWS else _without_verdict(section, count)


def _without_verdict(section: Section, count: int) -> Section:
    """The section with its figures, as far as there are any, and no judgment."""
    return replace(
        section,
        verdict="no verdict",
        sentence=f"{count} {'row is' if count == 1 else 'rows are'} too few for a verdict.",
        measures=[replace(m, wanted="") for m in section.measures if math.isfinite(m.value)],
        next_step=f"Diagnose at least {FEWEST_ROWS} rows.",
    )


def _failed(question: str, error: Exception) -> Section:
    logger.error("%s failed", question, exc_info=error)
    return Section(question, "failed", f"failed: {type(error).__name__}: {error}")


def _was_refused(error: Exception) -> bool:
    """Whether the package itself raised the error: a diagnostic that says what it needs.

    What torch or Pyro raise on its behalf is a fault, of the package or of the programs.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    # A call with arguments that do not fit fails in our line too, but is not raised there.
    was_raised = (last.line or "raise").startswith("raise")
    return was_raised and Path(last.filename).resolve().is_relative_to(PACKAGE)
