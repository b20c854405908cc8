"""The ELBO and its terms, one value for each datum, with Monte Carlo standard errors."""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.evaluation import ROWS_AT_A_TIME, evaluating
from pyro_vae.rows import at_rows, per_datum_parts, pieces
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import ElboTerms, Programs
from pyro_vae.traces import elbo_terms as estimate_terms

__all__ = ["elbo_summary", "elbo_terms"]

TERMS = ("elbo", "expected_log_likelihood", "kl")


def elbo_terms(vae: Programs, x: Any, *, num_samples: int = 16, seed: int = 0) -> xr.Dataset:
    r"""ELBO of each datum, split into expected log-likelihood and KL.

    .. math:: \text{ELBO}(x_i) = \mathbb E_{q(z \mid x_i)} \log p(x_i \mid z)
              - \mathrm{KL}(q(z \mid x_i) \,\|\, p(z))

    The ELBO is the average of the log weights :math:`\log p(x, z) - \log q(z \mid x)` over draws
    from q, without error where q is the exact posterior. The KL is analytic where theory has it,
    and then without Monte Carlo error, otherwise averaged over the same draws. The expected
    log-likelihood is the sum of both: unbiased, and the terms add up exactly.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        num_samples: Number S of draws from q(z|x) for each datum.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        Variables ``elbo``, ``expected_log_likelihood``, ``kl`` and for each a ``_mcse``, the
        Monte Carlo standard error of the average over draws (NaN for one draw); all over
        ``obs_id``, in nats. ``kl_per_dim`` over ``obs_id`` and ``latent`` where q and p factorize.
        Attribute ``kl_is_analytic`` is 1 or 0.

    Raises:
        ValueError: If x or ``num_samples`` do not fit.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> terms = elbo_terms(vae, torch.zeros(5, 3), num_samples=4)
        >>> dict(terms.sizes)
        {'obs_id': 5, 'latent': 2}
    """
    num_samples = positive_integer(num_samples, "num_samples")
    device = resolve_device(vae, "auto")
    rows = DataSource(vae, device).tensor(x, name="x")
    parts = per_datum_parts(vae)
    found, is_analytic = [], True
    with evaluating(vae, seed, "elbo terms", device=device):
        for piece, index in pieces(parts, rows, ROWS_AT_A_TIME):
            with at_rows(parts, index):
                terms = estimate_terms(vae, piece, num_samples=num_samples)
            is_analytic = is_analytic and terms.kl_is_analytic
            found.append(_reduced(terms))
    columns = {name: torch.cat([reduced[name] for reduced in found]) for name in found[0]}
    return xr.Dataset(
        {
            name: (("obs_id", "latent")[: values.dim()], values.double().cpu().numpy())
            for name, values in columns.items()
        },
        coords={"obs_id": np.arange(len(rows))},
        attrs={
            "units": "nats per datum",
            "num_samples": num_samples,
            "seed": seed,
            "kl_is_analytic": int(is_analytic),
        },
    )


def elbo_summary(terms: xr.Dataset) -> pd.DataFrame:
    r"""Means of the ELBO and its terms over the data, with both their errors, in nats per datum.

    Args:
        terms: What :func:`elbo_terms` returned.

    Returns:
        One row a term. ``mean``; ``se``, the standard error for a claim about new data,
        :math:`\sqrt{\operatorname{Var}_i(\ell_i) / N}`, which contains the Monte Carlo error; and
        ``mcse``, the Monte Carlo error alone, for a claim about these data,
        :math:`\sqrt{\sum_i \text{mcse}_i^2} / N`.

    Example:
        >>> values = {"elbo": [1.0, 3.0], "expected_log_likelihood": [2.0, 4.0], "kl": [1.0, 1.0]}
        >>> terms = xr.Dataset({name: ("obs_id", value) for name, value in values.items()})
        >>> errors = {f"{name}_mcse": ("obs_id", [0.3, 0.4]) for name in values}
        >>> row = elbo_summary(terms.assign(errors)).loc["elbo"]
        >>> [round(float(v), 6) for v in (row["mean"], row["se"], row["mcse"])]
        [2.0, 1.0, 0.25]
    """
    count = terms.sizes["obs_id"]
    rows = {}
    for name in TERMS:
        values, errors = terms[name].to_numpy(), terms[f"{name}_mcse"].to_numpy()
        spread = values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
        rows[name] = {
            "mean": values.mean(),
            "se": spread,
            "mcse": math.sqrt(np.square(errors).sum()) / count,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _reduced(terms: ElboTerms) -> dict[str, Tensor]:
    reduced = {}
    for name in TERMS:
        draws: Tensor = getattr(terms, name).double()
        reduced[name] = draws.mean(0)
        spread = draws.std(0) if len(draws) > 1 else torch.full_like(draws[0], math.nan)
        reduced[f"{name}_mcse"] = spread / math.sqrt(len(draws))
    if terms.kl_is_analytic:
        reduced["kl_mcse"] = torch.zeros_like(reduced["kl"])
    if terms.kl_per_dim is not None:
        reduced["kl_per_dim"] = terms.kl_per_dim
    return reduced
