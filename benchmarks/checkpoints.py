"""What checkpoints cost: a fit with a run directory beside the same fit without one.

    python benchmarks/checkpoints.py

Fashion-MNIST, in turns, round after round: no directory; a state every minute, as it is by
default; and a state after every epoch. What one state takes, to pack, to write and to flush to the
disk, is timed by itself, beside one epoch.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tables import machine, markdown, spread
from torch import Tensor

import pyro_vae as pv
from pyro_vae import datasets
from pyro_vae.checkpoint import StateFiles
from pyro_vae.seeding import generator

CADENCES: dict[str, dict[str, Any]] = {
    "no directory": {},
    "every 60 s": {"checkpoint_seconds": 60.0},
    "every epoch": {"checkpoint_epochs": 1, "checkpoint_seconds": None},
}


def main() -> None:
    """Print the table."""
    options = _options()
    x = _data(smoke=options.smoke)
    epochs, rounds = (2, 1) if options.smoke else (options.epochs, options.rounds)
    found: dict[str, list[float]] = {name: [] for name in CADENCES}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for name, cadence in CADENCES.items():
                kept = dict(cadence)
                if cadence:
                    kept["run_dir"] = Path(folder) / f"{name} {turn}"
                vae = pv.gaussian_vae(features=x.shape[1], latent_dim=20)
                begun = time.perf_counter()
                pv.fit(vae, x, epochs=epochs, progress=False, **kept)
                found[name].append(time.perf_counter() - begun)
        run = Path(folder) / "every epoch 0"
        files = StateFiles(run)
        state, seconds = files.load(), []
        size = (run / "state-last.pt").stat().st_size
        for _ in range(3 if options.smoke else 20):
            begun = time.perf_counter()
            files.save(state)
            seconds.append(time.perf_counter() - begun)
    plain = statistics.median(found["no directory"])
    print(
        markdown(
            [f"{epochs} epochs, s", "median", "least", "largest", "/ no directory"],
            [
                [name, *spread(values), f"{statistics.median(values) / plain:.3f}"]
                for name, values in found.items()
            ],
        )
    )
    one = statistics.median(seconds)
    print(
        f"\none state: {one * 1e3:.0f} ms for {size / 1e6:.1f} MB, {one / 60:.2%} of a minute, "
        f"{one * epochs / plain:.1%} of an epoch"
    )
    print(machine())


def _data(*, smoke: bool) -> Tensor:
    if smoke:
        return torch.rand(500, 784, generator=generator(0, "checkpoints"))
    return datasets.fashion_mnist().x.flatten(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a fit (10)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    parser.add_argument("--smoke", action="store_true", help="small: that it runs, not how fast")
    return parser.parse_args()


if __name__ == "__main__":
    main()
