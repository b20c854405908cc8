"""The directory that a fit leaves behind: plain files that other programs can read."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd

from pyro_vae import toml
from pyro_vae.checkpoint import (
    CheckpointError,
    StateFiles,
    as_module,
    copied_into,
    load_weights,
    named_tensors,
    save_weights,
)
from pyro_vae.files import UNFINISHED, Lock, explained, replaced_file, write_whole
from pyro_vae.texts import (
    DIGEST_LINE,
    check_digest_line,
    json_line,
    sha256_of_text,
    text_of,
)

__all__ = ["RunDirectory"]

FORMAT = 1

LOCK = f"{UNFINISHED}lock"


class RunDirectory:
    """Files of one fit, each written whole or not at all.

    While it runs: ``config.toml`` (all settings, resolved), ``environment.json`` (versions, seed,
    sha256 of the data), ``metrics.jsonl`` (the history, a line an epoch), and the states that
    :class:`pyro_vae.checkpoint.StateFiles` keeps. In the end ``weights.safetensors``, and what the
    command line adds: ``summary.csv``, ``report.txt``, and pictures.

    Args:
        path: The directory.

    Attributes:
        path: The directory.
        states: Its states.
        is_open: Whether this object has made it, or opened it for a fit to go on.

    Example:
        >>> import tempfile
        >>> run = RunDirectory.create(Path(tempfile.mkdtemp()) / "run")
        >>> run.write_config({"model": {"latent_dim": 2}})
        >>> run.config()["model"]["latent_dim"]
        2
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # As it is now: a callback may change the working directory.
        self._absolute = self.path.absolute()
        self.states = StateFiles(self._absolute)
        self.is_open = False
        self._planned: dict[str, Any] = {}
        self._lock = Lock(self._absolute / LOCK)

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
        return cls(path)._opened()

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
            run = cls(path)
            run.lock(name=name)  # lest the temporary files be those of a fit that runs
            _remove_unfinished(path)
            run.unlock()
            if any(path.iterdir()):
                return run._opened()
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
                return cls(path)._opened()

    def _opened(self) -> Self:
        """This directory, marked as one that a fit may write to."""
        self.is_open = True
        return self

    def lock(self, *, name: str = "run_dir") -> None:
        """Keep other processes from writing to this directory, until this one ends at the latest.

        Args:
            name: The argument that said which directory.

        Raises:
            RuntimeError: If another process does.
        """
        if not self._lock.take():
            raise RuntimeError(
                f"{name} must be used by one fit at a time; got {self.path}, which another "
                "process holds. Wait for it to end, or name another."
            )

    def unlock(self) -> None:
        """Let others write to this directory, and regard it as closed."""
        self._lock.release()
        self.is_open = False

    def file(self, name: str) -> Path:
        """Path of one of the run's files, as the user named the directory."""
        return self.path / name

    def _place(self, name: str) -> Path:
        """The same wherever the process has gone meanwhile."""
        return self._absolute / name

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.toml``, with the digest of what it says in its first line."""
        text = toml.dumps({"format": FORMAT, **config})
        self._write_text("config.toml", f"{DIGEST_LINE}{sha256_of_text(text)}\n{text}")

    def plan_config(self, config: Mapping[str, Any]) -> None:
        """Have ``config.toml`` written by the fit, when nothing can keep it from its first step.

        A fit that is refused leaves the old one.
        """
        self._planned = dict(config)

    def write_planned(self) -> None:
        """Write the configuration that was planned, if one was."""
        if self._planned:
            self.write_config(self._planned)

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Write ``environment.json``; where there is one, the facts are added as of a resumption.

        Args:
            facts: Versions, seed, digests of the data: numbers, words, None, and tables of them.
        """
        try:
            found = self.environment()
        except CheckpointError as error:  # no reason to lose a fit whose states are whole
            warnings.warn(f"{error} It is written anew.", UserWarning, stacklevel=2)
            found = None
        if found is None:
            content: dict[str, Any] = dict(facts)
        else:
            content = {**found, "resumed": [*found.get("resumed", []), dict(facts)]}
        content = {"sha256": sha256_of_text(json.dumps(content)), **content}
        self._write_text("environment.json", json.dumps(content, indent=2) + "\n")

    def config(self) -> dict[str, Any]:
        """What ``config.toml`` holds.

        Raises:
            CheckpointError: If there is none, or it is damaged or of a newer format.
        """
        path = self._place("config.toml")
        try:
            config = toml.read(path, name="run")
            check_digest_line(text_of(path))
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
        path = self._place("environment.json")
        if not path.exists():
            return None
        try:
            found = json.loads(text_of(path))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} is damaged: it holds no table.")
        if found.pop("sha256", None) != sha256_of_text(json.dumps(found)):
            raise CheckpointError(f"{path} is damaged: it differs from its sha256.")
        return found

    def write_history(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Write ``metrics.jsonl``: a line of JSON for each epoch, null for what is not finite."""
        self._write_text("metrics.jsonl", "".join(map(json_line, rows)))

    def add_to_history(self, row: Mapping[str, float]) -> None:
        """Add the line of an epoch; a crash may cut it short, which :meth:`history` forgives."""
        path = self._place("metrics.jsonl")
        size = path.stat().st_size if path.exists() else 0
        line = json_line(row)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise explained(error, path, len(line)) from error

    def history(self) -> pd.DataFrame | None:
        """What ``metrics.jsonl`` holds, a row an epoch; None if there is none.

        Raises:
            CheckpointError: If it is damaged elsewhere than in an unfinished last line.
        """
        path = self._place("metrics.jsonl")
        if not path.exists():
            return None
        try:
            *lines, _ = text_of(path).split("\n")
            rows = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise CheckpointError(f"{path} is damaged: a line of it is no table.")
        return pd.DataFrame(rows)

    def write_table(self, name: str, table: pd.DataFrame, *, index: bool = False) -> None:
        """Write a table as CSV, numbers in full precision."""
        with replaced_file(self._place(name)) as temporary:
            table.to_csv(temporary, index=index)

    def write_report(self, text: str) -> None:
        """Write ``report.txt``."""
        self._write_text("report.txt", text)

    def report(self) -> str:
        """What ``report.txt`` holds, empty if the fit did not get so far.

        Raises:
            CheckpointError: If it is no regular file, or no text.
        """
        path = self._place("report.txt")
        try:
            return text_of(path) if path.exists() else ""
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error

    def write_weights(self, module: Any) -> None:
        """Write ``weights.safetensors``, of a module or of programs that use some."""
        save_weights(as_module(module), self._place("weights.safetensors"))

    def read_weights(self, module: Any, *, best: bool = False) -> None:
        """Read the weights into a module of the same make.

        Args:
            module: A module, or programs that use some. Its tensors keep their identity, type and
                device.
            best: Those of the best epoch, from ``state-best.pt``, in place of those with which the
                fit ended, from ``weights.safetensors``.

        Raises:
            CheckpointError: If the file is not there, is damaged, or belongs to another module.
        """
        if best:
            path = self.states.directory
            copied_into(named_tensors(as_module(module)), self.states.best_tensors(), str(path))
        else:
            load_weights(as_module(module), self._place("weights.safetensors"))

    def _write_text(self, name: str, text: str) -> None:
        write_whole(self._place(name), text.encode())


def _is_own(path: Path) -> bool:
    """Whether a fit has written to a directory, even if it was killed at once."""
    names = {each.name for each in path.iterdir()}
    if all(name.startswith(UNFINISHED) for name in names):
        return True
    if StateFiles(path).exist:
        return True
    try:
        config = toml.read(path / "config.toml")
    except (OSError, ValueError):
        return False
    return isinstance(config.get("format"), int) and isinstance(config.get("fit"), dict)


def _remove_unfinished(path: Path) -> None:
    """Delete the temporary files of a process that was killed while it wrote."""
    for each in path.iterdir():
        is_left = each.name.startswith(UNFINISHED) and each.name != LOCK
        if is_left and each.is_file() and not each.is_symlink():
            each.unlink(missing_ok=True)
