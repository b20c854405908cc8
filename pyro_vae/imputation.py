"""What missing values may have been: draws given what was observed, with their moments."""

import copy
import logging
import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.evidence.pareto import (
    FEWEST_DRAWS,
    khat_threshold,
    pareto_khat,
    smoothed_log_weights,
    untrusted,
)
from pyro_vae.diagnostics.passes import by_rows
from pyro_vae.distributions import ObservedEntries, SharedVarianceNormal
from pyro_vae.export.layout import OBSERVED
from pyro_vae.sources import DataSource, LazyRows, resolve_device
from pyro_vae.sources.missing import declares_missing
from pyro_vae.traces import CHUNK_SIZE
from pyro_vae.vae import VAE

__all__ = ["impute"]

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 250
"""Most rows that are imputed together: the noise belongs to such a piece of x."""

NUMBERS_AT_A_TIME = 2**22
"""Most numbers of completed rows of a piece."""


def impute(
    vae: VAE,
    x: Any,
    *,
    mask: Any = None,
    num_draws: int = 100,
    num_samples: int = 1000,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""Draws of what is missing in x given what was observed, by importance resampling.

    .. math:: x_{\text{mis}} \sim \int p(x_{\text{mis}} \mid z)\, p(z \mid x_{\text{obs}})\, dz,
              \qquad w_s \propto \frac{p(x_{\text{obs}} \mid z_s)\, p(z_s)}
              {q(z_s \mid x_{\text{obs}})}, \quad z_s \sim q(z \mid x_{\text{obs}})

    The S draws from q are weighted, their largest weights Pareto-smoothed, and as many z as there
    are imputations are drawn anew with these weights; then the missing part from each p(x|z).
    So the guide's error is corrected as far as its draws reach: where ``pareto_khat`` exceeds
    ``khat_threshold`` they do not, and a message to the ``logging`` module says for how many rows.
    The model is taken as known: the spread of the imputations is not that of its parameters.

    Args:
        vae: The VAE. One that was not made for missing values takes x with a mask here, and stays
            as it is.
        x: Data with missing values, ``(N, *event_shape)``.
        mask: Which entries were observed, an array of the shape of x; or "nan" where NaN says what
            is missing, as it does without for a VAE whose ``missing`` is True.
        num_draws: Number of imputations of each row.
        num_samples: Number S of draws from q(z|x) for each row.
        chunk_size: Rows times draws that go through the model at once, but at least 250. It
            bounds the memory beside that of the result, and changes figures by rounding alone.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        ``x`` over ``draw``, ``obs_id`` and the dimensions of one x: completed data, with observed
        entries as given. ``mean`` and ``sd`` of each entry given what was observed, and
        ``mean_mcse``, the Monte Carlo standard error of the mean (NaN for one draw), from all S
        draws; of an observed entry its value, 0 and 0. (Of unordered classes the mean number says
        nothing: count the draws.) Read the mean as ``found["mean"]``: ``found.mean`` is xarray's
        method. Over ``obs_id``: ``pareto_khat``, and ``ess``, the effective number of draws; 0
        and S for a complete row, which needs none. Where no draw of a row has a density that is a
        number, nothing is known: ``ess``, ``pareto_khat`` and all that is missing are NaN.

    Raises:
        TypeError: If ``vae`` is no VAE.
        ValueError: If x or the mask do not fit, or a number is not positive.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=2, latent_dim=1, missing=True)
        >>> found = impute(vae, torch.tensor([[5.0, float("nan")]]), num_draws=3)
        >>> found["x"].dims, found["x"][:, 0, 0].values.tolist()
        (('draw', 'obs_id', 'feature'), [5.0, 5.0, 5.0])

    References:
        Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete
        data sets, section 3. https://arxiv.org/abs/1812.02633
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.
        https://arxiv.org/abs/1507.02646
    """
    if not isinstance(vae, VAE):
        raise TypeError(
            f"vae must be a pyro_vae.VAE, whose p(x|z) is known; got {type(vae).__name__}."
        )
    num_draws = positive_integer(num_draws, "num_draws")
    num_samples = positive_integer(num_samples, "num_samples")
    chunk_size = positive_integer(chunk_size, "chunk_size")
    if declares_missing(x, mask) and not vae.missing:
        vae = copy.copy(vae)
        vae.declare_missing()
    source = DataSource(vae, resolve_device(vae, "auto"))
    rows = source.rows(x, name="x", mask=mask)
    size = NUMBERS_AT_A_TIME // max(1, num_draws * vae.event_shape.numel())
    columns = by_rows(
        vae,
        x if isinstance(rows, LazyRows) else rows,
        lambda piece: _imputed(vae, piece, num_draws, num_samples, chunk_size),
        seed=seed,
        purpose="imputation",
        at_a_time=max(1, min(ROWS_AT_A_TIME, size)),
        num_draws=num_samples,
    )
    threshold = khat_threshold(num_samples)
    _tell(columns, num_samples, threshold)
    rank = len(vae.event_shape)
    dims = OBSERVED.get(rank, tuple(f"x_dim_{i}" for i in range(rank)))
    dataset = xr.Dataset(
        {
            "x": (("draw", "obs_id", *dims), columns.pop("x").movedim(1, 0).numpy()),
            **{
                name: (("obs_id", *dims)[: values.dim()], values.numpy())
                for name, values in columns.items()
                if name != "is_incomplete"
            },
        },
        attrs={
            "units": "those of x; ess is a number of draws",
            "num_samples": num_samples,
            "num_draws": num_draws,
            "seed": seed,
            "khat_threshold": threshold,
        },
    )
    coords: dict[str, Any] = {str(dim): np.arange(n) for dim, n in dataset.sizes.items()}
    if rank == 1 and source.columns is not None and len(source.columns) == len(coords[dims[0]]):
        coords[dims[0]] = list(source.columns)
    return dataset.assign_coords(coords)


def _imputed(
    vae: VAE, x: Tensor, num_draws: int, num_samples: int, chunk_size: int
) -> dict[str, Tensor]:
    """Completed rows and their moments, for one piece of x."""
    known = x.to(torch.float64, copy=True)  # filled in below, and x is the user's
    found = {
        "x": x.unsqueeze(1).repeat(1, num_draws, *(1,) * (x.dim() - 1)),
        "mean": known,
        "sd": torch.zeros_like(known),
        "mean_mcse": torch.zeros_like(known),
        "pareto_khat": known.new_zeros(len(x)),
        "ess": known.new_full((len(x),), float(num_samples)),
        "is_incomplete": x.isnan().reshape(len(x), -1).any(1),
    }
    incomplete = found["is_incomplete"].nonzero().squeeze(1)
    if len(incomplete):
        # A guide may have parameters of each row, so it sees them all; p(x|z) is what costs.
        q = vae.encode(x)
        z = q.sample(torch.Size([num_samples]))
        log_ratios = (vae.p_z().log_prob(z) - q.log_prob(z)).expand(num_samples, len(x))
        for name, values in _of_incomplete(
            vae, x[incomplete], z[:, incomplete], log_ratios[:, incomplete], num_draws, chunk_size
        ).items():
            found[name][incomplete] = values
    return found


def _of_incomplete(
    vae: VAE, x: Tensor, z: Tensor, log_ratios: Tensor, num_draws: int, chunk_size: int
) -> dict[str, Tensor]:
    """The same for rows of which each lacks something, from z and log p(z) - log q(z|x)."""
    draws_at_a_time = max(1, chunk_size // len(x))
    is_missing = x.isnan()
    log_weights = _log_weights(vae, x, z, log_ratios, draws_at_a_time)
    weights = smoothed_log_weights(log_weights).softmax(0)
    # Nothing is known where no draw has a density, or one has none that is a number.
    is_known = weights.isfinite().all(0)
    weights = torch.where(is_known, weights, 1 / len(z))
    mean, sd, mcse = _moments(vae, z, weights, draws_at_a_time)
    if len(z) == 1:
        mcse = torch.full_like(mcse, math.nan)
    is_lost = is_missing & ~is_known.reshape(-1, *(1,) * (x.dim() - 1))
    found = {
        "mean": torch.where(is_missing, mean, x.double()),
        "sd": torch.where(is_missing, sd, 0.0),
        "mean_mcse": torch.where(is_missing, mcse, 0.0),
    }
    return {
        "x": _completed(vae, x, z, weights, num_draws).masked_fill(is_lost.unsqueeze(1), math.nan),
        **{name: values.masked_fill(is_lost, math.nan) for name, values in found.items()},
        "pareto_khat": pareto_khat(log_weights),
        "ess": (1 / weights.square().sum(0)).masked_fill(~is_known, math.nan),
    }


def _log_weights(
    vae: VAE, x: Tensor, z: Tensor, log_ratios: Tensor, draws_at_a_time: int
) -> Tensor:
    log_weights = log_ratios.clone()
    for start in range(0, len(z), draws_at_a_time):
        some = slice(start, start + draws_at_a_time)
        p = _at(vae, z[some])
        copies = x.expand(len(z[some]), *x.shape).flatten(0, 1)
        log_weights[some] += ObservedEntries(p).log_prob(copies).unflatten(0, (-1, len(x)))
    return log_weights


def _moments(
    vae: VAE, z: Tensor, weights: Tensor, draws_at_a_time: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean and standard deviation of x under weighted draws of z, and the error of the mean.

    .. math:: \operatorname{Var} x = \mathbb E \operatorname{Var}(x \mid z)
              + \operatorname{Var} \mathbb E(x \mid z), \qquad
              \text{error}^2 = \sum_s w_s^2 (\mathbb E(x \mid z_s) - \mathbb E x)^2
    """
    num_rows = len(weights[0])
    # Sums of squares about one of the means keep their digits.
    p = _at(vae, z[:1])
    center = p.mean.double().flatten(1).unsqueeze(1)
    both = torch.stack([weights, weights.square()]).permute(2, 0, 1)  # (n, 2, S)
    first, second = center.new_zeros(2, num_rows, 2, center.shape[-1])
    is_shared = isinstance(p, SharedVarianceNormal)  # by all z, so it is taken once
    within = _variance(p, torch.ones_like(both[:, :1, :1])) if is_shared else 0 * center
    for start in range(0, len(z), draws_at_a_time):
        some = slice(start, start + draws_at_a_time)
        # Row by row, so that a sum over draws is a product of matrices.
        p = _at(vae, z[some].transpose(0, 1))
        w = both[:, :, some]
        means = p.mean.double().flatten(1).unflatten(0, (num_rows, -1)) - center
        first += w @ means
        second += w @ means.square_()
        if not is_shared:
            within = within + _variance(p, w[:, :1])
    mean, mean_of_errors = first[:, :1], first[:, 1:]
    variance = within + (second[:, :1] - mean.square()).clamp(min=0)
    total = both[:, 1].sum(1).reshape(-1, 1, 1)
    error = (second[:, 1:] - 2 * mean * mean_of_errors + mean.square() * total).clamp(min=0)
    shape = (num_rows, *vae.event_shape)
    found = (center + mean, variance.sqrt(), error.sqrt())
    return found[0].reshape(shape), found[1].reshape(shape), found[2].reshape(shape)


def _variance(p: Any, w: Tensor) -> Tensor:
    """Weighted sum over draws of the variance of x given z, ``(n, 1, numbers of x)``."""
    try:
        variance = p.variance
    except NotImplementedError:  # a distribution need not know its variance
        return w.new_full((), math.nan)
    found: Tensor = w @ variance.double().flatten(1).unflatten(0, (len(w), -1))
    return found


def _completed(vae: VAE, x: Tensor, z: Tensor, weights: Tensor, num_draws: int) -> Tensor:
    """Rows with drawn values in the place of missing ones, ``(n, num_draws, *event_shape)``."""
    chosen = torch.multinomial(weights.mT, num_draws, replacement=True).mT
    z = z[chosen, torch.arange(len(x), device=x.device)]
    found = x.new_empty(len(x), num_draws, *x.shape[1:])
    # The noise belongs to such a part, so no chunk_size of a user's may cut it.
    draws_at_a_time = max(1, ROWS_AT_A_TIME // len(x))
    for start in range(0, num_draws, draws_at_a_time):
        some = slice(start, start + draws_at_a_time)
        drawn = _at(vae, z[some]).sample().unflatten(0, (-1, len(x)))
        found[:, some] = torch.where(x.isnan(), drawn, x).movedim(0, 1)
    return found


def _at(vae: VAE, z: Tensor) -> Any:
    """p(x|z) at draws for each row, ``(R, n, *latent_shape)``, laid out as ``R n`` rows."""
    flat = z.flatten(0, 1)
    p: Any = vae.p_x_given_z(flat)
    batch = torch.Size([len(flat)])
    return p if p.batch_shape == batch else p.expand(batch)


def _tell(columns: dict[str, Tensor], num_samples: int, threshold: float) -> None:
    incomplete = columns["is_incomplete"]
    above = int((untrusted(columns["pareto_khat"], threshold) & incomplete).sum())
    if num_samples < FEWEST_DRAWS:
        logger.warning(
            "impute: %d draws are too few for a pareto_khat, so nothing says whether to trust the "
            "imputations. Use num_samples=1000.",
            num_samples,
        )
    elif above:
        logger.warning(
            "impute: pareto_khat is above %.2f for %d of %d incomplete rows, whose imputations "
            "lean towards the guide by an unknown amount. Use a richer family, or an encoder that "
            "knows the mask (networks.WithMask).",
            threshold,
            above,
            int(incomplete.sum()),
        )
