"""The ELBO and its terms, of the same draws."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .densities import CHUNK_SIZE, LogDensities, log_densities, log_densities_by_draws
from .runs import Programs

__all__ = ["ElboTerms", "elbo_terms", "elbo_terms_by_draws"]


@dataclass(frozen=True)
class ElboTerms:
    r"""One-sample estimates of the ELBO and its terms, each ``(S, N)``, in nats.

    ``elbo = expected_log_likelihood - kl`` and ``kl = cross_entropy - entropy`` hold in every
    element. An analytic term is repeated.

    Attributes:
        elbo: Estimates of the bound.
        expected_log_likelihood: ``elbo + kl``.
        kl: KL(q(z|x) || p(z)).
        cross_entropy: :math:`-\mathbb E_q \log p(z)`.
        entropy: :math:`-\mathbb E_q \log q(z|x)`.
        analytic: Which of ``kl``, ``cross_entropy`` and ``entropy`` have no Monte Carlo error.
        per_dim: Those of the three that theory has for each latent dimension, ``(N, k)``:
            ``entropy`` where q factorizes, the others where p does too.
        sites: The ELBO by site: :math:`\log p` of each of the model's less :math:`\log q` of
            the guide's, ``(S, N)`` each; they add up to ``elbo``.
    """

    elbo: Tensor
    expected_log_likelihood: Tensor
    kl: Tensor
    cross_entropy: Tensor
    entropy: Tensor
    analytic: frozenset[str]
    per_dim: dict[str, Tensor]
    sites: dict[str, Tensor]

    @property
    def kl_is_analytic(self) -> bool:
        """Whether ``kl`` has no Monte Carlo error."""
        return "kl" in self.analytic

    @property
    def kl_per_dim(self) -> Tensor | None:
        """The analytic KL of each latent dimension, ``(N, k)``, where q and p factorize."""
        return self.per_dim.get("kl")


def elbo_terms(programs: Programs, x: Tensor, *, num_samples: int) -> ElboTerms:
    r"""One-sample estimates of the ELBO, :math:`\mathbb E_q \log p(x \mid z)`, KL and its terms.

    The ELBO's estimates are the log weights :math:`\log p(x, z) - \log q(z|x)`, which are constant
    at the exact posterior. The KL is analytic where it can be, else estimated by
    :math:`\log q(z|x) - \log p(z)` at the same draws. The expected log-likelihood is the sum of
    both, so the terms add up draw by draw; with an analytic KL that is
    :math:`\log p(x|z)` plus a control variate of mean zero,
    :math:`\log p(z) - \log q(z|x) + \mathrm{KL}`. The cross-entropy is the sum of KL and entropy
    likewise.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``.
        num_samples: Number S of draws for each datum.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> terms = elbo_terms(vae, torch.zeros(5, 3), num_samples=7)
        >>> terms.elbo.shape, sorted(terms.analytic)
        (torch.Size([7, 5]), ['cross_entropy', 'entropy', 'kl'])
    """
    return _terms(log_densities(programs, x, num_samples=num_samples))


def elbo_terms_by_draws(
    programs: Programs, x: Tensor, *, num_samples: int, chunk_size: int = CHUNK_SIZE
) -> Iterator[ElboTerms]:
    """:func:`elbo_terms` of a few draws at a time, ``(R, N)``, for what is averaged over draws.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``.
        num_samples: Number S of draws for each datum, in all.
        chunk_size: Rows times draws that go through the model at once.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> blocks = elbo_terms_by_draws(vae, torch.zeros(5, 3), num_samples=100)
        >>> [len(block.elbo) for block in blocks]
        [64, 36]
    """
    blocks = log_densities_by_draws(programs, x, num_samples=num_samples, chunk_size=chunk_size)
    return map(_terms, blocks)


def _terms(densities: LogDensities) -> ElboTerms:
    elbo = densities.log_weights
    log_q = sum(densities.log_q.values(), start=torch.zeros_like(elbo))
    analytic = set()
    if densities.analytic_kl is not None:
        kl = densities.analytic_kl.expand_as(elbo)
        analytic.add("kl")
    else:
        observed = [densities.log_p[name] for name in densities.observed]
        kl = sum(observed, start=torch.zeros_like(elbo)) - elbo
    if densities.analytic_entropy is not None:
        entropy = densities.analytic_entropy.expand_as(elbo)
        analytic.add("entropy")
    else:
        entropy = -log_q
    if analytic >= {"kl", "entropy"}:
        analytic.add("cross_entropy")
    per_dim = {"kl": densities.kl_per_dim} if densities.kl_per_dim is not None else {}
    if densities.entropy_per_dim is not None:
        per_dim["entropy"] = densities.entropy_per_dim
        if "kl" in per_dim:
            per_dim["cross_entropy"] = per_dim["kl"] + per_dim["entropy"]
    sites = {
        name: log_p - densities.log_q.get(name, torch.zeros_like(elbo))
        for name, log_p in densities.log_p.items()
    }
    for name, log_density in densities.log_q.items():  # of auxiliary sites
        if name not in sites:
            sites[name] = -log_density
    return ElboTerms(
        elbo=elbo,
        expected_log_likelihood=elbo + kl,
        kl=kl,
        cross_entropy=kl + entropy,
        entropy=entropy,
        analytic=frozenset(analytic),
        per_dim=per_dim,
        sites=sites,
    )
