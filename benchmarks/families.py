"""What a family of q(z|x) costs: a training step of each, against the diagonal normal's.

    python benchmarks/families.py --picture families.png

One VAE with n features, one hidden layer in encoder and decoder, and a Gaussian likelihood; only
the guide's family differs. A step is that of ``pyro.infer.SVI`` with ``Trace_ELBO`` and this
package's optimizer, with argument validation as Python's default has it; or ``pv.fit`` on some
batches, all its checks and its history included; or ``pv.compiled_svi.CompiledSVI``. All run in
one process and take turns, round after round; the first round warms up and does not count.

The floor is arithmetic alone: every matrix product of forward and backward pass, as counted while
one step runs, at the rate of a large one in single precision, which takes its turn in each round.
A larger covariance has a larger last layer of the encoder, so its floor is higher.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import floor
import pictures
import pyro
import torch
from tables import machine, markdown, spread
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import pyro_vae as pv
from pyro_vae import families
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.objectives import CompiledTrace_ELBO
from pyro_vae.optim import OneTorchOptim

DIAGONAL = "diagonal"
FAMILIES: dict[str, Callable[..., families.Family]] = {
    "isotropic": families.IsotropicNormal,
    DIAGONAL: families.DiagonalNormal,
    "low rank 4": partial(families.LowRankNormal, rank=4),
    "full covariance": families.FullCovarianceNormal,
    "affine flow": families.Flow,
}
SVI, FIT, COMPILED = "SVI", "pv.fit", "compiled"
WAYS = (SVI, FIT, COMPILED)
RATE = 1e-3


class Peer(NamedTuple):
    """One family trained in one way."""

    latent_dim: int
    family: str
    way: str


class Made(NamedTuple):
    """What is timed, and what it cannot do without."""

    run: Callable[[], object]
    flops: int
    head: int
    note: Callable[[], str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table and draw one picture."""
    options = parsed(arguments)
    x = torch.rand(options.batch * options.steps, options.features)
    made = {
        Peer(k, name, way): peer(k, name, way, x, options)
        for k in options.latent
        for name in options.families
        for way in options.ways
    }
    seconds: dict[Peer, list[float]] = {peer: [] for peer in made}
    rates = []
    for round_number in range(options.rounds + 1):
        for name, (run, *_) in made.items():
            started = time.perf_counter()
            run()
            if round_number:
                seconds[name].append((time.perf_counter() - started) / options.steps)
        rates.append(floor.sgemm_rate(repeats=3))
    rate = statistics.median(rates)
    print(markdown(HEADER, rows(made, seconds, rate), words=2))
    print(f"\n{machine()}; {options.rounds} rounds of {options.steps} steps")
    print(f"{options.features}-{options.hidden}-k, batch {options.batch}; floor: matrix products")
    print(f"at {rate / 1e9:.0f} Gflop/s; / diagonal: of medians, k and way being the same")
    for name, peer_made in made.items():
        if note := peer_made.note():
            print(f"{name.family}, k = {name.latent_dim}: {note}")
    drawn(made, seconds, rate, options)


HEADER = ["way", "family", "k", "head", "median ms", "min", "max", "/ diagonal"]
HEADER += ["Gflop", "floor ms", "/ diagonal"]


def peer(k: int, name: str, way: str, x: Tensor, options: argparse.Namespace) -> Made:
    """A VAE with such a family, ready to run as many steps as there are batches in x."""
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        vae = pv.make_vae(
            features=options.features,
            latent_dim=k,
            hidden=(options.hidden,),
            likelihood=partial(pv.likelihoods.Gaussian, variance=0.1, learn_variance=True),
            prior=pv.priors.StandardNormal,
            family=FAMILIES[name],
        )
    optim = OneTorchOptim(pv.optim.adam(RATE))
    optim.num_data = options.batch
    compiled = CompiledTrace_ELBO()
    svi = (
        CompiledSVI(vae.model, vae.guide, optim, compiled)
        if way == COMPILED
        else pyro.infer.SVI(vae.model, vae.guide, optim, pyro.infer.Trace_ELBO())
    )
    batches = x.split(options.batch)
    with FlopCounterMode(display=False) as counter:
        svi.step(batches[0])

    head = FAMILIES[name](k).num_params

    def steps() -> None:
        for batch in batches:
            svi.step(batch)

    def fit() -> None:
        pv.fit(
            vae,
            x,
            epochs=1,
            batch_size=options.batch,
            learning_rate=RATE,
            schedule=pv.optim.constant,
            progress=False,
        )

    def note() -> str:
        return "not compiled" if way == COMPILED and not compiled.num_graphs else ""

    return Made(fit if way == FIT else steps, counter.get_total_flops(), head, note)


def rows(made: dict[Peer, Made], seconds: dict[Peer, list[float]], rate: float) -> list[list[str]]:
    """Rows of the table, by way, k and family."""
    found = []
    for name in sorted(made, key=lambda p: (WAYS.index(p.way), p.latent_dim)):
        base = name._replace(family=DIAGONAL)
        ratio = statistics.median(seconds[name]) / statistics.median(seconds[base])
        work = made[name].flops
        cells = [name.way, name.family, str(name.latent_dim), str(made[name].head)]
        cells += [*spread(seconds[name], unit=1e-3), f"{ratio:.2f}"]
        cells += [f"{work / 1e9:.2f}", f"{1e3 * work / rate:.2f}"]
        found.append([*cells, f"{work / made[base].flops:.2f}"])
    return found


def drawn(
    made: dict[Peer, Made],
    seconds: dict[Peer, list[float]],
    rate: float,
    options: argparse.Namespace,
) -> None:
    """One panel for each k and way, with each family's floor on its bar."""
    pairs = [(k, way) for k in options.latent for way in options.ways]
    figure, axes = pictures.panels(len(pairs), columns=len(options.ways), width=4.6, height=2.9)
    for ax, (k, way) in zip(axes, pairs, strict=True):
        pictures.bars(
            ax,
            {
                name: [1e3 * value for value in seconds[Peer(k, name, way)]]
                for name in options.families
            },
            label="ms per step",
            title=f"{way}, k = {k}, batch {options.batch}",
            ours=(DIAGONAL, "full covariance"),
            digits=1,
        )
        floors = [1e3 * made[Peer(k, name, way)].flops / rate for name in options.families]
        for row, value in enumerate(floors):
            ax.plot(
                [value, value],
                [row - 0.4, row + 0.4],
                color=pictures.FLOOR,
                linewidth=2,
                label="matrix products alone" if row == 0 else None,
            )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", fontsize=8)
    pictures.write(figure, options.picture)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="Milliseconds of a training step, by family.")
    parser.add_argument("--latent", nargs="+", type=int, default=[20, 64], help="k")
    parser.add_argument("--features", type=int, default=784)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=10, help="counted rounds")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    parser.add_argument("--smoke", action="store_true", help="a few small steps, none compiled")
    options = parser.parse_args(arguments)
    if DIAGONAL not in options.families:
        parser.error(f"--families must have {DIAGONAL!r}, which the others are compared with")
    if options.smoke:
        options.latent, options.features, options.hidden, options.batch = [4, 5], 16, 8, 8
        options.ways, options.rounds, options.steps = [SVI, FIT], 1, 2
    return options


if __name__ == "__main__":
    main()
