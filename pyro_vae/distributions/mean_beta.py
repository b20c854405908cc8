"""The beta distribution by its mean and its concentration."""

from typing import Any, Self

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional

from .expandable import Expandable
from .saddle_point import HALF_LOG_2PI, deviance_term, stirling_remainder

__all__ = ["MeanBeta", "open_unit_interval"]


class _OpenUnitInterval(constraints.Constraint):
    """Numbers strictly between 0 and 1."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


open_unit_interval = _OpenUnitInterval()


class MeanBeta(Expandable):
    r"""Beta distribution with mean m, by its logit l, and concentration :math:`\varphi`.

    .. math:: p(x) = \frac{\Gamma(\varphi)}{\Gamma(m\varphi)\,\Gamma((1 - m)\varphi)}\,
              x^{m\varphi - 1} (1 - x)^{(1 - m)\varphi - 1}, \qquad
              m = \frac{1}{1 + e^{-l}}, \qquad
              \operatorname{Var} x = \frac{m (1 - m)}{1 + \varphi}

    At large :math:`\varphi` the three log gamma functions drown in rounding, so they are taken
    apart as in Loader (2000). The support excludes 0 and 1, and so do the draws.

    Args:
        mean_logits: :math:`l`, shape ``batch_shape``.
        concentration: :math:`\varphi > 0`; broadcasts to ``batch_shape``.

    Example:
        >>> p = MeanBeta(torch.tensor(0.0), torch.tensor(4.0))  # Beta(2, 2), density 6 x (1 - x)
        >>> round(p.log_prob(torch.tensor(0.5)).item(), 4)  # log 1.5
        0.4055
    """

    arg_constraints = {"mean_logits": constraints.real, "concentration": constraints.positive}
    support = open_unit_interval
    has_rsample = True

    def __init__(
        self, mean_logits: Tensor, concentration: Tensor, *, validate_args: bool | None = None
    ) -> None:
        shape = torch.broadcast_shapes(mean_logits.shape, concentration.shape)
        self.mean_logits = mean_logits.expand(shape)
        self.concentration = concentration
        super().__init__(shape, validate_args=validate_args)

    def _expanded(self, batch_shape: torch.Size) -> Self:
        mean_logits = self.mean_logits.expand(batch_shape)
        return type(self)(mean_logits, self.concentration, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean, shape ``batch_shape``."""
        return self.mean_logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        """Variance, shape ``batch_shape``."""
        return self.mean * (-self.mean_logits).sigmoid() / (1 + self.concentration)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws, ``sample_shape + batch_shape``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        a, b = self._concentrations()
        odds = _log_gamma_draw(a.expand(shape)) - _log_gamma_draw(b.expand(shape))
        info = torch.finfo(odds.dtype)
        return odds.sigmoid().clamp(info.tiny, 1 - info.eps / 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        log_x, log_y = value.log(), (-value).log1p()
        log_m = functional.logsigmoid(self.mean_logits)
        log_w = functional.logsigmoid(-self.mean_logits)
        a, b = self._concentrations()
        return (
            deviance_term(a, log_x - log_m)
            + deviance_term(b, log_y - log_w)
            + stirling_remainder(self.concentration)
            - stirling_remainder(a)
            - stirling_remainder(b)
            + 0.5 * (self.concentration.log() + log_m + log_w)
            - HALF_LOG_2PI
            - log_x
            - log_y
        )

    def _concentrations(self) -> tuple[Tensor, Tensor]:
        """The two parameters in their textbook form, m phi and (1 - m) phi."""
        phi = self.concentration
        return self.mean_logits.sigmoid() * phi, (-self.mean_logits).sigmoid() * phi


def _log_gamma_draw(concentration: Tensor) -> Tensor:
    """Logarithms of gamma draws: at a small concentration the draws themselves underflow.

    A gamma draw at a is one at a + 1 times a uniform number to the power 1 / a.
    """
    u = torch.rand_like(concentration).clamp_min(torch.finfo(concentration.dtype).tiny)
    return torch._standard_gamma(concentration + 1).log() + u.log() / concentration
