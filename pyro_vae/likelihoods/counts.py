"""Likelihoods of counts."""

from collections.abc import Sequence

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.bounds import bounded
from pyro_vae.distributions import (
    LogMeanNegativeBinomial,
    LogMeanPoisson,
    LogMeanZeroInflatedPoisson,
)

from .likelihood import Likelihood, as_event_shape
from .positive_parameter import PositiveParameterLikelihood, PositiveValue

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedPoisson"]

# Bounds of log means: means between 3e-7 and 3e6, which float32 can take the exponential of.
LOWEST, HIGHEST = -15.0, 15.0


class _Counts(Likelihood):
    """What the likelihoods of counts share."""

    support = constraints.nonnegative_integer
    support_in_words = "hold counts 0, 1, 2, ..."
    _is_whole = True

    def _mend(self, x: Tensor, name: str) -> str:
        if x.min() < 0:
            return (
                f"Undo what made {name} negative, such as a standardization, or use "
                "likelihoods.Gaussian for real numbers."
            )
        if x.max() <= 1:
            return (
                f"Undo the rescaling of {name} if it held counts, or use "
                "likelihoods.ContinuousBernoulli for numbers in [0, 1]."
            )
        other = "LogNormal for positive numbers" if x.min() > 0 else "Gaussian for real numbers"
        return (
            f"Undo the rescaling of {name} if it held counts ({name}.round() if that is all), or "
            f"use likelihoods.{other}."
        )


class Poisson(_Counts):
    r"""Poisson likelihood with log link, :math:`x_j \mid z \sim \mathrm{Poisson}(e^{f_j(z)})`.

    .. math:: \log p(x \mid z) = \sum_{j=1}^n \Big(x_j f_j(z) - e^{f_j(z)} - \log x_j!\Big)

    f is bounded smoothly to (-15, 15), so the mean lies between 3e-7 and 3e6.

    Args:
        decoder: Network f, ``(..., k)`` to the log means, ``(..., *event_shape)``.
        event_shape: Shape of one x.

    Example:
        >>> import torch
        >>> p = Poisson(nn.Identity(), event_shape=(2,))(torch.zeros(5, 2))
        >>> round(p.log_prob(torch.tensor([0.0, 3.0]))[0].item(), 4)  # -2 - log 6
        -3.7918
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        log_mean = bounded(self.outputs(z), LOWEST, HIGHEST)
        return LogMeanPoisson(log_mean).to_event(len(self.event_shape))


class NegativeBinomial(_Counts, PositiveParameterLikelihood):
    r"""Negative binomial likelihood: counts with more variance than Poisson's.

    .. math:: \mathbb E\, x_j = \mu_j = e^{f_j(z)}, \qquad
              \operatorname{Var} x_j = \mu_j + \mu_j^2 / r_j

    f is bounded smoothly to (-15, 15). The Poisson likelihood is the limit of large r.

    Args:
        decoder: Network f, ``(..., k)`` to the log means, ``(..., *event_shape)``.
        event_shape: Shape of one x.
        concentration: r: a number, an array of shape ``event_shape``, or a network of z whose
            output, through softplus, is added to ``concentration_floor``. By default 1 for each
            feature.
        learn_concentration: Whether r is a parameter (starting at ``concentration``) or fixed. A
            network is learned in any case.
        concentration_floor: Smallest value that a learned r can take.

    Raises:
        ValueError: If ``concentration`` is not positive and finite, not above the floor where it
            is learned, or of another shape.

    Example:
        >>> import torch
        >>> p = NegativeBinomial(nn.Identity(), event_shape=(2,))(torch.zeros(5, 2))
        >>> round(p.log_prob(torch.tensor([0.0, 3.0]))[0].item(), 4)  # r = 1: -5 log 2
        -3.4657
    """

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: Sequence[int],
        *,
        concentration: PositiveValue | None = None,
        learn_concentration: bool = True,
        concentration_floor: float = 1e-3,
    ) -> None:
        if concentration is None:
            concentration = torch.ones(as_event_shape(event_shape), device="cpu")
        super().__init__(
            decoder,
            event_shape,
            name="concentration",
            value=concentration,
            learn=learn_concentration,
            floor=concentration_floor,
        )
        self.learn_concentration = learn_concentration
        self.concentration_floor = float(concentration_floor)

    @property
    def concentration(self) -> Tensor:
        """Value of r, without gradient: shape ``()`` or ``event_shape``.

        Raises:
            ValueError: If r is a function of z; call :meth:`concentration_at`.
        """
        return self._constant()

    def concentration_at(self, z: Tensor) -> Tensor:
        """Value of r at each z and for each feature, ``(..., *event_shape)``, without gradient."""
        return self._at(z)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        log_mean = bounded(self.outputs(z), LOWEST, HIGHEST)
        concentration = self._positive_tensor(z, log_mean)
        p = LogMeanNegativeBinomial(log_mean, concentration)
        return p.to_event(len(self.event_shape))


class ZeroInflatedPoisson(_Counts):
    r"""Poisson counts of which some are replaced by 0.

    .. math:: P(x_j = 0 \mid z) = \pi_j + (1 - \pi_j) e^{-\mu_j}, \qquad
              P(x_j = i \mid z) = (1 - \pi_j) \frac{\mu_j^i e^{-\mu_j}}{i!}, \quad i > 0

    The decoder's first output is the logit of :math:`\pi`, the second :math:`\log \mu`, both
    bounded smoothly to (-15, 15). The mean is :math:`(1 - \pi) \mu`.

    Args:
        decoder: Network, ``(..., k)`` to ``(..., 2, *event_shape)``.
        event_shape: Shape of one x.

    Example:
        >>> import torch
        >>> likelihood = ZeroInflatedPoisson(nn.Identity(), event_shape=(1,))
        >>> p = likelihood(torch.zeros(5, 2))  # half of the counts replaced, the others of mean 1
        >>> round(p.log_prob(torch.tensor([1.0]))[0].item(), 4)  # -1 - log 2
        -1.6931

    References:
        Lambert (1992), Zero-inflated Poisson regression.
    """

    outputs_per_feature = 2

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        event_dim = len(self.event_shape)
        outputs = bounded(self.outputs(z), LOWEST, HIGHEST)
        gate, log_mean = outputs.unbind(-1 - event_dim)
        return LogMeanZeroInflatedPoisson(gate, log_mean).to_event(event_dim)
