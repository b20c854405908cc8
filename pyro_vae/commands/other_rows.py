"""Rows of a file for the VAE of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyro_vae import datasets
from pyro_vae.vae import VAE

__all__ = ["raw_rows"]


def raw_rows(
    file: str, config: Mapping[str, Any], vae: VAE, *, dtype: torch.dtype | None = None
) -> Tensor:
    """The rows of a file in its own units, ``(N, *event_shape)``.

    Columns are matched by name; further ones, labels too, are left out.

    Args:
        file: A ``.npy``, ``.npz`` or ``.csv`` file.
        config: That of the run.
        vae: Its VAE, whose ``missing`` says whether values may be missing.
        dtype: Floating type of the rows; that of the VAE unless given.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or does not hold what the VAE was fitted to.
        TypeError: If values are not numeric.
    """
    path = Path(file).expanduser()
    suffix, settings = path.suffix.lower(), config["data"]
    labels = settings.get("labels")
    if labels is not None and not (suffix == ".csv" and labels in _header(path)):
        labels = None
    rows = datasets.from_file(
        path,
        key=settings.get("key") if suffix == ".npz" else None,
        labels=labels,
        dtype=dtype or vae.dtype,
        missing=vae.missing,
    )
    raw: Tensor = datasets.checked_rows(
        rows,
        event_shape=vae.event_shape,
        columns=vae.columns,
        name=path.name,
        missing=vae.missing,
    ).tensor
    return raw.to(vae.device)


def _header(path: Path) -> list[str]:
    """Names of the columns; none of what is no table, which is told when it is read."""
    try:
        return list(map(str, pd.read_csv(path, nrows=0, compression=None)))
    except (OSError, ValueError):  # pandas' own errors are among them
        return []
