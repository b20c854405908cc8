"""The likelihood of binary data."""

import warnings
from collections.abc import Sequence

from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions import GrayBernoulli

from .data_checks import continuous_alternative, rescaled
from .likelihood import Likelihood

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    r"""Bernoulli likelihood, :math:`P(x_j = 1 \mid z) = \sigma(f_j(z)) = 1 / (1 + e^{-f_j(z)})`.

    .. math:: \log p(x \mid z) = \sum_{j=1}^n \Big(x_j f_j(z) - \log(1 + e^{f_j(z)})\Big)

    x is 0 or 1. Gray values between are taken, as is widely done, but the formula is then no
    density of x: see :meth:`check_data`.

    Args:
        decoder: Network f, ``(..., k)`` to the logits, ``(..., *event_shape)``.
        event_shape: Shape of one x.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> p = Bernoulli(nn.Identity(), event_shape=(2,))(torch.zeros(5, 2))
        >>> round(p.log_prob(torch.ones(5, 2))[0].item(), 4)  # -2 log 2
        -1.3863
    """

    support = constraints.unit_interval
    support_in_words = "lie in [0, 1]"

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        return GrayBernoulli(logits=self.outputs(z)).to_event(len(self.event_shape))

    def check_data(self, x: Tensor, columns: Sequence[str] | None = None) -> None:
        """Warn of gray values.

        Args:
            x: Data, ``(N, *event_shape)``.
            columns: Names of the features, where they have any.

        Warns:
            UserWarning: If some values are neither 0 nor 1. Over [0, 1] the exponential of the log
                likelihood does not integrate to one, so the ELBO is no bound on a log density.
        """
        num_gray = int(((x > 0) & (x < 1)).sum())
        if num_gray:
            warnings.warn(
                f"{num_gray} of {x.numel()} values of x lie strictly between 0 and 1, where a "
                "Bernoulli likelihood is not a normalized density: the ELBO is comparable with no "
                "other. Use likelihoods.ContinuousBernoulli or likelihoods.Beta, or binarize "
                "(x > 0.5).",
                UserWarning,
                stacklevel=2,
            )

    def _mend(self, x: Tensor, name: str) -> str:
        return f"Rescale {name} ({rescaled(x, name)}), or use {continuous_alternative(x)}."
