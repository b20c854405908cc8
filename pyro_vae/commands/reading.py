"""What reads a run directory back: ``pyro-vae info``, ``sample`` and ``reconstruct``."""

import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pyro_vae import plots
from pyro_vae.commands.data_choice import load_or_map, picture_settings, some_in_memory
from pyro_vae.commands.incomplete import complete_rows, num_observed, ratio_and_error
from pyro_vae.commands.model_choice import rebuild
from pyro_vae.commands.other_rows import raw_rows
from pyro_vae.datasets import Scaling
from pyro_vae.files import replaced_file
from pyro_vae.html_report import printable
from pyro_vae.report import with_error
from pyro_vae.run_directory import RunDirectory
from pyro_vae.seeding import seeded

__all__ = ["info", "reconstruct", "sample"]


def info(options: Namespace) -> None:
    """``pyro-vae info``."""
    run = RunDirectory(options.run)
    config = run.config()
    print(run.path)
    print()
    print(printable(run.report() or f"{_without_report(run, config)}\n"), end="")
    print()
    for section in ("data", "model", "fit"):
        found = config.get(section)
        if isinstance(found, dict):
            shown = (f"{key} = {_short(value)}" for key, value in found.items())
            print(printable(f"{section:8}{', '.join(shown)}"))
    for line in _environment_in_words(run):
        print(printable(line))
    files = sorted(path.name for path in run.path.iterdir() if not path.name.startswith("."))
    print(printable(f"files   {', '.join(files)}"))


def _without_report(run: RunDirectory, config: Mapping[str, Any]) -> str:
    """What is known of a run that has no report."""
    history = run.history()
    done = 0 if history is None else len(history)
    fit = config.get("fit", {})
    if run.file("weights.safetensors").exists() and not fit.get("interrupted", True):
        return f"{done} epochs by pyro_vae.fit, which writes no report."
    if not run.states.exist:
        return "The fit did not finish. There is no state to go on from."
    goes_on = f"pyro-vae fit --resume {shlex.quote(str(run.path))}"
    if "source" not in config.get("data", {}):
        goes_on = "pyro_vae.fit with its run_dir and resume=True"
    return f"The fit did not finish. {done} epochs are done: {goes_on} goes on."


def _environment_in_words(run: RunDirectory) -> list[str]:
    """Seed, data, versions, machine: on what the bits of the result depend."""
    environment = run.environment()
    if environment is None:
        return ["no environment.json: nobody knows by which versions it was made"]
    lines = []
    for facts, words in [
        (environment, "made"),
        *((each, "resumed") for each in _tables(environment.get("resumed"))),
    ]:
        packages = facts.get("packages")
        versions = packages.items() if isinstance(packages, dict) else ()
        by = ", ".join([*(f"{n} {v}" for n, v in versions), f"Python {facts.get('python')}"])
        after = f" after epoch {facts['after_epoch']}" if "after_epoch" in facts else ""
        lines.append(f"{words}{after} by {by}")
        where = facts.get("gpu") or facts.get("cpu_capability")
        lines.append(
            f"        on {facts.get('platform')}, {where}, {facts.get('threads')} threads, "
            f"{facts.get('processes')} processes, seed {facts.get('seed')}"
        )
        data = facts.get("data")
        for name, digest in data.items() if isinstance(data, dict) else ():
            lines.append(f"        {name}: {digest}")
    return lines


def _tables(value: Any) -> list[dict[str, Any]]:
    """The tables in what should be a list of them."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def sample(options: Namespace) -> None:
    """``pyro-vae sample``."""
    run = RunDirectory(options.run)
    config = run.config()
    vae = rebuild(run, config)
    with seeded(options.seed, "sample"):
        draws = vae.sample(options.num, mean=options.mean)
    scaling = Scaling.from_dict(config["data"]["scaling"])
    out = Path(options.out) if options.out else run.file("samples-new.png")
    if out.suffix == ".png":
        shape, columns = picture_settings(config)
        figure = plots.samples(
            draws.flatten(1),
            image_shape=shape,
            columns=columns,
            max_shown=options.num,
            title=f"{'means of' if options.mean else 'draws from'} $p(x|z)$, $z$ from the prior",
        )
        plots.save(figure, out)
    else:
        _write_values(out, scaling.invert(draws), config)
    kind = "means of p(x|z)" if options.mean else "draws from p(x|z)"
    print(f"{options.num} {kind}, z from the prior, seed {options.seed}: {out}")


def reconstruct(options: Namespace) -> None:
    """``pyro-vae reconstruct``."""
    run = RunDirectory(options.run)
    config = run.config()
    vae = rebuild(run, config)
    scaling = Scaling.from_dict(config["data"]["scaling"])
    if options.file is None:
        held_out = some_in_memory(load_or_map(config)[1])
        x, what = held_out.x.reshape(-1, *vae.event_shape), "held-out rows"
    else:
        x = scaling.apply(raw_rows(options.file, config, vae))
        what = f"rows of {options.file}"
    means = vae.reconstruct(x)
    squares = (means - x).square().nan_to_num(nan=0.0).flatten(1).sum(1)
    error = with_error(*ratio_and_error(squares, num_observed(x)))
    out = Path(options.out) if options.out else run.file("reconstructions-new.png")
    if out.suffix == ".png":
        shape, columns = picture_settings(config)
        whole, words = complete_rows(x, what)
        if whole is not None:
            rebuilt = vae.reconstruct(whole)
            figure = plots.reconstructions(
                whole.flatten(1), rebuilt.flatten(1), image_shape=shape, columns=columns
            )
            plots.save(figure, out)
    else:
        _write_values(out, scaling.invert(means), config)
        whole, words = x, ""
    gaps = int(x.isnan().sum())
    each = f"observed value ({gaps} are missing)" if gaps else "feature"
    print(f"mean squared error per {each} over {len(x)} {what}: {error}")
    if whole is None:
        print(f"no picture of only {words}: --out with .npy or .csv writes the values of all")
    else:
        print(f"{out}{f', of {words}' if words else ''}")


def _write_values(path: Path, values: Tensor, config: Mapping[str, Any]) -> None:
    """Values in raw units, as .npy or .csv."""
    rows = values.detach().cpu().numpy()
    if path.suffix == ".npy":
        with replaced_file(path) as temporary:
            np.save(temporary, rows)
    elif path.suffix == ".csv":
        columns = config["data"].get("columns")
        with replaced_file(path) as temporary:
            pd.DataFrame(rows.reshape(len(rows), -1), columns=columns).to_csv(
                temporary, index=False
            )
    else:
        raise ValueError(f"out must end in .png, .npy or .csv; got {path}.")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
