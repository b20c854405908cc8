"""The prior that is a flow: N(0, I) pushed through invertible steps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.autoregressive import affine_steps
from pyro_vae.distributions import DistributionModule

__all__ = ["FlowPrior"]


class FlowPrior(DistributionModule):
    r"""Masked autoregressive flow: N(0, I) pushed through the inverses of T steps.

    .. math:: \log p(z) = \log \mathcal N(u; 0, I) + \sum_{t=1}^T \log |\det J_t|, \qquad
              u = T_1(\cdots T_T(z))

    where :math:`J_t` is the Jacobian of step :math:`T_t`. The density, which training wants at the
    guide's draws, costs one pass through each step; a draw costs k, coordinate by coordinate. The
    steps start as the identity, so p(z) starts as N(0, I).

    There is no closed form for the KL from a guide: it is estimated from draws.

    Args:
        latent_dim: Dimension k of z.
        num_steps: Number T of steps.
        hidden: Widths of the hidden layers of each step's network, each at least ``latent_dim``.
        steps: Makes the steps: ``affine_steps``, ``spline_steps``, or a ``functools.partial`` of
            one with options of its own.

    Attributes:
        steps: The steps, modules :class:`~pyro_vae.autoregressive.FlowStep`.

    Raises:
        ValueError: If a size is not positive, or ``hidden`` is too narrow.

    Example:
        >>> p = FlowPrior(2)()
        >>> p.batch_shape, p.event_shape
        (torch.Size([]), torch.Size([2]))
        >>> round(p.log_prob(torch.zeros(2)).item(), 4)  # -log(2 pi)
        -1.8379

    References:
        Papamakarios, Pavlakou and Murray (2017), Masked autoregressive flow for density
        estimation, section 3. https://arxiv.org/abs/1705.07057
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        num_steps: int = 2,
        hidden: Sequence[int] = (64,),
        steps: Callable[..., nn.ModuleList] = affine_steps,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size([positive_integer(latent_dim, "latent_dim")])
        self.steps = steps(latent_dim, num_steps=num_steps, hidden=hidden)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> dist.TransformedDistribution:
        """Distribution with batch shape ``()`` and event shape ``(k,)``."""
        base = dist.Normal(self.loc, self.scale).to_event(1)
        steps: Any = self.steps
        return dist.TransformedDistribution(base, [step.condition().inv for step in steps])

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"latent_dim={self.event_shape[0]}"
