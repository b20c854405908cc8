"""Flows: a diagonal normal pushed through steps that mix its coordinates."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.autoregressive import affine_steps

from .family import Family
from .normal import DiagonalNormal, IsotropicNormal

__all__ = ["Flow"]


class Flow(Family):
    r"""Autoregressive flow: a diagonal normal pushed through T invertible steps.

    .. math:: z_0 = \mu + \sigma \odot \varepsilon, \quad z_t = T_t(z_{t-1}; h), \qquad
              \log q(z_T) = \log q_0(z_0) - \sum_t \log\Big|\det \frac{\partial z_t}
              {\partial z_{t-1}}\Big|

    Steps are Pyro's conditional transforms. Coordinate i of a step depends on the coordinates
    before it, and the order is reversed from step to step. The networks of the steps are shared by
    all data and belong to the family; what differs from datum to datum are the first k parameters
    :math:`\mu`, the next k, :math:`\rho` of :math:`\sigma` (see :class:`Family`), and the context
    h. A new flow is the diagonal normal.

    A draw and its log density take one pass. The density of any other value needs the inverse, one
    pass for each coordinate. There is no closed form for entropy, KL or mean.

    Args:
        latent_dim: Dimension k of z.
        num_steps: Number T of steps.
        hidden: Widths of the hidden layers of each step's network.
        context_dim: Length of h.
        steps: ``affine_steps`` for inverse autoregressive flow, whose single step can be any
            normal with full covariance; ``spline_steps`` for monotone rational splines.
        min_scale: Floor of :math:`\sigma`, positive.
        max_scale: Ceiling of :math:`\sigma`.

    Raises:
        ValueError: If a size is not a positive integer, or the bounds are none.

    Example:
        >>> family = Flow(3, num_steps=2, context_dim=4)
        >>> family.num_params
        10
        >>> q, p = family(torch.ones(5, 10)), DiagonalNormal(3)(torch.ones(5, 6))
        >>> torch.allclose(q.log_prob(torch.zeros(5, 3)), p.log_prob(torch.zeros(5, 3)))
        True

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        equations 9 and 10. https://arxiv.org/abs/1606.04934
        Durkan, Bekasov, Murray and Papamakarios (2019), Neural spline flows.
        https://arxiv.org/abs/1906.04032
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        num_steps: int = 2,
        hidden: Sequence[int] = (64,),
        context_dim: int = 16,
        steps: Callable[..., nn.ModuleList] = affine_steps,
        min_scale: float = 1e-4,
        max_scale: float = 1e3,
    ) -> None:
        super().__init__(latent_dim, min_scale=min_scale, max_scale=max_scale)
        k = self.event_shape[0]
        self.context_dim = positive_integer(context_dim, "context_dim")
        self.num_params = 2 * k + self.context_dim
        self.steps = steps(k, num_steps=num_steps, hidden=hidden, context_dim=self.context_dim)

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""
        self._check_params(params)
        k = self.event_shape[0]
        loc, raw_scale, context = params.split([k, k, self.context_dim], dim=-1)
        base = dist.Normal(loc, self._scale(raw_scale)).to_event(1)
        return dist.TransformedDistribution(base, self._transforms(context))

    def embedding(self, other: Family) -> tuple[Tensor, Tensor]:
        """Contains the diagonal and the isotropic family, while its steps are the identity."""
        k = self.event_shape[0]
        diagonal = DiagonalNormal(k, min_scale=self.min_scale, max_scale=self.max_scale)
        if isinstance(other, DiagonalNormal) and self._has_scales_of(other):
            first = torch.eye(2 * k, device="cpu")
        elif isinstance(other, IsotropicNormal) and self._has_scales_of(other):
            first, _ = diagonal.embedding(other)
        else:
            return super().embedding(other)
        if not self._is_identity():
            raise ValueError(
                "family must be a new flow, whose steps are the identity, to start where "
                f"{type(other).__name__} is; got {self} with other steps. Affine steps start so."
            )
        none = torch.zeros(self.context_dim, first.shape[1], device="cpu")
        return torch.cat([first, none]), torch.zeros(self.num_params, device="cpu")

    def _transforms(self, context: Tensor) -> list[Any]:
        steps: Any = self.steps
        return [step.condition(context) for step in steps]

    def _is_identity(self) -> bool:
        params = next(self.steps.parameters())
        points = torch.linspace(-3.0, 3.0, 7, dtype=params.dtype, device=params.device)
        z = points.unsqueeze(-1).expand(7, self.event_shape[0])
        with torch.no_grad():
            moved = z
            for transform in self._transforms(z.new_zeros(7, self.context_dim)):
                moved = transform(moved)
        return bool((moved - z).abs().max() < 1e-6)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{super().extra_repr()}, context_dim={self.context_dim}"
