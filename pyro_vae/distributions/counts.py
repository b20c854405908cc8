"""Counts by the logarithm of their mean: Poisson, with too many zeros, negative binomial."""

from typing import Any, Self

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional

from .expandable import Expandable
from .saddle_point import deviance_term, log_poisson_constant, stirling_remainder

__all__ = ["LogMeanNegativeBinomial", "LogMeanPoisson", "LogMeanZeroInflatedPoisson"]


class LogMeanPoisson(Expandable):
    r"""Poisson distribution given by :math:`\eta = \log \mu`.

    .. math:: \log p(x) = x \eta - e^\eta - \log x!

    computed as the deviance from the saturated model (Loader 2000), so that in float32 too the
    log probability of a count of a million is right to 1e-3, and not to 1.

    Args:
        log_mean: :math:`\eta`, shape ``batch_shape``.

    Example:
        >>> p = LogMeanPoisson(torch.tensor([0.0, 0.0]))
        >>> p.log_prob(torch.tensor([0.0, 3.0]))  # -1; -1 - log 6
        tensor([-1.0000, -2.7918])
    """

    arg_constraints = {"log_mean": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_mean = log_mean
        super().__init__(log_mean.shape, validate_args=validate_args)

    def _expanded(self, batch_shape: torch.Size) -> Self:
        return type(self)(self.log_mean.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean, shape ``batch_shape``."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance: the mean."""
        return self.mean

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``sample_shape + batch_shape``, as floating-point numbers."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return torch.poisson(self.mean.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        is_positive = value > 0
        weight = torch.where(is_positive, value, 1.0)
        log_prob = deviance_term(weight, self.log_mean - weight.log())
        return torch.where(is_positive, log_prob + log_poisson_constant(weight), -self.mean)


class LogMeanNegativeBinomial(Expandable):
    r"""Negative binomial distribution with log mean :math:`\eta` and concentration r.

    .. math:: p(x) = \frac{\Gamma(x + r)}{\Gamma(r)\, x!} \Big(\frac{r}{r + \mu}\Big)^{\!r}
              \Big(\frac{\mu}{r + \mu}\Big)^{\!x}, \qquad \mu = e^\eta, \qquad
              \operatorname{Var} x = \mu + \frac{\mu^2}{r}

    It is a Poisson distribution whose rate is gamma distributed with shape r, and the Poisson
    distribution itself as r grows. It is computed in Loader's form, which has that limit, while
    :math:`\log \Gamma(x + r) - \log \Gamma(r)` drowns in rounding.

    Args:
        log_mean: :math:`\eta`, shape ``batch_shape``.
        concentration: r > 0; broadcasts to ``batch_shape``.

    Example:
        >>> p = LogMeanNegativeBinomial(torch.tensor([0.0, 0.0]), torch.tensor(1.0))
        >>> p.log_prob(torch.tensor([0.0, 3.0]))  # geometric: -log 2; -4 log 2
        tensor([-0.6931, -2.7726])
    """

    arg_constraints = {"log_mean": constraints.real, "concentration": constraints.positive}
    support = constraints.nonnegative_integer

    def __init__(
        self, log_mean: Tensor, concentration: Tensor, *, validate_args: bool | None = None
    ) -> None:
        shape = torch.broadcast_shapes(log_mean.shape, concentration.shape)
        self.log_mean = log_mean.expand(shape)
        self.concentration = concentration
        super().__init__(shape, validate_args=validate_args)

    def _expanded(self, batch_shape: torch.Size) -> Self:
        log_mean = self.log_mean.expand(batch_shape)
        return type(self)(log_mean, self.concentration, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean, shape ``batch_shape``."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance, shape ``batch_shape``."""
        return self.mean + self.mean.square() / self.concentration

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``sample_shape + batch_shape``, as floating-point numbers."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            gamma = torch._standard_gamma(self.concentration.expand(shape))
            return torch.poisson(gamma / self.concentration * self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        mean, r = self.mean, self.concentration
        # log((r + x) / (r + mu)), from the side where the argument of log1p is not negative.
        excess, above = value - mean, value >= mean
        ratio = torch.where(above, excess / (r + mean), -excess / (r + value)).log1p()
        log_ratio = torch.where(above, ratio, -ratio)
        is_positive = value > 0
        weight = torch.where(is_positive, value, 1.0)
        log_prob = (
            deviance_term(r, log_ratio)
            + deviance_term(weight, log_ratio + self.log_mean - weight.log())
            + stirling_remainder(r + weight)
            - stirling_remainder(r)
            - 0.5 * (weight / r).log1p()
            + log_poisson_constant(weight)
        )
        return torch.where(is_positive, log_prob, r * log_ratio)


class LogMeanZeroInflatedPoisson(Expandable):
    r"""Poisson counts with log mean :math:`\eta`, each replaced by 0 with probability :math:`\pi`.

    .. math:: P(0) = \pi + (1 - \pi) e^{-\mu}, \qquad
              P(x) = (1 - \pi) \frac{\mu^x e^{-\mu}}{x!}, \quad x > 0

    (Pyro's ``ZeroInflatedPoisson`` can no longer be expanded once it was asked for its mean.)

    Args:
        gate_logits: Logit of :math:`\pi`, shape ``batch_shape``.
        log_mean: :math:`\eta = \log \mu`; broadcasts to ``batch_shape`` and the other way round.

    Example:
        >>> p = LogMeanZeroInflatedPoisson(torch.zeros(2), torch.zeros(2))
        >>> p.log_prob(torch.tensor([0.0, 1.0]))  # log(1/2 + 1/(2 e)); log(1/(2 e))
        tensor([-0.3799, -1.6931])
    """

    arg_constraints = {"gate_logits": constraints.real, "log_mean": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(
        self, gate_logits: Tensor, log_mean: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.gate_logits, self.log_mean = torch.broadcast_tensors(gate_logits, log_mean)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def _expanded(self, batch_shape: torch.Size) -> Self:
        gate_logits, log_mean = (
            self.gate_logits.expand(batch_shape),
            self.log_mean.expand(batch_shape),
        )
        return type(self)(gate_logits, log_mean, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean, shape ``batch_shape``."""
        return (-self.gate_logits).sigmoid() * self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance, shape ``batch_shape``."""
        return self.mean * (1 + self.gate_logits.sigmoid() * self.log_mean.exp())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``sample_shape + batch_shape``, as floating-point numbers."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            counts = torch.poisson(self.log_mean.exp().expand(shape))
            return counts * torch.bernoulli((-self.gate_logits).sigmoid().expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        poisson = LogMeanPoisson(self.log_mean, validate_args=False).log_prob(value)
        counted = functional.logsigmoid(-self.gate_logits) + poisson
        zero = torch.logaddexp(functional.logsigmoid(self.gate_logits), counted)
        return torch.where(value == 0, zero, counted)
