"""Model and guide run on the same data: draw by draw, or many draws at once."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .sites import log_prob_of, plates_of, scored_sites, site_log_probs
from .summed_out import enumerating, free_dim, model_log_probs, summed_out_sites

__all__ = ["Programs", "Runs", "store_untouched"]

PLATE = "_draws"
"""Name of the plate of draws, to the left of the plate "data"."""


class Programs(Protocol):
    """A model and a guide: Pyro programs of the data, with their sites in the plate "data"."""

    def model(self, x: Tensor) -> Any:
        """Joint density of the data, observed at x, and of the latent sites."""

    def guide(self, x: Tensor) -> Any:
        """Approximate posterior of the latent sites."""


class Runs:
    """Traces of two programs at the same data.

    A plate of draws around the programs runs them once for many draws, but gives networks a batch
    dimension more, which a user's convolutions or BatchNorm may not take, or, worse, take for
    another one. So it is tried, and used only where it repeats the log densities of a run without
    it. Programs with plates inside the plate "data" or with sites that are summed out run draw by
    draw.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``.

    Attributes:
        guide_trace: One run of the guide.
        model_trace: The model at its draws.
        summed_out: Names of discrete sites that the guide leaves to be summed out.
        latent: Names of the guide's sites that the model has too, in the model's order.
        observed: Names of the observed sites.

    Raises:
        ValueError: If model and guide have not the same latent sites, or a site does not lie in a
            plate of N rows, as the rightmost batch dimension.
    """

    def __init__(self, programs: Programs, x: Tensor) -> None:
        self._programs, self._x = programs, x
        self._enum_dim: int | None = None
        self.guide_trace = self.new_guide_trace()
        self.model_trace = self.replayed(self.guide_trace)
        self.summed_out = summed_out_sites(self.model_trace, self.guide_trace)
        if self.summed_out:
            self._enum_dim = free_dim(self.model_trace)
            self.model_trace = self.replayed(self.guide_trace)
        sites = dict(scored_sites(self.model_trace))
        self.observed = tuple(name for name, site in sites.items() if site["is_observed"])
        self.latent = tuple(
            name for name in sites if name not in self.observed and name not in self.summed_out
        )

    @cached_property
    def takes_draws(self) -> bool:
        """Whether a plate of draws gives what runs without it give."""
        traces = (self.guide_trace, self.model_trace)
        sites = [site for trace in traces for _, site in scored_sites(trace)]
        if self.summed_out or any(set(plates_of(site)) != {-1} for site in sites):
            return False
        try:
            guide_trace = self.new_guide_trace(3)
            together = self.log_p(self.replayed(guide_trace, 3)) | self.log_q(guide_trace)
            last = with_values(
                self.guide_trace, {n: v[-1] for n, v in values_of(guide_trace).items()}
            )
            guide = poutine.trace(poutine.replay(self._programs.guide, trace=last))
            with store_untouched():
                guide_again = guide.get_trace(self._x)
            alone = self.log_p(self.replayed(last)) | self.log_q(guide_again)
        except Exception:  # whatever it is: a fault of the programs shows again without the plate
            return False
        return all(
            together[name].dim() == 2 and agree(together[name][-1], alone[name]) for name in alone
        )

    def new_guide_trace(self, num_draws: int | None = None) -> poutine.Trace:
        """The guide run anew; with ``num_draws`` inside a plate of so many draws."""
        with store_untouched():
            return poutine.trace(in_draws(self._programs.guide, num_draws)).get_trace(self._x)

    def new_prior_trace(self, num_draws: int | None = None) -> poutine.Trace:
        """The model run anew with its latent sites drawn from the prior."""
        with store_untouched():
            return poutine.trace(in_draws(self._programs.model, num_draws)).get_trace(self._x)

    def replayed(self, guide_trace: poutine.Trace, num_draws: int | None = None) -> poutine.Trace:
        """The model at the values that a trace of the guide holds."""
        program = poutine.replay(in_draws(self._programs.model, num_draws), trace=guide_trace)
        if self._enum_dim is not None:
            program = enumerating(program, self._enum_dim)
        with store_untouched():
            return poutine.trace(program).get_trace(self._x)

    def log_p(self, model_trace: poutine.Trace) -> dict[str, Tensor]:
        """Log densities of the model's sites, ``(N,)``, or ``(R, N)`` in a plate of draws."""
        if PLATE in model_trace.nodes:
            return _drawn_log_probs(model_trace, len(self._x))
        return model_log_probs(model_trace, len(self._x), self.summed_out)

    def log_q(self, guide_trace: poutine.Trace) -> dict[str, Tensor]:
        """Log densities of the guide's sites, ``(N,)``, or ``(R, N)`` in a plate of draws."""
        if PLATE in guide_trace.nodes:
            return _drawn_log_probs(guide_trace, len(self._x))
        return site_log_probs(guide_trace, len(self._x))


def in_draws(program: Callable[..., Any], num_draws: int | None) -> Callable[..., Any]:
    """The program inside a plate of draws, to the left of the plate "data"."""
    if num_draws is None:
        return program

    def drawn(x: Tensor) -> Any:
        with pyro.plate(PLATE, num_draws, dim=-2):
            return program(x)

    return drawn


def values_of(trace: poutine.Trace) -> dict[str, Tensor]:
    """Values of the sites that have a density and are not observed."""
    return {name: site["value"] for name, site in scored_sites(trace) if not site["is_observed"]}


def with_values(trace: poutine.Trace, values: Mapping[str, Tensor]) -> poutine.Trace:
    """A copy of a trace to be replayed, with other values at some of its sites."""
    new = trace.copy()
    for name, value in values.items():
        new.nodes[name] = {**trace.nodes[name], "value": value}
    return new


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether log densities are equal up to rounding."""
    rounding = torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one, other, rtol=rounding, atol=rounding, equal_nan=True)


class _StoreUntouched(Messenger):
    """Answers param statements that the store does not know without registering them there."""

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in pyro.get_param_store() or len(msg["args"]) < 2:
            return
        init = msg["args"][1]
        msg["value"] = init() if callable(init) and not isinstance(init, Tensor) else init
        msg["done"] = True


def store_untouched() -> Messenger:
    """Programs run inside it read Pyro's parameter store and never write to it."""
    return _StoreUntouched()


def _drawn_log_probs(trace: poutine.Trace, num_data: int) -> dict[str, Tensor]:
    return {
        name: log_prob_of(name, site, num_data, frozenset()) for name, site in scored_sites(trace)
    }
