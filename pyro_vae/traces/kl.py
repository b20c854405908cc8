"""KL and entropy that theory knows, where they are one number for each datum."""

from typing import Any

from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from .sites import over_plates, plate_shape, plates_of

__all__ = ["analytic_entropy", "analytic_kl"]


def analytic_kl(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, latent: list[str]
) -> tuple[Tensor | None, Tensor | None]:
    """KL(q || p) in closed form, ``(N,)``, and for each dimension, ``(N, k)``; else None.

    There is none where p or q depend on another draw: with several latent sites, as p(z1 | z2),
    or where p(z | y) awaits the sum over y.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide.
        latent: Names of the guide's sites.
    """
    if len(latent) != 1 or latent[0] not in model_trace.nodes:
        return None, None
    sites = guide_trace.nodes[latent[0]], model_trace.nodes[latent[0]]
    plates = plates_of(sites[0])
    q: Any = sites[0]["fn"]
    p: Any = sites[1]["fn"]
    # Delta's log_density is that of a draw, and Pyro's KL leaves it out.
    if any(site["mask"] is not None or plates_of(site) != plates for site in sites) or isinstance(
        _base(q), Delta | MaskedDistribution
    ):
        return None, None
    try:
        per_dim = kl_divergence(q.base_dist, p.base_dist) if _factorize(q, p) else None
        kl = kl_divergence(q, p) if per_dim is None else per_dim.sum(-1)
    except NotImplementedError:
        return None, None
    if kl.shape != plate_shape(plates):
        return None, None
    return over_plates(kl), per_dim if kl.dim() == 1 else None


def analytic_entropy(
    guide_trace: poutine.Trace, latent: list[str]
) -> tuple[Tensor | None, Tensor | None]:
    """Entropy of q in closed form, ``(N,)``, and of each dimension, ``(N, k)``; else None.

    Args:
        guide_trace: Trace of the guide.
        latent: Names of the guide's sites.
    """
    if len(latent) != 1:
        return None, None
    site: Any = guide_trace.nodes[latent[0]]
    q = site["fn"]
    if site["mask"] is not None or isinstance(_base(q), Delta | MaskedDistribution):
        return None, None
    try:
        per_dim = q.base_dist.entropy() if _factorize(q) else None
        entropy = q.entropy() if per_dim is None else per_dim.sum(-1)
    except NotImplementedError:
        return None, None
    if entropy.shape != plate_shape(plates_of(site)):
        return None, None
    return over_plates(entropy), per_dim if entropy.dim() == 1 else None


def _factorize(*distributions: Any) -> bool:
    return all(
        isinstance(d, Independent)
        and d.reinterpreted_batch_ndims == 1
        and not d.base_dist.event_shape
        for d in distributions
    )


def _base(distribution: Any) -> Any:
    while isinstance(distribution, Independent | ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution
