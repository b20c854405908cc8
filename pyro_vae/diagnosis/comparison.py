"""What a table of models says, in words."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.comparisons import comparison
from pyro_vae.report import with_error

from .bound import FEW, MANY
from .study import NATS, NEGLIGIBLE, grade, shown

__all__ = ["comparison_sections", "comparison_table"]

CERTAIN = 2.0
"""Standard errors at which a difference counts."""

NAMES = {"elbo": "ELBO", "log_evidence": "log p(x)"}

GAPS = ("inference_gap_of_rows", "approximation_gap", "amortization_gap")


def comparison_sections(table: pd.DataFrame) -> list[Section]:
    """Questions about what :func:`pyro_vae.compare` returned, with their answers."""
    return [_ranking(table), _trust(table), _faults(table)]


def comparison_table(table: pd.DataFrame) -> Table:
    """The table with a cell for each figure and its error."""
    reference = table.attrs["reference"]
    columns = ["model"]
    columns += [head for name in NAMES.values() for head in (name, f"{name} gain")]
    columns += ["k-hat above", "active units", "parameters", "seconds"]
    rows = []
    for name, row in table.iterrows():
        cells = [str(name)]
        for bound in NAMES:
            cells.append(with_error(row[bound], row[f"{bound}_se"]))
            is_reference = name == reference
            gain = with_error(row[f"{bound}_difference"], row[f"{bound}_difference_se"])
            cells.append("–" if is_reference else gain)
        cells.append(_percent(row["khat_share_above"]))
        cells += [_whole(row[key]) for key in ("active_units", "parameters", "seconds")]
        rows.append(cells)
    count, measure = table.attrs["num_data"], table.attrs["measure"]
    caption = (
        f"nats per datum, {count} held-out rows, ± standard error; gains over {reference}, row "
        f"by row; log p(x) is a {measure}"
    )
    return Table(caption, columns, rows)


def _ranking(table: pd.DataFrame) -> Section:
    """Which model is better, as far as its guide lets one know.

    The log evidence is of the model alone, the ELBO of model and guide: it ranks models only where
    they are one model, and then their guides.
    """
    question = "Which describes the held-out rows better?"
    reference = table.attrs["reference"]
    others = [name for name in table.index if name != reference]
    if not others:
        return Section(question, "does not apply", "There is one model alone.")
    same = set(table.attrs.get("same_model", ()))
    trusted = bool((table["khat_share_above"] <= FEW).all())
    measures, said, higher, open_ones = [], [], [], []
    for model in others:
        bound = "log_evidence" if trusted and model not in same else "elbo"
        gain, error = (table.loc[model, f"{bound}_difference{end}"] for end in ("", "_se"))
        name, nats = NAMES[bound], f"{with_error(gain, error)} nats"
        measures.append(Measure(f"{name} of {model} less that of {reference}", gain, error, NATS))
        better, worse = (model, reference) if gain > 0 else (reference, model)
        size = f"{with_error(abs(gain), error)} nats"
        is_certain = abs(gain) > CERTAIN * error  # not where one of them is NaN
        if not is_certain:
            open_ones.append(model)
        if not math.isfinite(gain):
            said.append(f"the {name} of {model} or of {reference} is not finite")
        elif model in same and is_certain:
            said.append(
                f"{model} and {reference} are the same model; the guide of {better} is tighter "
                f"by {size}"
            )
        elif model in same:
            said.append(
                f"{model} and {reference} are the same model, and their guides are not to be told "
                f"from each other ({nats})"
            )
        elif not is_certain:
            by = "" if trusted else " by ELBO"
            said.append(f"{model} is not to be told from {reference}{by} ({nats})")
        elif trusted:
            word = "better than" if gain > 0 else "worse than"
            said.append(f"{model} is {word} {reference} ({nats})")
        else:
            beaten = "" if len(others) == 1 else f" than {worse}"
            article = "the" if len(others) == 1 else "a"
            higher.append(f"{better} has {article} higher ELBO{beaten}, by {size}")
    if higher:
        said.append(
            "; ".join(higher)
            + ": a better model, a tighter guide, or both; these rows cannot say which"
        )
    next_steps = []
    if higher:
        next_steps.append(
            "log p(x) by diagnostics.ais_log_evidence, or with lighter weights, tells a better "
            "model from a tighter guide."
        )
    if open_ones:
        next_steps.append(
            "Differences within two standard errors need more held-out rows (--num-data)."
        )
    return Section(
        question,
        "doubtful" if higher or open_ones else "good",
        "; ".join(said) + ".",
        measures,
        " ".join(next_steps),
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
    question = "Can their log p(x) be trusted?"
    shares, threshold = table["khat_share_above"], table.attrs["khat_threshold"]
    known, unknown = shares.dropna(), list(shares.index[shares.isna()])
    measures = [
        Measure(
            f"share of rows with k-hat above {threshold:.2f}, {name}",
            share,
            math.sqrt(share * (1 - share) / table.attrs["num_data"]),
            wanted=f"at most {FEW:g}",
        )
        for name, share in known.sort_values(ascending=False, kind="stable").items()
    ]
    heavy = known[known > FEW]
    sentences, next_steps = [], []
    if len(heavy):
        if len(heavy) == len(table):
            opening = {1: "No", 2: "Neither"}.get(len(table), "None")
        else:
            opening = f"Not that of {_listed(list(heavy.index))}"
        found = _listed([f"{_percent(share)} ({name})" for name, share in heavy.items()])
        sentences.append(
            f"{opening}: {found} of rows are above {threshold:.2f} in k-hat, where log p(x) is "
            "too low by an unknown amount that differs between models."
        )
        next_steps.append("Compare by ELBO, or by diagnostics.ais_log_evidence.")
    if unknown:
        sentences.append(
            f"{table.attrs['num_samples']} draws for each row give {_listed(unknown)} no k-hat: "
            "nothing says whether to trust log p(x)."
        )
        next_steps.append("Use more draws for each row (--num-samples 1000).")
    if not sentences:
        sentences.append(
            f"Yes, the weights are light: at most {_percent(known.max())} of a model's rows are "
            f"above {threshold:.2f} in k-hat."
        )
    verdict = grade(float(known.max()), FEW, MANY)
    if unknown and not len(heavy):
        verdict = "no verdict"
    return Section(question, verdict, " ".join(sentences), measures, " ".join(next_steps))


def _faults(table: pd.DataFrame) -> Section:
    question = "Whose fault is the distance of ELBO and log p(x)?"
    if not table.attrs["gap_rows"]:
        return Section(question, "no verdict", "Not asked: no rows were given to it (gap_rows=0).")
    if table[list(GAPS[1:])].isna().all(axis=None):
        return Section(question, "does not apply", "No guide's family is known here.")
    rows, said = [], []
    for model, row in table.iterrows():
        rows.append([str(model), *(_with_error(row, name) for name in GAPS)])
        whole, family, encoder = (row[name] for name in GAPS)
        if not math.isfinite(family):
            said.append(f"{model} has no known family")
        elif whole <= NEGLIGIBLE:
            said.append(f"{model} has next to none ({_with_error(row, GAPS[0])} nats)")
        else:
            owner, part = ("family", GAPS[1]) if family > encoder else ("encoder", GAPS[2])
            said.append(
                f"in {model} mostly the {owner}'s ({_with_error(row, part)} of "
                f"{_with_error(row, GAPS[0])} nats)"
            )
    count = min(table.attrs["gap_rows"], table.attrs["num_data"])
    return Section(
        question,
        "no verdict",
        f"On the first {count} rows: " + "; ".join(said) + ".",
        tables=[
            Table(
                f"Gap of the first {count} rows = its two parts, nats per datum",
                ("model", "gap", "family (approximation)", "encoder (amortization)"),
                rows,
            )
        ],
    )


def _listed(names: Sequence[Any]) -> str:
    *most, last = map(str, names)
    return f"{', '.join(most)} and {last}" if most else last


def _with_error(row: Any, name: str) -> str:
    value = row[name]
    return with_error(value, row[f"{name}_se"]) if math.isfinite(value) else "–"


def _percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else "–"


def _whole(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "–"
