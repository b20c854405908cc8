"""The continuous Bernoulli, right at every logit, in float32 too."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from pyro.distributions import constraints
from torch import Tensor

from .expandable import Expandable

__all__ = ["ContinuousBernoulli"]

# log(sinh(t) / t) = sum_n SERIES[n - 1] t^(2 n), by the Bernoulli numbers. At |t| <= 1/2 the first
# term left out is 1e-17 of the sum.
SERIES = (
    1 / 6,
    -1 / 180,
    1 / 2835,
    -1 / 37800,
    1 / 467775,
    -691 / 3831077250,
    2 / 127702575,
    -3617 / 2605132530000,
    43867 / 350813659321125,
    -174611 / 15313294652906250,
)
# The series serves logits up to this size, and that of the inverse CDF up to the other.
NEAR, NEAR_QUANTILE = 1.0, 0.02


class ContinuousBernoulli(Expandable):
    r"""Density on [0, 1] that is exponential in x, :math:`p(x) \propto e^{lx}`.

    With :math:`t = l / 2`,

    .. math:: \log p(x) = (x - \tfrac12)\, l - \log\frac{\sinh t}{t}, \qquad
              \mathbb E\, x = \tfrac12 + \tfrac12 \Big(\coth t - \frac1t\Big)

    The logit l is that of Loaiza-Ganem and Cunningham's :math:`\lambda`, and
    :math:`\lambda = 1/2` is the uniform distribution. There every closed form is 0/0: value and
    derivatives come from the series

    .. math:: \log\frac{\sinh t}{t} = \frac{t^2}{6} - \frac{t^4}{180} + \frac{t^6}{2835} - \dots

    for :math:`|l| < 1`. At large :math:`|l|` nothing large is subtracted. (torch's own class turns
    l into a clamped :math:`\lambda` first: its density stops growing at :math:`|l| \approx 16` in
    float32, and around 1/2 its derivatives jump.)

    Args:
        logits: Any real numbers l, shape ``batch_shape``.

    Example:
        >>> p = ContinuousBernoulli(torch.tensor([0.0, 2.0]))
        >>> p.log_prob(torch.tensor(1.0))  # 0; 1 - log(sinh 1)
        tensor([0.0000, 0.8386])
        >>> p.mean  # 1/2; 1/2 + (coth 1 - 1) / 2
        tensor([0.5000, 0.6565])

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in
        variational autoencoders, section 3. https://arxiv.org/abs/1907.06845
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def _expanded(self, batch_shape: torch.Size) -> Self:
        return type(self)(self.logits.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        is_near, near, far, size = self._branches(NEAR)
        series = near.square() * 0.25 * _polynomial(SERIES, near)
        # (x - 1/2) l - |l| / 2 is -|l| (1 - x) or -|l| x: written so, it loses no digits.
        slope = torch.where(far > 0, value - 1, value)
        closed = slope * far + size.log() - torch.log1p(-torch.exp(-size))
        return torch.where(is_near, (value - 0.5) * near - series, closed)

    @property
    def mean(self) -> Tensor:
        """Mean, shape ``batch_shape``."""
        is_near, near, far, size = self._branches(NEAR)
        slopes = [2 * n * c for n, c in enumerate(SERIES, start=1)]
        series = 0.5 + 0.25 * near * _polynomial(slopes, near)
        below = 1 / size + torch.exp(-size) / torch.expm1(-size)  # the mean at logit -|l|
        return torch.where(is_near, series, torch.where(far > 0, 1 - below, below))

    @property
    def variance(self) -> Tensor:
        """Variance, shape ``batch_shape``."""
        is_near, near, _, size = self._branches(NEAR)
        curvatures = [2 * n * (2 * n - 1) * c for n, c in enumerate(SERIES, start=1)]
        closed = size.square().reciprocal() - torch.exp(-size) / torch.expm1(-size).square()
        return torch.where(is_near, 0.25 * _polynomial(curvatures, near), closed)

    def entropy(self) -> Tensor:
        """Differential entropy in nats: the log density is affine in x, so it sits at the mean."""
        return -self.log_prob(self.mean)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws by the inverse CDF, ``sample_shape + batch_shape``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        return self.icdf(u.clamp_min(torch.finfo(u.dtype).eps))  # at u = 0 a gradient is 0/0

    def icdf(self, value: Tensor) -> Tensor:
        r"""Quantiles :math:`\log(1 + u (e^l - 1)) / l`; differentiable in l, through 0 too.

        Args:
            value: Probabilities u in [0, 1].
        """
        is_near, near, far, size = self._branches(NEAR_QUANTILE)
        w = value * (1 - value)
        # The cumulants of a Bernoulli variable with probability u, each divided by n!.
        terms = (
            value,
            w / 2,
            w * (1 - 2 * value) / 6,
            w * (1 - 6 * w) / 24,
            w * (1 - 2 * value) * (1 - 12 * w) / 120,
            w * (1 - 30 * w + 120 * w.square()) / 720,
        )
        series = terms[-1]
        for term in terms[-2::-1]:
            series = series * near + term
        # A quantile at l is one minus that of 1 - u at -l: the exponential never overflows. And
        # 1 - v (1 - e^-|l|) is taken as it stands where it is small.
        v, rest = torch.where(far > 0, 1 - value, value), torch.where(far > 0, value, 1 - value)
        change = v * torch.expm1(-size)
        log = torch.where(
            change > -0.5,
            change.clamp_min(-0.5).log1p(),
            (rest + v * torch.exp(-size)).log(),
        )
        below = -log / size
        closed = torch.where(far > 0, 1 - below, below)
        return torch.where(is_near, series, closed).clamp(0, 1)

    def _branches(self, radius: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whether l is near 0; l where it is near; l and its size where it is far.

        Elsewhere they are harmless numbers, so that no gradient meets 0/0.
        """
        is_near = self.logits.abs() < radius
        far = torch.where(is_near, 1.0, self.logits)
        return is_near, torch.where(is_near, self.logits, 0.0), far, far.abs()


def _polynomial(coefficients: Sequence[float], logits: Tensor) -> Tensor:
    """A polynomial in the square of t = l / 2, by Horner's rule."""
    square = 0.25 * logits.square()
    value = torch.full_like(square, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * square + coefficient
    return value
