"""The potential energy of one datum's posterior, made quick enough for a Markov chain."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.diagnostics.real_joint import RealJoint
from pyro_vae.traces.runs import agree

__all__ = ["potential_energy"]

Energy = Callable[[Tensor], tuple[Tensor, Tensor]]


def potential_energy(joint: RealJoint, points: Tensor) -> Callable[[Tensor], Tensor]:
    r"""Minus log p(x, u) of one datum, as a function of u alone, with its gradient.

    A chain takes thousands of steps through the same programs, most of whose time goes into Pyro's
    handlers. So value and gradient are recorded once, as a graph of tensor operations, at the
    first of some points; where the graph does not repeat the programs at all of them, as with
    branches that depend on values, the programs themselves are run.

    Args:
        joint: Density of one datum.
        points: Points u to record and to check at, ``(R, K)``.

    Returns:
        A function from ``(K,)`` to a scalar in nats, which autograd can differentiate once.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> joint = RealJoint(vae, torch.zeros(1, 3))
        >>> u = torch.zeros(2)
        >>> energy = potential_energy(joint, u.unsqueeze(0))
        >>> bool(energy(u) == -sum(joint(u.expand(1, 1, 2))))
        True
    """

    def run(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            log_prior, log_likelihood = joint(u.reshape(1, 1, -1))
            value = -(log_prior + log_likelihood).sum()
            (gradient,) = torch.autograd.grad(value, u)
        return value.detach(), gradient

    # A check of values would be a branch that depends on them.
    with pyro.validation_enabled(False):  # noqa: FBT003
        energy = _recorded(run, points) or run
    return lambda u: _WithGradient.apply(u, energy)


def _recorded(run: Energy, points: Tensor) -> Energy | None:
    """The graph of ``run``; None where it does not repeat it."""
    try:
        graph: Any = make_fx(run)(points[0])
        graph.graph.eliminate_dead_code()
        graph.recompile()
        for u in points:
            pairs = zip(graph.forward(u), run(u), strict=True)
            if not all(agree(one, other) for one, other in pairs):
                return None
    except Exception:  # whatever it is: a fault of the programs shows again when they are run
        return None
    return graph.forward


class _WithGradient(torch.autograd.Function):
    """A value whose gradient was computed with it."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, energy: Energy) -> Tensor:
        value, gradient = energy(u)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None
