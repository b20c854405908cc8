"""What is diagnosed, and what several questions need of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from torch import Tensor

from pyro_vae import families, likelihoods
from pyro_vae.diagnostics import elbo_terms, log_evidence
from pyro_vae.diagnostics.aggregate.collapse import collapse_report
from pyro_vae.diagnostics.evidence.quadrature import quadrature_log_evidence
from pyro_vae.diagnostics.gaps.inference_gaps import inference_gaps
from pyro_vae.evaluation import evaluating
from pyro_vae.html_report import Picture
from pyro_vae.rows import at_rows, per_datum_parts
from pyro_vae.traces import JointDensity

__all__ = [
    "ELBO_DRAWS",
    "FEWEST_ROWS",
    "FULL",
    "NATS",
    "NEGLIGIBLE",
    "Study",
    "coordinate_names",
    "grade",
    "minus",
    "share_error",
    "shown",
]

NATS = "nats per datum"

NEGLIGIBLE = 0.1
"""Nats that are few whatever they are a share of: of a KL near 0 any error is a large share."""

ELBO_DRAWS = 16

FEWEST_ROWS = 20
"""Rows from which on there is a verdict about them."""

FULL = "full covariance"

MOST_DIMENSIONS = 32
"""Largest latent dimension for which a full covariance is tried."""

MOST_QUADRATURE_DIMENSIONS = 2

QUADRATURE_TOLERANCE = 0.01
"""Nats, which no verdict depends on."""


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
        numbers: Row number, from 0, of each row of x in the user's data; None if x is all of it.
        num_rows: Number of rows in the user's data; None if x is all of it.
        num_train: Number of rows in all of the training data; None if ``train`` is all of it.
        name: What the user calls the rows of x.
    """

    vae: Any
    x: Tensor
    train: Tensor | None
    history: pd.DataFrame | None
    num_samples: int
    seed: int
    is_quick: bool
    numbers: np.ndarray | None = None
    num_rows: int | None = None
    num_train: int | None = None
    name: str = "rows"

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

    @property
    def codes(self) -> Tensor:
        """The rows whose codes make the aggregate: those of the training data, if there are."""
        return self.x if self.train is None else self.train

    @cached_property
    def exact(self) -> xr.Dataset | str:
        """Log p(x) by quadrature on the rows of :attr:`gaps`; in words why there is none.

        Empty where z has more than two coordinates.
        """
        shape = tuple(getattr(self.vae, "latent_shape", ()))
        if not shape or math.prod(shape) > MOST_QUADRATURE_DIMENSIONS:
            return ""
        try:
            with self.some_rows(self.num_gap_rows) as rows:
                return quadrature_log_evidence(
                    self.vae, rows, tolerance=QUADRATURE_TOLERANCE, seed=self.seed
                )
        except ValueError as error:
            return f"No quadrature: {error}"

    @cached_property
    def gaps(self) -> xr.Dataset:
        """The gap's two parts, and what a full covariance would buy, on some of the rows."""
        with self.some_rows(self.num_gap_rows) as rows:
            return inference_gaps(
                self.vae,
                rows,
                families=_others(self.vae),
                log_evidence=None if isinstance(self.exact, str) else self.exact,
                num_samples=self.size(1000, 300),
                num_steps=self.size(300, 100),
                seed=self.seed,
            )

    @cached_property
    def units(self) -> xr.Dataset:
        """The units of z over the codes, beside those of a linear VAE."""
        return collapse_report(self.vae, self.codes, seed=self.seed)

    @property
    def num_gap_rows(self) -> int:
        """Number of rows of which each gets an optimization of its own."""
        return min(self.size(100, 25), len(self.x))

    @cached_property
    def latent_names(self) -> list[str]:
        """A name for each coordinate of z: z_1, z_2, or those of several sites."""
        few = torch.arange(min(2, len(self.x)), device=self.x.device)
        parts = per_datum_parts(self.vae)
        with evaluating(self.vae, self.seed, "names", device=self.x.device), at_rows(parts, few):
            joint = JointDensity(self.vae, self.x[few])
        sites = joint.split(self.x.new_zeros(1, joint.num_dims))
        return coordinate_names({name: tuple(value.shape[1:]) for name, value in sites.items()})

    @cached_property
    def is_no_density(self) -> bool:
        """Whether x has gray values, and a Bernoulli likelihood, which is no density there."""
        bernoulli = isinstance(getattr(self.vae, "p_x_given_z", None), likelihoods.Bernoulli)
        return bernoulli and bool(((self.x > 0) & (self.x < 1)).any())

    def index(self, count: int) -> Tensor:
        """Up to so many of the rows of x, spread evenly."""
        few = min(count, len(self.x))
        return torch.linspace(0, len(self.x) - 1, few, device=self.x.device).round().long()

    @contextmanager
    def some_rows(self, count: int) -> Iterator[Tensor]:
        """Up to so many of the rows, spread evenly, while the block lasts."""
        index = self.index(count)
        with at_rows(per_datum_parts(self.vae), index):
            yield self.x[index]

    def number(self, row: int) -> int:
        """Number, from 0, that a row of x has in the user's data."""
        return row if self.numbers is None else int(self.numbers[row])

    def on_rows(self, count: int | None = None) -> str:
        """On which rows something is computed, as "on 100 of 359 held-out rows"."""
        return _on(
            len(self.x) if count is None else count, self.num_rows or len(self.x), self.name
        )

    def on_codes(self) -> str:
        """On which rows :attr:`codes` are, in words."""
        if self.train is None:
            return self.on_rows()
        return _on(len(self.train), self.num_train or len(self.train), "training rows")

    def size(self, usual: int, quick: int) -> int:
        """A number of draws, rows or steps."""
        return quick if self.is_quick else usual


def coordinate_names(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the coordinates of latent sites that lie side by side, each flattened.

    Example:
        >>> coordinate_names({"a": (2,), "b": ()}), coordinate_names({"z": (2,)})
        (['a[1]', 'a[2]', 'b'], ['z_1', 'z_2'])
    """
    if list(shapes) == ["z"]:
        return [f"z_{j + 1}" for j in range(math.prod(shapes["z"]))]
    names = []
    for name, shape in shapes.items():
        for place in np.ndindex(shape):
            inside = ", ".join(str(j + 1) for j in place)
            names.append(f"{name}[{inside}]" if inside else name)
    return names


def share_error(share: float, count: int) -> float:
    """Half the width of Wilson's interval of one standard error, which is not 0 at 0 or 1.

    Example:
        >>> round(share_error(0.0, 99), 4), round(share_error(0.5, 99), 4)
        (0.005, 0.05)
    """
    return math.sqrt(share * (1 - share) / count + 1 / (4 * count**2)) / (1 + 1 / count)


def minus(text: str) -> str:
    """A figure's text with a true minus.

    Example:
        >>> minus("-1.5")
        '−1.5'
    """
    return text.replace("-", "−")


def _on(count: int, of: int, name: str) -> str:
    return f"on {count} {name}" if count == of else f"on {count} of {of} {name}"


def _others(vae: Any) -> dict[str, families.Family]:
    """A full covariance, where the guide has none and it is small enough to be tried."""
    shape: tuple[int, ...] = tuple(getattr(vae, "latent_shape", ()))
    own = getattr(getattr(vae, "q_z_given_x", None), "family", None)
    fits = len(shape) == 1 and 2 <= shape[0] <= MOST_DIMENSIONS
    if not fits or isinstance(own, families.FullCovarianceNormal | families.Flow):
        return {}
    full = families.FullCovarianceNormal(shape[0])
    return {FULL: full.to(next(vae.parameters()))}


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
