"""One chain of Pyro's NUTS for one datum, the model held fixed."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS
from torch import Tensor

from pyro_vae.diagnostics.real_joint import RealJoint

__all__ = ["nuts_chain", "overdispersed_starts"]


def overdispersed_starts(joint: RealJoint, num_chains: int) -> Tensor:
    """Where chains begin, ``(chains, K)``: in turn at draws from the guide and from the prior."""
    guide, prior = joint.guide_draws(num_chains), joint.prior_draws(num_chains)
    from_guide = torch.arange(num_chains, device=guide.device) % 2 == 0
    return torch.where(from_guide[:, None, None], guide, prior)[:, 0]


def nuts_chain(
    joint: RealJoint,
    energy: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    num_samples: int,
    num_warmup: int,
    target_accept: float,
) -> dict[str, Tensor]:
    """One chain of NUTS for one datum.

    Args:
        joint: Density of the datum, on the line.
        energy: Minus the log of that density; :func:`~.potential.potential_energy`.
        start: Where the chain begins, ``(K,)``.
        num_samples: Draws that are kept.
        num_warmup: Draws before, in which step size and mass matrix are adapted.
        target_accept: Acceptance probability that the step size is adapted to.

    Returns:
        ``z``, ``(num_samples, K)``; and ``(num_samples,)`` each ``lp``, log p(x, z) in nats,
        ``diverging``, ``acceptance_rate``, ``step_size`` and ``n_steps``.
    """
    num_steps = 0

    def potential(values: Mapping[str, Tensor]) -> Tensor:
        nonlocal num_steps
        num_steps += 1
        return energy(values["u"])

    kept: dict[str, list[Any]] = {name: [] for name in ("u", "acceptance_rate", "n_steps")}
    kernel = NUTS(potential_fn=potential, full_mass=True, target_accept_prob=target_accept)
    # The kernel itself, and not Pyro's MCMC, which replaces the handlers of Pyro's logger. As in
    # there, distributions do not validate: a trajectory that diverges ends in NaN, no error.
    with torch.enable_grad(), poutine.block(), pyro.validation_enabled(False):  # noqa: FBT003
        kernel.initial_params = {"u": start.clone()}
        kernel.setup(num_warmup)
        params = kernel.initial_params
        for draw in range(-num_warmup, num_samples):
            mean_before, num_steps = kernel._mean_accept_prob, 0
            params = kernel.sample(params)
            if draw >= 0:
                # Pyro tells the mean of all draws so far alone.
                mean = kernel._mean_accept_prob
                kept["u"].append(params["u"].detach())
                kept["acceptance_rate"].append(mean_before + (draw + 1) * (mean - mean_before))
                kept["n_steps"].append(num_steps)
        diverging = torch.zeros(num_samples, dtype=torch.bool, device=start.device)
        diverging[kernel.diagnostics()["divergences"]] = True
        step_size = kernel.step_size
        kernel.cleanup()
    u = torch.stack(kept.pop("u")).unsqueeze(1)
    z, _ = joint.to_values(u)
    log_prior, log_likelihood = joint.joint(z)
    stats = {
        name: torch.tensor(values, dtype=torch.float64, device=u.device)
        for name, values in kept.items()
    }
    return {
        "z": z[:, 0],
        "lp": (log_prior + log_likelihood)[:, 0],
        "diverging": diverging,
        "step_size": torch.full_like(stats["n_steps"], step_size),
        **stats,
    }
