"""Peak memory of every diagnostic: flat in the number of rows and of draws.

What is counted are the bytes of all tensors that are alive at once, beyond those that were there.
They may grow by what the result grows by, and by a few numbers for each row and draw.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from helpers import small_vae
from test_device_purity_diagnostics import REDUCTIONS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyro_vae as pv
from pyro_vae import diagnostics, families, traces
from pyro_vae.arviz_container import container
from pyro_vae.traces import densities, runs

FEATURES = 6

MORE = 3
"""Times as many rows or draws."""

NUMBERS_EACH = 8
"""Numbers in double precision for a row or a draw that need no excuse: a permutation, a mask."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations made and nobody has freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {id(storage) for storage in storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            key = id(storage)
            if key not in given and key not in self._known:
                self._known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, key, storage.nbytes())
        return result

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def storages(tree):
    return [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def nbytes(result) -> int:
    """Bytes of what a diagnostic returned."""
    if isinstance(result, torch.Tensor):
        return result.nbytes
    if isinstance(result, dict):
        return sum(map(nbytes, result.values()))
    if isinstance(result, pd.DataFrame):
        return int(result.memory_usage().sum())
    if isinstance(result, xr.Dataset | xr.DataArray):
        return int(result.nbytes)
    if hasattr(result, "children"):
        return sum(int(group.ds.nbytes) for group in result.children.values())
    if hasattr(result, "groups"):
        return sum(int(result[name].nbytes) for name in result.groups())
    return 0


class Case(NamedTuple):
    """A call at x and a number of draws, and the numbers at which it is not yet larger."""

    call: Callable[[pv.VAE, torch.Tensor, int], Any]
    rows: int = 200
    draws: int | None = 20


def log_weights(x, draws):
    return torch.randn(draws, len(x))


def ranks(x, draws):
    return torch.randint(draws + 1, (len(x), 3))


def reference_of(x):
    """What NUTS would return, with draws of anything."""
    dims = ("chain", "draw", "obs_id", "latent")
    z = np.random.default_rng(0).normal(size=(2, 8, len(x), 3))
    stats = {"diverging": (dims[:3], np.zeros(z.shape[:3], bool))}
    return container(
        {"posterior": xr.Dataset({"z": (dims, z)}), "sample_stats": xr.Dataset(stats)}, attrs={}
    )


CASES = {
    "active_units": Case(lambda vae, x, s: diagnostics.active_units(flow(vae), x, num_samples=s)),
    "aggregate_kl": Case(
        lambda vae, x, s: diagnostics.aggregate_kl(vae, x, num_samples=s), 300, 100
    ),
    "aggregate_margins": Case(
        lambda vae, x, s: diagnostics.aggregate_margins(vae, x, num_points=s), draws=100
    ),
    "ais_log_evidence": Case(
        lambda vae, x, s: diagnostics.ais_log_evidence(
            vae, x, num_steps=1, num_chains=s, chunk_size=25
        ),
        2,
        25,
    ),
    "bdmc": Case(
        lambda vae, x, s: diagnostics.bdmc(vae, len(x), num_steps=1, num_chains=s, chunk_size=25),
        2,
        25,
    ),
    "collapse_report": Case(
        lambda vae, x, s: diagnostics.collapse_report(flow(vae), x, num_samples=s)
    ),
    "compare": Case(
        lambda vae, x, s: pv.compare({"a": vae, "b": vae}, x, num_samples=s, gap_rows=0)
    ),
    "critical_log_gamma": Case(
        lambda vae, x, s: diagnostics.critical_log_gamma(len(x), s, 0.05), draws=19
    ),
    "elbo_terms": Case(lambda vae, x, s: diagnostics.elbo_terms(vae, x, num_samples=s)),
    "gamma_p_value": Case(
        lambda vae, x, s: diagnostics.gamma_p_value(-torch.ones(3), len(x), s), draws=19
    ),
    "gradient_signal_to_noise": Case(
        lambda vae, x, s: diagnostics.gradient_signal_to_noise(vae, x, num_draws=s, batch_size=20),
        draws=20,
    ),
    "guide_draws": Case(lambda vae, x, s: diagnostics.guide_draws(vae, x, num_samples=s)),
    "importance_estimates": Case(
        lambda vae, x, s: diagnostics.importance_estimates(log_weights(x, s), smoothed=True), 1000
    ),
    "inference_gaps": Case(
        lambda vae, x, s: diagnostics.inference_gaps(vae, x, num_steps=1, num_samples=s), 51, 40
    ),
    "linear_theory": Case(
        lambda vae, x, s: diagnostics.linear_theory(x, 2, variance=0.1), 2000, None
    ),
    "log_evidence": Case(
        lambda vae, x, s: diagnostics.log_evidence(vae, x, num_samples=s, smoothed=True)
    ),
    "log_gamma": Case(lambda vae, x, s: diagnostics.log_gamma(ranks(x, s), s), 5000, 19),
    "log_weights": Case(
        torch.no_grad()(lambda vae, x, s: traces.log_weights(vae, x, num_samples=s))
    ),
    "pareto_khat": Case(lambda vae, x, s: diagnostics.pareto_khat(log_weights(x, s)), 300, 40),
    "pit": Case(lambda vae, x, s: diagnostics.pit(vae, x, num_samples=s), draws=19),
    "posterior_nuts": Case(
        lambda vae, x, s: diagnostics.posterior_nuts(
            vae, x, num_chains=1, num_samples=s, num_warmup=4
        ),
        1,
        5,
    ),
    "posterior_pit": Case(
        lambda vae, x, s: diagnostics.posterior_pit(vae, x, num_samples=s), draws=19
    ),
    "posterior_predictive_check": Case(
        lambda vae, x, s: diagnostics.posterior_predictive_check(
            vae, x, {"largest": torch.amax}, num_samples=s
        ),
        draws=9,
    ),
    "prior_predictive_check": Case(
        lambda vae, x, s: diagnostics.prior_predictive_check(
            vae, x, {"largest": torch.amax}, num_samples=s
        ),
        draws=9,
    ),
    "quadrature_log_evidence": Case(
        lambda vae, x, s: diagnostics.quadrature_log_evidence(
            small_vae(family=families.DiagonalNormal, latent_dim=1, variance=1.0),
            x,
            tolerance=0.01,
        ),
        2,
        None,
    ),
    "reference_summary": Case(
        lambda vae, x, s: diagnostics.reference_summary(reference_of(x), vae, x, num_samples=s),
        20,
        100,
    ),
    "regularity": Case(
        lambda vae, x, s: diagnostics.regularity(
            vae, x, num_samples=s, num_pairs=2, num_neighbors=2, level=0.9
        ),
        900,
        60,
    ),
    "sbc": Case(lambda vae, x, s: diagnostics.sbc(vae, len(x), s)),
    "smoothed_log_weights": Case(
        lambda vae, x, s: diagnostics.smoothed_log_weights(log_weights(x, s)), 1000
    ),
    "to_arviz": Case(lambda vae, x, s: pv.to_arviz(vae, x, num_samples=s, num_predictive=4)),
}

OTHERS = {"compare", "log_weights", "to_arviz"}

INPUT = {"importance_estimates", "pareto_khat", "smoothed_log_weights"}
"""What is given log weights, which are made within the call."""

COPIES = {
    # A data set drawn anew is the argument of the user's statistics.
    "posterior_predictive_check": FEATURES,
    "prior_predictive_check": FEATURES,
    # Codes and draws of all data, in order and shuffled, what is compared, and 20 radii for each.
    "regularity": 8 * 3 + 8 * FEATURES + 2 * 20,
}
"""Numbers for a row or draw that belong to the question."""


def flow(vae):
    family = families.Flow(3)
    with torch.random.fork_rng():
        encoder = pv.networks.MLP(FEATURES, (8,), family.num_params)
    return vae.with_guide(pv.guides.AmortizedGuide(family, encoder))


def peak_and_result(name, rows, draws):
    vae = small_vae(family=families.DiagonalNormal, variance=0.5)
    x = torch.randn(rows, FEATURES, generator=torch.Generator("cpu").manual_seed(0))
    with LiveBytes() as live:
        result = CASES[name].call(vae, x, draws)
    given = {"log_gamma": 8 * 3 * rows}.get(name, 8 * rows * draws if name in INPUT else 0)
    return live.peak, nbytes(result) + given


def assert_flat(name, small, large):
    (peak, result), (more, larger) = peak_and_result(name, *small), peak_and_result(name, *large)
    each = 8 * (NUMBERS_EACH + COPIES.get(name, 0))
    allowed = larger - result + each * (large[0] + large[1] - small[0] - small[1])
    growth = more - peak
    assert growth <= allowed + peak / 4, f"{peak} to {more} bytes; {allowed} more are allowed"


SMALL = {
    "aggregate.aggregate_margins.BLOCK": 2**11,
    "aggregate.decomposition.BLOCK": 2**11,
    "aggregate.decomposition.DRAWS_AT_A_TIME": 40,
    "calibration.uniformity.NUMBERS_AT_A_TIME": 2**11,
    "evidence.ais.PIECE": 50,
    "evidence.bdmc.PIECE": 50,
    "evidence.grid_search.CLIMBING_STEPS": 4,
    "evidence.hmc.NUM_LEAPFROGS": 1,
    "evidence.hmc.WARM_UP": 1,
    "evidence.importance.NUMBERS_AT_A_TIME": 2**11,
    "evidence.pareto.NUMBERS_AT_A_TIME": 2**12,
    "evidence.quadrature.ROWS_AT_A_TIME": 2,
    "gaps.per_datum_optimum.GROUPS": 4,
    "latent_space.neighbors.NUMBERS_AT_A_TIME": 2**13,
    "passes.NUMBERS_OF_DRAWS": 2**11,
    "passes.NUMBERS_OF_X": 100 * FEATURES,
}
"""What bounds the memory, small enough for small data to reach the bound."""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(f"pyro_vae.diagnostics.{name}", value)
    monkeypatch.setattr(densities, "ROWS_AT_A_TIME", 100)
    monkeypatch.setattr(runs, "DRAWS_OF_A_RUN", 8)


def test_every_diagnostic_is_here():
    reductions = REDUCTIONS - set(CASES)
    assert set(diagnostics.__all__) == (set(CASES) - OTHERS) | reductions


@pytest.mark.parametrize("name", CASES)
def test_memory_does_not_grow_with_the_rows(name):
    case = CASES[name]
    draws = case.draws or 100
    assert_flat(name, (case.rows, draws), (MORE * case.rows, draws))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.draws])
def test_memory_does_not_grow_with_the_draws(name):
    case = CASES[name]
    assert_flat(name, (case.rows, case.draws), (case.rows, MORE * case.draws))
