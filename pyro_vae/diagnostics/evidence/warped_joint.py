"""The joint density at points of several data, on a scale where heavy tails end soon."""

import math
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from pyro_vae.diagnostics.real_joint import RealJoint

__all__ = ["WarpedJoint"]


class WarpedJoint:
    r"""Log p(x, u) as a density of w, :math:`u = m + s \sinh w`, at points of any of N data.

    Median m and scale s are those of the prior, so that w is of order 1 for whatever prior, and a
    tail that falls like a power of u falls exponentially in w.

    Args:
        joint_of: From row numbers ``(n,)`` to the joint density of those rows.
        num_data: Number N of data.
        points_at_a_time: Points that go through the model at once.
        device: Where the data live.

    Attributes:
        num_dims: Length K of w.
        dtype: Type in which the programs compute.
        center: m, ``(N, K)``.
        scale: s, ``(N, K)``.
    """

    def __init__(
        self,
        joint_of: Callable[[Tensor], RealJoint],
        num_data: int,
        *,
        points_at_a_time: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._joint_of, self._points, self.dtype = joint_of, points_at_a_time, dtype
        self._rows = torch.arange(num_data, device=device)
        self._slot = self._rows.clone()
        self._joint = joint_of(self._rows)
        self.num_data, self.num_dims = num_data, self._joint.num_dims
        self.center, self.scale = self._joint.center, self._joint.scale

    def keep(self, rows: Tensor) -> None:
        """Say that points of other data than these row numbers will not be asked for."""
        if 2 * len(rows) > len(self._rows):
            return
        self._rows = rows
        self._slot[rows] = torch.arange(len(rows), device=rows.device)
        self._joint = self._joint_of(rows)

    def __call__(self, owner: Tensor, w: Tensor) -> Tensor:
        """Log density, ``(P,)``, in double precision, at ``w`` of shape ``(P, K)``.

        NaN, as of an overflow far out, counts as density 0.

        Args:
            owner: Row number of each point, ``(P,)``, ascending.
            w: The points.

        Raises:
            ValueError: If a density is infinite.
        """
        slot = self._slot[owner]
        count = torch.bincount(slot, minlength=len(self._rows))
        rank = torch.arange(len(slot), device=slot.device) - (count.cumsum(0) - count)[slot]
        u = self.unwarped(owner, w)
        values = u.new_empty(len(u))
        draws = max(1, self._points // len(self._rows))
        with pyro.validation_enabled(is_validate=False):  # far out a network may overflow
            for first in range(0, int(count.max()), draws):
                here = ((rank >= first) & (rank < first + draws)).nonzero().squeeze(1)
                size = min(draws, int(count.max()) - first)
                z = self.center[self._rows].expand(size, -1, -1).clone()
                z[rank[here] - first, slot[here]] = u[here]
                log_prior, log_likelihood = self._joint(z.to(self.dtype))
                log_joint = log_prior.double() + log_likelihood.double()
                values[here] = log_joint[rank[here] - first, slot[here]]
        values = torch.where(values.isnan(), -math.inf, values)
        if (values == math.inf).any():
            raise ValueError("the joint density must be finite everywhere; got an infinite value.")
        log_slope = w.abs() + torch.log1p(torch.exp(-2 * w.abs())) - math.log(2)  # log cosh w
        return values + (self.scale[owner].log() + log_slope).sum(-1)

    def unwarped(self, owner: Tensor, w: Tensor) -> Tensor:
        """The real coordinates u, ``(P, K)``, of points."""
        return self.center[owner] + self.scale[owner] * torch.sinh(w)

    def latent_values(self, owner: Tensor, w: Tensor) -> Tensor:
        """The latent values z, ``(P, K)``, of points."""
        return self._joint.to_values(self.unwarped(owner, w))[0]

    def starts(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Likely points, ``(R, N, K)``, and log densities: draws from q and the best from p."""
        prior = self._joint.prior_draws(16 * num_draws)
        draws = torch.cat([self._joint.guide_draws(num_draws), prior]).double()
        w = torch.asinh((draws - self.center) / self.scale)
        values = self.at_draws(w)
        best = values[num_draws:].topk(num_draws, dim=0).indices + num_draws
        first = torch.arange(num_draws, device=best.device).unsqueeze(1).expand_as(best)
        which = torch.cat([first, best])
        chosen = w.gather(0, which.unsqueeze(-1).expand(-1, -1, self.num_dims))
        return chosen, values.gather(0, which)

    def at_draws(self, w: Tensor) -> Tensor:
        """Log density, ``(R, N)``, at ``w`` of shape ``(R, N, K)``."""
        owner = self._rows.repeat_interleave(len(w))
        values = self(owner, w.transpose(0, 1).flatten(0, 1))
        return values.view(self.num_data, len(w)).t()
