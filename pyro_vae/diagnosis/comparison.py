"""What a table of models says, in words."""

import math
from typing import Any

import pandas as pd

from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.comparisons import comparison
from pyro_vae.report import with_error

from .bound import FEW, MANY
from .study import NATS, grade, shown

__all__ = ["comparison_sections", "comparison_table"]

CERTAIN = 2.0
"""Standard errors at which a difference counts."""

HIGHER_IS_SAFE = 0.05
"""Largest difference between the runs' shares of untrusted weights at which log p(x) may rank
them: where one run's are worse its log p(x) is the more too low."""


def comparison_sections(table: pd.DataFrame) -> list[Section]:
    """Questions about what :func:`pyro_vae.compare` returned, with their answers."""
    return [_ranking(table), _trust(table), _faults(table)]


def comparison_table(table: pd.DataFrame) -> Table:
    """The table with a cell for each figure and its error."""
    reference = table.attrs["reference"]
    columns = [
        "model",
        "ELBO",
        f"gain over {reference}",
        "log p(x)",
        f"gain over {reference}",
        "k-hat above",
        "active units",
        "parameters",
        "seconds",
    ]
    rows = []
    for name, row in table.iterrows():
        cells = [str(name)]
        for bound in ("elbo", "log_evidence"):
            cells.append(with_error(row[bound], row[f"{bound}_se"]))
            is_reference = name == reference
            gain = with_error(row[f"{bound}_difference"], row[f"{bound}_difference_se"])
            cells.append("–" if is_reference else gain)
        cells.append(f"{row['khat_share_above']:.0%}")
        cells += [_whole(row[key]) for key in ("active_units", "parameters", "seconds")]
        rows.append(cells)
    count, measure = table.attrs["num_data"], table.attrs["measure"]
    caption = f"nats per datum, {count} held-out rows, ± standard error; log p(x) is a {measure}"
    return Table(caption, columns, rows)


def _ranking(table: pd.DataFrame) -> Section:
    reference = table.attrs["reference"]
    shares = table["khat_share_above"]
    trusted = shares.max() <= FEW or shares.max() - shares.min() <= HIGHER_IS_SAFE
    bound, name = ("log_evidence", "log p(x)") if trusted else ("elbo", "ELBO")
    measures, said, certain = [], [], []
    for model, row in table.iterrows():
        if model == reference:
            continue
        gain, error = row[f"{bound}_difference"], row[f"{bound}_difference_se"]
        measures.append(Measure(f"{name} of {model} less that of {reference}", gain, error, NATS))
        certain.append(abs(gain) > CERTAIN * error)
        word = "better than" if gain > 0 else "worse than"
        if not certain[-1]:
            word = "not to be told from"
        said.append(f"{model} is {word} {reference} ({with_error(gain, error)} nats)")
    why = (
        ""
        if trusted
        else (
            " The ELBO decides, since some importance weights are too heavy-tailed for log p(x)."
        )
    )
    next_step = ""
    if not all(certain):
        next_step = "Differences within two standard errors need more held-out rows (--num-data)."
    return Section(
        "Which describes the held-out rows better?",
        "good" if all(certain) else "doubtful",
        "; ".join(said) + "." + why,
        measures,
        next_step,
        tables=_narrow(comparison_table(table)),
        pictures=[
            shown(
                comparison(table),
                f"Gain over {reference} by paired differences, row by row.",
            )
        ],
    )


def _narrow(table: Table) -> list[Table]:
    """The bounds, and the other columns in a table of their own, to fit on the page."""
    cut = table.columns.index("k-hat above")
    head, rest = list(table.columns[:cut]), [table.columns[0], *table.columns[cut:]]
    return [
        Table(table.caption, head, [row[:cut] for row in table.rows]),
        Table(
            "Share of rows whose k-hat is above the threshold, and sizes",
            rest,
            [[row[0], *row[cut:]] for row in table.rows],
        ),
    ]


def _trust(table: pd.DataFrame) -> Section:
    shares, threshold = table["khat_share_above"], table.attrs["khat_threshold"]
    measures = [
        Measure(
            f"share of rows with k-hat above {threshold:.2f}, {name}",
            share,
            math.sqrt(share * (1 - share) / table.attrs["num_data"]),
            wanted=f"at most {FEW:g}",
        )
        for name, share in shares.sort_values(ascending=False, kind="stable").items()
    ]
    verdict = grade(float(shares.max()), FEW, MANY)
    if verdict == "good":
        return Section(
            "Can their log p(x) be trusted?", verdict, "Yes, the weights are light.", measures
        )
    return Section(
        "Can their log p(x) be trusted?",
        verdict,
        f"Not that of {shares.idxmax()}: where the weights' tail is heavy log p(x) is too low, "
        "by an unknown amount that differs between models.",
        measures,
        "Compare by ELBO, or by diagnostics.ais_log_evidence.",
    )


def _faults(table: pd.DataFrame) -> Section:
    names = ("inference_gap", "approximation_gap", "amortization_gap")
    question = "Whose fault is the distance of ELBO and log p(x)?"
    if any(name not in table for name in names) or table[list(names[1:])].isna().all(axis=None):
        return Section(question, "does not apply", "No guide's family is known here.")
    rows, said = [], []
    for model, row in table.iterrows():
        rows.append([str(model), *(_with_error(row, name) for name in names)])
        family, encoder = row["approximation_gap"], row["amortization_gap"]
        if math.isfinite(family):
            said.append(f"{model}: {'the family' if family > encoder else 'the encoder'}")
    count = table.attrs["gap_rows"]
    return Section(
        question,
        "no verdict",
        "Mostly at fault: " + "; ".join(said) + ".",
        tables=[
            Table(
                f"Gap on all rows, and its two parts on the first {count}, nats per datum",
                ("model", "gap", "family (approximation)", "encoder (amortization)"),
                rows,
            )
        ],
    )


def _with_error(row: Any, name: str) -> str:
    value = row[name]
    return with_error(value, row[f"{name}_se"]) if math.isfinite(value) else "–"


def _whole(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "–"
