"""The data plate that a run of model and guide shares: its size, its scale, its rows."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.traces.sites import scored_sites
from pyro_vae.traces.summed_out import summed_out_sites

__all__ = ["Plate", "SameRows", "latent_sites"]


@dataclass(frozen=True)
class Plate:
    """The plate in which all sites of one run of model and guide lie.

    Attributes:
        num_data: Number N of rows in the run.
        scale: What one row counts: the full size over N in a sub-sampled plate, times any
            ``poutine.scale``. A number, or a tensor that expands to ``(N,)``.
        kl_weights: What :func:`kl_weighted` made of each site; 1 for the others.
    """

    num_data: int
    scale: float | Tensor
    kl_weights: Mapping[str, float]

    @classmethod
    def of(cls, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> "Plate":
        """The plate of a run.

        Raises:
            ValueError: If the guide does not sample the model's latent sites, if sites have
                different scales, or if none lies in a plate at dim=-1.
        """
        summed_out = summed_out_sites(model_trace, guide_trace)
        if summed_out:
            raise ValueError(
                f"guide must sample every latent site of the model; got none for {summed_out}. "
                "pyro.infer.TraceEnum_ELBO sums out a discrete one."
            )
        sites = [("guide", *site) for site in scored_sites(guide_trace)]
        sites += [("model", *site) for site in scored_sites(model_trace)]
        weights = {name: float(site["infer"].get("kl_weight", 1.0)) for _, name, site in sites}
        # A site of weight 0 does not tell the scale around it.
        telling = (site["scale"] / weights[name] for _, name, site in sites if weights[name] != 0)
        scale = next(telling, 1.0)
        if not all(_is_close(site["scale"], scale * weights[name]) for _, name, site in sites):
            found = ", ".join(f"{role}'s {name!r}: {site['scale']}" for role, name, site in sites)
            raise ValueError(
                f"model and guide must give all sites the same scale; got {found}. Put all sites "
                "in one plate, and poutine.scale or objectives.kl_weighted around both programs."
            )
        return cls(_num_data(site for _, _, site in sites), scale, weights)

    def log_density(self, log_probs: Mapping[str, Tensor]) -> Tensor:
        """Sum over sites of log densities, each ``(N,)``, times their KL weights."""
        total: Any = 0.0
        for name, log_prob in log_probs.items():
            weight = self.kl_weights[name]
            total = total + (log_prob if weight == 1 else weight * log_prob)
        return total

    def row_weights(self, like: Tensor) -> Tensor:
        """The scale of each row, ``(N,)``, as a tensor of the type of ``like``."""
        return like.new_ones(self.num_data).mul_(self.scale)


class SameRows(Messenger):
    """Gives all runs within it the rows that the first one drew from a sub-sampled plate.

    Without ``subsample=`` a plate draws anew each time that a program runs, and weights of
    different data would be averaged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._rows and site_is_subsample(msg):
            msg["value"], msg["done"] = self._rows[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._rows.setdefault(msg["name"], msg["value"])


def latent_sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sites of a trace that are drawn and not observed."""
    return {name: site for name, site in scored_sites(trace) if not site["is_observed"]}


def _num_data(sites: Iterable[Any]) -> int:
    for site in sites:
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and frame.dim == -1:
                return int(frame.size)
    raise ValueError(
        "model must have its sites in the plate 'data' at dim=-1; got none in any plate. Write "
        "with pyro.plate('data', len(x), dim=-1)."
    )


def _is_close(scale: Any, expected: Any) -> bool:
    if isinstance(scale, Tensor) or isinstance(expected, Tensor):
        return bool((abs(scale - expected) <= 1e-6 * abs(expected)).all())
    return math.isclose(scale, expected, rel_tol=1e-6)
