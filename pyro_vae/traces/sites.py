"""The sites of one trace, and the log density of each of them."""

from collections.abc import Container, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

__all__ = [
    "log_prob_of",
    "over_plates",
    "plate_shape",
    "plates_of",
    "scored_sites",
    "site_log_probs",
]


def site_log_probs(trace: poutine.Trace, num_data: int) -> dict[str, Tensor]:
    """Log density of each sample site of a trace, ``(N,)``, in nats.

    A plate scale is a matter of training and does not count; a mask belongs to the density.
    Plates inside the plate "data" are summed over. Deterministic sites have no density.

    Args:
        trace: Of a model or a guide.
        num_data: Number N of data.

    Raises:
        ValueError: If a site has not one log density for each datum.
    """
    return {
        name: over_plates(log_prob_of(name, site, num_data, frozenset()))
        for name, site in scored_sites(trace)
    }


def log_prob_of(name: str, site: Any, num_data: int, enumerated: Container[int]) -> Tensor:
    """Log density of a site, with every plate at its full size.

    Args:
        name: Name of the site.
        site: The site.
        num_data: Number N of data.
        enumerated: Batch dimensions that are no plates.

    Raises:
        ValueError: If the site lies outside the plate "data", or has another batch dimension.
    """
    plates = plates_of(site)
    if plates.get(-1) != num_data:
        raise ValueError(
            f"site {name!r} must lie in the plate 'data' of {num_data} rows at dim=-1; its "
            f"plates are {plates}. Estimates are per datum, so a site that all data share has "
            "no place in them."
        )
    log_prob: Tensor = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    for dim in range(-log_prob.dim(), 0):
        if log_prob.shape[dim] not in {1, plates.get(dim, 1)} and dim not in enumerated:
            raise ValueError(
                f"site {name!r} must have one log density for each datum, shape ({num_data},), "
                f"or one in each of its plates, {plates}; got {tuple(log_prob.shape)}. Move "
                "dependent dimensions into the event with .to_event()."
            )
    shape = plate_shape(plates)
    if log_prob.shape == shape:  # as nearly always: broadcast_shapes takes longer than a small net
        return log_prob
    return log_prob.expand(torch.broadcast_shapes(log_prob.shape, shape))


def scored_sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """The sites that have a density."""
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] == "sample" and not (
            poutine.util.site_is_subsample(site) or site["infer"].get("_deterministic")
        ):
            yield name, site


def plates_of(site: Any) -> dict[int, int]:
    """Size of each plate around a site, by its batch dimension."""
    return {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}


def plate_shape(plates: dict[int, int]) -> torch.Size:
    """Batch shape of a site in these plates."""
    return torch.Size([plates.get(dim, 1) for dim in range(min(plates, default=0), 0)])


def over_plates(values: Tensor) -> Tensor:
    """Sum over all dimensions but that of the data."""
    return values if values.dim() == 1 else values.flatten(0, -2).sum(0)
