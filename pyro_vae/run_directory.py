"""The directory that a fit leaves behind: plain files that other programs can read."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from pyro_vae import toml
from pyro_vae.checkpoint import (
    CheckpointError,
    StateFiles,
    copied_into,
    load_weights,
    named_tensors,
    save_weights,
)
from pyro_vae.files import replaced_file, write_whole

__all__ = ["RunDirectory"]

FORMAT = 1

MAX_BYTES = 2**28
"""Largest text file that is read: a history of half a million epochs fits."""


class RunDirectory:
    """Files of one fit, each written whole or not at all.

    While it runs: ``config.toml`` (all settings, resolved), ``environment.json`` (versions, seed,
    sha256 of the data), ``metrics.jsonl`` (the history, a line an epoch), and the states that
    :class:`pyro_vae.checkpoint.StateFiles` keeps. In the end ``weights.safetensors``, and what the
    command line adds: ``summary.csv``, ``report.txt``, and pictures.

    Args:
        path: The directory.

    Example:
        >>> import tempfile
        >>> run = RunDirectory.create(Path(tempfile.mkdtemp()) / "run")
        >>> run.write_config({"model": {"latent_dim": 2}})
        >>> run.config()["model"]["latent_dim"]
        2
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.states = StateFiles(self.path)

    @classmethod
    def create(cls, path: str | Path, *, name: str = "out") -> "RunDirectory":
        """A new directory at ``path``.

        Args:
            path: Where.
            name: The argument that said so.

        Raises:
            FileExistsError: If there is something at ``path`` other than an empty directory.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(
                f"{name} must be new or empty, since a run is never written over; got {path}. "
                "Name another."
            )
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def continued(cls, path: str | Path, *, name: str = "out") -> "RunDirectory":
        """The directory of a fit that was stopped, or a new one where there is none yet.

        What a killed process left half written is removed.

        Args:
            path: Where.
            name: The argument that said so.

        Raises:
            FileExistsError: If there is something at ``path`` that no fit has written.
        """
        path = Path(path)
        if path.is_dir() and _is_own(path):
            _remove_unfinished(path)
            if any(path.iterdir()):
                return cls(path)
        return cls.create(path, name=name)

    @classmethod
    def create_numbered(cls, parent: str | Path, name: str) -> "RunDirectory":
        """A new directory ``parent/name``, or with ``-2``, ``-3``, ... where that is taken."""
        parent = Path(parent)
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return cls(path)

    def file(self, name: str) -> Path:
        """Path of one of the run's files."""
        return self.path / name

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.toml``."""
        self._write_text("config.toml", toml.dumps({"format": FORMAT, **config}))

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Write ``environment.json``; where there is one, the facts are added as of a resumption.

        Args:
            facts: Versions, seed, digests of the data: numbers, words, None, and tables of them.
        """
        found = self.environment()
        if found is None:
            content: dict[str, Any] = dict(facts)
        else:
            content = {**found, "resumed": [*found.get("resumed", []), dict(facts)]}
        self._write_text("environment.json", json.dumps(content, indent=2) + "\n")

    def config(self) -> dict[str, Any]:
        """What ``config.toml`` holds.

        Raises:
            CheckpointError: If there is none, or it is damaged or of a newer format.
        """
        path = self.file("config.toml")
        try:
            config = toml.read(path, name="run")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(
                f"run must be a directory that 'pyro-vae fit' wrote; {self.path} has no "
                "config.toml."
            ) from error
        except ValueError as error:
            raise CheckpointError(f"config.toml of {self.path} is damaged: {error}") from error
        if config.get("format") != FORMAT:
            raise CheckpointError(
                f"run must be of format {FORMAT}; {self.path} has format {config.get('format')}. "
                "Read it with the version of pyro_vae that wrote it."
            )
        return config

    def environment(self) -> dict[str, Any] | None:
        """What ``environment.json`` holds; None if there is none.

        Raises:
            CheckpointError: If it is damaged.
        """
        path = self.file("environment.json")
        if not path.exists():
            return None
        try:
            found = json.loads(_text(path))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} is damaged: it holds no table.")
        return found

    def write_history(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Write ``metrics.jsonl``: a line of JSON for each epoch, null for what is not finite."""
        self._write_text("metrics.jsonl", "".join(map(_line, rows)))

    def add_to_history(self, row: Mapping[str, float]) -> None:
        """Add the line of an epoch; a crash may cut it short, which :meth:`history` forgives."""
        path = self.file("metrics.jsonl")
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            if error.errno is not None and error.filename is None:  # as when the disk is full
                error.filename = str(path)
            raise

    def history(self) -> pd.DataFrame | None:
        """What ``metrics.jsonl`` holds, a row an epoch; None if there is none.

        Raises:
            CheckpointError: If it is damaged elsewhere than in an unfinished last line.
        """
        path = self.file("metrics.jsonl")
        if not path.exists():
            return None
        try:
            *lines, _ = _text(path).split("\n")
            rows = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise CheckpointError(f"{path} is damaged: a line of it is no table.")
        return pd.DataFrame(rows)

    def write_table(self, name: str, table: pd.DataFrame, *, index: bool = False) -> None:
        """Write a table as CSV, numbers in full precision."""
        with replaced_file(self.file(name)) as temporary:
            table.to_csv(temporary, index=index)

    def write_report(self, text: str) -> None:
        """Write ``report.txt``."""
        self._write_text("report.txt", text)

    def report(self) -> str:
        """What ``report.txt`` holds, empty if the fit did not get so far.

        Raises:
            CheckpointError: If it is no regular file, or no text.
        """
        path = self.file("report.txt")
        try:
            return _text(path) if path.exists() else ""
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error

    def write_weights(self, module: nn.Module) -> None:
        """Write ``weights.safetensors``."""
        save_weights(module, self.file("weights.safetensors"))

    def read_weights(self, module: nn.Module, *, best: bool = False) -> None:
        """Read the weights into a module of the same make.

        Args:
            module: Its tensors keep their identity, type and device.
            best: Those of the best epoch, from ``state-best.pt``, in place of those with which the
                fit ended, from ``weights.safetensors``.

        Raises:
            CheckpointError: If the file is not there, is damaged, or belongs to another module.
        """
        if best:
            path = self.states.directory
            copied_into(named_tensors(module), self.states.best_tensors(), str(path))
        else:
            load_weights(module, self.file("weights.safetensors"))

    def _write_text(self, name: str, text: str) -> None:
        write_whole(self.file(name), text.encode())


def _text(path: Path) -> str:
    """The text of a file, which a stranger may have made: a pipe would never end."""
    if not path.is_file():
        raise ValueError("it is no regular file.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB.")
    return path.read_text("utf-8")


def _line(row: Mapping[str, float]) -> str:
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(values) + "\n"


UNFINISHED = re.compile(
    r"\.(config-.*toml|environment-.*json|metrics-.*jsonl|weights-.*safetensors"
    r"|state-.*(pt|sha256|new)|summary-.*csv|report-.*txt|.*-.*png)"
)
"""Names of temporary files."""


def _is_own(path: Path) -> bool:
    """Whether a fit has written to a directory, even if it was killed at once."""
    if (path / "config.toml").is_file() or StateFiles(path).exist:
        return True
    return all(UNFINISHED.fullmatch(each.name) for each in path.iterdir())


def _remove_unfinished(path: Path) -> None:
    """Delete the temporary files of a process that was killed while it wrote."""
    for each in path.iterdir():
        if UNFINISHED.fullmatch(each.name) and each.is_file() and not each.is_symlink():
            each.unlink(missing_ok=True)
