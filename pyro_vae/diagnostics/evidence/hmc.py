"""Hamiltonian Monte Carlo on p(z) p(x|z)^b, for many chains at each of many data at once."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.diagnostics.real_joint import RealJoint

__all__ = ["Point", "pilot_step_sizes", "point_at", "sigmoid_schedule", "transition"]

NUM_LEAPFROGS = 10

TARGET_ACCEPTANCE = 0.7
"""Between the optimum in high dimension, 0.65, and 0.8, where an estimate is less noisy."""

LEARNING_RATE = 0.8
"""Change of the log step size for an acceptance that is off by 1."""

WARM_UP = 10
"""Pilot transitions at the prior before the schedule begins."""

SMOOTHING = 5
"""Neighboring temperatures whose log step sizes are averaged."""


class Point(NamedTuple):
    """Where chains are, with all that the next transition needs, whatever its temperature.

    Attributes:
        u: Real coordinates, ``(R, N, K)``.
        log_prior: Their log density under the prior, ``(R, N)``.
        log_likelihood: Log p(x|z), ``(R, N)``.
        prior_slope: Gradient of ``log_prior``, ``(R, N, K)``.
        likelihood_slope: Gradient of ``log_likelihood``, ``(R, N, K)``.
    """

    u: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_slope: Tensor
    likelihood_slope: Tensor


def point_at(joint: RealJoint, u: Tensor) -> Point:
    """The point at u, ``(R, N, K)``. No gradient reaches the programs' parameters."""
    found = [_point_at(joint, part) for part in _chunks(joint, u)]
    return Point(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _point_at(joint: RealJoint, u: Tensor) -> Point:
    with torch.enable_grad():
        place = u.detach().requires_grad_()
        log_prior, log_likelihood = joint(place)
        (prior_slope,) = torch.autograd.grad(log_prior.sum(), place, retain_graph=True)
        (likelihood_slope,) = torch.autograd.grad(
            log_likelihood.sum(), place, allow_unused=True, materialize_grads=True
        )
    return Point(
        u.detach(), log_prior.detach(), log_likelihood.detach(), prior_slope, likelihood_slope
    )


def _chunks(joint: RealJoint, u: Tensor) -> tuple[Tensor, ...]:
    """Some chains at a time, since a gradient holds all that led to it."""
    return u.split(max(1, joint.chunk_size // joint.num_data))


def transition(
    joint: RealJoint, point: Point, power: float, step_size: Tensor
) -> tuple[Point, Tensor]:
    r"""One transition that leaves :math:`f_b(u) \propto p(u)\, p(x \mid u)^b` invariant.

    It is reversible with respect to :math:`f_b`: ten leapfrog steps from a new normal momentum
    and a test of acceptance. The step size is drawn anew for each chain, uniformly within 20 %, so
    that no orbit closes in ten steps; coordinates move in proportion to the prior's scale.

    Args:
        joint: The density.
        point: Where the chains are.
        power: The inverse temperature b.
        step_size: For each datum, ``(N,)``.

    Returns:
        Where they are then, and the probability with which they moved, ``(R, N)``.
    """
    jitter = 0.8 + 0.4 * torch.rand_like(point.log_prior)
    stride = ((step_size * jitter).unsqueeze(-1) * joint.scale).to(point.u)
    momentum = torch.randn_like(point.u)
    energy = _log_density(point, power) - momentum.square().sum(-1) / 2
    momentum = momentum + stride / 2 * _slope(point, power)
    u = point.u + stride * momentum
    for _ in range(NUM_LEAPFROGS - 1):
        momentum = momentum + stride * _slope_at(joint, u, power)
        u = u + stride * momentum
    end = point_at(joint, u)
    momentum = momentum + stride / 2 * _slope(end, power)
    change = _log_density(end, power) - momentum.square().sum(-1) / 2 - energy
    # A trajectory that diverged to where nothing is defined is one that is not accepted.
    accepted = change.exp().clamp(max=1.0).nan_to_num(0.0)
    moved = torch.rand_like(accepted) < accepted
    chosen = [
        torch.where(moved if new.dim() == 2 else moved.unsqueeze(-1), new, old)
        for new, old in zip(end, point, strict=True)
    ]
    return Point(*chosen), accepted


def sigmoid_schedule(num_steps: int) -> list[float]:
    r"""Inverse temperatures from 0 to 1, close together at both ends.

    .. math:: b_t = \frac{\tilde b_t - \tilde b_0}{\tilde b_T - \tilde b_0}, \quad
              \tilde b_t = \operatorname{sigmoid}(4 (2t/T - 1))

    Example:
        >>> [round(power, 3) for power in sigmoid_schedule(4)]
        [0.0, 0.105, 0.5, 0.895, 1.0]

    References:
        Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using
        bidirectional Monte Carlo. https://arxiv.org/abs/1511.02543
    """
    raw = [1 / (1 + math.exp(-4 * (2 * t / num_steps - 1))) for t in range(num_steps + 1)]
    return [(value - raw[0]) / (raw[-1] - raw[0]) for value in raw]


def pilot_step_sizes(joint: RealJoint, num_steps: int, num_chains: int) -> Tensor:
    """Step sizes for each temperature after the first and each datum, ``(T, N)``.

    Chains of their own run through the schedule in a fifth of the steps, 20 at least, from the
    prior, and move the log step size towards the wanted acceptance as they go. What they find is
    then frozen: step sizes that adapt to the chains they drive would make the bound none.

    Args:
        joint: The density.
        num_steps: Number T of steps of the run to come.
        num_chains: Number of chains at each datum.
    """
    powers = sigmoid_schedule(max(20, num_steps // 5))
    point = point_at(joint, joint.prior_draws(num_chains))
    log_size = joint.scale.new_full((joint.num_data,), -0.25 * math.log(16 * joint.num_dims))
    found = []
    for power in [0.0] * WARM_UP + powers[1:]:
        point, accepted = transition(joint, point, power, log_size.exp())
        change = accepted.double().mean(0) - TARGET_ACCEPTANCE
        log_size = log_size + LEARNING_RATE * change
        found.append(log_size)
    sizes = torch.stack(found[WARM_UP:]).t().unsqueeze(1)  # (N, 1, T')
    edge = SMOOTHING // 2
    smooth = torch.nn.functional.avg_pool1d(
        torch.nn.functional.pad(sizes, (edge, edge), mode="replicate"), SMOOTHING, stride=1
    )
    whole = torch.nn.functional.interpolate(smooth, size=num_steps, mode="linear")
    return whole.squeeze(1).t().exp()


def _log_density(point: Point, power: float) -> Tensor:
    return point.log_prior.double() + power * point.log_likelihood.double()


def _slope_at(joint: RealJoint, u: Tensor, power: float) -> Tensor:
    """What :func:`_slope` is at a point, by one pass backward instead of two."""
    slopes = []
    for part in _chunks(joint, u):
        with torch.enable_grad():
            place = part.detach().requires_grad_()
            log_prior, log_likelihood = joint(place)
            (slope,) = torch.autograd.grad((log_prior + power * log_likelihood).sum(), place)
        slopes.append(slope)
    return torch.cat(slopes)


def _slope(point: Point, power: float) -> Tensor:
    return point.prior_slope + power * point.likelihood_slope
