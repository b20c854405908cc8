"""Discrete sites of the model that nobody draws: they are summed out."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .sites import log_prob_of, over_plates, plates_of, scored_sites, site_log_probs

__all__ = ["enumerating", "free_dim", "model_log_probs", "summed_out_sites"]

DATA = frozenset({-1})
"""The batch dimension of the plate "data"."""

OBS_MASK = " Where obs_mask made it, fn.mask(obs_mask) with obs= leaves missing values out."


def summed_out_sites(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> list[str]:
    """Names of the latent sites that the guide leaves to be summed out.

    Args:
        model_trace: Of the model, replayed on the guide's draws.
        guide_trace: Of the guide.

    Raises:
        ValueError: If the guide has a site that is no latent site of the model, or lacks one that
            is not marked, or cannot be summed out.
    """
    latent = {name: site for name, site in scored_sites(model_trace) if not site["is_observed"]}
    drawn = {name: site for name, site in scored_sites(guide_trace) if not site["is_observed"]}
    unknown = [
        name
        for name, site in drawn.items()
        if name not in latent and not site["infer"].get("is_auxiliary")
    ]
    if unknown:
        raise ValueError(
            f"guide must sample only sites that the model has; got {unknown}, and the model's "
            f"latent sites are {list(latent)}."
        )
    left = {name: site for name, site in latent.items() if name not in drawn}
    missing = [name for name, site in left.items() if site["infer"].get("enumerate") != "parallel"]
    if missing:
        masked = any(name.endswith("_unobserved") for name in missing)
        raise ValueError(
            f"guide must sample every latent site of the model; got a guide without {missing}, "
            f"whose sites are {list(drawn)}. Add them to the guide, or observe them with obs=, or "
            'mark a discrete one infer={"enumerate": "parallel"} in the model to have it summed '
            f"out.{OBS_MASK if masked else ''}"
        )
    for name, site in left.items():
        density: Any = site["fn"]
        num_draws = site["infer"].get("num_samples")
        if num_draws is not None or not getattr(density, "has_enumerate_support", False):
            drawn_instead = "" if num_draws is None else f" with num_samples={num_draws}"
            raise ValueError(
                f"site {name!r} must have finitely many values to be summed out, all of them; got "
                f"{type(density).__name__}{drawn_instead}. Use Categorical or Bernoulli without "
                ".to_event(), or sample the site in the guide."
            )
    return list(left)


def free_dim(trace: poutine.Trace) -> int:
    """The first dimension to the left of every plate, which ``TraceEnum_ELBO`` takes too."""
    return min(min(plates_of(site), default=-1) for _, site in scored_sites(trace)) - 1


def enumerating(program: Callable[..., Any], dim: int) -> Callable[..., Any]:
    """The program with each site that it marks at all its values at once, from ``dim`` leftwards.

    Sites that are replayed keep their value.
    """
    return poutine.enum(_MarkovForgotten()(program), first_available_dim=dim)


def model_log_probs(
    trace: poutine.Trace, num_data: int, summed_out: list[str]
) -> dict[str, Tensor]:
    """Log density of each site given those before it, latent ones first, ``(N,)``, in nats.

    Args:
        trace: Of the model, replayed on the guide's draws, with ``summed_out`` enumerated.
        num_data: Number N of data.
        summed_out: Names of the sites to be summed out.
    """
    if not summed_out:
        return site_log_probs(trace, num_data)
    sites = dict(scored_sites(trace))
    homes = {
        sites[name]["infer"]["_enumerate_dim"]: frozenset(plates_of(sites[name]))
        for name in summed_out
    }
    factors = []
    for name in summed_out:
        # A mask silences what depends on a site; its own probabilities must go on to sum to 1.
        prior = {**sites.pop(name), "mask": None}
        factors.append((frozenset(plates_of(prior)), log_prob_of(name, prior, num_data, homes)))
    log_probs: dict[str, Tensor] = {}
    before = factors[0][1].new_zeros(num_data)
    for name in sorted(sites, key=lambda name: sites[name]["is_observed"]):
        log_prob = log_prob_of(name, sites[name], num_data, homes)
        if not any(_depends(log_prob, dim) for dim in homes):  # exact, not a difference of two
            log_probs[name] = over_plates(log_prob)
            continue
        factors.append((frozenset(plates_of(sites[name])), log_prob))
        total = _sum_product(factors, homes)
        # After something impossible nothing can be told: -inf - (-inf) must not be NaN.
        log_probs[name] = torch.where(before.isneginf(), torch.zeros_like(total), total - before)
        before = total
    return log_probs


def _sum_product(
    factors: list[tuple[frozenset[int], Tensor]], homes: dict[int, frozenset[int]]
) -> Tensor:
    """Sum over enumerated dimensions, product over plates inside "data", in logs: ``(N,)``.

    From the innermost plates outwards, so that a value per pixel is summed out for each pixel and
    a value per datum for all its pixels at once. Site by site, so that a chain of sites costs the
    square of their number of values, not its power.
    """
    groups: dict[frozenset[int], list[Tensor]] = {DATA: []}
    for plates, log_prob in factors:
        groups.setdefault(plates, []).append(log_prob)
    while True:
        plates = max(groups, key=len)
        terms = groups.pop(plates)
        # The leftmost dimension is the last site's: a chain is summed out from its end.
        for dim in sorted(dim for dim, home in homes.items() if home == plates):
            dependent = [term for term in terms if _depends(term, dim)]
            if dependent:
                terms = [term for term in terms if not _depends(term, dim)]
                terms.append(_added(dependent).logsumexp(dim, keepdim=True))
        total = _added(terms)
        if not groups:
            return total.reshape(total.shape[-1])
        outer = max((plates & other for other in groups), key=len)
        groups.setdefault(outer, []).append(total.sum(sorted(plates - outer), keepdim=True))


def _added(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0])


def _depends(log_prob: Tensor, dim: int) -> bool:
    return log_prob.dim() >= -dim and log_prob.shape[dim] > 1


class _MarkovForgotten(Messenger):
    """Lets every enumerated site have a dimension of its own, where pyro.markov would reuse it."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"].pop("_markov_scope", None)
