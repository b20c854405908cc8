"""The Bernoulli log likelihood that also accepts gray values."""

import pyro.distributions as dist
from pyro.distributions import constraints

__all__ = ["GrayBernoulli"]


class GrayBernoulli(dist.Bernoulli):
    r"""Bernoulli distribution whose log probability may be asked for at any x in [0, 1].

    .. math:: x \log p + (1 - x) \log(1 - p)

    Draws are 0 or 1. Strictly between, this is minus a cross-entropy and no log density: over
    [0, 1] its exponential does not integrate to one. :class:`ContinuousBernoulli` supplies what is
    missing.

    Example:
        >>> import torch
        >>> p = GrayBernoulli(logits=torch.tensor(0.0))
        >>> round(p.log_prob(torch.tensor(0.3)).item(), 4)  # -log 2
        -0.6931
    """

    support = constraints.unit_interval
