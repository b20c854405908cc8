"""The ELBO and its terms, one value for each datum, with Monte Carlo standard errors."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.report import standard_error
from pyro_vae.traces import CHUNK_SIZE, ElboTerms, Programs, elbo_terms_by_draws

from .monte_carlo import Moments
from .passes import Columns, by_rows, each_piece, per_datum_dataset

__all__ = ["BitsPerDim", "bits_per_dim", "elbo_summary", "elbo_terms", "mean_elbo"]

TERMS = ("elbo", "expected_log_likelihood", "kl", "cross_entropy", "entropy")

ROWS_AT_A_TIME = 2000
"""Rows that go through the programs at once."""


def elbo_terms(
    vae: Programs,
    x: Any,
    *,
    num_samples: int = 16,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""ELBO of each datum, split into its terms: the ledger.

    .. math:: \text{ELBO}(x_i) = \mathbb E_{q(z \mid x_i)} \log p(x_i \mid z)
              - \mathrm{KL}(q(z \mid x_i) \,\|\, p(z)), \qquad
              \mathrm{KL} = \underbrace{-\mathbb E_q \log p(z)}_{\text{cross-entropy}}
              - \underbrace{(-\mathbb E_q \log q(z \mid x_i))}_{\text{entropy}}

    The ELBO is the average of the log weights :math:`\log p(x, z) - \log q(z \mid x)` over draws
    from q, without error where q is the exact posterior. KL and entropy are analytic where theory
    has them, and then without Monte Carlo error, otherwise averaged over the same draws. The
    expected log-likelihood is the sum of ELBO and KL, the cross-entropy that of KL and entropy:
    unbiased, and the terms add up exactly.

    With several latent sites z stands for all of them; a discrete site that is summed out counts
    with the sites that depend on it.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        num_samples: Number S of draws from q(z|x) for each datum.
        chunk_size: Rows times draws that go through the model at once, but at least the rows of
            a piece of x, 2000 or fewer. It bounds the memory; the result does not depend on it.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        Variables ``elbo``, ``expected_log_likelihood``, ``kl``, ``cross_entropy`` and ``entropy``,
        and for each a ``_mcse``, the Monte Carlo standard error of the average over draws (NaN for
        one draw); all over ``obs_id``, in nats. ``kl_per_dim`` and ``cross_entropy_per_dim`` over
        ``obs_id`` and ``latent`` where q and p factorize, ``entropy_per_dim`` where q does.
        ``site_elbo`` over ``obs_id`` and ``site``: :math:`\mathbb E_q` of log p of each site of
        the model less log q of that of the guide, which add up to the ELBO, with their ``_mcse``:
        the site with the largest error is the one to blame for a noisy ELBO. Attributes
        ``kl_is_analytic``, ``entropy_is_analytic`` and ``cross_entropy_is_analytic`` are 1 or 0.

    Raises:
        ValueError: If x, ``num_samples`` or ``chunk_size`` do not fit.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> terms = elbo_terms(vae, torch.zeros(5, 3), num_samples=4)
        >>> dict(terms.sizes)
        {'obs_id': 5, 'latent': 2, 'site': 2}
    """
    num_samples = positive_integer(num_samples, "num_samples")
    chunk_size = positive_integer(chunk_size, "chunk_size")
    analytic = {"kl", "entropy", "cross_entropy"}
    sites: list[str] = []
    of_all: set[str] = set()
    num_observed = 0

    def compute(piece: Tensor) -> Columns:
        nonlocal num_observed
        num_observed += int((~piece.isnan()).sum())
        blocks = elbo_terms_by_draws(vae, piece, num_samples=num_samples, chunk_size=chunk_size)
        columns, of_piece, sites[:] = _reduced(blocks)
        # Rows without any observed value have the prior in q's place, with other closed forms.
        of_all.update(columns if not of_all else ())
        of_all.intersection_update(columns)
        analytic.intersection_update(of_piece)
        return columns

    columns = by_rows(vae, x, compute, seed=seed, purpose="elbo terms", at_a_time=ROWS_AT_A_TIME)
    columns = {name: values for name, values in columns.items() if name in of_all}
    num_data = len(columns["elbo"])
    whole = num_observed // num_data
    attrs: dict[str, float | str] = {
        "num_samples": num_samples,
        "num_features": num_observed / num_data if num_observed % num_data else whole,
        "seed": seed,
    }
    attrs |= {f"{n}_is_analytic": int(n in analytic) for n in ("kl", "entropy", "cross_entropy")}
    dataset = per_datum_dataset(
        columns, dims={"site_elbo": "site", "site_elbo_mcse": "site"}, attrs=attrs
    )
    return dataset.assign_coords(site=sites)


def mean_elbo(
    vae: Programs, x: Any, *, num_samples: int, chunk_size: int = CHUNK_SIZE, seed: int
) -> tuple[float, float]:
    """The mean over data of :func:`elbo_terms`' ELBO and its Monte Carlo error, and no more.

    Example:
        >>> import pyro_vae as pv
        >>> vae, x = pv.gaussian_vae(features=3, latent_dim=2, hidden=()), torch.zeros(5, 3)
        >>> mean, _ = mean_elbo(vae, x, num_samples=4, seed=0)
        >>> bool(abs(mean - elbo_terms(vae, x, num_samples=4)["elbo"].mean()) < 1e-12)
        True
    """
    count, total, variance = 0, 0.0, 0.0

    def add(piece: Tensor) -> None:
        nonlocal count, total, variance
        moments = Moments()
        for block in elbo_terms_by_draws(
            vae, piece, num_samples=num_samples, chunk_size=chunk_size
        ):
            moments.add(block.elbo)
        count += len(piece)
        total += moments.mean.sum().item()
        variance += moments.mcse.square().sum().item()

    each_piece(vae, x, add, seed=seed, purpose="elbo terms", at_a_time=ROWS_AT_A_TIME)
    return total / count, math.sqrt(variance) / count


def elbo_summary(terms: xr.Dataset) -> pd.DataFrame:
    r"""Means of the ELBO and its terms over the data, and totals, with both their errors, in nats.

    Args:
        terms: What :func:`elbo_terms` returned.

    Returns:
        One row a term. ``mean``, in nats per datum; ``se``, its standard error for a claim about
        new data, :math:`\sqrt{\operatorname{Var}_i(\ell_i) / N}`, which contains the Monte Carlo
        error; and ``mcse``, the Monte Carlo error alone, for a claim about these data,
        :math:`\sqrt{\sum_i \text{mcse}_i^2} / N`. ``total``, ``total_se`` and ``total_mcse`` are
        the same N times over: the bound on log p of all the data. ``is_analytic`` says which
        terms have no Monte Carlo error.

    Example:
        >>> values = {"elbo": [1.0, 3.0], "expected_log_likelihood": [2.0, 4.0], "kl": [1.0, 1.0]}
        >>> terms = xr.Dataset({name: ("obs_id", value) for name, value in values.items()})
        >>> errors = {f"{name}_mcse": ("obs_id", [0.3, 0.4]) for name in values}
        >>> row = elbo_summary(terms.assign(errors)).loc["elbo"]
        >>> [round(float(v), 6) for v in (row["mean"], row["se"], row["mcse"], row["total"])]
        [2.0, 1.0, 0.25, 4.0]
    """
    count = terms.sizes["obs_id"]
    rows = {}
    for name in (name for name in TERMS if name in terms):
        values, errors = terms[name].to_numpy(), terms[f"{name}_mcse"].to_numpy()
        row = {
            "mean": values.mean(),
            "se": standard_error(values),
            "mcse": math.sqrt(np.square(errors).sum()) / count,
        }
        totals = {f"total_{key}".removesuffix("_mean"): count * row[key] for key in row}
        rows[name] = row | totals | {"is_analytic": bool(terms.attrs.get(f"{name}_is_analytic"))}
    return pd.DataFrame.from_dict(rows, orient="index")


class BitsPerDim(NamedTuple):
    """Bits for each dimension of x, with both errors: see :func:`bits_per_dim`.

    Example:
        >>> BitsPerDim(2.0, 0.1, 0.01).mean
        2.0
    """

    mean: float
    se: float
    mcse: float


def bits_per_dim(terms: xr.Dataset, *, unit: float = 1.0) -> BitsPerDim:
    r"""The bound as a code length: bits for each of the n dimensions of x, lower is better.

    .. math:: \frac{-\text{ELBO}}{n \log 2} - \log_2 u

    Where values are missing, n is the mean number of observed ones.

    Args:
        terms: What :func:`elbo_terms` returned.
        unit: Size u of one raw unit in units of x. Where x is a density over gray levels divided
            by 255, ``unit=1/255`` gives bits per level, comparable with other papers' up to
            dequantization; a probability of discrete data needs none.

    Returns:
        ``mean``, ``se`` for a claim about new data and ``mcse`` for one about these data.

    Raises:
        ValueError: If ``unit`` is not positive.

    Example:
        >>> terms = xr.Dataset(
        ...     {"elbo": ("obs_id", [-8 * math.log(2)]), "elbo_mcse": ("obs_id", [0.0])},
        ...     attrs={"num_features": 4},
        ... )
        >>> bits_per_dim(terms).mean, bits_per_dim(terms, unit=1 / 256).mean
        (2.0, 10.0)
    """
    unit = finite_number(unit, "unit", "positive", above=0)
    row = elbo_summary(terms).loc["elbo"]
    scale = terms.attrs["num_features"] * math.log(2)
    return BitsPerDim(
        mean=float(-row["mean"] / scale - math.log2(unit)),
        se=float(row["se"] / scale),
        mcse=float(row["mcse"] / scale),
    )


def _reduced(blocks: Iterator[ElboTerms]) -> tuple[Columns, frozenset[str], list[str]]:
    """Means over draws with their errors; which terms are analytic; the sites."""
    moments: dict[str, Moments] = {}
    of_sites: dict[str, Moments] = {}
    reduced: Columns = {}
    analytic: frozenset[str] = frozenset()
    for terms in blocks:
        for name in TERMS:
            moments.setdefault(name, Moments()).add(getattr(terms, name))
        for name, draws in terms.sites.items():
            of_sites.setdefault(name, Moments()).add(draws)
        reduced = {f"{name}_per_dim": values for name, values in terms.per_dim.items()}
        analytic = terms.analytic
    for name in TERMS:
        reduced[name], error = moments[name].mean, moments[name].mcse
        reduced[f"{name}_mcse"] = torch.zeros_like(error) if name in analytic else error
    found = of_sites.values()
    reduced["site_elbo"] = torch.stack([site.mean for site in found], 1)
    reduced["site_elbo_mcse"] = torch.stack([site.mcse for site in found], 1)
    return reduced, analytic, list(of_sites)
