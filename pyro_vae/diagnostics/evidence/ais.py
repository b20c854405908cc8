"""The log evidence by annealed importance sampling."""

import math
from typing import Any

import pyro
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.passes import by_rows, per_datum_dataset
from pyro_vae.diagnostics.real_joint import RealJoint
from pyro_vae.traces import CHUNK_SIZE, Programs

from .hmc import NUM_LEAPFROGS, pilot_step_sizes, point_at, sigmoid_schedule, transition
from .importance import importance_estimates

__all__ = ["PIECE", "ais_log_evidence", "annealed", "reverse_annealed"]

PIECE = 2000
"""Rows times chains that are annealed together: the noise belongs to so many."""


def ais_log_evidence(
    vae: Programs,
    x: Any,
    *,
    num_steps: int = 1000,
    num_chains: int = 16,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""Log p(x) of each datum by annealed importance sampling: a lower bound in expectation.

    .. math:: \hat{\mathcal L}(x) = \log \tfrac1R \sum_{r=1}^R w_r, \quad
              \log w_r = \sum_{t=1}^T (b_t - b_{t-1}) \log p(x \mid z_{r,t-1}), \quad
              \mathbb E\, \hat{\mathcal L}(x) \le \log p(x)

    Chains start at the prior and take one transition of Hamiltonian Monte Carlo at each
    :math:`p(z)\, p(x \mid z)^{b_t}`, with step sizes that a pilot run found for each datum and
    temperature and that are then frozen. The guide plays no part: what it misses, AIS may find.
    The value is no exact one: it is too low in expectation, by an amount that falls with
    ``num_steps`` and that ``mcse`` does not contain. :func:`bdmc` measures it on simulated data.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        num_steps: Number T of temperatures after the first. The cost is
            ``12 * num_steps * num_chains`` evaluations of the decoder with gradient for a datum.
        num_chains: Number R of chains for each datum.
        chunk_size: Rows times chains that go through the model at once, but at least the rows of
            a piece of x, of 2000 chains or fewer. It bounds the memory; the result does not
            depend on it, but for rounding.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        Over ``obs_id``: ``log_evidence`` and ``mcse``, its Monte Carlo standard error from the
        spread of the chains' weights (delta method; NaN for one chain), in nats; ``ess``, the
        effective number of chains; ``acceptance``, the mean over temperatures, wanted is 0.7.
        Where ``ess`` is below 3 or so, take more steps.

    Raises:
        ValueError: If x or a number does not fit, or a latent site takes other values than all
            real ones or ones above, below or between fixed bounds.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> evidence = ais_log_evidence(vae, torch.zeros(5, 3), num_steps=2, num_chains=4)
        >>> sorted(evidence.data_vars)
        ['acceptance', 'ess', 'log_evidence', 'mcse']

    References:
        Neal (2001), Annealed importance sampling. https://arxiv.org/abs/physics/9803008
        Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis of decoder-based
        generative models, section 3. https://arxiv.org/abs/1611.04273
    """
    num_steps = positive_integer(num_steps, "num_steps")
    num_chains = positive_integer(num_chains, "num_chains")
    chunk_size = positive_integer(chunk_size, "chunk_size")

    def compute(piece: Tensor) -> dict[str, Tensor]:
        joint = RealJoint(vae, piece, chunk_size=chunk_size)
        # Far out a network may overflow: such a proposal is rejected, and no error.
        with pyro.validation_enabled(is_validate=False):
            step_sizes = pilot_step_sizes(joint, num_steps, num_chains)
            log_weights, acceptance = annealed(joint, step_sizes, num_chains)
        estimates = importance_estimates(log_weights)
        kept = {name: estimates[name] for name in ("log_evidence", "mcse", "ess")}
        return kept | {"acceptance": acceptance}

    columns = by_rows(
        vae, x, compute, seed=seed, purpose="AIS", at_a_time=max(1, PIECE // num_chains)
    )
    return per_datum_dataset(
        columns,
        attrs={
            "num_steps": num_steps,
            "num_chains": num_chains,
            "num_leapfrogs": NUM_LEAPFROGS,
            "seed": seed,
        },
    )


def annealed(joint: RealJoint, step_sizes: Tensor, num_chains: int) -> tuple[Tensor, Tensor]:
    """Log weights of chains from prior to posterior, ``(R, N)``, and mean acceptance, ``(N,)``.

    Args:
        joint: The density.
        step_sizes: For each temperature after the first, ``(T, N)``.
        num_chains: Number R of chains for each datum.
    """
    point = point_at(joint, joint.prior_draws(num_chains))
    powers = sigmoid_schedule(len(step_sizes))
    log_weights = torch.zeros_like(point.log_prior, dtype=torch.float64)
    acceptance = torch.zeros_like(log_weights)
    for step, step_size in enumerate(step_sizes):
        rise = powers[step + 1] - powers[step]
        log_weights += rise * point.log_likelihood.double()
        point, accepted = transition(joint, point, powers[step + 1], step_size)
        acceptance += accepted / len(step_sizes)
    return _defined(log_weights), acceptance.mean(0)


def reverse_annealed(joint: RealJoint, step_sizes: Tensor, start: Tensor) -> Tensor:
    """Log weights of chains from a posterior draw back to the prior, ``(R, N)``.

    The very transitions of :func:`annealed`, each of them reversible, in reverse order: the mean
    of the weights has expectation 1 / p(x).

    Args:
        joint: The density.
        step_sizes: As in :func:`annealed`.
        start: Where the chains begin, in real coordinates, ``(R, N, K)``.
    """
    point = point_at(joint, start)
    powers = sigmoid_schedule(len(step_sizes))
    log_weights = torch.zeros_like(point.log_prior, dtype=torch.float64)
    for step in reversed(range(len(step_sizes))):
        point, _ = transition(joint, point, powers[step + 1], step_sizes[step])
        rise = powers[step + 1] - powers[step]
        log_weights -= rise * point.log_likelihood.double()
    return _defined(log_weights)


def _defined(log_weights: Tensor) -> Tensor:
    # A likelihood that is not a number where a chain began: nothing can be said of its weight.
    return torch.where(log_weights.isnan(), -math.inf, log_weights)
