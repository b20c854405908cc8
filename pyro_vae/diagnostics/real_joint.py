"""The joint density as a function of real coordinates, whatever the latent sites' supports."""

import math
from typing import Any, cast

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.traces import CHUNK_SIZE, JointDensity, Programs

__all__ = ["RealJoint"]

SUPPORTS: tuple[Any, ...] = (
    type(constraints.positive),
    type(constraints.nonnegative),
    type(constraints.less_than(0.0)),
    type(constraints.unit_interval),
    type(constraints.half_open_interval(0.0, 1.0)),
)
"""Supports whose coordinates map to the line one by one."""


class RealJoint:
    r"""Log p(z) and log p(x|z) in coordinates u that take all real values, :math:`z = T(u)`.

    .. math:: \log p_u(u) = \log p(T(u)) + \log |\det T'(u)|

    A coordinate with values on the line is its own u; a positive one is :math:`e^u`, one in an
    interval a logistic function of u. The evidence is the same in both.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``.
        chunk_size: Rows times points that go through the model at once, but at least N.

    Attributes:
        chunk_size: The same.
        joint: The density of z: sites side by side, as :class:`~pyro_vae.traces.JointDensity` has
            them.
        num_data: Number N of data.
        num_dims: Length K of u.
        center: Medians of u under the prior, ``(N, K)``, in double precision, from 256 draws.
        scale: Half the distance of its quantiles of 16 % and 84 %, ``(N, K)``.

    Raises:
        ValueError: If a latent site is discrete, or its support is none that maps to the line.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> joint = RealJoint(vae, torch.zeros(5, 3))
        >>> log_prior, _ = joint(torch.zeros(7, 5, 2))
        >>> round(log_prior[0, 0].item(), 4), joint.scale.shape  # -log(2 pi)
        (-1.8379, torch.Size([5, 2]))
    """

    def __init__(self, programs: Programs, x: Tensor, *, chunk_size: int = CHUNK_SIZE) -> None:
        self.joint = JointDensity(programs, x, chunk_size=chunk_size)
        self.chunk_size = chunk_size
        self.num_data, self.num_dims = self.joint.num_data, self.joint.num_dims
        runs = self.joint.runs
        other = runs.new_prior_trace()
        self._parts: list[tuple[int, Any]] = []
        for name in runs.latent:
            site, again = (
                cast(Any, trace.nodes[name])["fn"] for trace in (runs.model_trace, other)
            )
            self._parts.append((math.prod(site.event_shape), _to_support(name, site, again)))
        self._sizes = [size for size, _ in self._parts]
        self._is_real = all(transform is None for _, transform in self._parts)
        draws = self.to_real(self.joint.prior_draws(NUM_DRAWS)).double()
        low, self.center, high = torch.quantile(draws, draws.new_tensor([0.16, 0.5, 0.84]), dim=0)
        self.scale = ((high - low) / 2).clamp(min=torch.finfo(draws.dtype).tiny)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density of u under the prior and log p(x|z), each ``(R, N)``, at ``(R, N, K)``."""
        if self._is_real:
            return self.joint(u)
        z, log_volume = self.to_values(u)
        log_prior, log_likelihood = self.joint(z)
        return log_prior + log_volume, log_likelihood

    def to_values(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Z = T(u), ``(..., K)``, and the log of its volume factor, ``(...)``."""
        values, log_volume = [], u.new_zeros(u.shape[:-1])
        for part, (_, transform) in zip(u.split(self._sizes, -1), self._parts, strict=True):
            values.append(part if transform is None else transform(part))
            if transform is not None:
                log_volume = log_volume + transform.log_abs_det_jacobian(part, values[-1]).sum(-1)
        return torch.cat(values, -1), log_volume

    def to_real(self, z: Tensor) -> Tensor:
        """The reverse of :meth:`to_values`, without the volume."""
        parts = zip(z.split(self._sizes, -1), self._parts, strict=True)
        return torch.cat([v if t is None else t.inv(v) for v, (_, t) in parts], -1)

    def prior_draws(self, num_draws: int) -> Tensor:
        """Draws of u from the prior, ``(R, N, K)``."""
        return self.to_real(self.joint.prior_draws(num_draws))

    def guide_draws(self, num_draws: int) -> Tensor:
        """Draws of u from the guide, ``(R, N, K)``."""
        return self.to_real(self.joint.guide_draws(num_draws))


NUM_DRAWS = 256
"""Draws from the prior that say where it lies; no result depends on more than their order."""


def _to_support(name: str, fn: Any, again: Any) -> Any:
    """The elementwise map from the line to a distribution's support; None for the line itself.

    ``again`` is the distribution in another run: bounds that depend on other sites have no map
    that serves all draws.
    """
    support = _base(fn.support)
    if support in {constraints.real, constraints.real_vector}:
        return None
    bounds = [
        set(map(float, _bounds(one))) for one in zip(*map(_values, (fn, again)), strict=True)
    ]
    if not isinstance(support, SUPPORTS) or any(len(values) != 1 for values in bounds):
        raise ValueError(
            f"latent site {name!r} must take all real values, or values above, below or between "
            f"fixed bounds; got {type(fn).__name__} with support {support}."
        )
    return biject_to(type(support)(*(values.pop() for values in bounds)))


def _base(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _values(fn: Any) -> list[Any]:
    """Bounds of a support, in the order in which its class takes them."""
    return list(vars(_base(fn.support)).values())


def _bounds(values: tuple[Any, ...]) -> list[float]:
    return [v for value in values for v in torch.as_tensor(value, device="cpu").flatten().tolist()]
