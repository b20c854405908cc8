"""What is diagnosed, and what several questions need of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from torch import Tensor

from pyro_vae.diagnostics import elbo_terms, log_evidence
from pyro_vae.html_report import Picture
from pyro_vae.rows import at_rows, per_datum_parts

__all__ = ["ELBO_DRAWS", "NATS", "NEGLIGIBLE", "Study", "grade", "shown"]

NATS = "nats per datum"

NEGLIGIBLE = 0.1
"""Nats that are few whatever they are a share of: of a KL near 0 any error is a large share."""

ELBO_DRAWS = 16


@dataclass
class Study:
    """One fitted VAE and the rows that it is held against.

    Attributes:
        vae: A VAE, or any model and guide.
        x: The rows, ``(N, *event_shape)``: new to the fit, unless the user has no others.
        train: Rows of the training data, or None.
        history: One row an epoch, as ``FitResult.history``, or None.
        num_samples: Number S of draws for each datum.
        seed: Seed of all draws.
        is_quick: Whether time matters more than precision.
    """

    vae: Any
    x: Tensor
    train: Tensor | None
    history: pd.DataFrame | None
    num_samples: int
    seed: int
    is_quick: bool

    @cached_property
    def terms(self) -> xr.Dataset:
        """The ledger of the rows."""
        return elbo_terms(self.vae, self.x, num_samples=ELBO_DRAWS, seed=self.seed)

    @cached_property
    def train_terms(self) -> xr.Dataset | None:
        """The ledger of training rows."""
        if self.train is None:
            return None
        return elbo_terms(self.vae, self.train, num_samples=ELBO_DRAWS, seed=self.seed)

    @cached_property
    def evidence(self) -> xr.Dataset:
        """Log p(x) of the rows by importance sampling."""
        return log_evidence(self.vae, self.x, num_samples=self.num_samples, seed=self.seed)

    @contextmanager
    def some_rows(self, count: int) -> Iterator[Tensor]:
        """Up to so many of the rows, spread evenly, while the block lasts."""
        index = torch.linspace(0, len(self.x) - 1, min(count, len(self.x)), device=self.x.device)
        index = index.round().long()
        with at_rows(per_datum_parts(self.vae), index):
            yield self.x[index]

    def size(self, usual: int, quick: int) -> int:
        """A number of draws, rows or steps."""
        return quick if self.is_quick else usual


def grade(value: float, good: float, bad: float) -> str:
    """Good up to one threshold, bad beyond the other, doubtful between them and where unknown.

    Example:
        >>> grade(0.05, 0.1, 0.3), grade(0.2, 0.1, 0.3), grade(0.4, 0.1, 0.3)
        ('good', 'doubtful', 'bad')
    """
    if value <= good:
        return "good"
    return "bad" if value > bad else "doubtful"


def shown(drawn: Axes | Sequence[Axes], caption: str) -> Picture:
    """The figure that axes lie in, with its caption."""
    axes = drawn if isinstance(drawn, Axes) else drawn[0]
    figure = axes.get_figure(root=True)
    if figure is None:  # our own pictures always have one
        raise RuntimeError("axes must lie in a figure; got some that were removed.")
    return Picture(caption, figure)
