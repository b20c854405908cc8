"""Fitted models side by side, on the same data, by paired differences."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_vae import diagnostics
from pyro_vae.arguments import positive_integer
from pyro_vae.assembly import is_discrete
from pyro_vae.datasets import Dataset
from pyro_vae.diagnostics.gaps.per_datum_start import has_family
from pyro_vae.distributions import GrayBernoulli
from pyro_vae.evaluation import evaluating
from pyro_vae.fit_result import FitResult
from pyro_vae.report import standard_error
from pyro_vae.rows import at_rows, per_datum_parts
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import CHUNK_SIZE, Runs, num_parameters

__all__ = ["compare"]

ROWS_AT_A_TIME = 2000
"""Rows that are looked at at once."""


def compare(
    models: Mapping[str, Any],
    x: Any,
    *,
    reference: str | None = None,
    num_samples: int = 1000,
    gap_rows: int = 50,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> pd.DataFrame:
    r"""A table of models, a row each, with their differences from a reference on the same data.

    The spread of :math:`\log p(x_i)` over data is common to all models, so a difference is far
    better known than either value: ``_difference_se`` is the standard error of the mean of
    :math:`\ell_i^{(a)} - \ell_i^{(b)}`, row by row. Models with latent spaces of the same size see
    the same noise.

    Compare by ``log_evidence`` only where ``khat_share_above`` is small: elsewhere it is too low,
    more so for the worse guide. The ELBO is a bound in any case.

    Args:
        models: Name to VAE, to other model and guide, or to what :func:`pyro_vae.fit` returned.
        x: Data for all of them; or, where they were read or scaled separately, name to data, which
            must then be equal.
        reference: Name of the model that differences are taken from; the first unless given.
        num_samples: Number S of draws for each datum.
        gap_rows: Number of the first rows on which the inference gap is divided into the family's
            and the encoder's part, which takes an optimization for each of them; 0 for none.
        chunk_size: Rows times draws that go through a model at once, but at least 250 rows. It
            bounds the memory; the result does not depend on it, but for rounding.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        One row a model, in nats per datum where a column is a density. ``elbo``,
        ``log_evidence``, each with ``_se`` for a claim about new data, ``_mcse`` for one about
        these data, ``_difference`` and ``_difference_se`` from the reference;
        ``khat_share_above``, the share of data whose k-hat exceeds ``attrs["khat_threshold"]``;
        ``inference_gap`` with ``_se``; over the first ``gap_rows`` rows
        ``inference_gap_of_rows``, ``approximation_gap`` and ``amortization_gap``, which add up,
        with ``_se`` (NaN where no family is known); ``active_units``
        (NaN with several latent sites); ``parameters`` of model and guide together; ``seconds`` of
        the fit where it is known. ``attrs`` say what was compared: ``measure`` is density,
        probability, or "no density" for gray values under a Bernoulli; ``same_model`` names the
        models that share the reference's very p(z) and p(x|z), whose guides alone differ.

    Raises:
        TypeError: If ``models`` is no mapping.
        ValueError: If the models are not comparable: on different data or scalings, or a density
            against a probability.

    Example:
        >>> import pyro_vae as pv
        >>> vaes = {str(k): pv.gaussian_vae(features=3, latent_dim=k, hidden=()) for k in (1, 2)}
        >>> table = compare(vaes, torch.randn(20, 3), num_samples=100, gap_rows=0)
        >>> table.loc["1", "elbo_difference"].item(), table["parameters"].tolist()
        (0.0, [15, 26])
    """
    num_samples = positive_integer(num_samples, "num_samples")
    if isinstance(gap_rows, bool) or not isinstance(gap_rows, int) or gap_rows < 0:
        raise ValueError(f"gap_rows must be 0 or a positive integer; got {gap_rows!r}.")
    if not isinstance(models, Mapping):
        raise TypeError(
            f"models must map names to models; got {type(models).__name__}. Write "
            '{"one": vae1, "other": vae2}.'
        )
    if len(models) == 0:
        raise ValueError("models must hold at least one model; got none.")
    reference = next(iter(models)) if reference is None else reference
    if reference not in models:
        raise ValueError(f"reference must be one of the models {list(models)}; got {reference!r}.")
    vaes = {n: m.vae if isinstance(m, FitResult) else m for n, m in models.items()}
    data = _same_data(vaes, x)
    looks = {name: _look_at(name, vae, data[name]) for name, vae in vaes.items()}
    measure = _same_measure(looks)
    evidence = {
        name: diagnostics.log_evidence(
            vae, data[name], num_samples=num_samples, chunk_size=chunk_size, seed=seed
        )
        for name, vae in vaes.items()
    }
    rows = {}
    for name, vae in vaes.items():
        row = _bounds(evidence[name], evidence[reference])
        row |= _gaps(vae, data[name], gap_rows, chunk_size, seed) if gap_rows else {}
        row["active_units"] = math.nan
        if looks[name].has_one_latent_vector:
            units = diagnostics.active_units(vae, data[name])
            row["active_units"] = float(units.attrs["num_active"])
        row |= {
            "parameters": looks[name].num_parameters,
            "seconds": getattr(models[name], "seconds", math.nan),
        }
        rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "model"
    table.attrs = {
        "units": "nats per datum",
        "reference": reference,
        "measure": measure,
        "same_model": _same_model(vaes, reference),
        "num_data": len(data[reference]),
        "num_samples": num_samples,
        "gap_rows": gap_rows,
        "khat_threshold": evidence[reference].attrs["khat_threshold"],
        "seed": seed,
    }
    return table


def _same_data(vaes: Mapping[str, Any], x: Any) -> dict[str, Tensor]:
    """The data as each model reads them, once they are known to be the same."""
    given = dict(x) if isinstance(x, Mapping) else dict.fromkeys(vaes, x)
    if given.keys() != vaes.keys():
        raise ValueError(
            f"x must hold data for each of the models {list(vaes)}; got data for {list(given)}."
        )
    data = {
        name: DataSource(vae, resolve_device(vae, "auto")).tensor(given[name], name="x")
        for name, vae in vaes.items()
    }
    first, *others = vaes
    for other in others:
        scalings = [getattr(given[n], "scaling", None) for n in (first, other)]
        if all(isinstance(given[n], Dataset) for n in (first, other)) and str(scalings[0]) != str(
            scalings[1]
        ):
            raise ValueError(
                f"models must be of data in the same units; got {first!r} with {scalings[0]} and "
                f"{other!r} with {scalings[1]}, whose densities differ by the change of variable. "
                "Fit both with one scaling."
            )
        # Convolutions see an image where an MLP sees a vector of the same values.
        one, two = (data[n].reshape(len(data[n]), -1) for n in (first, other))
        if one.shape != two.shape or not _are_close(one, two):
            raise ValueError(
                f"models must be compared on the same data; got {tuple(one.shape)} for {first!r} "
                f"and {tuple(two.shape)} for {other!r}, with other values. Pass one x."
            )
    return data


def _are_close(one: Tensor, two: Tensor) -> bool:
    parts = zip(one.split(ROWS_AT_A_TIME), two.split(ROWS_AT_A_TIME), strict=True)
    return one is two or all(
        torch.allclose(a, b.to(a), rtol=1e-5, atol=1e-6, equal_nan=True) for a, b in parts
    )


class _Look(NamedTuple):
    """What two rows show of a model: what its log p(x) is, and what its latent sites are."""

    measure: str
    has_one_latent_vector: bool
    num_parameters: int


def _look_at(name: str, vae: Any, x: Tensor) -> _Look:
    few = torch.arange(min(2, len(x)), device=x.device)
    with (
        evaluating(vae, 0, "look", device=x.device),
        at_rows(per_datum_parts(vae), few),
    ):
        runs = Runs(vae, x[few])
        count = num_parameters(vae, x[few])
    if not runs.latent and not runs.summed_out:
        raise ValueError(
            f"models must have a latent site; got {name!r}, {type(vae).__name__}, without one. "
            "An autoencoder has no density of x: compare its reconstruction errors."
        )
    kinds = set()
    for site in runs.observed:
        base: Any = runs.model_trace.nodes[site]["fn"]
        density = base
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if isinstance(base, GrayBernoulli):
            kinds.add("probability" if _are_bits(x) else "no density")
        else:
            kinds.add("probability" if is_discrete(density) else "density")
    latent: list[Any] = [runs.guide_trace.nodes[site]["fn"] for site in runs.latent]
    is_vector = [len(q.event_shape) == 1 for q in latent] == [True] and not runs.summed_out
    return _Look(" times ".join(sorted(kinds)), is_vector, count)


def _are_bits(x: Tensor) -> bool:
    return all(bool(((part == 0) | (part == 1)).all()) for part in x.split(ROWS_AT_A_TIME))


def _same_measure(looks: Mapping[str, _Look]) -> str:
    """What log p(x) is for all of them."""
    if len({look.measure for look in looks.values()}) > 1:
        shown = ", ".join(f"{name!r}: {look.measure}" for name, look in looks.items())
        raise ValueError(
            f"models must have log p(x) of one kind; got {shown}. A density has units, a "
            "probability has none: give all of them likelihoods of the same kind."
        )
    return next(iter(looks.values())).measure


def _bounds(evidence: xr.Dataset, reference: xr.Dataset) -> dict[str, float]:
    summary = diagnostics.evidence_summary(evidence)
    row = {}
    for name in ("elbo", "log_evidence"):
        row[name] = summary.loc[name, "mean"]
        row[f"{name}_se"] = summary.loc[name, "se"]
        row[f"{name}_mcse"] = summary.loc[name, "mcse"]
        difference = evidence[name].to_numpy() - reference[name].to_numpy()
        row[f"{name}_difference"] = difference.mean()
        row[f"{name}_difference_se"] = standard_error(difference)
    row["khat_share_above"] = summary.attrs["khat_share_above"]
    row["inference_gap"] = summary.loc["inference_gap", "mean"]
    row["inference_gap_se"] = summary.loc["inference_gap", "se"]
    return row


def _gaps(vae: Any, x: Tensor, num_rows: int, chunk_size: int, seed: int) -> dict[str, float]:
    """The gap and its two parts over the first rows; NaN where the guide has no family."""
    rows = torch.arange(min(num_rows, len(x)), device=x.device)
    found = {}
    with at_rows(per_datum_parts(vae), rows):
        known = has_family(vae, x[rows])
        gaps = (
            diagnostics.inference_gaps(vae, x[rows], chunk_size=chunk_size, seed=seed)
            if known
            else None
        )
    for name in ("inference_gap", "approximation_gap", "amortization_gap"):
        column = f"{name}_of_rows" if name == "inference_gap" else name
        values = gaps[name].to_numpy() if gaps is not None else None
        found[column] = values.mean() if values is not None else math.nan
        found[f"{column}_se"] = standard_error(values) if values is not None else math.nan
    return found


def _same_model(vaes: Mapping[str, Any], reference: str) -> list[str]:
    """Names of the VAEs that have the reference's parts but for the guide."""
    parts = {n: (getattr(v, "p_z", v), getattr(v, "p_x_given_z", v)) for n, v in vaes.items()}
    return [
        name
        for name, found in parts.items()
        if all(one is other for one, other in zip(found, parts[reference], strict=True))
    ]
