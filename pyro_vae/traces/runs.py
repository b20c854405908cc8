"""Model and guide run on the same data: draw by draw, or many draws at once."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.rows import at_rows, per_datum_parts

from .sites import log_prob_of, plates_of, scored_sites, site_log_probs
from .summed_out import enumerating, free_dim, model_log_probs, summed_out_sites

__all__ = ["Programs", "RepeatedRuns", "Runs", "store_untouched"]

PLATE = "_draws"
"""Name of the plate of draws, to the left of the plate "data"."""

DRAWS_OF_A_RUN, ROWS_OF_A_RUN = 64, 16_000
"""Most draws, and rows times draws, of a run that draws: its noise must not depend on what the
model takes at once."""


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
    it. Where it may not be, as with plates inside the plate "data" or sites that are summed out,
    draws can still be laid out as rows, each datum as often as there are draws: that is tried and
    checked in the same way.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``.

    Attributes:
        num_data: Number N of data.
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
        self.num_data = len(x)
        self._enum_dim: int | None = None
        self._repeated: dict[int, RepeatedRuns] = {}
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
            last = {name: value[-1] for name, value in values_of(guide_trace).items()}
            return self._repeats(together, last)
        except Exception:  # whatever it is: a fault of the programs shows again without the plate
            return False

    @cached_property
    def takes_rows(self) -> bool:
        """Whether draws laid out as rows give what single runs give."""
        try:
            repeated = self.repeated(3)
            guide_trace = repeated.guide_trace
            together = repeated.log_p(repeated.replayed(guide_trace)) | repeated.log_q(guide_trace)
            num_data = len(self._x)
            last = {
                name: site["value"].narrow(_data_dim(site), 2 * num_data, num_data)
                for name, site in scored_sites(guide_trace)
                if not site["is_observed"]
            }
            return self._repeats(together, last)
        except Exception:  # as above
            return False

    def repeated(self, num_draws: int) -> "RepeatedRuns":
        """The programs at each datum ``num_draws`` times."""
        if num_draws not in self._repeated:
            self._repeated[num_draws] = RepeatedRuns(self._programs, self._x, num_draws)
        return self._repeated[num_draws]

    def _repeats(self, together: dict[str, Tensor], last: dict[str, Tensor]) -> bool:
        """Whether log densities of many draws, ``(R, N)``, end with those of the last alone."""
        trace = with_values(self.guide_trace, last)
        guide = poutine.trace(poutine.replay(self._programs.guide, trace=trace))
        with store_untouched():
            guide_again = guide.get_trace(self._x)
        alone = self.log_p(self.replayed(trace)) | self.log_q(guide_again)
        return together.keys() == alone.keys() and all(
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


class RepeatedRuns(Runs):
    """Traces of two programs with draws laid out as rows: log densities are ``(R, N)``.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``.
        num_draws: How often each datum stands among the rows.
    """

    def __init__(self, programs: Programs, x: Tensor, num_draws: int) -> None:
        self._shape = torch.Size([num_draws, len(x)])
        rows = torch.arange(len(x), device=x.device).repeat(num_draws)
        super().__init__(_AtRows(programs, rows), x[rows])

    def log_p(self, model_trace: poutine.Trace) -> dict[str, Tensor]:
        """Log densities of the model's sites, ``(R, N)``."""
        return {n: v.reshape(self._shape) for n, v in super().log_p(model_trace).items()}

    def log_q(self, guide_trace: poutine.Trace) -> dict[str, Tensor]:
        """Log densities of the guide's sites, ``(R, N)``."""
        return {n: v.reshape(self._shape) for n, v in super().log_q(guide_trace).items()}


class _AtRows:
    """Programs whose per-datum parts are told which rows they see."""

    def __init__(self, programs: Programs, rows: Tensor) -> None:
        self._programs, self._rows = programs, rows
        self._parts = per_datum_parts(programs)

    def model(self, x: Tensor) -> Any:
        """The model."""
        with at_rows(self._parts, self._rows):
            return self._programs.model(x)

    def guide(self, x: Tensor) -> Any:
        """The guide."""
        with at_rows(self._parts, self._rows):
            return self._programs.guide(x)


def draws_of_a_run(num_draws: int, num_data: int) -> Iterator[int]:
    """Numbers of draws, one for each run that draws them, which add up to ``num_draws``.

    Example:
        >>> list(draws_of_a_run(100, 5)), list(draws_of_a_run(20, 2000))
        ([64, 36], [8, 8, 4])
    """
    size = max(1, min(DRAWS_OF_A_RUN, ROWS_OF_A_RUN // max(1, num_data)))
    for start in range(0, num_draws, size):
        yield min(size, num_draws - start)


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


def _data_dim(site: Any) -> int:
    """Dimension of a site's value along which the data lie."""
    return int(site["value"].dim()) - len(site["fn"].event_shape) - 1


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
