"""The joint density at points of several data, on a scale where heavy tails end soon."""

import math
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from pyro_vae.diagnostics.real_joint import RealJoint

from .prior_components import PriorComponents

__all__ = ["WarpedJoint"]

NUM_PRIOR_DRAWS = 512
"""Draws from the prior, of which the best are places to start from."""

NEAR, FAR = 2.0, 8.0
"""Standard deviations from a component's mean at which to look, and where it ends."""


class WarpedJoint:
    r"""Log p(x, u) as a density of w, :math:`u = m + s \sinh w`, at points of any of N data.

    Median m and scale s are those of the prior, so that w is of order 1 for whatever prior, and a
    tail that falls like a power of u falls exponentially in w.

    Args:
        joint_of: From row numbers ``(n,)`` to the joint density of those rows.
        num_data: Number N of data.
        components: Components of the prior where it is a mixture.
        points_at_a_time: Points that go through the model at once.
        device: Where the data live.

    Attributes:
        num_dims: Length K of w.
        dtype: Type in which the programs compute.
        center: m, ``(N, K)``.
        scale: s, ``(N, K)``.
        reach: Largest \|w\| at which a component of a mixture prior ends; 0 without components.
    """

    def __init__(
        self,
        joint_of: Callable[[Tensor], RealJoint],
        num_data: int,
        *,
        components: PriorComponents | None,
        points_at_a_time: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._joint_of, self._points, self.dtype = joint_of, points_at_a_time, dtype
        self._components = components
        self._rows = torch.arange(num_data, device=device)
        self._slot = self._rows.clone()
        self._joint = joint_of(self._rows)
        self.num_data, self.num_dims = num_data, self._joint.num_dims
        self.center, self.scale = self._joint.center, self._joint.scale
        self.reach = 0.0
        if components is not None:
            self.reach = float(self._of_components(components, FAR).abs().max())

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

    def starts(self, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Likely points, ``(R, N, K)``, log densities and strides of a search, ``(R, N)`` each.

        Draws from q, the best draws from p, and the best means of components of the prior.
        """
        prior = self.warped(self._joint.prior_draws(NUM_PRIOR_DRAWS).double())
        guide = self.warped(self._joint.guide_draws(num_draws).double())
        found = [self._best(guide, num_draws), self._best(prior, num_draws)]
        strides = [torch.full_like(values, 0.25) for _, values in found]
        if self._components is not None:
            points = self._of_components(self._components, NEAR)
            means, *around = points.chunk(1 + 2 * self.num_dims)
            stride = torch.stack([(point - means).abs().amax(-1) for point in around]).amin(0)
            places, values = self._best(torch.cat([means, stride.unsqueeze(-1)], -1), num_draws)
            found.append((places[..., :-1], values))
            strides.append(places[..., -1] / NEAR)
        places, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        return places, values, torch.cat(strides)

    def component_points(self) -> tuple[Tensor, Tensor]:
        """Means of components of the prior and points near them, as :meth:`starts` has points."""
        if self._components is None:
            nowhere = self.center.new_empty(0, *self.center.shape)
            return nowhere, nowhere[..., 0]
        points = self._of_components(self._components, NEAR)
        return points, self.at_draws(points)

    def prior_log_weights(self) -> Tensor:
        """Log p(x|z) at draws from the prior, ``(R, N)``: the mean of p(x|z) is p(x)."""
        draws = self._joint.prior_draws(NUM_PRIOR_DRAWS)
        at_once = max(1, self._points // len(self._rows))
        return torch.cat([self._joint(part)[1].double() for part in draws.split(at_once)])

    def warped(self, u: Tensor) -> Tensor:
        """The points w, ``(..., N, K)``, of real coordinates."""
        return torch.asinh((u - self.center) / self.scale)

    def _best(self, w: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
        """The points with the largest densities; what is beside the coordinates comes along."""
        values = self.at_draws(w[..., : self.num_dims])
        top = values.topk(min(num_draws, len(values)), dim=0)
        which = top.indices.unsqueeze(-1).expand(-1, -1, w.shape[-1])
        return w.gather(0, which), top.values

    def _of_components(self, components: PriorComponents, num_sds: float) -> Tensor:
        """Points of components; their means where points are outside the support."""
        u = self._joint.to_real(components.points(num_sds))
        w = self.warped(u)
        means = w[: len(components.mean)].nan_to_num(0.0, posinf=0.0, neginf=0.0)
        return torch.where(w.isfinite(), w, means.repeat(len(w) // len(means), 1, 1))

    def at_draws(self, w: Tensor) -> Tensor:
        """Log density, ``(R, N)``, at ``w`` of shape ``(R, N, K)``."""
        owner = self._rows.repeat_interleave(len(w))
        values = self(owner, w.transpose(0, 1).flatten(0, 1))
        return values.view(self.num_data, len(w)).t()
