"""``pyro-vae diagnose``: a verdict for each question about a fitted VAE, and a page of them."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from pyro_vae.commands.data_choice import load_or_map, some_in_memory
from pyro_vae.commands.model_choice import heading, rebuild
from pyro_vae.commands.other_rows import raw_rows
from pyro_vae.datasets import Scaling
from pyro_vae.diagnosis import diagnose as diagnose_vae
from pyro_vae.run_directory import RunDirectory

__all__ = ["diagnose", "page_path"]


def diagnose(options: Namespace) -> int:
    """``pyro-vae diagnose``; 1 if a question could not be answered for an unexpected error."""
    run = RunDirectory(options.run)
    config = run.config()
    vae = rebuild(run, config)
    out = page_path(options.out, run.file("diagnosis.html"))
    train, held_out = map(some_in_memory, load_or_map(config))
    x: Any = held_out.x.reshape(-1, *vae.event_shape)
    name = "held-out rows"
    if options.file is not None:
        scaling = Scaling.from_dict(config["data"]["scaling"])
        x = scaling.apply(raw_rows(options.file, config, vae))
        name = f"rows of {options.file}"
    about = heading(config["model"], train, held_out)
    found = diagnose_vae(
        vae,
        x,
        train=train.x.reshape(-1, *vae.event_shape),
        history=run.history(),
        num_data=options.num_data,
        num_samples=options.num_samples,
        seed=options.seed,
        quick=options.quick,
        title=f"Diagnosis of {run.path.name or run.path}",
        facts={"run": str(run.path), "data": about[0], "model": about[1]},
        name=name,
        tell=_tell if sys.stderr.isatty() else None,
    )
    found.html(out)
    print("\n".join([*about, f"diagnosed on {found.facts['diagnosed']}", "", str(found), ""]))
    print(f"thresholds, tables and pictures are in {out}")
    return 1 if found.has_failed else 0


def page_path(wanted: str | None, usual: Path) -> Path:
    """Where the page goes; a path that cannot be written is told before the work begins.

    Raises:
        ValueError: If it does not end in .html.
        FileNotFoundError: If its folder does not exist.
    """
    path = usual if wanted is None else Path(wanted)
    if path.suffix not in {".html", ".htm"}:
        raise ValueError(f"out must end in .html; got {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"out must lie in a folder that exists; got {path}.")
    return path


def _tell(question: str) -> None:
    print(f"... {question}", file=sys.stderr)
