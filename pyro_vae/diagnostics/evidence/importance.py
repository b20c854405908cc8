"""The log evidence by importance sampling, with a diagnosis for each datum."""

import logging
import math
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.monte_carlo import log_mean_less_mean, mean_and_mcse
from pyro_vae.diagnostics.passes import by_rows, per_datum_dataset
from pyro_vae.report import standard_error
from pyro_vae.traces import CHUNK_SIZE, Programs, log_weights

from .pareto import FEWEST_DRAWS, khat_threshold, pareto_khat, smoothed_log_weights, untrusted

__all__ = ["evidence_summary", "importance_estimates", "log_evidence"]

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 250
"""Most rows whose weights are held at once: the noise belongs to such a piece of x."""

NUMBERS_AT_A_TIME = 2**16
"""Elements of a matrix of log weights that are reduced at once."""


def log_evidence(
    vae: Programs,
    x: Any,
    *,
    num_samples: int = 1000,
    smoothed: bool = False,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""Log p(x) of each datum by importance sampling from q(z|x), with its diagnosis.

    .. math:: \hat{\mathcal L}(x) = \log \tfrac1S \sum_{s=1}^S w_s, \quad
              w_s = \frac{p(x, z_s)}{q(z_s \mid x)}, \quad z_s \sim q(z \mid x), \quad
              \mathbb E\, \hat{\mathcal L}(x) \le \log p(x)

    With S = 1 the expectation is the ELBO; it grows with S (Burda 2016), and its bias is about
    :math:`-\tfrac12 (1/\text{ESS} - 1/S)`. Bias and standard error are themselves estimates from
    the weights: where ``pareto_khat`` exceeds ``khat_threshold`` neither they nor the value are to
    be trusted, and a message to the ``logging`` module says for how many data.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        num_samples: Number S of draws from q(z|x) for each datum.
        smoothed: Replace the largest weights by Pareto order statistics (PSIS): less variance, no
            longer a bound in expectation.
        chunk_size: Rows times draws that go through the model at once, but at least the rows of
            a piece of x, 250 or fewer. It bounds the memory; the result does not depend on it.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        Over ``obs_id``, in nats but for the last two: ``log_evidence``; ``mcse``, its Monte Carlo
        standard error (delta method; NaN for one draw); ``elbo`` and ``gap``, log evidence less
        ELBO, of the same draws, with ``elbo_mcse`` and ``gap_mcse``; ``ess``, the effective sample
        size :math:`(\sum w)^2 / \sum w^2`; ``pareto_khat``.

    Raises:
        ValueError: If x, ``num_samples`` or ``chunk_size`` do not fit.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> evidence = log_evidence(vae, torch.zeros(5, 3), num_samples=100)
        >>> sorted(evidence.data_vars)
        ['elbo', 'elbo_mcse', 'ess', 'gap', 'gap_mcse', 'log_evidence', 'mcse', 'pareto_khat']

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, section 3.
        https://arxiv.org/abs/1509.00519
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.
        https://arxiv.org/abs/1507.02646
    """
    num_samples = positive_integer(num_samples, "num_samples")
    chunk_size = positive_integer(chunk_size, "chunk_size")

    def compute(piece: Tensor) -> dict[str, Tensor]:
        weights = log_weights(vae, piece, num_samples=num_samples, chunk_size=chunk_size)
        return importance_estimates(weights, smoothed=smoothed)

    columns = by_rows(
        vae,
        x,
        compute,
        seed=seed,
        purpose="log evidence",
        at_a_time=ROWS_AT_A_TIME,
        num_draws=num_samples,
    )
    threshold = khat_threshold(num_samples)
    _tell(columns, num_samples, threshold)
    return per_datum_dataset(
        columns,
        attrs={
            "num_samples": num_samples,
            "seed": seed,
            "smoothed": int(smoothed),
            "khat_threshold": threshold,
        },
    )


def _tell(columns: dict[str, Tensor], num_samples: int, threshold: float) -> None:
    """Log what makes the estimates untrustworthy."""
    total = len(columns["pareto_khat"])
    broken = int((~columns["log_evidence"].isfinite()).sum())
    above = int(untrusted(columns["pareto_khat"], threshold).sum())
    if num_samples < FEWEST_DRAWS:
        logger.warning(
            "log_evidence: %d draws are too few for a pareto_khat, so nothing says whether to "
            "trust the estimates. Use num_samples=1000.",
            num_samples,
        )
    elif above:
        logger.warning(
            "log_evidence: pareto_khat is above %.2f for %d of %d data, whose log evidence is too "
            "low by an unknown amount. Use a richer family, or ais_log_evidence.",
            threshold,
            above,
            total,
        )
    if broken:
        logger.warning(
            "log_evidence: not finite for %d of %d data: no draw of the guide has a density, or a "
            "network overflows there.",
            broken,
            total,
        )


def importance_estimates(log_weights: Tensor, *, smoothed: bool = False) -> dict[str, Tensor]:
    """The reductions of a matrix of log weights, ``(S, N)``, that :func:`log_evidence` returns.

    Args:
        log_weights: Log p(x, z) - log q(z|x), in nats.
        smoothed: Whether the weights are Pareto-smoothed before they are averaged.

    Returns:
        ``log_evidence``, ``elbo``, ``gap`` (their difference) with ``mcse``, ``elbo_mcse`` and
        ``gap_mcse``, ``ess`` and ``pareto_khat``, each ``(N,)``, in double precision.

    Example:
        >>> estimates = importance_estimates(torch.log(torch.tensor([[1.0], [3.0]])))
        >>> round(estimates["log_evidence"].item(), 4), round(estimates["ess"].item(), 4)
        (0.6931, 1.6)
    """
    some = max(1, NUMBERS_AT_A_TIME // max(1, len(log_weights)))
    found = [_estimates(part, smoothed=smoothed) for part in log_weights.split(some, dim=1)]
    return {name: torch.cat([columns[name] for columns in found]) for name in found[0]}


def _estimates(log_weights: Tensor, *, smoothed: bool) -> dict[str, Tensor]:
    raw = log_weights.double()
    num_samples = len(raw)
    # In their own type, which says how large their rounding errors are.
    used = smoothed_log_weights(log_weights) if smoothed else raw
    log_mean = used.logsumexp(0) - math.log(num_samples)
    shares = used.softmax(0)
    elbo, elbo_mcse = mean_and_mcse(raw)
    gap, gap_mcse = log_mean_less_mean(used, raw)
    return {
        "log_evidence": log_mean,
        # The delta method: the log of a mean is, to first order, a mean of w / mean(w).
        "mcse": mean_and_mcse(num_samples * shares)[1],
        "elbo": elbo,
        "elbo_mcse": elbo_mcse,
        "gap": gap,
        "gap_mcse": gap_mcse,
        "ess": 1 / shares.square().sum(0),
        "pareto_khat": pareto_khat(log_weights),
    }


def evidence_summary(evidence: xr.Dataset) -> pd.DataFrame:
    r"""Means over the data of what :func:`log_evidence` returned, in nats per datum.

    Args:
        evidence: What :func:`log_evidence` returned.

    Returns:
        Rows ``log_evidence``, ``elbo`` and ``inference_gap``, their difference on the same draws;
        columns ``mean``, ``se`` for a claim about new data and ``mcse`` for one about these data,
        as in :func:`elbo_summary`. ``attrs`` hold the share of data whose ``pareto_khat`` is not
        known to be below the threshold (NaN where draws are too few to know any), the threshold,
        and the smallest ``ess``.

    Example:
        >>> values = {"log_evidence": [2.0, 4.0], "elbo": [1.0, 2.0], "gap": [1.0, 2.0]}
        >>> errors = {"mcse": [0.3, 0.4], "elbo_mcse": [0.0, 0.0], "gap_mcse": [0.3, 0.4]}
        >>> others = {"pareto_khat": [0.1, 0.9], "ess": [50.0, 2.0]}
        >>> columns = {n: ("obs_id", column) for n, column in (values | errors | others).items()}
        >>> summary = evidence_summary(xr.Dataset(columns, attrs={"khat_threshold": 0.7}))
        >>> summary.loc["inference_gap", "mean"].item(), summary.attrs["khat_share_above"]
        (1.5, 0.5)
    """
    count = evidence.sizes["obs_id"]
    columns = {name: evidence[name].to_numpy() for name in evidence.data_vars}
    columns["inference_gap"] = columns["gap"]
    errors = {
        "log_evidence": columns["mcse"],
        "elbo": columns["elbo_mcse"],
        "inference_gap": columns["gap_mcse"],
    }
    rows = {
        name: {
            "mean": columns[name].mean(),
            "se": standard_error(columns[name]),
            "mcse": math.sqrt(np.square(error).sum()) / count,
        }
        for name, error in errors.items()
    }
    summary = pd.DataFrame.from_dict(rows, orient="index")
    threshold = evidence.attrs["khat_threshold"]
    above = float((~(columns["pareto_khat"] <= threshold)).mean())  # as untrusted() has it
    too_few = evidence.attrs.get("num_samples", FEWEST_DRAWS) < FEWEST_DRAWS
    summary.attrs = {
        "khat_share_above": math.nan if too_few else above,
        "khat_threshold": threshold,
        "smallest_ess": float(columns["ess"].min()),
    }
    return summary
