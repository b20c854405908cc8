"""The posterior p(z|x) of single data by NUTS, as a reference for q(z|x)."""

import copy
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.arviz_container import chain_statistics, container
from pyro_vae.diagnostics.real_joint import RealJoint
from pyro_vae.evaluation import evaluating
from pyro_vae.rows import at_rows, per_datum_parts
from pyro_vae.seeding import seeded
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs

from .nuts_chain import nuts_chain, overdispersed_starts
from .potential import potential_energy

__all__ = ["FEWEST_DRAWS", "LARGEST_R_HAT", "posterior_nuts"]

logger = logging.getLogger(__name__)

LARGEST_R_HAT = 1.01
"""Vehtari et al. (2021): above it the chains have not mixed."""

R_HAT_APART = 1.05
"""Above it chains disagree; up to it a few more draws often bring r-hat down."""

FEWEST_DRAWS = 4
"""ArviZ splits each chain in two, and needs a spread in each half."""


def posterior_nuts(
    vae: Programs,
    x: Any,
    *,
    num_chains: int = 4,
    num_samples: int = 500,
    num_warmup: int = 500,
    target_accept: float = 0.8,
    seed: int = 0,
) -> Any:
    r"""Draws from p(z|x) of each of a few data by NUTS, the model held fixed.

    .. math:: p(z \mid x_i) \propto p(z)\, p(x_i \mid z)

    Each datum has its own chains, one after the other, with step size and (full) mass matrix
    adapted to it. Chains start apart: those of even number at a draw from q(z|x), the others at
    one from the prior, so that a mode which q misses shows as chains that disagree. A latent site
    with bounded values is sampled on the line and mapped back.

    A module is copied in double precision, and neither it nor its parameters are changed; other
    programs run in the type they have. One datum takes tens of thousands of passes through the
    decoder, up to a minute or so on one core: pass a handful.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``: a few rows.
        num_chains: Number of chains for each datum.
        num_samples: Draws kept of each chain.
        num_warmup: Draws before, in which step size and mass matrix are adapted.
        target_accept: Acceptance probability that the step size is adapted to. Raise it where
            transitions diverge.
        seed: Seed of the chains; the global random state is left alone.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (1.x). Group ``posterior``:
        ``z`` over ``chain``, ``draw``, ``obs_id`` and ``latent``, latent sites side by side.
        Group ``sample_stats`` over ``chain``, ``draw`` and ``obs_id``: ``lp``, which is
        :math:`\log p(x_i, z)` in nats, ``diverging``, ``acceptance_rate``, ``step_size`` and
        ``n_steps``. ``az.summary`` and the plots of ArviZ take it.
        :func:`~pyro_vae.diagnostics.reference_summary` holds it against q.

    Raises:
        ValueError: If x or a number does not fit, or a latent site does not map to the line.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> reference = posterior_nuts(
        ...     vae, torch.zeros(1, 3), num_chains=2, num_samples=5, num_warmup=5
        ... )
        >>> dict(reference["posterior"].sizes)
        {'chain': 2, 'draw': 5, 'obs_id': 1, 'latent': 2}

    References:
        Hoffman and Gelman (2014), The No-U-Turn sampler, algorithm 6.
        https://arxiv.org/abs/1111.4246
    """
    counts = {
        "num_chains": positive_integer(num_chains, "num_chains"),
        "num_samples": positive_integer(num_samples, "num_samples"),
        "num_warmup": positive_integer(num_warmup, "num_warmup"),
    }
    target_accept = finite_number(target_accept, "target_accept", "between 0 and 1", above=0)
    if target_accept >= 1:
        raise ValueError(f"target_accept must be between 0 and 1; got {target_accept}.")
    device = resolve_device(vae, "auto")
    rows = DataSource(vae, device).tensor(x, name="x")
    for part in per_datum_parts(vae):
        if part.num_rows != len(rows):
            raise ValueError(
                f"x must be the {part.num_rows} rows that {type(part).__name__} has parameters "
                f"for; got {len(rows)} rows."
            )
    programs: Any = vae
    store: AbstractContextManager[Any] = nullcontext()
    if isinstance(vae, nn.Module):
        programs, rows, store = copy.deepcopy(vae).double(), rows.double(), _StoreInDouble()
        programs.requires_grad_(requires_grad=False)
    found = []
    for i in range(len(rows)):
        index = torch.tensor([i], device=device)
        chains = []
        with (
            store,
            at_rows(per_datum_parts(programs), index),
            evaluating(programs, seed, "posterior nuts", i, device=device),
        ):
            joint = RealJoint(programs, rows[i : i + 1])
            starts = overdispersed_starts(joint, num_chains).to(rows)
            energy = potential_energy(joint, starts)
            for c, start in enumerate(starts):
                with seeded(seed, "posterior nuts", i, c, device=device):
                    chains.append(
                        nuts_chain(
                            joint,
                            energy,
                            start,
                            num_samples=num_samples,
                            num_warmup=num_warmup,
                            target_accept=target_accept,
                        )
                    )
        found.append({name: torch.stack([c[name] for c in chains]) for name in chains[0]})
    groups = _groups({name: torch.stack([f[name] for f in found], 2) for name in found[0]})
    _report(groups)
    return container(
        groups,
        attrs={
            "inference_library": "pyro-ppl",
            "inference_library_version": str(pyro.__version__),
            **counts,
            "target_accept": target_accept,
            "seed": seed,
            "dtype": str(rows.dtype).removeprefix("torch."),
        },
    )


def _report(groups: dict[str, xr.Dataset]) -> None:
    """Say aloud where the chains are not to be trusted."""
    z, diverging = groups["posterior"]["z"], groups["sample_stats"]["diverging"]
    if z.sizes["chain"] > 1 and z.sizes["draw"] >= FEWEST_DRAWS:
        r_hat = chain_statistics(z)["r_hat"].max("latent")
        apart = int((r_hat > LARGEST_R_HAT).sum())
        if apart:
            largest = float(r_hat.max())
            logger.warning(
                "posterior_nuts: r-hat is above %.2f for %d of %d data, up to %.3f: %s",
                LARGEST_R_HAT,
                apart,
                r_hat.size,
                largest,
                "their chains disagree. Draw more, or look for several modes."
                if largest > R_HAT_APART
                else "more draws would tell whether their chains agree.",
            )
    count = int(diverging.sum())
    if count:
        logger.warning(
            "posterior_nuts: %d of %d transitions diverged; the chains may miss a narrow part of "
            "the posterior. Raise target_accept.",
            count,
            diverging.size,
        )


class _StoreInDouble(Messenger):
    """Parameters from Pyro's store are read in double precision."""

    def _pyro_post_param(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor) and msg["value"].is_floating_point():
            msg["value"] = msg["value"].double()


def _groups(draws: dict[str, Tensor]) -> dict[str, xr.Dataset]:
    """Draws of shape ``(chain, draw, obs_id, ...)`` as the groups of a container."""
    dims = ("chain", "draw", "obs_id", "latent")
    arrays = {name: values.cpu().numpy() for name, values in draws.items()}
    arrays["n_steps"] = arrays["n_steps"].astype(np.int64)
    posterior = {"z": (dims, arrays.pop("z").astype(np.float64))}
    stats = {name: (dims[:3], values) for name, values in arrays.items()}
    return {
        name: dataset.assign_coords({str(d): np.arange(n) for d, n in dataset.sizes.items()})
        for name, dataset in (
            ("posterior", xr.Dataset(posterior)),
            ("sample_stats", xr.Dataset(stats)),
        )
    }
