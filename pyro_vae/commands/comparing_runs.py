"""``pyro-vae compare``: runs side by side on the held-out rows that they share."""

import textwrap
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch

from pyro_vae.commands.data_choice import has_test_set, load_or_map, some_in_memory, split_seed
from pyro_vae.commands.diagnosing import page_path
from pyro_vae.commands.model_choice import heading, rebuild
from pyro_vae.comparison import compare as compare_models
from pyro_vae.datasets import Dataset
from pyro_vae.diagnosis import collected_messages, comparison_sections, comparison_table
from pyro_vae.files import replaced_file
from pyro_vae.fit_result import FitResult
from pyro_vae.html_report import Section, html_page, table_text
from pyro_vae.run_directory import RunDirectory
from pyro_vae.seeding import generator

__all__ = ["compare"]

SAME = ("source", "root", "key", "labels")
"""Settings that say which data there are."""

SPLIT = "seed of the split"

WIDTH = 100
"""Of lines of text."""

GAP_ROWS = 50
"""Rows on which each run's gap is divided, which takes an optimization for each of them."""

LEAD = (
    "All runs on the same held-out rows; differences are paired, row by row, and so far better "
    "known than the values. Thresholds are rules of thumb, named beside the figures."
)


def compare(options: Namespace) -> None:
    """``pyro-vae compare``."""
    runs = _named([RunDirectory(path) for path in options.run])
    out = page_path(options.out, next(iter(runs.values())).file("comparison.html"))
    configs = {name: run.config() for name, run in runs.items()}
    _check_same_rows(runs, configs)
    models, data, facts = {}, {}, {}
    for name, run in runs.items():
        config = configs[name]
        vae = rebuild(run, config)
        train, held_out = map(some_in_memory, load_or_map(config))
        data[name] = _some(held_out.reshape(*vae.event_shape), options)
        models[name] = _with_seconds(vae, run)
        facts[name] = f"{run.path}: {heading(config['model'], train, held_out)[1]}"
    with collected_messages():  # the section on trust says as much, run by run
        table = compare_models(
            models,
            data,
            num_samples=options.num_samples,
            gap_rows=min(GAP_ROWS, options.num_data),
            seed=options.seed,
        )
    sections = comparison_sections(table)
    facts |= {
        "rows": f"{table.attrs['num_data']} held out",
        "draws for each": f"{options.num_samples}, seed {options.seed}",
    }
    title = f"Comparison of {len(runs)} runs"
    page = html_page(title, sections, lead=LEAD, facts=facts)
    replaces = ", in place of the file that was there" if out.exists() else ""
    with replaced_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(table_text(comparison_table(table)))
    for section in sections:
        print(f"\n{_text(section)}")
    print(f"\ntables and pictures are in {out}{replaces}")


def _text(section: Section) -> str:
    """Question, verdict, answer and what to do."""
    lines = [section.sentence]
    lines += [f"What to do: {section.next_step}"] if section.next_step else []
    paragraphs = [
        textwrap.fill(
            line.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"),
            WIDTH,
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,  # a name is a path, to be copied whole
            break_on_hyphens=False,
        ).replace("\N{NO-BREAK SPACE}", " ")
        for line in lines
    ]
    return "\n".join([f"{section.question}  {section.mark}", *paragraphs])


def _named(runs: list[RunDirectory]) -> dict[str, RunDirectory]:
    """Runs by the names of their directories, or by their paths where two names are equal."""
    if len(runs) < 2:
        raise ValueError(f"compare must have at least two runs; got {len(runs)}.")
    for names in ([run.path.name for run in runs], [str(run.path) for run in runs]):
        if len(set(names)) == len(runs):
            return dict(zip(names, runs, strict=True))
    raise ValueError(f"runs must differ; got {', '.join(str(run.path) for run in runs)}.")


def _check_same_rows(
    runs: Mapping[str, RunDirectory], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse runs whose held-out rows others may have been trained on.

    Raises:
        ValueError: If their data, or the seed of the split, differ; the two are named.
    """
    (first, reference), *others = configs.items()
    expected = _rows_of(reference)
    for name, config in others:
        found = _rows_of(config)
        for key, value in expected.items():
            if found.get(key) == value:
                continue
            mend = ""
            if key == SPLIT:
                mend = (
                    " Fits of several seeds share a split by --split-seed: pyro-vae fit --config "
                    f"{runs[name].path} --split-seed {value}."
                )
            raise ValueError(
                f"runs must hold out the same rows of the same data; got {key} {value!r} for "
                f"{first} and {found.get(key)!r} for {name}.{mend}"
            )


def _rows_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which rows a run holds out."""
    data = config["data"]
    found = {key: data.get(key) for key in SAME}
    if not has_test_set(data["source"]):
        found |= {"held_out": data.get("held_out"), SPLIT: split_seed(config)}
    return found


def _some(held_out: Dataset, options: Namespace) -> Dataset:
    """Up to so many rows, the same of each run."""
    if len(held_out) <= options.num_data:
        return held_out
    order = torch.randperm(
        len(held_out), generator=generator(options.seed, "rows of x"), device="cpu"
    )
    return held_out.subset(order[: options.num_data].sort().values)


def _with_seconds(vae: Any, run: RunDirectory) -> FitResult:
    """The fitted VAE with the time that it took, NaN where the run does not tell."""
    history = run.history()
    seconds = float("nan")
    if history is not None and "seconds" in history:
        seconds = float(history["seconds"].sum())
    return FitResult(vae=vae, seed=0, seconds=seconds)
