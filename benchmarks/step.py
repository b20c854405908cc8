"""One training step of the same VAE: this package, PyTorch by hand, stock Pyro, NumPyro.

    python benchmarks/step.py --numpyro-python PATH --picture step.png

The model is that of every peer: p(x|z) = N(f(z), c I) with a learned scalar c, a diagonal guide,
Adam at 1e-3, the same first weights, the same batches in the same order, data in memory. Each peer
has a process of its own, which stays and waits while the others run; they take turns round after
round, and the first rounds, in which they compile, do not count. The floor is timed in turns too:
the matrix multiplications of the forward and the backward pass, and fused Adam, alone.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import floor
import pictures
from peers.problem import Size
from tables import machine, markdown, spread
from workers import Worker, Workers, alternate

COMPILED, EAGER, HAND = "ours, compiled", "ours, eager", "PyTorch by hand"
PEERS = {
    COMPILED: "compiled",
    EAGER: "eager",
    HAND: "hand eager",
    f"{HAND}, fused Adam": "hand fused",
    f"{HAND}, compiled loss": "hand compiled",
    f"{HAND}, compiled step": "hand whole",
    "stock Pyro": "stock",
    "NumPyro, scanned": "numpyro",
}
FLOOR = "matrix products"
RATE = 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table and draw one picture."""
    options = parsed(arguments)
    rows: list[list[str]] = []
    pairs = [(Size.parse(size), batch) for size in options.sizes for batch in options.batches]
    figure, axes = pictures.panels(len(pairs), columns=len(options.batches))
    notes: list[str] = []
    for ax, (size, batch) in zip(axes, pairs, strict=True):
        found = measured(size, batch, options, notes)
        rows += lines(size, batch, found)
        drawn(ax, size, batch, found)
    header = ["size", "batch", "peer", "median ms", "min", "max"]
    header += ["compiled / this", "eager / this", "this / products", "loss"]
    print(markdown(header, rows, words=3))
    print(f"\n{machine()}; {options.rounds} rounds")
    for note in dict.fromkeys(filter(None, notes)):
        print(note)
    print("compiled, eager: this package's; products: the matrix multiplications of the step")
    print("loss: minus the ELBO in nats per datum, mean over the last turn")
    pictures.write(figure, options.picture)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="Milliseconds of a training step.")
    parser.add_argument("--sizes", nargs="+", default=["64-128-8", "784-400-20", "784-1000-64"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--rounds", type=int, default=12, help="counted rounds")
    parser.add_argument("--steps", type=int, help="steps in a turn; by default about 0.2 s")
    parser.add_argument("--only", nargs="+", help="peers whose name has one of these words")
    parser.add_argument("--numpyro-python", default=sys.executable, help="has NumPyro")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    parser.add_argument("--smoke", action="store_true", help="a few small steps of a few peers")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.sizes, options.batches, options.rounds, options.steps = ["16-8-2"], [16], 1, 2
        options.only = options.only or ["ours, eager"]
    return options


def measured(
    size: Size, batch: int, options: argparse.Namespace, notes: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every turn, by peer; the floor's too."""
    work = floor.flops(floor.training_products(floor.vae_layers(*size), batch))
    steps = options.steps or min(256, max(16, round(2.4e10 / work)))
    settings = {"size": size, "batch": batch, "steps": steps, "rate": RATE}
    workers = [Worker(FLOOR, "peers.torch_steps", {**settings, "peer": "floor"})]
    for name, peer in PEERS.items():
        if options.only and not any(word in name for word in options.only):
            continue
        scanned = peer == "numpyro"
        module = "peers.numpyro_steps" if scanned else "peers.torch_steps"
        python = options.numpyro_python if scanned else sys.executable
        workers.append(Worker(name, module, {**settings, "peer": peer}, python=python))
    with Workers(workers):
        found = alternate(workers, rounds=options.rounds, warm_up=1 if options.smoke else 2)
        notes += [worker.note for worker in workers]
    return found


def lines(size: Size, batch: int, found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Rows of the table."""
    seconds = {name: [turn["seconds"] for turn in turns] for name, turns in found.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(above: str, below: str) -> str:
        return f"{medians[above] / medians[below]:.2f}" if above in medians else ""

    rows = []
    for name, turns in found.items():
        if name == FLOOR:
            continue
        cells = [str(size), str(batch), name, *spread(seconds[name], unit=1e-3)]
        cells += [ratio(COMPILED, name), ratio(EAGER, name), ratio(name, FLOOR)]
        rows.append([*cells, f"{turns[-1]['loss']:.2f}"])
    floors = found[FLOOR]
    work, rate = floors[0]["flops"], statistics.median(turn["rate"] for turn in floors)
    at_rate = [turn["flops"] / turn["rate"] for turn in floors]
    for name, values in (
        (f"{FLOOR}, {work / medians[FLOOR] / 1e9:.0f} Gflop/s", seconds[FLOOR]),
        (f"  at the rate of a large one, {rate / 1e9:.0f} Gflop/s", at_rate),
        ("fused Adam alone", [turn["adam"] for turn in floors]),
    ):
        cells = [str(size), str(batch), name, *spread(values, unit=1e-3)]
        rows.append([*cells, "", "", f"{statistics.median(values) / medians[FLOOR]:.2f}", ""])
    return rows


def drawn(ax: Any, size: Size, batch: int, found: dict[str, list[dict[str, Any]]]) -> None:
    """One panel."""
    pictures.bars(
        ax,
        {
            name: [1e3 * turn["seconds"] for turn in turns]
            for name, turns in found.items()
            if name != FLOOR
        },
        label="ms per step",
        title=f"{size}, batch {batch}",
        floor=1e3 * statistics.median(turn["seconds"] for turn in found[FLOOR]),
        ours=(COMPILED, EAGER),
    )


if __name__ == "__main__":
    main()
