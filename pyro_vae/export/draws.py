"""Draws from guide and model, and their densities, as arrays of (chain, draw, obs_id, ...)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import infer_discrete
from torch import Tensor

from pyro_vae.diagnostics.passes import piece_size
from pyro_vae.evaluation import evaluating
from pyro_vae.rows import at_rows, per_datum_parts, pieces
from pyro_vae.seeding import seeded
from pyro_vae.traces import CHUNK_SIZE, Programs
from pyro_vae.traces.runs import Runs, in_draws, store_untouched, values_of
from pyro_vae.traces.summed_out import free_dim

from .layout import SiteLayout, site_layouts

__all__ = ["Draws", "make_draws"]

ROWS_AT_A_TIME = 500
"""Rows that go through the programs at once."""

FEW_DRAWS = 8
"""From so many draws on, a plate of draws is worth the runs that find out whether it may be."""

PREDICTIVE = ("posterior_predictive", "prior", "prior_predictive")


@dataclass
class Draws:
    r"""Draws at N data.

    Attributes:
        num_data: Number N of data.
        num_samples: Number S of draws from q(z|x).
        num_predictive: Number of draws in the groups that have x's in them.
        groups: Arrays ``(1, draws, N, ...)`` by group and site or statistic, ``observed_data``
            with one draw.
        layouts: Names and dimensions of the model's sites, by site.
        latent: Names of the latent sites that the guide draws.
        observed: Names of the observed sites.
    """

    num_data: int
    num_samples: int
    num_predictive: int
    groups: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    layouts: dict[str, SiteLayout] = field(default_factory=dict)
    latent: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()

    def put(self, group: str, name: str, values: Tensor, *, row: int, draw: int) -> None:
        """Fill in values, ``(R, n, ...)``, from a row and a draw on; superfluous ones are left.

        An array is allocated once, at its final size.
        """
        count = 1 if group == "observed_data" else self.num_samples
        if group in PREDICTIVE:
            count = self.num_predictive
        # numpy has no bfloat16, and netCDF no half.
        narrow = values.dtype in {torch.bfloat16, torch.float16}
        block = (values.float() if narrow else values).detach().cpu().numpy()
        arrays = self.groups.setdefault(group, {})
        if name not in arrays:
            arrays[name] = np.empty((1, count, self.num_data, *block.shape[2:]), block.dtype)
        used = min(len(block), count - draw)
        arrays[name][0, draw : draw + used, row : row + block.shape[1]] = block[:used]

    def variables(self, group: str) -> dict[str, tuple[tuple[str, ...], NDArray[Any]]]:
        """Dimensions and values of a group's variables, by the names under which they go."""
        leading: tuple[str, ...] = ("chain", "draw", "obs_id")
        arrays = self.groups[group]
        if group == "sample_stats":
            return {name: (leading, array) for name, array in arrays.items()}
        layouts = {name: self.layouts[name] for name in arrays}
        if group == "log_likelihood":
            return {layouts[name].variable: (leading, array) for name, array in arrays.items()}
        if group == "observed_data":
            arrays, leading = {name: array[0, 0] for name, array in arrays.items()}, leading[2:]
        return {
            layouts[name].variable: ((*leading, *layouts[name].dims), array)
            for name, array in arrays.items()
        }


def make_draws(
    programs: Programs,
    x: Tensor,
    *,
    num_samples: int,
    num_predictive: int,
    seed: int,
    purpose: str,
    prior: bool = True,
) -> Draws:
    """Draws from q(z|x), p(x|z) and the prior, with the log densities of the first.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        num_samples: Number S of draws from q(z|x) for each datum.
        num_predictive: Number of draws of x for each datum: at the first draws from q(z|x), and
            as many from the prior.
        seed: Seed of the draws. Those from q(z|x) do not depend on ``num_predictive``.
        purpose: What they are for.
        prior: Whether draws from the prior are wanted.

    Raises:
        TypeError: If the programs have no latent site.
        ValueError: If they have not the same latent sites, or a site does not lie in the plate
            "data".
    """
    draws = Draws(len(x), num_samples, num_predictive)
    parts, row = per_datum_parts(programs), 0
    for piece, index in pieces(parts, x, piece_size(ROWS_AT_A_TIME, x)):
        noise = (seed, purpose, row)
        with evaluating(programs, *noise, device=x.device), at_rows(parts, index):
            _fill_rows(draws, programs, piece, row, noise, prior=prior)
        row += len(piece)
    return draws


def _fill_rows(
    draws: Draws,
    programs: Programs,
    x: Tensor,
    row: int,
    noise: tuple[int, str, int],
    *,
    prior: bool,
) -> None:
    runs = _checked_runs(programs, x)
    if not draws.layouts:
        draws.layouts = site_layouts(runs.model_trace)
        draws.latent, draws.observed = runs.latent, runs.observed
    together = draws.num_samples >= FEW_DRAWS and runs.takes_draws
    step = max(1, CHUNK_SIZE // len(x)) if together else 1
    _put_sites(draws, "observed_data", draws.observed, runs.model_trace, None, row=row, draw=0)
    # The runs so far have validated the data and the parameters.
    with pyro.validation_enabled(False):  # noqa: FBT003
        for draw in range(0, draws.num_samples, step):
            at = {"row": row, "draw": draw}
            size = min(step, draws.num_samples - draw) if together else None
            trace = runs.new_guide_trace(size)
            _put_sites(draws, "posterior", draws.latent, trace, size, **at)
            _put_densities(draws, runs, trace, size, **at)
            if draw >= draws.num_predictive:
                continue
            # Noise of its own, so that the next draws from q are the same without it.
            with seeded(*noise, "x", draw, device=x.device):
                given = _with_summed_out(programs, x, runs, trace)
                simulated = _simulated(programs, x, size, given=given)
            _put_sites(draws, "posterior_predictive", draws.observed, simulated, size, **at)
            if prior:
                with seeded(*noise, "prior", draw, device=x.device):
                    simulated = _simulated(programs, x, size)
                latent = [name for name in draws.layouts if name not in draws.observed]
                _put_sites(draws, "prior", latent, simulated, size, **at)
                _put_sites(draws, "prior_predictive", draws.observed, simulated, size, **at)


def _checked_runs(programs: Programs, x: Tensor) -> Runs:
    guide_trace = poutine.trace(programs.guide)
    with store_untouched():
        sites = values_of(guide_trace.get_trace(x))
    if not sites:
        raise TypeError(
            f"vae must have a posterior, a guide that samples a latent site; got "
            f"{type(programs).__name__}, whose guide samples none. An autoencoder encodes to a "
            "point."
        )
    return Runs(programs, x)


def _put_sites(
    draws: Draws,
    group: str,
    names: Iterable[str],
    trace: poutine.Trace,
    num_draws: int | None,
    *,
    row: int,
    draw: int,
) -> None:
    """Store what a trace has at some sites; ``num_draws`` as in :meth:`SiteLayout.by_datum`."""
    for name in names:
        value: Any = trace.nodes[name]["value"]
        values = draws.layouts[name].by_datum(value, num_draws=num_draws)
        draws.put(group, name, values, row=row, draw=draw)


def _put_densities(
    draws: Draws,
    runs: Runs,
    guide_trace: poutine.Trace,
    num_draws: int | None,
    *,
    row: int,
    draw: int,
) -> None:
    log_p = runs.log_p(runs.replayed(guide_trace, num_draws))
    for name in draws.observed:
        values = log_p[name].double()
        draws.put("log_likelihood", name, values.reshape(-1, values.shape[-1]), row=row, draw=draw)
    lp, log_q = _total(log_p), _total(runs.log_q(guide_trace))
    for name, values in {"lp": lp, "log_q": log_q, "log_weight": lp - log_q}.items():
        draws.put("sample_stats", name, values, row=row, draw=draw)


def _total(log_probs: Mapping[str, Tensor]) -> Tensor:
    """The sum over sites, ``(R, N)``."""
    values = torch.stack([log_prob.double() for log_prob in log_probs.values()])
    return values.sum(0).reshape(-1, values.shape[-1])


def _with_summed_out(
    programs: Programs, x: Tensor, runs: Runs, guide_trace: poutine.Trace
) -> poutine.Trace:
    """The guide's trace with a draw of each summed-out site y from p(y | z, x) besides."""
    if not runs.summed_out:
        return guide_trace
    model = infer_discrete(
        poutine.replay(programs.model, trace=guide_trace),
        first_available_dim=free_dim(runs.model_trace),
    )
    with store_untouched():
        drawn = poutine.trace(model).get_trace(x)
    given = guide_trace.copy()
    for name in runs.summed_out:
        given.add_node(name, **{**drawn.nodes[name], "name": name})
    return given


def _simulated(
    programs: Programs, x: Tensor, num_draws: int | None, *, given: poutine.Trace | None = None
) -> poutine.Trace:
    """The model with its observed sites drawn, and all latent ones that are not given."""
    program = in_draws(poutine.uncondition(programs.model), num_draws)
    if given is not None:
        program = poutine.replay(program, trace=given)
    with store_untouched():
        return poutine.trace(program).get_trace(x)
