"""Pyro's autoregressive transforms, with their faults mended."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor
from torch.distributions.transforms import Transform, _InverseTransform

__all__ = ["Affine", "BoundedSpline", "Spline"]

# Scales of an affine step lie between exp(-5) and exp(5), so that a chain of them cannot overflow.
MAX_LOG_SCALE = 5.0
# Slopes at the knots of a spline lie between exp(-3) and exp(3) ...
MAX_LOG_SLOPE = 3.0
# ... and no bin is narrower or lower than this share of the mean one.
MIN_BIN = 0.1


class _OwnPair:
    """Mixin of a Pyro transform that forgets a remembered pair which a computation would not give.

    Pyro takes the pair of its last call for every later one with the same tensor. After a draw
    without a graph, or one changed in place, that is wrong, and gradients vanish without a word.
    """

    _cached_x_y: tuple[Any, Any]
    _noted: Any = None

    @property
    def inv(self) -> Transform:
        """The inverse, a new one each time.

        The one that torch keeps and this transform would hold each other, and with them the graph
        of a training step until Python looks for such cycles.
        """
        this: Any = self
        return _InverseTransform(this)

    def __call__(self, x: Tensor) -> Tensor:
        self._forget_if_stale()
        y: Tensor = super().__call__(x)  # type: ignore[misc]
        self._note()
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        self._forget_if_stale()
        x: Tensor = super()._inv_call(y)  # type: ignore[misc]
        self._note()
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the Jacobian's absolute determinant, without the last dimension."""
        self._forget_if_stale()
        log_det: Tensor = super().log_abs_det_jacobian(x, y)  # type: ignore[misc]
        return log_det

    def _note(self) -> None:
        pair = self._cached_x_y
        if self._noted is None or self._noted[0] is not pair:
            self._noted = pair, _states(pair), torch.is_grad_enabled()

    def _forget_if_stale(self) -> None:
        if self._noted is not None:
            pair, states, has_graph = self._noted
            if states != _states(pair) or (torch.is_grad_enabled() and not has_graph):
                self._cached_x_y, self._noted = (None, None), None


def _states(pair: tuple[Any, Any]) -> list[tuple[int, bool]]:
    # Tensors made in inference mode count no versions.
    return [(0 if t.is_inference() else t._version, t.requires_grad) for t in pair]


class Affine(_OwnPair, transforms.AffineAutoregressive):
    """Pyro's affine transform, whose inverse is of the type of its argument.

    Pyro's is of torch's default type, which a network of another type refuses; and it cuts the log
    scale off with a gradient that is not its own. Here the bound is smooth, and Pyro's never acts.
    """

    def __init__(self, parameters: Callable[[Tensor], Any], order: Sequence[int]) -> None:
        super().__init__(
            partial(_bounded, parameters),
            log_scale_min_clip=-MAX_LOG_SCALE,
            log_scale_max_clip=MAX_LOG_SCALE,
        )
        self.order = order

    def _inverse(self, y: Tensor) -> Tensor:
        columns = list(torch.zeros_like(y).unbind(-1))
        for i in self.order:
            x = torch.stack(torch.broadcast_tensors(*columns), dim=-1)
            mean, log_scale = self.arn(x)
            columns[i] = (y[..., i] - mean[..., i]) * torch.exp(-log_scale[..., i])
        # The last coordinate has no part in any scale.
        self._cached_log_scale = log_scale
        return torch.stack(torch.broadcast_tensors(*columns), dim=-1)


def _bounded(parameters: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = parameters(x)
    return mean, MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE)


class Spline(_OwnPair, transforms.SplineAutoregressive):
    """Pyro's spline transform, made of :class:`BoundedSpline`."""

    def __init__(
        self,
        latent_dim: int,
        parameters: Callable[[Tensor], Any],
        *,
        count_bins: int,
        bound: float,
    ) -> None:
        super().__init__(latent_dim, parameters, count_bins=count_bins, bound=bound)
        self.spline = _ConditionalBoundedSpline(parameters, latent_dim, count_bins, bound)


class _ConditionalBoundedSpline(transforms.ConditionalSpline):
    def _params(self, context: Tensor) -> tuple[Tensor, ...]:
        widths, heights, slopes, places = (kind.mT for kind in self.nn(context))
        slopes = torch.exp(MAX_LOG_SLOPE * torch.tanh(slopes / MAX_LOG_SLOPE))
        return widths.softmax(-1), heights.softmax(-1), slopes, places.sigmoid()

    def condition(self, context: Tensor) -> ConditionedSpline:
        return BoundedSpline(self._params(context), bound=self.bound)


class BoundedSpline(ConditionedSpline):
    """Pyro's spline with slope 1 at both ends of its box, and no bin too steep to be inverted.

    Pyro's slope is 1 minus the smallest one there, so it jumps at the ends and cannot be the
    identity; its slopes at the knots have no upper bound; and it evaluates its fractions outside
    the box too, up to their poles.
    """

    def spline_op(self, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """The spline or its inverse at x, and the log of its slope there."""
        widths = self._params[0]
        x = x.expand(torch.broadcast_shapes(x.shape, widths.shape[:-1]))
        smallest = MIN_BIN / widths.shape[-1]
        y, log_slope = super().spline_op(
            x.clamp(-self.bound, self.bound),
            min_bin_width=smallest,
            min_bin_height=smallest,
            min_derivative=0.0,
            **options,
        )
        inside = x.abs() < self.bound
        return torch.where(inside, y, x), log_slope.masked_fill(~inside, 0.0)
