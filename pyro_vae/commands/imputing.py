"""``pyro-vae impute``: a table whose missing values are filled in."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae import likelihoods
from pyro_vae.commands.data_choice import has_test_set, picture_settings
from pyro_vae.commands.model_choice import rebuild
from pyro_vae.commands.other_rows import raw_rows
from pyro_vae.datasets import Scaling
from pyro_vae.diagnosis.messages import collected_messages
from pyro_vae.diagnostics.evidence.pareto import untrusted
from pyro_vae.files import replaced_file
from pyro_vae.html_report import printable
from pyro_vae.imputation import impute as impute_rows
from pyro_vae.run_directory import RunDirectory

__all__ = ["impute"]

MOST_COLUMNS = 20
"""Columns that are shown on a terminal."""

Values = NDArray[Any]


def impute(options: Namespace) -> None:
    """``pyro-vae impute``."""
    run = RunDirectory(options.run)
    config = run.config()
    vae = rebuild(run, config)
    file = options.file or _own_file(config)
    _, names = picture_settings(config)
    out = _checked(Path(options.out), file)
    knows_mask = vae.missing
    classes = isinstance(vae.p_x_given_z, likelihoods.Categorical)
    wants_draws = classes or out.suffix == ".npz"
    with collected_messages("pyro_vae"):  # which are said below in the words of a command line
        vae.declare_missing()
        raw = raw_rows(file, config, vae, dtype=torch.float64)
        scaling = Scaling.from_dict(config["data"]["scaling"])
        found = impute_rows(
            vae,
            scaling.apply(raw.to(vae.dtype)),
            num_draws=options.num_draws if wants_draws else 1,
            seed=options.seed,
        )
    given = raw.cpu().numpy()
    filled = _in_raw_units(found, scaling, given)
    best = filled["mean"]
    if classes:
        best = np.where(np.isnan(given), _most_frequent(filled["draws"]), given)
    if out.suffix == ".npz":
        with replaced_file(out) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **filled, **_array_of(names))
    elif Path(file).suffix.lower() == ".csv" and names is not None:
        _write_filled(out, Path(file).expanduser(), best, filled["missing"], names)
    else:
        _write_table(out, best, filled["missing"], names)
    kind = f"the most frequent of {options.num_draws} draws" if classes else "posterior means"
    print(printable("\n".join(_in_words(filled, file, f"{kind}, seed {options.seed}"))))
    if filled["missing"].any():
        print(printable(_by_column(filled, best, names)), end="\n\n")
    if not knows_mask:
        print("the VAE was fitted without --missing: its guide sees zeros for missing values")
    if out.suffix == ".npz":
        print(f"{out}: mean, sd and {found.sizes['draw']} draws of the table, k-hat of its rows")
    else:
        print(f"{out}: one table, as if its values were known; for standard errors of what is")
        print(f"computed from it use the draws of --out {out.with_suffix('.npz')}")


def _own_file(config: Mapping[str, Any]) -> str:
    source: str = config["data"]["source"]
    if source == "digits" or has_test_set(source):
        raise ValueError(f"file must be given for a run on {source}, which is complete; got none.")
    return source


def _checked(out: Path, file: str) -> Path:
    """Where to write, known to be possible before the work begins."""
    if out.suffix not in {".csv", ".npz"}:
        raise ValueError(f"out must end in .csv or .npz; got {out}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out must lie in a folder that exists; got {out}.")
    if out.exists() and Path(file).expanduser().exists() and out.samefile(Path(file).expanduser()):
        raise ValueError(
            f"out must be another file than the data, which it would replace; got {out}."
        )
    return out


def _in_raw_units(found: xr.Dataset, scaling: Scaling, given: Values) -> dict[str, Values]:
    """What was found in the units of the file, observed values as they were given."""
    gaps = np.isnan(given)
    spread = Scaling(0.0, scaling.scale)

    def in_units(name: str, by: Scaling) -> Values:
        values: Values = by.invert(_tensor(found[name].to_numpy())).numpy()
        return values

    draws = in_units("x", scaling)
    return {
        "mean": np.where(gaps, in_units("mean", scaling), given),
        "sd": in_units("sd", spread),
        "mean_mcse": in_units("mean_mcse", spread),
        "draws": np.where(gaps, draws, given.astype(draws.dtype)),
        "missing": gaps,
        "pareto_khat": found["pareto_khat"].to_numpy(),
        "khat_threshold": np.asarray(found.attrs["khat_threshold"]),
        "ess": found["ess"].to_numpy(),
    }


def _tensor(values: Values) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _array_of(names: Sequence[str] | None) -> dict[str, Values]:
    """The columns as an array of text, which is no object that a reader would have to unpickle."""
    return {} if names is None else {"columns": np.array(names, dtype=np.str_)}


def _most_frequent(draws: Values) -> Values:
    """The class that most draws have, the lowest of several."""
    classes = np.unique(draws)
    best: Values = classes[np.stack([(draws == c).sum(0) for c in classes]).argmax(0)]
    return best


def _write_filled(out: Path, file: Path, best: Values, gaps: Values, names: Sequence[str]) -> None:
    """The table cell by cell as it is, but for what was missing in columns of x."""
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "compression": None}
    width = pd.read_csv(file, nrows=0, **options).shape[1]
    # The rows that datasets.from_file finds.
    table = pd.read_csv(file, skip_blank_lines=width > 1, **options)
    for index, name in enumerate(names):
        cells = table[name].to_numpy(dtype=object, copy=True)
        missing = gaps[:, index]
        cells[missing] = [f"{value:.7g}" for value in best[missing, index]]
        table[name] = cells
    with replaced_file(out) as temporary:
        table.to_csv(temporary, index=False)


def _write_table(out: Path, best: Values, gaps: Values, names: Sequence[str] | None) -> None:
    """Observed numbers in full precision, and the others in that of the Monte Carlo error."""
    cells = [
        [f"{value:.7g}" if is_gap else repr(value) for value, is_gap in zip(*row, strict=True)]
        for row in zip(
            best.reshape(len(best), -1).tolist(), gaps.reshape(len(best), -1), strict=True
        )
    ]
    with replaced_file(out) as temporary:
        pd.DataFrame(cells, columns=names).to_csv(temporary, index=False)


def _in_words(filled: Mapping[str, Values], file: str, kind: str) -> list[str]:
    gaps = filled["missing"].reshape(len(filled["missing"]), -1)
    rows: Values = np.asarray(gaps.any(axis=1))
    if not rows.any():
        return [f"no value is missing in {file}: the table is as it was"]
    khat, threshold = filled["pareto_khat"][rows], float(filled["khat_threshold"])
    above = int(untrusted(_tensor(khat), threshold).sum())
    lines = [
        f"{gaps.sum()} of {gaps.size} values imputed, in {rows.sum()} of {len(rows)} rows of "
        f"{file}: {kind}"
    ]
    known = khat[np.isfinite(khat)]
    most = f"at most {known.max():.2f}" if known.size else "unknown"
    if above:
        lines.append(
            f"k-hat above {threshold:.2f} for {above} of these {rows.sum()} rows, {most}: there "
            "the values lean towards the guide. More epochs or a richer --family may help."
        )
    else:
        lines.append(f"k-hat {most}, above {threshold:.2f} for none of these {rows.sum()} rows")
    return lines


def _by_column(filled: Mapping[str, Values], best: Values, names: Sequence[str] | None) -> str:
    """What was observed and what is imputed, column by column, in the units of the file."""
    gaps, best, sd = (v.reshape(len(v), -1) for v in (filled["missing"], best, filled["sd"]))
    rows = {}
    for index in np.flatnonzero(gaps.any(axis=0)).tolist():
        missing, values = gaps[:, index], best[:, index]
        seen = values[~missing]
        rows[str(index) if names is None else names[index]] = {
            "missing": str(missing.sum()),
            "mean observed": f"{seen.mean():.4g}" if seen.size else "-",
            "sd observed": f"{seen.std():.4g}" if seen.size else "-",
            "mean imputed": f"{values[missing].mean():.4g}",
            "mean posterior sd": f"{sd[missing, index].mean():.4g}",
        }
    shown = pd.DataFrame.from_dict(dict(list(rows.items())[:MOST_COLUMNS]), orient="index")
    more = len(rows) - len(shown)
    text = shown.to_string()
    return f"{text}\n... and {more} more columns" if more else text
