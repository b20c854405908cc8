"""The guide q(z|x) held against the posterior that NUTS found."""

from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.arviz_container import chain_statistics, group
from pyro_vae.diagnostics.evidence.pareto import khat_threshold, pareto_khat
from pyro_vae.diagnostics.monte_carlo import Moments
from pyro_vae.diagnostics.passes import by_rows, per_datum_dataset
from pyro_vae.traces import CHUNK_SIZE, JointDensity, Programs, log_weights

from .nuts import FEWEST_DRAWS, LARGEST_R_HAT

__all__ = ["guide_draws", "reference_summary"]

NUM_GUIDE_DRAWS = 4000

ROWS_AT_A_TIME = 50
"""Most rows whose weights are held at once."""


def reference_summary(
    reference: Any,
    vae: Programs,
    x: Any,
    *,
    num_samples: int = NUM_GUIDE_DRAWS,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""How far q(z|x) is from the posterior that NUTS found, for each datum and latent dimension.

    Args:
        reference: What :func:`~pyro_vae.diagnostics.posterior_nuts` returned.
        vae: The model and a guide for it; another guide than the one NUTS started from may be
            held against the same reference.
        x: The data it was computed for.
        num_samples: Number S of draws from q(z|x) for each datum.
        chunk_size: Rows times draws that go through the model at once, but at least the rows of
            a piece of x, 50 or fewer. It bounds the memory; the result does not depend on it.
        seed: Seed of these draws.

    Returns:
        Over ``obs_id`` and ``latent``, in units of z: ``nuts_mean``, ``nuts_sd``, ``q_mean`` and
        ``q_sd``, each with its ``_mcse``. ``mean_shift`` is :math:`(\mu_q - \mu) / \sigma` and
        ``sd_ratio`` :math:`\sigma_q / \sigma`, with a ``_mcse`` each; below 1 where q is too
        narrow. ``mean_z_score`` is the difference of the means in units of its Monte Carlo error:
        beyond 3 or so it is real, however small. ``r_hat`` and ``ess_bulk`` of the chains; NaN,
        as are the errors, where they are too short, and ``r_hat`` for a single chain. Over
        ``obs_id``: ``pareto_khat`` of q and ``divergences``, a count. The attributes hold the
        thresholds.

    Raises:
        ValueError: If the reference is not one of these data and sites.

    Example:
        >>> import torch, pyro_vae as pv
        >>> from pyro_vae.diagnostics.reference.nuts import posterior_nuts
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> x = torch.zeros(1, 3)
        >>> reference = posterior_nuts(vae, x, num_chains=2, num_samples=5, num_warmup=5)
        >>> dict(reference_summary(reference, vae, x)["sd_ratio"].sizes)
        {'obs_id': 1, 'latent': 2}

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work? Evaluating variational
        inference, section 2. https://arxiv.org/abs/1802.02538
    """
    num_samples = positive_integer(num_samples, "num_samples")
    chunk_size = positive_integer(chunk_size, "chunk_size")
    draws = group(reference, "posterior")["z"]

    def compute(piece: Tensor) -> dict[str, Tensor]:
        moments = Moments(4)
        for draws in JointDensity(vae, piece).guide_draws_by_draws(num_samples):
            moments.add(draws)
        variance = moments.variance(min(1, num_samples - 1))
        # Var(s) is about Var(s^2) / (4 s^2), and Var(s^2) is (m_4 - s^4) / S.
        spread = (moments.fourth() - variance.square()).clamp(min=0)
        weights = log_weights(vae, piece, num_samples=num_samples, chunk_size=chunk_size)
        return {
            "q_mean": moments.mean,
            "q_mean_mcse": (variance / num_samples).sqrt(),
            "q_sd": variance.sqrt(),
            "q_sd_mcse": (spread / (4 * variance * num_samples)).sqrt(),
            "pareto_khat": pareto_khat(weights),
        }

    columns = by_rows(
        vae,
        x,
        compute,
        seed=seed,
        purpose="reference",
        at_a_time=ROWS_AT_A_TIME,
        num_draws=num_samples,
    )
    if columns["q_mean"].shape != (draws.sizes["obs_id"], draws.sizes["latent"]):
        raise ValueError(
            f"reference must be of the same data and latent sites; got "
            f"{draws.sizes['obs_id']} data with {draws.sizes['latent']} dimensions, and x and q "
            f"with {tuple(columns['q_mean'].shape)}."
        )
    found = per_datum_dataset(
        columns,
        attrs={
            "units": "units of z",
            "num_samples": num_samples,
            "seed": seed,
            "r_hat_threshold": LARGEST_R_HAT,
            "khat_threshold": khat_threshold(num_samples),
        },
    )
    chains = _statistics(draws)
    names = {name: f"nuts_{name}" for name in ("mean", "mean_mcse", "sd", "sd_mcse")}
    found = found.merge(chains.rename(names))
    error = np.hypot(found["q_mean_mcse"], found["nuts_mean_mcse"])
    ratio = found["q_sd"] / found["nuts_sd"]
    relative = np.hypot(
        found["q_sd_mcse"] / found["q_sd"], found["nuts_sd_mcse"] / found["nuts_sd"]
    )
    difference = found["q_mean"] - found["nuts_mean"]
    stats = group(reference, "sample_stats")
    return found.assign(
        mean_shift=difference / found["nuts_sd"],
        mean_shift_mcse=error / found["nuts_sd"],
        mean_z_score=difference / error,
        sd_ratio=ratio,
        sd_ratio_mcse=ratio * relative,
        divergences=stats["diverging"].sum(("chain", "draw")),
    )


def _statistics(draws: xr.DataArray) -> xr.Dataset:
    """Statistics of the chains, NaN where ArviZ, which would complain, needs more of them."""
    single = draws.sizes["chain"] == 1
    if not single and draws.sizes["draw"] >= FEWEST_DRAWS:
        return chain_statistics(draws)
    sample = ("chain", "draw")
    mean = draws.mean(sample)
    found = dict.fromkeys(("mean_mcse", "sd_mcse", "r_hat", "ess_bulk"), mean * np.nan)
    half = draws.sizes["draw"] // 2
    if single and half >= FEWEST_DRAWS:
        halves = [
            draws.isel(draw=slice(start, start + half)).drop_vars(
                ("chain", "draw"), errors="ignore"
            )
            for start in (0, half)
        ]
        of_halves = chain_statistics(xr.concat(halves, "chain"))
        found |= {name: of_halves[name] for name in found if name != "r_hat"}
    spread = draws.std(sample, ddof=1) if draws.size > mean.size else mean * np.nan
    return xr.Dataset({"mean": mean, "sd": spread, **found})


def guide_draws(
    vae: Programs, x: Any, *, num_samples: int = NUM_GUIDE_DRAWS, seed: int = 0
) -> xr.DataArray:
    """Draws from q(z|x), with the dimensions that the reference has, to be drawn over it.

    Args:
        vae: Model and guide.
        x: Data, ``(N, *event_shape)``.
        num_samples: Number of draws for each datum.
        seed: Seed of the draws.

    Returns:
        Over ``draw``, ``obs_id`` and ``latent``.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> dict(guide_draws(vae, torch.zeros(1, 3), num_samples=7).sizes)
        {'draw': 7, 'obs_id': 1, 'latent': 2}
    """
    num_samples = positive_integer(num_samples, "num_samples")

    def compute(piece: Tensor) -> dict[str, Tensor]:
        return {"z": JointDensity(vae, piece).guide_draws(num_samples).movedim(0, 1)}

    z = by_rows(
        vae,
        x,
        compute,
        seed=seed,
        purpose="guide",
        at_a_time=ROWS_AT_A_TIME,
        num_draws=num_samples,
    )["z"]
    return xr.DataArray(
        z.movedim(1, 0).numpy(),
        dims=("draw", "obs_id", "latent"),
        coords={"obs_id": np.arange(z.shape[0]), "latent": np.arange(z.shape[2])},
        name="z",
    )
