"""Log densities of the guide's draws under model and guide."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .kl import analytic_kl
from .sites import site_log_probs
from .summed_out import enumerating, free_dim, model_log_probs, summed_out_sites

__all__ = ["LogDensities", "Programs", "log_densities"]


class Programs(Protocol):
    """A model and a guide: Pyro programs of the data, with their sites in the plate "data"."""

    def model(self, x: Tensor) -> Any:
        """Joint density of the data, observed at x, and of the latent sites."""

    def guide(self, x: Tensor) -> Any:
        """Approximate posterior of the latent sites."""


@dataclass(frozen=True)
class LogDensities:
    r"""Log densities of S draws from the guide at N data, by site, each ``(S, N)``, in nats.

    Attributes:
        log_p: Sites of the model: latent ones at the guide's draws, observed ones at the data.
            Sites that were summed out have no entry. What depends on them stands by its density
            given the sites before it, latent ones first, with theirs summed out:
            ``log_p["z"]`` is :math:`\log \sum_y p(y)\, p(z \mid y)`, and the entries still add up
            to :math:`\log p(x, z)`.
        log_q: Sites of the guide.
        observed: Names of the model's observed sites: their entries are :math:`\log p(x \mid z)`.
        summed_out: Names of the discrete sites that were summed out.
        analytic_kl: KL(q || p) of the single latent site, ``(N,)``, where the
            program has just one and theory has a closed form; else None.
        kl_per_dim: The same for each latent dimension, ``(N, k)``, where q and p factorize.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    observed: tuple[str, ...]
    summed_out: tuple[str, ...]
    analytic_kl: Tensor | None
    kl_per_dim: Tensor | None

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z|x), ``(S, N)``."""
        return sum(self.log_p.values()) - sum(self.log_q.values())  # type: ignore[return-value]


def log_densities(programs: Programs, x: Tensor, *, num_samples: int) -> LogDensities:
    r"""Log densities of all sites at ``num_samples`` draws from the guide.

    The programs run S times on x as it is. A plate of draws around them would be faster for few
    data, but give networks a batch dimension that a user's convolutions or BatchNorm cannot take.
    Pyro's parameter store is read where it already holds a program's parameter and is never
    written to.

    A discrete latent site that the model marks ``infer={"enumerate": "parallel"}`` and the guide
    does not have is summed out exactly, as ``TraceEnum_ELBO`` does. Such a mark in the guide has
    no effect here: its site is drawn from q like any other, one value a draw, so that the S log
    weights of a datum remain S draws. The average over draws is the ELBO either way.

    Plates inside the plate "data", as one of pixels, are summed over. A site that the guide marks
    ``infer={"is_auxiliary": True}`` counts in log q alone, as in Pyro's objectives: right where
    the latent site is a function of it, a ``Delta`` with its ``log_density``.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        num_samples: Number S of draws for each datum.

    Raises:
        ValueError: If model and guide have not the same latent sites, or a site does not lie in a
            plate of N rows, as the rightmost batch dimension.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> densities = log_densities(vae, torch.zeros(5, 3), num_samples=7)
        >>> sorted(densities.log_p), densities.log_weights.shape
        (['x', 'z'], torch.Size([7, 5]))
    """
    log_ps: list[dict[str, Tensor]] = []
    log_qs: list[dict[str, Tensor]] = []
    enum_dim: int | None = None
    with _StoreUntouched():
        for draw in range(num_samples):
            guide_trace = poutine.trace(programs.guide).get_trace(x)
            model_trace = _replayed(programs.model, guide_trace, x, enum_dim)
            if draw == 0:
                summed_out = summed_out_sites(model_trace, guide_trace)
                if summed_out:
                    enum_dim = free_dim(model_trace)
                    model_trace = _replayed(programs.model, guide_trace, x, enum_dim)
            log_ps.append(model_log_probs(model_trace, len(x), summed_out))
            log_qs.append(site_log_probs(guide_trace, len(x)))
    log_p, log_q = _stacked(log_ps), _stacked(log_qs)
    observed = tuple(name for name in log_p if model_trace.nodes[name]["is_observed"])
    kl, kl_per_dim = analytic_kl(model_trace, guide_trace, list(log_q))
    return LogDensities(log_p, log_q, observed, tuple(summed_out), kl, kl_per_dim)


class _StoreUntouched(Messenger):
    """Answers param statements that the store does not know without registering them there."""

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in pyro.get_param_store() or len(msg["args"]) < 2:
            return
        init = msg["args"][1]
        msg["value"] = init() if callable(init) and not isinstance(init, Tensor) else init
        msg["done"] = True


def _replayed(
    model: Callable[..., Any], guide_trace: poutine.Trace, x: Tensor, enum_dim: int | None
) -> poutine.Trace:
    """Trace of the model at the guide's draws."""
    program: Callable[..., Any] = poutine.replay(model, trace=guide_trace)
    if enum_dim is not None:
        program = enumerating(program, enum_dim)
    return poutine.trace(program).get_trace(x)


def _stacked(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
