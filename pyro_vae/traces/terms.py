"""The ELBO and its two terms, of the same draws."""

from typing import NamedTuple

import torch
from torch import Tensor

from .densities import Programs, log_densities

__all__ = ["ElboTerms", "elbo_terms"]


class ElboTerms(NamedTuple):
    """One-sample estimates of the ELBO and its two terms, each ``(S, N)``, in nats.

    ``elbo = expected_log_likelihood - kl`` holds in every element.

    Attributes:
        elbo: Estimates of the bound.
        expected_log_likelihood: ``elbo + kl``.
        kl: The analytic KL, repeated, or its one-sample estimates.
        kl_is_analytic: Which of the two.
        kl_per_dim: The analytic KL of each latent dimension, ``(N, k)``, where q and p factorize.
    """

    elbo: Tensor
    expected_log_likelihood: Tensor
    kl: Tensor
    kl_is_analytic: bool
    kl_per_dim: Tensor | None


def elbo_terms(programs: Programs, x: Tensor, *, num_samples: int) -> ElboTerms:
    r"""One-sample estimates of :math:`\mathbb E_q \log p(x \mid z)`, KL and ELBO.

    The ELBO's estimates are the log weights :math:`\log p(x, z) - \log q(z|x)`, which are constant
    at the exact posterior. The KL is analytic where it can be, else estimated by
    :math:`\log q(z|x) - \log p(z)` at the same draws. The expected log-likelihood is the sum of
    both, so the terms add up draw by draw; with an analytic KL that is
    :math:`\log p(x|z)` plus a control variate of mean zero,
    :math:`\log p(z) - \log q(z|x) + \mathrm{KL}`.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``.
        num_samples: Number S of draws for each datum.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> terms = elbo_terms(vae, torch.zeros(5, 3), num_samples=7)
        >>> terms.elbo.shape, terms.kl_is_analytic
        (torch.Size([7, 5]), True)
    """
    densities = log_densities(programs, x, num_samples=num_samples)
    elbo = densities.log_weights
    if densities.analytic_kl is not None:
        kl, is_analytic = densities.analytic_kl.expand_as(elbo), True
    else:
        observed = [densities.log_p[name] for name in densities.observed]
        kl, is_analytic = sum(observed, start=torch.zeros_like(elbo)) - elbo, False
    return ElboTerms(elbo, elbo + kl, kl, is_analytic, densities.kl_per_dim)
