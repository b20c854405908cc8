"""An epoch of Fashion-MNIST: ``pv.fit``, a loop by hand, stock Pyro, pythae's trainer.

    PYRO_VAE_DATA=folder python benchmarks/epoch.py --pythae-python PATH --picture epoch.png

One model for all: MLP 784-400-20-400-784 with ReLU, p(x|z) = N(f(z), c I) with a learned scalar
c, a diagonal normal guide, Adam at 1e-3, batches of 128, the same first weights. Each peer has a
process of its own and trains on from epoch to epoch; they take turns, and the first round, in
which what is compiled is compiled, does not count.

- fit: one call of ``pv.fit`` that is made to wait after every epoch, with its checks, its
  evaluation of the ELBO and its history; with ``compile=True`` too.
- by hand: the shortest honest PyTorch loop, tensors in memory, closed-form KL, torch's Adam.
- stock Pyro: SVI as Pyro's own VAE example does it: a torchvision data set through a DataLoader
  with ToTensor, ``pyro.optim.Adam``, Trace_ELBO, argument validation as Python's default has it.
- pythae: its VAE and its BaseTrainer, data in memory. Its c is 1 and fixed.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictures
from peers.epochs import load
from tables import machine, markdown, spread
from workers import Worker, Workers, alternate

COMPILED, EAGER, HAND = "pv.fit, compiled", "pv.fit", "by hand"
PEERS = {
    COMPILED: "fit compiled",
    EAGER: "fit",
    HAND: "hand eager",
    f"{HAND}, fused Adam": "hand fused",
    "stock Pyro, as its example": "stock",
    "pythae's trainer": "pythae",
}
FLOOR = "matrix products"
SIZE, BATCH, RATE = (784, 400, 20), 128, 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table and draw one picture."""
    parser = argparse.ArgumentParser(description="Seconds for one epoch of Fashion-MNIST.")
    parser.add_argument("--root", default=os.environ.get("PYRO_VAE_DATA"), help="data folder")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--only", nargs="+", help="peers whose name has one of these words")
    parser.add_argument("--pythae-python", default=sys.executable, help="has pythae")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    parser.add_argument("--smoke", action="store_true", help="fit alone, with digits")
    options = parser.parse_args(arguments)
    settings = settings_of(options.root, smoke=options.smoke)
    rounds = 1 if options.smoke else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        workers = started(
            settings,
            Path(folder),
            options.pythae_python,
            only=options.only,
            peers={EAGER: "fit"} if options.smoke and not options.only else PEERS,
        )
        with Workers(workers):
            found = alternate(workers, rounds=rounds)
    seconds = {name: [turn["seconds"] for turn in turns] for name, turns in found.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(above: str, below: str) -> str:
        return f"{medians[above] / medians[below]:.2f}" if above in medians else ""

    rows = []
    for name, turns in found.items():
        elbo = turns[-1].get("elbo")
        cells = [name, *spread(seconds[name])]
        cells += [ratio(COMPILED, name), ratio(EAGER, name), ratio(name, FLOOR)]
        rows.append([*cells, "" if elbo is None else f"{elbo:.1f}"])
    adam = [turn["adam"] for turn in found[FLOOR]]
    adam_ratio = f"{statistics.median(adam) / medians[FLOOR]:.2f}"
    rows.append(["fused Adam alone", *spread(adam), "", "", adam_ratio, ""])
    header = ["peer", "median s", "min", "max", "compiled / this", "fit / this"]
    print(markdown([*header, "this / products", "ELBO"], rows))
    print(f"\n{machine()}; {rounds} rounds")
    print("products: the matrix multiplications of the epoch's steps, by themselves")
    print("ELBO: mean over the last epoch, nats per datum; all peers after as many epochs")
    figure, (ax,) = pictures.panels(1, width=6.4)
    pictures.bars(
        ax,
        {name: values for name, values in seconds.items() if name != FLOOR},
        label="seconds per epoch",
        title=f"Epoch of Fashion-MNIST, {'-'.join(map(str, SIZE))}, batch {BATCH}",
        floor=medians[FLOOR],
        ours=(COMPILED, EAGER),
    )
    pictures.write(figure, options.picture)


def settings_of(root: str | None, *, smoke: bool, variance: float | None = None) -> dict[str, Any]:
    """What every peer is told; c is fixed where ``variance`` is given, and learned otherwise."""
    fixed = {"variance": variance or 0.1, "learn_variance": variance is None}
    common: dict[str, Any] = {"batch": BATCH, "rate": RATE, "root": root, "variance": fixed}
    if smoke:
        return {**common, "data": "digits", "size": (64, 16, 4), "num_data": 1500}
    return {**common, "data": "fashion_mnist", "size": SIZE, "num_data": 60000}


def started(
    settings: Mapping[str, Any],
    folder: Path,
    pythae_python: str,
    *,
    only: Sequence[str] | None = None,
    peers: Mapping[str, str] = PEERS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
    with_floor: bool = True,
) -> list[Worker]:
    """The workers of the floor and of the peers.

    Args:
        settings: What every peer is told.
        folder: Where pythae, which cannot read this package's data sets, finds the rows.
        pythae_python: The interpreter that has pythae.
        only: Peers whose name has one of these words; all unless given.
        peers: What each peer is, by its name in the table.
        options: What a peer is told beside the settings, by name.
        environment: Environment variables for all of them.
        with_floor: Whether the floor takes turns too.
    """
    array = folder / "rows.npy"
    np.save(array, load(dict(settings), train=True).numpy())
    chosen = {FLOOR: "floor"} if with_floor else {}
    for name, peer in peers.items():
        if not only or any(word in name for word in only):
            chosen[name] = peer
    workers = []
    for name, peer in chosen.items():
        by_pythae = peer == "pythae"
        told = {**settings, "peer": peer, "array": str(array), **(options or {}).get(name, {})}
        workers.append(
            Worker(
                name,
                "peers.pythae_epochs" if by_pythae else "peers.epochs",
                told,
                python=pythae_python if by_pythae else sys.executable,
                environment=environment,
            )
        )
    return workers


if __name__ == "__main__":
    main()
