"""Whose fault the gap between ELBO and log evidence is: the family's or the encoder's."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.evidence.importance import importance_estimates
from pyro_vae.diagnostics.evidence.pareto import khat_threshold, untrusted
from pyro_vae.diagnostics.monte_carlo import log_mean_less_mean, mean_and_mcse
from pyro_vae.diagnostics.passes import by_rows, per_datum_dataset
from pyro_vae.families import Family
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import CHUNK_SIZE, Programs

from .given_evidence import given_evidence, insert_evidence
from .per_datum_search import Member, PerDatumSearch

__all__ = ["gap_summary", "inference_gaps"]

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 250
"""Rows that are optimized together; a flow's networks are shared by so many."""

TOLERANCE = 0.05
"""Nats left to gain, beyond three standard errors, from which on a search counts as unfinished."""

GAPS = ("inference_gap", "approximation_gap", "amortization_gap")


def inference_gaps(
    vae: Programs,
    x: Any,
    *,
    families: Mapping[str, Family] | None = None,
    log_evidence: Any = None,
    num_samples: int = 1000,
    num_steps: int = 400,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""The gap between log evidence and ELBO, split into the family's part and the encoder's.

    .. math:: \underbrace{\log p(x) - \mathrm{ELBO}[q]}_{\text{inference gap}} =
              \underbrace{\log p(x) - \mathrm{ELBO}[q^*]}_{\text{approximation gap}} +
              \underbrace{\mathrm{ELBO}[q^*] - \mathrm{ELBO}[q]}_{\text{amortization gap}}

    :math:`q^*` is the member of the guide's family that is best for the datum, sought by gradient
    ascent from the guide's answer with the model as it is; where it turns out no better, it is
    the guide's answer. Other ``families`` are searched from there, so that what a family buys is
    not a matter of its encoder: ``families={"full": FullCovarianceNormal(k)}``.

    What is found is a local optimum: the amortization gap is, up to its error, a lower bound and
    the approximation gap an upper bound. About how many nats the search has left is in
    ``unfinished``, from the slope at its end, and a message to the ``logging`` module says for how
    many data they matter. No gap is clipped at 0.

    Unless it is given, the log evidence comes from importance sampling with the best q found for
    each datum: in a full covariance, which takes half the steps, if the weights of all others vary
    too much. It is too low, as are the gaps, where ``pareto_khat`` exceeds ``khat_threshold``, and
    not to be trusted where that is NaN. All figures share their noise, so that their differences
    are paired.

    The cost is that of ``4 * num_steps`` passes of each datum through the decoder and back, half
    as many more for a full covariance, and ``3 * num_samples`` forth: 100 rows of a trained MLP
    VAE (784-400-20, float32) take 17 s of one core. Give ``log_evidence`` to save a third.

    A guide of your own is served if z is one real vector for each datum and q is normal, or if it
    has ``family`` and ``params(x)`` as ``guides.AmortizedGuide`` has. Of a flow, the networks of
    its steps are copied and trained along, shared by up to 250 data.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        families: Other families to ask, by the names that they get in the result.
        log_evidence: Log p(x) of each datum, ``(N,)``, or what another diagnostic returned: a
            dataset with ``log_evidence`` and, unless it is exact, ``mcse``.
        num_samples: Number S of draws from each q for each datum.
        num_steps: Number of steps of each search.
        chunk_size: Rows times draws that go through the model at once, but at least two draws of
            a piece of x, 250 rows or fewer. It bounds the memory; the result does not depend on
            it, but for rounding.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        Over ``obs_id``, in nats: ``log_evidence``, ``elbo``, ``best_elbo``, ``inference_gap``,
        ``approximation_gap``, ``amortization_gap`` and ``unfinished``, each with its Monte Carlo
        standard error ``<name>_mcse``; and ``pareto_khat`` of the evidence's draws. Over
        ``obs_id`` and ``family``, where ``families`` are given: ``family_best_elbo``,
        ``family_approximation_gap``, ``family_gain``, which is ``family_best_elbo - best_elbo``,
        and ``family_unfinished``, with their errors.

    Raises:
        ValueError: If an argument does not fit, z is not one real vector for each datum, or the
            guide's family is not known.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> gaps = inference_gaps(vae, torch.zeros(5, 3), num_samples=50, num_steps=10)
        >>> parts = gaps.approximation_gap + gaps.amortization_gap
        >>> bool(abs(parts - gaps.inference_gap).max() < 1e-9)
        True

    References:
        Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders,
        section 3. https://arxiv.org/abs/1801.03558
    """
    num_samples = positive_integer(num_samples, "num_samples")
    num_steps = positive_integer(num_steps, "num_steps")
    chunk_size = positive_integer(chunk_size, "chunk_size")
    asked = _checked_families(families)
    rows = DataSource(vae, resolve_device(vae, "auto")).tensor(x, name="x")
    _check_shapes(asked, getattr(vae, "latent_shape", None))
    given = None if log_evidence is None else given_evidence(log_evidence, len(rows))

    def compute(piece: Tensor) -> dict[str, Tensor]:
        search = PerDatumSearch(
            vae, piece, num_samples=num_samples, num_steps=num_steps, chunk_size=chunk_size
        )
        return _columns(search, asked, sought=given is None)

    columns = by_rows(
        vae,
        rows,
        compute,
        seed=seed,
        purpose="gaps",
        at_a_time=ROWS_AT_A_TIME,
        num_draws=num_samples,
    )
    if given is not None:
        insert_evidence(columns, given)
    threshold = khat_threshold(num_samples)
    _tell(columns, list(asked), threshold)
    dataset = per_datum_dataset(
        columns,
        dims={name: "family" for name in columns},
        attrs={
            "num_samples": num_samples,
            "num_steps": num_steps,
            "seed": seed,
            "khat_threshold": threshold,
            "unfinished_tolerance": TOLERANCE,
            "evidence": "importance sampling" if given is None else "given",
        },
    )
    return dataset.assign_coords(family=list(asked)) if asked else dataset


def gap_summary(gaps: xr.Dataset) -> pd.DataFrame:
    r"""Means over the data of what :func:`inference_gaps` returned, in nats per datum.

    Args:
        gaps: What :func:`inference_gaps` returned.

    Returns:
        One row for ``log_evidence``, ``elbo``, ``best_elbo`` and each gap, and for each family
        ``<family>: approximation_gap`` and ``<family>: gain``; columns ``mean``, ``se`` for a
        claim about new data and ``mcse`` for one about these data, as in :func:`elbo_summary`.

    Example:
        >>> names = ("log_evidence", "elbo", "best_elbo", *GAPS)
        >>> columns = {name: ("obs_id", [1.0, 3.0]) for name in names}
        >>> errors = {f"{name}_mcse": ("obs_id", [0.3, 0.4]) for name in names}
        >>> row = gap_summary(xr.Dataset({**columns, **errors})).loc["amortization_gap"]
        >>> [round(float(v), 6) for v in (row["mean"], row["se"], row["mcse"])]
        [2.0, 1.0, 0.25]
    """
    columns = {
        name: (gaps[name], gaps[f"{name}_mcse"])
        for name in ("log_evidence", "elbo", "best_elbo", *GAPS)
    }
    for family in gaps["family"].to_numpy().tolist() if "family" in gaps.dims else ():
        for name in ("approximation_gap", "gain"):
            found = gaps.sel(family=family)
            columns[f"{family}: {name}"] = (found[f"family_{name}"], found[f"family_{name}_mcse"])
    count = gaps.sizes["obs_id"]
    rows = {
        name: {
            "mean": float(values.mean()),
            "se": float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan,
            "mcse": math.sqrt(float(np.square(errors.to_numpy()).sum())) / count,
        }
        for name, (values, errors) in columns.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _columns(
    search: PerDatumSearch, families: Mapping[str, Family], *, sought: bool
) -> dict[str, Tensor]:
    encoder, own = search.answer(), search.best()
    others = [search.best_in(family, name) for name, family in families.items()]
    columns = {
        **_mean("elbo", encoder.log_weights),
        **_mean("best_elbo", own.log_weights),
        **_mean("amortization_gap", own.log_weights - encoder.log_weights),
        **_unfinished("unfinished", own),
    }
    by_family: list[dict[str, Tensor]] = [
        {
            **_mean("family_best_elbo", other.log_weights),
            **_mean("family_gain", other.log_weights - own.log_weights),
            **_unfinished("family_unfinished", other),
        }
        for other in others
    ]
    if sought:
        log_weights = search.proposal_log_weights([own, *others])
        evidence = importance_estimates(log_weights)
        columns["log_evidence"] = evidence["log_evidence"]
        columns["log_evidence_mcse"] = evidence["mcse"]
        columns["pareto_khat"] = evidence["pareto_khat"]
        columns |= _gap("inference_gap", log_weights, encoder)
        columns |= _gap("approximation_gap", log_weights, own)
        for found, other in zip(by_family, others, strict=True):
            found |= _gap("family_approximation_gap", log_weights, other)
    for name in by_family[0] if by_family else ():
        columns[name] = torch.stack([found[name] for found in by_family], dim=1)
    return columns


def _mean(name: str, draws: Tensor) -> dict[str, Tensor]:
    """Average over draws, ``(S, N)`` to ``(N,)``, with its error."""
    mean, error = mean_and_mcse(draws)
    return {name: mean, f"{name}_mcse": error}


def _gap(name: str, log_weights: Tensor, member: Member) -> dict[str, Tensor]:
    """Log evidence minus ELBO, both of the same noise; the error is that of their difference."""
    gap, error = log_mean_less_mean(log_weights, member.log_weights)
    return {name: gap, f"{name}_mcse": error}


def _unfinished(name: str, member: Member) -> dict[str, Tensor]:
    return {name: member.left, f"{name}_mcse": member.left_mcse}


def _checked_families(families: Mapping[str, Family] | None) -> dict[str, Family]:
    if families is not None and not isinstance(families, Mapping):
        raise TypeError(
            f"families must be a mapping from names to families; got {type(families).__name__}. "
            'Write families={"full": FullCovarianceNormal(latent_dim)}.'
        )
    checked = dict(families or {})
    for name, family in checked.items():
        if not hasattr(family, "event_shape") or not callable(family):
            raise TypeError(
                f"families[{name!r}] must be a family with its latent_dim; got {family!r}. "
                "Write FullCovarianceNormal(latent_dim), not the class alone."
            )
    return checked


def _check_shapes(families: Mapping[str, Family], latent_shape: Any) -> None:
    for name, family in families.items():
        if latent_shape is not None and tuple(family.event_shape) != tuple(latent_shape):
            raise ValueError(
                f"families must share the latent shape of the model, {tuple(latent_shape)}; got "
                f"{tuple(family.event_shape)} for {name!r}."
            )


def _tell(columns: Mapping[str, Tensor], names: list[str], threshold: float) -> None:
    """Log for how many data a search is unfinished or the evidence is not to be trusted."""
    count = len(columns["elbo"])
    left, error = (
        torch.cat(
            [columns[own].unsqueeze(1), columns.get(other, columns[own].new_zeros(count, 0))], 1
        )
        for own, other in (
            ("unfinished", "family_unfinished"),
            ("unfinished_mcse", "family_unfinished_mcse"),
        )
    )
    surely = (left - 3 * error > TOLERANCE).sum(0).tolist()
    # Together the data tell what none tells alone.
    mean, mean_error = left.mean(0), error.square().sum(0).sqrt() / count
    together = (mean - 3 * mean_error > TOLERANCE).tolist()
    for index, name in enumerate(["the guide's family", *names]):
        if surely[index] or together[index]:
            logger.warning(
                "inference_gaps: the search in %s is unfinished, surely so for %d of %d data, and "
                "leaves about %.2g nats on average, which the approximation gap has too much. "
                "Raise num_steps.",
                name,
                surely[index],
                count,
                float(mean[index]),
            )
    khat = columns.get("pareto_khat")
    above = 0 if khat is None else int(untrusted(khat, threshold).sum())
    if above:
        logger.warning(
            "inference_gaps: pareto_khat is above %.2f, or unknown, for %d of %d data, whose log "
            "evidence and gaps may be too low by an unknown amount. Give log_evidence from "
            "ais_log_evidence.",
            threshold,
            above,
            count,
        )
