"""Normal observations whose variance all rows share, written so that nothing is wasted."""

import math
from typing import Any, Self

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import _standard_normal

from .expandable import Expandable

__all__ = ["SharedVarianceNormal"]

LOG_2PI = math.log(2 * math.pi)


class SharedVarianceNormal(Expandable):
    r"""Normal observations whose variance is shared by all rows: :math:`\mathcal N(x; \mu, c I)`.

    .. math:: \log p(x) = -\tfrac12 \sum_{j=1}^n \Big(\frac{(x_j - \mu_j)^2}{c_j}
              + \log 2\pi c_j\Big)

    ``Normal(loc, c.sqrt()).to_event()`` is the same density; it spreads :math:`c` over every
    element of every row first and takes as many logarithms. Here the log variance is taken once.

    Args:
        loc: Mean, shape ``batch_shape + event_shape``.
        variance: :math:`c > 0` in squared units of x, a number or a tensor that broadcasts to
            ``event_shape``.
        event_dim: Number of trailing dimensions of ``loc`` that make up one event.

    Example:
        >>> p = SharedVarianceNormal(torch.zeros(5, 2), 0.25, event_dim=1)
        >>> p.batch_shape, p.event_shape
        (torch.Size([5]), torch.Size([2]))
        >>> round(p.log_prob(torch.zeros(5, 2))[0].item(), 4)  # -log(2 pi c), n = 2
        -0.4516
    """

    arg_constraints = {"loc": constraints.real, "variance": constraints.dependent}
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        variance: Tensor | float,
        *,
        event_dim: int,
        validate_args: bool | None = None,
    ) -> None:
        split = loc.dim() - event_dim
        if split < 0:
            raise ValueError(
                f"loc must have at least event_dim = {event_dim} dimensions; got shape "
                f"{tuple(loc.shape)}."
            )
        self.loc = loc
        self._variance = variance
        # Part of a shape is a plain tuple where a tensor traces its origin (TraceGraph_ELBO).
        batch_shape, event_shape = torch.Size(loc.shape[:split]), torch.Size(loc.shape[split:])
        super().__init__(batch_shape, event_shape, validate_args=validate_args)
        if self._validate_args:
            positive = variance > 0
            if not (bool(positive.all()) if isinstance(positive, Tensor) else positive):
                raise ValueError(f"variance must be positive; got {variance}.")

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Real vectors (or arrays) of the event shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """Mean, ``batch_shape + event_shape``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of each element, ``batch_shape + event_shape``."""
        return torch.zeros_like(self.loc) + self._variance

    def _expanded(self, batch_shape: torch.Size) -> Self:
        if batch_shape == self.batch_shape:  # what a plate asks of a row for each datum
            return self
        loc = self.loc.expand(batch_shape + self.event_shape)
        event_dim = len(self.event_shape)
        return type(self)(loc, self._variance, event_dim=event_dim, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws, ``sample_shape + batch_shape + event_shape``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        c = self._variance
        return self.loc + (c.sqrt() if isinstance(c, Tensor) else math.sqrt(c)) * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, all constants kept, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        num_features = self.event_shape.numel()
        constant = -0.5 * num_features * LOG_2PI
        # In this order the gradient goes back to loc as it is, in the other negated.
        r = self.loc - value
        if len(self.event_shape) != 1:
            r = r.reshape(*r.shape[: r.dim() - len(self.event_shape)], num_features)
        c = self._variance
        if not isinstance(c, Tensor):
            constant -= 0.5 * num_features * math.log(c)
            return torch.linalg.vecdot(r, r) * (-0.5 / c) + constant
        if c.dim() > 0:
            c = c.expand(self.event_shape).flatten()
            return (c.log().sum() * -0.5 + constant).sub((r.square() / c).sum(-1), alpha=0.5)
        log_norm = c.log() * (-0.5 * num_features) + constant
        return log_norm.addcdiv(torch.linalg.vecdot(r, r), c, value=-0.5)

    def log_prob_of_entries(self, value: Tensor) -> Tensor:
        """Log density of each element of x in nats, ``batch_shape + event_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        squares, c = (self.loc - value).square(), self._variance
        log_c = c.log() if isinstance(c, Tensor) else math.log(c)
        return (squares / c + (log_c + LOG_2PI)) * -0.5
