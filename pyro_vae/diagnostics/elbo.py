"""The ELBO and its terms, one value for each datum, with Monte Carlo standard errors."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.report import standard_error
from pyro_vae.traces import ElboTerms, Programs
from pyro_vae.traces import elbo_terms as estimate_terms

from .monte_carlo import mean_and_mcse
from .passes import by_rows, per_datum_dataset

__all__ = ["BitsPerDim", "bits_per_dim", "elbo_summary", "elbo_terms"]

TERMS = ("elbo", "expected_log_likelihood", "kl", "cross_entropy", "entropy")

ROWS_AT_A_TIME = 2000
"""Rows that go through the programs at once."""


def elbo_terms(vae: Programs, x: Any, *, num_samples: int = 16, seed: int = 0) -> xr.Dataset:
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
        ValueError: If x or ``num_samples`` do not fit.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> terms = elbo_terms(vae, torch.zeros(5, 3), num_samples=4)
        >>> dict(terms.sizes)
        {'obs_id': 5, 'latent': 2, 'site': 2}
    """
    num_samples = positive_integer(num_samples, "num_samples")
    analytic = {"kl", "entropy", "cross_entropy"}
    sites: list[str] = []
    num_features = 0

    def compute(piece: Tensor) -> dict[str, Tensor]:
        nonlocal num_features
        terms = estimate_terms(vae, piece, num_samples=num_samples)
        analytic.intersection_update(terms.analytic)
        sites[:] = terms.sites
        num_features = piece[0].numel()
        return _reduced(terms)

    columns = by_rows(vae, x, compute, seed=seed, purpose="elbo terms", at_a_time=ROWS_AT_A_TIME)
    attrs: dict[str, float | str] = {
        "num_samples": num_samples,
        "num_features": num_features,
        "seed": seed,
    }
    attrs |= {f"{n}_is_analytic": int(n in analytic) for n in ("kl", "entropy", "cross_entropy")}
    dataset = per_datum_dataset(
        columns, dims={"site_elbo": "site", "site_elbo_mcse": "site"}, attrs=attrs
    )
    return dataset.assign_coords(site=sites)


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


def _reduced(terms: ElboTerms) -> dict[str, Tensor]:
    reduced = {}
    for name in TERMS:
        reduced[name], reduced[f"{name}_mcse"] = mean_and_mcse(getattr(terms, name))
        if name in terms.analytic:
            reduced[f"{name}_mcse"] = torch.zeros_like(reduced[name])
    for name, values in terms.per_dim.items():
        reduced[f"{name}_per_dim"] = values
    sites = [mean_and_mcse(draws) for draws in terms.sites.values()]
    reduced["site_elbo"] = torch.stack([mean for mean, _ in sites], 1)
    reduced["site_elbo_mcse"] = torch.stack([error for _, error in sites], 1)
    return reduced
