"""The directory that a fit leaves behind: plain files that other programs can read."""

import importlib.metadata
import json
import os
import platform
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from pyro_vae import toml
from pyro_vae.checkpoint import CheckpointError, load_weights, save_weights
from pyro_vae.files import replaced_file
from pyro_vae.optim import Processes

__all__ = ["RunDirectory"]

FORMAT = 1


class RunDirectory:
    """Files of one fit, each written whole or not at all.

    ``config.toml`` (all settings, resolved), ``weights.pt`` (loads with ``weights_only=True``),
    ``history.csv``, ``summary.csv``, ``report.txt``, ``environment.json``, and pictures.

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
        """Write ``config.toml`` and ``environment.json``."""
        self._write_text("config.toml", toml.dumps({"format": FORMAT, **config}))
        self._write_text("environment.json", json.dumps(_environment(), indent=2) + "\n")

    def config(self) -> dict[str, Any]:
        """What ``config.toml`` holds.

        Raises:
            CheckpointError: If there is none, or it is damaged or of a newer format.
        """
        path = self.file("config.toml")
        try:
            config = tomllib.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(
                f"run must be a directory that 'pyro-vae fit' wrote; {self.path} has no "
                "config.toml."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"config.toml of {self.path} is damaged: {error}") from error
        if config.get("format") != FORMAT:
            raise CheckpointError(
                f"run must be of format {FORMAT}; {self.path} has format {config.get('format')}. "
                "Read it with the version of pyro_vae that wrote it."
            )
        return config

    def environment(self) -> dict[str, Any]:
        """What ``environment.json`` holds."""
        environment: dict[str, Any] = json.loads(self.file("environment.json").read_text("utf-8"))
        return environment

    def write_table(self, name: str, table: pd.DataFrame, *, index: bool = False) -> None:
        """Write a table as CSV, numbers in full precision."""
        with replaced_file(self.file(name)) as temporary:
            table.to_csv(temporary, index=index)

    def write_report(self, text: str) -> None:
        """Write ``report.txt``."""
        self._write_text("report.txt", text)

    def report(self) -> str:
        """What ``report.txt`` holds, empty if the fit did not get so far."""
        path = self.file("report.txt")
        return path.read_text("utf-8") if path.exists() else ""

    def write_weights(self, module: nn.Module) -> None:
        """Write ``weights.pt``."""
        save_weights(module, self.file("weights.pt"))

    def read_weights(self, module: nn.Module) -> None:
        """Read ``weights.pt`` into a module of the same make."""
        load_weights(module, self.file("weights.pt"))

    def _write_text(self, name: str, text: str) -> None:
        with replaced_file(self.file(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _environment() -> dict[str, Any]:
    """Versions and settings on which the bits of a result depend."""
    packages = ("pyro-vae", "pyro-ppl", "torch", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "processes": Processes.current().size,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
