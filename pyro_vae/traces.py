r"""The one place that turns two Pyro programs into log densities, one for each datum and draw.

ELBO, importance weights and every diagnostic are reductions of what is computed here, from the
traces of ``model`` and ``guide``, so a program that a user wrote by hand is served as well as a
:class:`pyro_vae.VAE`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, kl_divergence

__all__ = [
    "ElboTerms",
    "LogDensities",
    "Programs",
    "analytic_kl",
    "elbo_terms",
    "log_densities",
    "site_log_probs",
]


class Programs(Protocol):
    """A model and a guide: Pyro programs of the data, with their sites in the plate "data"."""

    def model(self, x: Tensor) -> Any:
        """Joint density of the data, observed at x, and of the latent sites."""

    def guide(self, x: Tensor) -> Any:
        """Approximate posterior of the latent sites."""


@dataclass(frozen=True)
class LogDensities:
    """Log densities of S draws from the guide at N data, by site, each ``(S, N)``, in nats.

    Attributes:
        log_p: Sites of the model: latent ones at the guide's draws, observed ones at the data.
        log_q: Sites of the guide.
        analytic_kl: KL(q || p) of the single latent site, ``(N,)``, where the
            program has just one and theory has a closed form; else None.
        kl_per_dim: The same for each latent dimension, ``(N, k)``, where q and p factorize.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    analytic_kl: Tensor | None
    kl_per_dim: Tensor | None

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z|x), ``(S, N)``."""
        return sum(self.log_p.values()) - sum(self.log_q.values())  # type: ignore[return-value]


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


def log_densities(programs: Programs, x: Tensor, *, num_samples: int) -> LogDensities:
    r"""Log densities of all sites at ``num_samples`` draws from the guide.

    The programs run S times on x as it is. A plate of draws around them would be faster for few
    data, but give networks a batch dimension that a user's convolutions or BatchNorm cannot take.
    Pyro's parameter store is read where it already holds a program's parameter and is never
    written to.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        num_samples: Number S of draws for each datum.

    Raises:
        ValueError: If a site does not lie in a plate of N rows, as the rightmost batch dimension.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> densities = log_densities(vae, torch.zeros(5, 3), num_samples=7)
        >>> sorted(densities.log_p), densities.log_weights.shape
        (['x', 'z'], torch.Size([7, 5]))
    """
    log_ps: list[dict[str, Tensor]] = []
    log_qs: list[dict[str, Tensor]] = []
    with _StoreUntouched():
        for _ in range(num_samples):
            guide_trace = poutine.trace(programs.guide).get_trace(x)
            replayed = poutine.replay(programs.model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(x)
            log_ps.append(site_log_probs(model_trace, len(x)))
            log_qs.append(site_log_probs(guide_trace, len(x)))
    log_p, log_q = _stacked(log_ps), _stacked(log_qs)
    missing = [name for name in log_q if name not in log_p]
    if missing:
        raise ValueError(
            f"guide must sample only sites that the model has; got {missing}, and the model's "
            f"sites are {list(log_p)}."
        )
    kl, kl_per_dim = analytic_kl(model_trace, guide_trace, list(log_q))
    return LogDensities(log_p, log_q, kl, kl_per_dim)


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
        observed = [
            log_p for name, log_p in densities.log_p.items() if name not in densities.log_q
        ]
        kl, is_analytic = sum(observed, start=torch.zeros_like(elbo)) - elbo, False
    return ElboTerms(elbo, elbo + kl, kl, is_analytic, densities.kl_per_dim)


class _StoreUntouched(Messenger):
    """Answers param statements that the store does not know without registering them there."""

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in pyro.get_param_store() or len(msg["args"]) < 2:
            return
        init = msg["args"][1]
        msg["value"] = init() if callable(init) and not isinstance(init, Tensor) else init
        msg["done"] = True


def _stacked(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def site_log_probs(trace: poutine.Trace, num_data: int) -> dict[str, Tensor]:
    log_probs = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or poutine.util.site_is_subsample(site):
            continue
        plates = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
        if plates.get(-1) != num_data:
            raise ValueError(
                f"site {name!r} must lie in the plate 'data' of {num_data} rows at dim=-1; its "
                f"plates are {plates}. Estimates are per datum, so a site that all data share has "
                "no place in them."
            )
        # A plate scale is a matter of training; a mask belongs to the density.
        density: Any = site["fn"]
        log_prob = scale_and_mask(density.log_prob(site["value"]), mask=site["mask"])
        try:
            log_probs[name] = log_prob.expand(num_data)
        except RuntimeError as error:
            raise ValueError(
                f"site {name!r} must have one log density for each datum, shape ({num_data},); "
                f"got {tuple(log_prob.shape)}. Move dependent dimensions into the event with "
                ".to_event()."
            ) from error
    return log_probs


def analytic_kl(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, latent: list[str]
) -> tuple[Tensor | None, Tensor | None]:
    # With two latent sites p(z1 | z2) depends on a draw, and the sum of KLs is no longer the KL.
    if len(latent) != 1:
        return None, None
    sites = guide_trace.nodes[latent[0]], model_trace.nodes[latent[0]]
    if any(site["mask"] is not None for site in sites):
        return None, None
    q: Any = sites[0]["fn"]
    p: Any = sites[1]["fn"]
    try:
        if _factorizes(q) and _factorizes(p):
            per_dim = kl_divergence(q.base_dist, p.base_dist)
            return per_dim.sum(-1), per_dim
        return kl_divergence(q, p), None
    except NotImplementedError:
        return None, None


def _factorizes(distribution: Any) -> bool:
    return isinstance(distribution, Independent) and distribution.reinterpreted_batch_ndims == 1
