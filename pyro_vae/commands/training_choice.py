"""How to train: a configuration to what ``fit`` takes."""

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO

from pyro_vae.kinds import OBJECTIVES, parse_kind
from pyro_vae.objectives import FreeBits, ImportanceWeighted_ELBO, kl_warmup

__all__ = ["training_in_words", "training_options"]

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


def training_in_words(fit: Mapping[str, Any], terms: list[xr.Dataset]) -> list[str]:
    """What was maximized if not the ELBO, and that the KL is sampled where it is."""
    weights = {
        "kl_weight": "a KL weight of {}",
        "kl_warmup": "a KL weight that rises over {} of training",
        "free_bits": "{} nats of KL free in each dimension",
    }
    said = [f"the objective {fit['objective']}"] if fit["objective"] != "trace" else []
    said += [
        text.format(fit[key])
        for key, text in weights.items()
        if fit[key] is not None and (key, fit[key]) != ("kl_weight", 1.0)
    ]
    lines = [f"trained with {' and '.join(said)}; the ELBO above is the bound"] if said else []
    if not all(part.attrs["kl_is_analytic"] for part in terms):
        lines.append("KL averaged over draws: q(z|x) and p(z) have no closed form for it")
    return lines
