"""How to train: a configuration to what ``fit`` takes."""

from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO

from pyro_vae.kinds import OBJECTIVES, parse_kind
from pyro_vae.objectives import FreeBits, ImportanceWeighted_ELBO, kl_warmup

__all__ = ["training_options"]

OBJECTIVE_OF: dict[str, Callable[[Any], ELBO]] = {
    "trace": lambda _: Trace_ELBO(),
    "mean_field": lambda _: TraceMeanField_ELBO(),
    "graph": lambda _: TraceGraph_ELBO(),
    "renyi": lambda alpha: RenyiELBO(alpha=alpha, num_particles=2),
    "iwae": lambda n: ImportanceWeighted_ELBO(n),
    "stl": lambda n: ImportanceWeighted_ELBO(n, gradient="sticking_the_landing"),
    "dreg": lambda n: ImportanceWeighted_ELBO(n, gradient="doubly_reparametrized"),
}


def training_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a fit as the arguments of :func:`pyro_vae.fit`."""
    options = dict(settings)
    kind, number = parse_kind(options.pop("objective"), OBJECTIVES)
    warmup, nats = options.pop("kl_warmup"), options.pop("free_bits")
    if nats is not None and kind != "trace":
        raise ValueError(
            f"free-bits must go with the objective trace, whose KL they floor; got {kind}."
        )
    if nats is not None:
        return {**options, "kl_weight": FreeBits(nats)}
    if warmup is not None:
        options["kl_weight"] = kl_warmup(warmup)
    return {**options, "elbo": OBJECTIVE_OF[kind](number)}
