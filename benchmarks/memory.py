"""Peak memory of every diagnostic against the number of rows and the number of draws.

    python benchmarks/memory.py
    python benchmarks/memory.py --only pit log_evidence --rows 500 64000 --picture memory.png

Each run is a process of its own. It makes the VAE and the data, runs the diagnostic once on a few
rows, so that libraries have loaded what they load, and then on all of them. What is told is the
largest resident memory less that before the call, and, since what a diagnostic returns has to be
somewhere, less the result. A diagnostic is flat if from no corner to another that grows by more
than ``--slack`` MB, or an eighth. Linux only.
"""

import argparse
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae import VAE, diagnostics, families
from pyro_vae.seeding import generator, seeded

FEATURES, HIDDEN = 64, 32
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back at once
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
WARM_UP = 60, 12
"""Rows and draws of the call before the one that is measured."""

Run = Callable[[VAE, Tensor, int], Any]


class Case(NamedTuple):
    """How a diagnostic is called, and what its corners are.

    ``share`` is that of the rows where a row costs much; ``given`` makes of the data what the
    diagnostic is about, if it is not the data themselves.
    """

    run: Run
    share: float = 1.0
    takes_draws: bool = True
    latent: int = 3
    most_draws: int = 10**9
    given: Callable[[Tensor, int], Tensor] | None = None


def weights(x: Tensor, draws: int) -> Tensor:
    """Log weights, ``(S, N)``, which stand for what a user has: the data."""
    return torch.randn(draws, len(x), generator=generator(0, "weights"))


def ranks(x: Tensor, draws: int) -> Tensor:
    """Uniform ranks, ``(N,)``."""
    return torch.randint(draws + 1, (len(x),), generator=generator(0, "ranks"))


CASES = {
    "active_units": Case(lambda vae, x, s: diagnostics.active_units(flow(vae), x, num_samples=s)),
    "aggregate_kl": Case(lambda vae, x, s: diagnostics.aggregate_kl(vae, x, num_samples=s)),
    "aggregate_margins": Case(
        lambda vae, x, s: diagnostics.aggregate_margins(vae, x, num_points=s)
    ),
    "ais_log_evidence": Case(
        lambda vae, x, s: diagnostics.ais_log_evidence(vae, x, num_steps=3, num_chains=s), 0.005
    ),
    "bdmc": Case(
        lambda vae, x, s: diagnostics.bdmc(vae, len(x), num_steps=3, num_chains=s), 0.005
    ),
    "collapse_report": Case(
        lambda vae, x, s: diagnostics.collapse_report(flow(vae), x, num_samples=s)
    ),
    "compare": Case(
        lambda vae, x, s: pv.compare({"a": vae, "b": vae}, x, num_samples=s, gap_rows=0)
    ),
    "critical_log_gamma": Case(lambda vae, x, s: diagnostics.critical_log_gamma(len(x), s, 0.05)),
    "diagnose": Case(
        lambda vae, x, s: pv.diagnose(vae, x, num_samples=s, num_data=40, quick=True)
    ),
    "elbo_terms": Case(lambda vae, x, s: diagnostics.elbo_terms(vae, x, num_samples=s)),
    "gamma_p_value": Case(
        lambda vae, x, s: diagnostics.gamma_p_value(-torch.linspace(0, 20, 9), len(x), s)
    ),
    "gradient_signal_to_noise": Case(
        lambda vae, x, s: diagnostics.gradient_signal_to_noise(vae, x, num_draws=max(20, s))
    ),
    "guide_draws": Case(lambda vae, x, s: diagnostics.guide_draws(vae, x, num_samples=s)),
    "importance_estimates": Case(
        lambda vae, x, s: diagnostics.importance_estimates(x, smoothed=True), given=weights
    ),
    "inference_gaps": Case(
        lambda vae, x, s: diagnostics.inference_gaps(vae, x, num_steps=2, num_samples=s)
    ),
    "linear_theory": Case(
        lambda vae, x, s: diagnostics.linear_theory(x, 2, variance=0.1), takes_draws=False
    ),
    "log_evidence": Case(
        lambda vae, x, s: diagnostics.log_evidence(vae, x, num_samples=s, smoothed=True)
    ),
    "log_gamma": Case(lambda vae, x, s: diagnostics.log_gamma(x, s), given=ranks),
    "log_importance_weights": Case(lambda vae, x, s: vae.log_importance_weights(x, num_samples=s)),
    "pareto_khat": Case(lambda vae, x, s: diagnostics.pareto_khat(x), given=weights),
    "pit": Case(lambda vae, x, s: diagnostics.pit(vae, x, num_samples=s)),
    "posterior_nuts": Case(
        lambda vae, x, s: diagnostics.posterior_nuts(
            vae, x, num_chains=2, num_samples=s, num_warmup=5
        ),
        0.0005,
        most_draws=100,
    ),
    "posterior_pit": Case(lambda vae, x, s: diagnostics.posterior_pit(vae, x, num_samples=s)),
    "posterior_predictive_check": Case(
        lambda vae, x, s: diagnostics.posterior_predictive_check(
            vae, x, {"mean": Tensor.mean}, num_samples=s
        )
    ),
    "prior_predictive_check": Case(
        lambda vae, x, s: diagnostics.prior_predictive_check(
            vae, x, {"mean": Tensor.mean}, num_samples=s
        )
    ),
    "quadrature_log_evidence": Case(
        lambda vae, x, s: diagnostics.quadrature_log_evidence(vae, x, tolerance=0.01),
        0.064,
        takes_draws=False,
        latent=2,
    ),
    "reference_summary": Case(
        lambda vae, x, s: diagnostics.reference_summary(
            diagnostics.posterior_nuts(vae, x, num_chains=2, num_samples=8, num_warmup=5),
            vae,
            x,
            num_samples=s,
        ),
        0.001,
    ),
    "regularity": Case(
        lambda vae, x, s: diagnostics.regularity(
            vae, x, num_samples=max(24, s), num_pairs=5, num_neighbors=2, level=0.9
        )
    ),
    "sbc": Case(lambda vae, x, s: diagnostics.sbc(vae, len(x), s)),
    "smoothed_log_weights": Case(
        lambda vae, x, s: diagnostics.smoothed_log_weights(x), given=weights
    ),
    "to_arviz": Case(lambda vae, x, s: pv.to_arviz(vae, x, num_samples=s, num_predictive=4)),
}

NOT_MEASURED = {  # a table or a number of what the others return
    "BitsPerDim",
    "bits_per_dim",
    "elbo_summary",
    "evidence_summary",
    "gap_summary",
    "khat_threshold",
    "regularity_summary",
    "restarts",
    "trend",
}


def flow(vae: VAE) -> VAE:
    """With a flow as guide, whose means have no closed form."""
    family = families.Flow(3)
    encoder = pv.networks.MLP(FEATURES, (HIDDEN,), family.num_params)
    return vae.with_guide(pv.guides.AmortizedGuide(family, encoder))


def nbytes(result: Any) -> int:
    """Bytes of what a diagnostic returned."""
    if isinstance(result, Tensor):
        return result.nbytes
    if isinstance(result, dict):
        return sum(map(nbytes, result.values()))
    if isinstance(result, pd.DataFrame):
        return int(result.memory_usage().sum())
    if isinstance(result, xr.Dataset | xr.DataArray | xr.DataTree):
        return int(result.nbytes)
    if hasattr(result, "groups"):  # of ArviZ 0.x
        return sum(int(result[name].nbytes) for name in result.groups())
    return 0


def measured(case: Case, rows: int, draws: int) -> tuple[float, float]:
    """Peak and result in MB."""
    torch.manual_seed(0)
    vae = pv.gaussian_vae(features=FEATURES, latent_dim=case.latent, hidden=(HIDDEN,))
    with seeded(0, "data"):
        x = torch.randn(rows, FEATURES)
    few = x[: max(1, round(WARM_UP[0] * min(1.0, 20 * case.share)))]
    case.run(vae, case.given(few, WARM_UP[1]) if case.given else few, WARM_UP[1])
    if case.given:
        x = case.given(x, draws)
    gc.collect()
    before = resident()
    result = case.run(vae, x, draws)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / 2**20, nbytes(result) / 2**20


def resident() -> int:
    """Bytes that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_a_process(case: Case, rows: int, draws: int, seconds: float) -> tuple[float, float]:
    """The same in a process that has done nothing yet; NaN where it takes too long or fails."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(round(seconds))
            os.write(writer, " ".join(map(str, measured(case, rows, draws))).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    peak, size = map(float, text.split()) if text else (np.nan, np.nan)
    return peak, size


def corners(case: Case, rows: list[int], draws: list[int]) -> list[tuple[int, int]]:
    """Numbers of rows and draws at which a diagnostic is run."""
    counts = [max(1, round(n * case.share)) for n in rows]
    return list(
        product(counts, [min(s, case.most_draws) for s in draws] if case.takes_draws else [0])
    )


Found = dict[tuple[int, int], tuple[float, float]]
"""Peak and result by rows and draws."""


def verdict(found: Found, slack: float) -> str:
    """Whether peak less result is the same at all corners."""
    beyond = [peak - size for peak, size in found.values()]
    if np.isnan(beyond).any():
        return "not finished"
    growth = max(beyond) - min(beyond)
    is_flat = growth <= max(slack, max(beyond) / 8)
    return f"{'flat' if is_flat else 'GROWS'} ({growth:.1f})"


def row_of(name: str, found: Found, slack: float) -> str:
    """A diagnostic's row of the table: peaks at the corners."""
    rows, draws = (sorted({corner[place] for corner in found}) for place in (0, 1))
    cells = [
        f"{found[n, s][0]:.1f}" if len(draws) > 1 or s == draws[0] and k == 0 else ""
        for n in (rows[0], rows[-1])
        for k, s in enumerate((draws[0], draws[-1]))
    ]
    sizes = f"{rows[0]}, {rows[-1]}", f"{draws[0]}, {draws[-1]}" if draws[-1] else ""
    result = found[rows[-1], draws[-1]][1]
    return f"| {' | '.join([name, *sizes, *cells])} | {result:.1f} | {verdict(found, slack)} |"


def draw(results: dict[str, Found], path: str) -> None:
    """Peak less result against rows, at the most draws, and against draws, at the most rows."""
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for place, axes in enumerate(panels):
        most = 1.0
        for number, (name, found) in enumerate(results.items()):
            other = max(corner[1 - place] for corner in found)
            points = {c[place]: p - r for c, (p, r) in found.items() if c[1 - place] == other}
            first = min(points)
            most = max(most, max(points) / max(first, 1))
            axes.plot(
                [n / first if first else 1 for n in points],
                [max(value, 1.0) for value in points.values()],
                marker="o",
                markersize=3,
                lw=1,
                color=f"C{number % 10}",
                ls=("-", "--", ":", "-.")[number // 10],
                label=name,
            )
        axes.plot([1, most], [1, most], color="0.4", lw=3, alpha=0.4, label="in proportion")
        axes.set(xscale="log", yscale="log", xlabel=f"times as many {('rows', 'draws')[place]}")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    panels[0].set_ylabel("peak beyond data and result, at least 1 (MB)")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), metavar="NAME")
    parser.add_argument("--rows", nargs="+", type=int, default=[500, 4000])
    parser.add_argument("--draws", nargs="+", type=int, default=[50, 1000])
    parser.add_argument("--slack", type=float, default=8.0, help="MB")
    parser.add_argument("--seconds", type=float, default=60, help="limit of a run")
    parser.add_argument("--picture", help="file to draw to")
    args = parser.parse_args()
    missing = set(diagnostics.__all__) - set(CASES) - NOT_MEASURED
    if missing:
        sys.exit(f"not measured: {sorted(missing)}")
    logging.disable(logging.WARNING)
    corner = [f"{n} N, {s} S" for n in ("few", "many") for s in ("few", "many")]
    head = ["diagnostic", "N", "S", *(f"peak: {c}" for c in corner), "result", "beyond it"]
    print(f"In MB.\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    results: dict[str, Found] = {}
    for name in args.only or CASES:
        case = CASES[name]
        found = {
            corner: in_a_process(case, *corner, args.seconds)
            for corner in corners(case, args.rows, args.draws)
        }
        results[name] = found
        print(row_of(name, found, args.slack), flush=True)
    if args.picture:
        draw(results, args.picture)


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    main()
