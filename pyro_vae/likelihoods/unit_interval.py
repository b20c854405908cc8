"""Likelihoods of numbers between 0 and 1, such as gray values and proportions."""

import warnings
from collections.abc import Sequence

from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.arguments import finite_number
from pyro_vae.bounds import bounded, positive
from pyro_vae.distributions import ContinuousBernoulli as ContinuousBernoulliDistribution
from pyro_vae.distributions import MeanBeta
from pyro_vae.distributions.mean_beta import open_unit_interval

from .data_checks import (
    constant_features,
    continuous_alternative,
    rescaled,
    warn_of_features,
)
from .likelihood import Likelihood

__all__ = ["Beta", "ContinuousBernoulli"]


class ContinuousBernoulli(Likelihood):
    r"""Continuous Bernoulli likelihood: the Bernoulli formula, made a density on [0, 1].

    .. math:: \log p(x \mid z) = \sum_{j=1}^n \Big((x_j - \tfrac12)\, l_j
              - \log\frac{\sinh(l_j / 2)}{l_j / 2}\Big), \qquad l = f(z)

    0 and 1 belong to the support, but a feature that is always 0 or 1 has no best logit: its
    density there grows as :math:`|l|`, without bound.

    Args:
        decoder: Network f, ``(..., k)`` to the logits l, ``(..., *event_shape)``.
        event_shape: Shape of one x.

    Example:
        >>> import torch
        >>> p = ContinuousBernoulli(nn.Identity(), event_shape=(2,))(2 * torch.ones(5, 2))
        >>> round(p.log_prob(torch.ones(5, 2))[0].item(), 4)  # 2 (1 - log(sinh 1))
        1.6771

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in
        variational autoencoders. https://arxiv.org/abs/1907.06845
    """

    support = constraints.unit_interval
    support_in_words = "lie in [0, 1]"

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        return ContinuousBernoulliDistribution(self.outputs(z)).to_event(len(self.event_shape))

    def check_data(self, x: Tensor, columns: Sequence[str] | None = None) -> None:
        """Warn of data on the ends of the interval alone.

        Args:
            x: Data, ``(N, *event_shape)``.
            columns: Names of the features, where they have any.

        Warns:
            UserWarning: If all of x is 0 or 1, or some feature is constant there: the density of
                such values has no bound.
        """
        at_end = (x == 0) | (x == 1) | x.isnan()
        if bool(at_end.all()):
            warnings.warn(
                "x holds 0 and 1 alone, where the density of a continuous Bernoulli grows without "
                "bound and the ELBO without meaning. Use likelihoods.Bernoulli.",
                UserWarning,
                stacklevel=2,
            )
        elif len(x) > 1:
            is_constant, value = constant_features(x)
            warn_of_features(
                is_constant & ((value == 0) | (value == 1)),
                columns,
                "are constant at 0 or 1 ({names}), where their density grows without bound, and "
                "the ELBO without meaning. Drop them.",
            )

    def _mend(self, x: Tensor, name: str) -> str:
        return f"Rescale {name} ({rescaled(x, name)}), or use {continuous_alternative(x)}."


class Beta(Likelihood):
    r"""Beta likelihood with mean and concentration from the decoder, for each feature.

    .. math:: x_j \mid z \sim \mathrm{Beta}\big(m_j \varphi_j,\ (1 - m_j) \varphi_j\big), \qquad
              \mathbb E\, x_j = m_j, \qquad \operatorname{Var} x_j = \frac{m_j (1 - m_j)}
              {1 + \varphi_j}

    The decoder's first output is the logit of m, bounded to (-15, 15); the second, through
    softplus, is added to ``min_concentration`` to make :math:`\varphi`, bounded by
    ``max_concentration``. A smallest standard deviation of about
    :math:`\sqrt{m (1 - m) / \varphi_{\max}}` follows, which keeps the density bounded; the default
    is about the step between 8-bit gray levels.

    Args:
        decoder: Network, ``(..., k)`` to ``(..., 2, *event_shape)``.
        event_shape: Shape of one x.
        min_concentration: Floor of :math:`\varphi`, positive.
        max_concentration: Ceiling of :math:`\varphi`.

    Raises:
        ValueError: If the bounds of :math:`\varphi` are none.

    Example:
        >>> import torch
        >>> likelihood = Beta(nn.Linear(3, 4), event_shape=(2,))
        >>> likelihood.num_outputs
        4
        >>> likelihood(torch.zeros(5, 3)).event_shape
        torch.Size([2])

    References:
        Ferrari and Cribari-Neto (2004), Beta regression for modelling rates and proportions,
        equation 4. The mend for 0 and 1 is that of Smithson and Verkuilen (2006), A better lemon
        squeezer?
    """

    outputs_per_feature = 2
    support = open_unit_interval
    support_in_words = "lie in (0, 1), both ends excluded"

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: Sequence[int],
        *,
        min_concentration: float = 1e-2,
        max_concentration: float = 1e4,
    ) -> None:
        super().__init__(decoder, event_shape)
        self.min_concentration = finite_number(
            min_concentration, "min_concentration", "positive", above=0
        )
        self.max_concentration = finite_number(
            max_concentration,
            "max_concentration",
            f"finite and above min_concentration = {min_concentration}",
            above=self.min_concentration,
        )

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        event_dim = len(self.event_shape)
        logit, raw = self.outputs(z).unbind(-1 - event_dim)
        concentration = positive(raw, self.min_concentration, self.max_concentration)
        return MeanBeta(bounded(logit, -15.0, 15.0), concentration).to_event(event_dim)

    def check_data(self, x: Tensor, columns: Sequence[str] | None = None) -> None:
        """Warn of constant features.

        Args:
            x: Data, ``(N, *event_shape)``.
            columns: Names of the features, where they have any.

        Warns:
            UserWarning: If some feature is constant: its concentration rises to the ceiling.
        """
        if len(x) < 2:
            return
        warn_of_features(
            constant_features(x)[0],
            columns,
            "are constant ({names}): their concentration rises to max_concentration = "
            f"{self.max_concentration}, and the ELBO grows without meaning. Drop them.",
        )

    def _mend(self, x: Tensor, name: str) -> str:
        if x.min() >= 0 and x.max() <= 1:
            return (
                f"Squeeze {name} (({name} * (N - 1) + 0.5) / N, N the number of rows), or use "
                "likelihoods.ContinuousBernoulli, whose support has its ends."
            )
        return (
            f"Rescale {name} ({rescaled(x, name)}, then squeeze the ends: "
            f"({name} * (N - 1) + 0.5) / N, N the number of rows), or use "
            f"{continuous_alternative(x)}."
        )
