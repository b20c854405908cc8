"""Marginal calibration: where each observed value lies in the model's own distribution of it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.calibration.uniformity import (
    critical_log_gamma,
    ecdf_band,
    gamma_p_value,
    log_gamma,
)
from pyro_vae.diagnostics.passes import complete
from pyro_vae.seeding import generator
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs

from .replication import Replication, replications

__all__ = ["Features", "pit", "posterior_pit"]

Features = Sequence[int | str] | Mapping[str, Callable[[Tensor], Tensor]]
"""Numbers of elements of x, names of columns, or functions ``(N, *event_shape)`` to ``(N,)``."""

LEVEL = 0.05


def pit(
    vae: Programs,
    x: Any,
    *,
    features: Features | None = None,
    num_samples: int = 199,
    seed: int = 0,
) -> xr.Dataset:
    r"""Probability integral transform of each feature under p(x), and a test of its uniformity.

    .. math:: u_{ij} = P(X_j \le x_{ij}), \qquad X \sim p(x) = \int p(x \mid z)\, p(z)\, dz

    If the rows are independent draws from the model, :math:`u_{1j}, \dots, u_{Nj}` are independent
    and uniform for each j. (The features of one row are not independent: each has its own test.)
    What is tested is the rank of :math:`x_{ij}` among L draws made for it alone, ties in random
    order, which is exactly uniform at any L, for discrete features too; an average of the
    conditional distribution function is not, and one over draws that all rows share would have its
    own noise found significant. Values piled up at both ends say that the model's distribution is
    too narrow; in the middle, too wide; to one side, that it is shifted.

    On the data of the fit the test is conservative, since the parameters followed those data.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        features: Elements of the flattened x, by number or by the names of a table's columns; or
            names and functions from data, ``(N, *event_shape)``, to one number a row, ``(N,)``.
            All elements of x unless given. Only elements asked for need be without missing values;
            for functions all of x.
        num_samples: Number L of draws for each datum.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        Over ``obs_id`` and ``feature``: ``rank``, 0 to L; ``pit``, (rank + V) / (L + 1) with V
        uniform on (0, 1), exactly uniform under the model; ``cdf``, an estimate of
        :math:`u_{ij}` with its ``cdf_mcse``, averaged over the draws of z where p(x|z) has a
        distribution function, else the share of draws at or below. Over ``feature``:
        ``log_gamma``, its ``p_value``, and ``p_value_adjusted`` for all the features together
        (Holm). Over ``u``: ``ecdf_lower`` and ``ecdf_upper``, between which the share of values
        below u lies for all u at once, in 95 of 100 calibrated features. Attribute
        ``critical_log_gamma`` is that of level 0.05 for one feature.

    Raises:
        ValueError: If a feature is not there, has missing values or does not give one number a
            row, or the model does not have one observed site of the shape of x.
        TypeError: If ``features`` is neither a list nor a mapping from names to functions, or the
            model has no latent site, as an autoencoder's.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> x = torch.full((50, 3), -1e3)  # far below all that the model draws
        >>> found = pit(vae, x, features=[0], num_samples=9)
        >>> found["rank"].values.max().item()
        0
        >>> round(found["log_gamma"].item(), 3)  # log(2 / 10^50)
        -114.436

    References:
        Dawid (1984), Statistical theory: the prequential approach, section 5.3.
        https://doi.org/10.2307/2981683

        Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity, section 3.
        https://arxiv.org/abs/2103.10522
    """
    dataset = _ranked(vae, x, features, num_samples, seed, from_guide=False)
    num_data, num_draws = dataset.sizes["obs_id"], dataset.attrs["num_samples"]
    gamma = log_gamma(torch.from_numpy(dataset["rank"].to_numpy()), num_draws)
    p_value = gamma_p_value(gamma, num_data, num_draws).numpy()
    dataset.attrs |= {
        "level": LEVEL,
        "critical_log_gamma": critical_log_gamma(num_data, num_draws, LEVEL),
    }
    critical = dataset.attrs["critical_log_gamma"]
    lower, upper = ecdf_band(num_data, num_draws, LEVEL, critical=critical)
    return dataset.assign(
        ecdf_lower=("u", lower.numpy()),
        ecdf_upper=("u", upper.numpy()),
        log_gamma=("feature", gamma.numpy()),
        p_value=("feature", p_value),
        p_value_adjusted=("feature", _holm(p_value)),
    ).assign_coords(u=np.arange(1, num_draws + 1) / (num_draws + 1))


def posterior_pit(
    vae: Programs,
    x: Any,
    *,
    features: Features | None = None,
    num_samples: int = 199,
    seed: int = 0,
) -> xr.Dataset:
    r"""The transform of each feature under the posterior predictive of its own row.

    .. math:: u_{ij} = P(X_j \le x_{ij}), \qquad X \sim \int p(x \mid z)\, q(z \mid x_i)\, dz

    Here z has seen the value itself, so that even under a right model the values lie nearer to
    1/2 than uniform ones: there is no test, and :func:`pit` has it. What it tells is which values
    of which rows the model cannot reproduce: those with u near 0 or 1.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        features: As for :func:`pit`; x must be complete, whichever they are.
        num_samples: Number L of draws for each datum.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        ``rank``, ``pit``, ``cdf`` and ``cdf_mcse`` over ``obs_id`` and ``feature`` as in
        :func:`pit`.

    Raises:
        ValueError: As there; also if a discrete site is left to be summed out by the guide.
        TypeError: As there.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> found = posterior_pit(vae, torch.zeros(50, 3), num_samples=9)
        >>> dict(found.sizes), "p_value" in found
        ({'obs_id': 50, 'feature': 3}, False)
    """
    return _ranked(vae, x, features, num_samples, seed, from_guide=True)


def _ranked(
    vae: Programs,
    x: Any,
    features: Features | None,
    num_samples: int,
    seed: int,
    *,
    from_guide: bool,
) -> xr.Dataset:
    num_samples = positive_integer(num_samples, "num_samples")
    source = DataSource(vae, resolve_device(vae, "auto"))
    rows = source.tensor(x, name="x")
    chosen = _chosen(features, rows, source.columns)
    has_cdf = not isinstance(features, Mapping)
    # Draws from the prior do not see x; those from the guide do, and functions of x.
    seen = rows if from_guide or not has_cdf else _values(chosen, rows)
    mend = "" if from_guide else "Ask pit for features=[...] that every row has. "
    complete(seen, "a probability integral transform", mend=mend)
    missing = rows.isnan()
    has_missing = bool(missing.any())
    kind = "posterior" if from_guide else "prior"
    noise = generator(seed, "ties")
    size = len(rows), len(chosen)
    rank = np.empty(size, np.int64)
    u, cdf, error = (np.empty(size) for _ in range(3))
    counts: _Counts | None = None
    for index, replication in replications(
        vae,
        torch.where(missing, 0.0, rows) if has_missing else rows,
        num_samples,
        from_guide=from_guide,
        seed=seed,
        purpose=f"{kind} pit",
        by_piece=True,
    ):
        counts = counts or _Counts(rows[index], chosen, has_missing=has_missing)
        has_cdf = counts.add(replication, wants_cdf=has_cdf)
        if counts.num_draws == num_samples:
            some = slice(int(index[0]), int(index[-1]) + 1)
            rank[some], u[some] = counts.ranks(noise)
            cdf[some], error[some] = counts.cdf()
            counts = None
    both = ("obs_id", "feature")
    return xr.Dataset(
        {
            "rank": (both, rank),
            "pit": (both, u),
            "cdf": (both, cdf),
            "cdf_mcse": (both, error),
        },
        coords={"obs_id": np.arange(len(rows)), "feature": list(chosen)},
        attrs={
            "units": "probabilities",
            "predictive": kind,
            "cdf_is_averaged": int(has_cdf),
            "num_samples": num_samples,
            "seed": seed,
        },
    )


class _Counts:
    """Where the features of some rows lie among their draws.

    Args:
        x: The rows, ``(n, *event_shape)``.
        chosen: The features.
        has_missing: Whether x has NaN, in none of the features.
    """

    def __init__(self, x: Tensor, chosen: Mapping[Any, Any], *, has_missing: bool) -> None:
        self._x, self._chosen = x, chosen
        self._missing = x.isnan() if has_missing else None
        self._observed = _values(chosen, x)
        self.num_draws = 0
        self._below = torch.zeros_like(self._observed, dtype=torch.int64)
        self._equal = torch.zeros_like(self._below)
        self._total = torch.zeros_like(self._observed, dtype=torch.float64)
        self._squares = torch.zeros_like(self._total)

    def add(self, replication: Replication, *, wants_cdf: bool) -> bool:
        """Take a draw in; whether the model has a distribution function."""
        drawn = _values(self._chosen, replication.x)
        self._below += drawn < self._observed
        self._equal += drawn == self._observed
        x = self._x
        if self._missing is not None:  # a draw lies in the support, where NaN does not
            x = torch.where(self._missing, replication.x, x)
        cdf = replication.cdf(x) if wants_cdf else None
        values = drawn <= self._observed if cdf is None else _values(self._chosen, cdf)
        self._total += values
        self._squares += values if cdf is None else values.square()
        self.num_draws += 1
        return cdf is not None

    def ranks(self, noise: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Ranks with ties in random order, and uniform numbers of them, ``(n, F)``."""
        below, equal = self._below.cpu(), self._equal.cpu()
        options: dict[str, Any] = {"generator": noise, "dtype": torch.float64, "device": "cpu"}
        place = (torch.rand(below.shape, **options) * (equal + 1)).long()
        rank = below + place.minimum(equal)
        u = (rank + torch.rand(rank.shape, **options)) / (self.num_draws + 1)
        return rank.numpy(), u.numpy()

    def cdf(self) -> tuple[np.ndarray, np.ndarray]:
        """Estimates of the distribution function, ``(n, F)``, and their errors."""
        count, total, squares = self.num_draws, self._total.cpu(), self._squares.cpu()
        spread = (squares - total.square() / count).clamp(min=0) / max(count - 1, 1)
        error = (spread / count).sqrt() if count > 1 else torch.full_like(total, math.nan)
        return (total / count).numpy(), error.numpy()


def _chosen(
    features: Features | None, x: Tensor, columns: Sequence[str] | None
) -> dict[int | str, Callable[[Tensor], Tensor] | int]:
    """Names of the features, each with its function or the number of its element of x."""
    if isinstance(features, Mapping):
        if not features:
            raise ValueError("features must name at least one function; got none.")
        for name, function in features.items():
            if not callable(function):
                raise TypeError(f"features[{name!r}] must be a function; got {function!r}.")
        return {name: function for name, function in features.items()}  # noqa: C416
    if features is not None and (isinstance(features, str) or not isinstance(features, Iterable)):
        raise TypeError(
            "features must be a list of numbers or names of columns, or a mapping from names to "
            f"functions; got {features!r}. For one feature, a list of one."
        )
    size = x[0].numel()
    names: list[int | str] = (
        list(columns or range(size)) if len(columns or ()) in {0, size} else []
    )
    places = {name: place for place, name in enumerate(names or range(size))}
    if features is None:
        return {**places}
    found: dict[int | str, Callable[[Tensor], Tensor] | int] = {}
    for feature in features:
        if feature in places:
            found[feature] = places[feature]
        elif isinstance(feature, int) and 0 <= feature < size:
            found[names[feature] if names else feature] = feature
        else:
            raise ValueError(
                f"features must be numbers from 0 to {size - 1}"
                f"{' or names of columns' if columns else ''}; got {feature!r}."
            )
    if not found:
        raise ValueError("features must have at least one entry; got none.")
    return found


def _values(chosen: Mapping[Any, Callable[[Tensor], Tensor] | int], x: Tensor) -> Tensor:
    """The features of data, ``(n, F)``, in double precision unless they are elements of x."""
    if all(isinstance(feature, int) for feature in chosen.values()):
        flat, places = x.reshape(len(x), -1), list(chosen.values())
        if places == list(range(flat.shape[1])):
            return flat
        return flat.index_select(1, torch.tensor(places, device=x.device))
    found = []
    for name, feature in chosen.items():
        values = feature(x) if callable(feature) else x
        if values.shape != x.shape[:1]:
            raise ValueError(
                f"features[{name!r}] must return one number a row, shape ({len(x)},); "
                f"got {tuple(values.shape)}."
            )
        found.append(values.double())
    return torch.stack(found, 1)


def _holm(p_value: np.ndarray) -> np.ndarray:
    """P-values that hold for all tests together, under any dependence."""
    order = np.argsort(p_value)
    factors = len(p_value) - np.arange(len(p_value))
    adjusted = np.empty_like(p_value)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_value[order]))
    return adjusted
