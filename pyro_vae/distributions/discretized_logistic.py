"""The logistic distribution, rounded to a grid of levels."""

from typing import Any, Self

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional

from .expandable import Expandable

__all__ = ["DiscretizedLogistic", "LevelGrid"]

# How far from a level a value may be, in steps of the grid: far more than rounding of j / 255 in
# float32 (1e-5 of a step), and than that of j / 65535 (4e-3).
TOLERANCE = 0.01


class LevelGrid(constraints.Constraint):
    r"""The numbers j / (L - 1), j = 0, ..., L - 1, up to rounding.

    Args:
        levels: Number L of levels.

    Example:
        >>> LevelGrid(5).check(torch.tensor([0.0, 0.25, 0.3, 1.25]))
        tensor([ True,  True, False, False])
    """

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Which values lie on the grid."""
        level = value * (self.levels - 1)
        nearest = level.round()
        is_level = (nearest >= 0) & (nearest <= self.levels - 1)
        return is_level & ((level - nearest).abs() <= TOLERANCE)


class DiscretizedLogistic(Expandable):
    r"""Levels :math:`x_j = j / (L - 1)` with the masses of a logistic distribution in their bins.

    With the half width :math:`h = \frac{1}{2 (L - 1)}` of a bin, :math:`a = (x + h - \mu) / s` and
    :math:`b = (x - h - \mu) / s`,

    .. math:: \log p(x) = \log(\sigma(a) - \sigma(b))
              = \log\sigma(a) + \log\sigma(-b) + \log(1 - e^{-(a - b)})

    where :math:`a - b = 2h / s` holds no difference of large numbers. The first bin reaches to
    :math:`-\infty`, the last to :math:`\infty`, so the masses sum to one: they are
    :math:`\sigma(a)` and :math:`\sigma(-b)`.

    ``mean`` and ``variance`` are those of the discrete distribution, not of the logistic one.

    Args:
        loc: :math:`\mu`, in units of x, shape ``batch_shape``.
        scale: s > 0, in units of x; broadcasts to ``batch_shape``.
        levels: Number L of levels, at least 2.

    Example:
        >>> p = DiscretizedLogistic(torch.tensor(0.5), torch.tensor(0.5), levels=3)
        >>> p.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()  # sigma(-.5), the rest, sigma(-.5)
        tensor([0.3775, 0.2449, 0.3775])
        >>> p.mean
        tensor(0.5000)

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        section 5.2. https://arxiv.org/abs/1606.04934

        Salimans et al. (2017), PixelCNN++, section 2.1. https://arxiv.org/abs/1701.05517
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self, loc: Tensor, scale: Tensor, *, levels: int, validate_args: bool | None = None
    ) -> None:
        if levels < 2:
            raise ValueError(f"levels must be at least 2; got {levels}.")
        shape = torch.broadcast_shapes(loc.shape, scale.shape)
        self.loc, self.scale, self.levels = loc.expand(shape), scale, levels
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> LevelGrid:
        """The levels."""
        return LevelGrid(self.levels)

    def _expanded(self, batch_shape: torch.Size) -> Self:
        loc = self.loc.expand(batch_shape)
        return type(self)(loc, self.scale, levels=self.levels, validate_args=False)

    @property
    def mean(self) -> Tensor:
        r"""Mean of the discrete distribution, shape ``batch_shape``.

        In steps of the grid it is :math:`\sum_{i \ge 1} P(j \ge i)`.
        """
        steps = self.levels - 1
        loc, scale = self.loc * steps, self.scale * steps
        total = torch.zeros_like(loc)
        for level in range(1, self.levels):
            total = total + ((loc - (level - 0.5)) / scale).sigmoid()
        return total / steps

    @property
    def variance(self) -> Tensor:
        """Variance of the discrete distribution, shape ``batch_shape``."""
        steps = self.levels - 1
        loc, scale = self.loc * steps, self.scale * steps
        # Moments of j - c about the level c next to the location, from the tails on either side
        # of it, so that they are no differences of large numbers.
        center = loc.round().clamp(0, steps)
        first = second = torch.zeros_like(loc)
        for level in range(1, self.levels):
            above = center < level
            distance = (loc - (level - 0.5)) / scale
            tail = torch.where(above, distance, -distance).sigmoid()
            first = first + torch.where(above, tail, -tail)
            second = second + (2 * (level - center) - 1).abs() * tail
        return (second - first.square()) / steps**2

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``sample_shape + batch_shape``, on the grid."""
        shape = self._extended_shape(torch.Size(sample_shape))
        steps = self.levels - 1
        with torch.no_grad():
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.scale * (u.log() - (-u).log1p())
            return (x * steps).round().clamp(0, steps) / steps

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (self.levels - 1)
        distance = value - self.loc
        below_upper_edge = functional.logsigmoid((distance + half) / self.scale)
        above_lower_edge = functional.logsigmoid((half - distance) / self.scale)
        width = (-torch.expm1(-2 * half / self.scale)).log()
        is_first, is_last = value < half, value > 1 - half
        return (
            torch.where(is_last, 0.0, below_upper_edge)
            + torch.where(is_first, 0.0, above_lower_edge)
            + torch.where(is_first | is_last, 0.0, width)
        )
