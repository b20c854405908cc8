"""Time to quality: nats on held-out Fashion-MNIST against seconds of training.

    PYRO_VAE_DATA=folder python benchmarks/quality.py --pythae-python PATH --picture quality.png

The peers and the networks are those of ``epoch.py``, from the same first weights, with one
difference: c is fixed at 1, since pythae's squared-error loss has that variance and no other. They
take turns epoch by epoch, each in a process of its own. The clock of a peer runs while it trains,
compilation included, which nothing on disk from an earlier run shortens; it stands while libraries
are loaded and while the weights are evaluated.

One evaluation serves all: the weights go into a VAE of this package with the guide's scale as the
peer has it, and ``diagnostics.elbo_terms`` computes the ELBO of the 10 000 held-out images, all
constants kept, with the same noise each time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import floor
import numpy as np
import pictures
import pyro.distributions as dist
import torch
from epoch import BATCH, COMPILED, EAGER, HAND, settings_of, started
from peers.by_hand import copy_weights, linear_layers
from peers.epochs import load
from peers.in_pyro import vae_of
from peers.problem import Size
from tables import machine, markdown
from torch import Tensor, nn
from workers import Workers

import pyro_vae as pv
from pyro_vae import diagnostics
from pyro_vae.seeding import seeded

PYTHAE = "pythae's VAE"
PEERS = {
    COMPILED: "fit compiled",
    EAGER: "fit",
    HAND: "hand eager",
    "stock Pyro": "stock",
    PYTHAE: "pythae",
}
NAMES = {"fashion_mnist": "Fashion-MNIST", "digits": "digits"}
VARIANCE = 1.0
SAMPLES = 4


class LogVarianceGuide(nn.Module):
    """q(z|x) with the log of its variance from the encoder, as pythae has it."""

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.event_shape = torch.Size([latent_dim])

    def forward(self, x: Tensor) -> Any:
        """Distribution with batch shape ``(N,)``."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table and draw one picture."""
    parser = argparse.ArgumentParser(description="Held-out nats against seconds of training.")
    parser.add_argument("--root", default=os.environ.get("PYRO_VAE_DATA"), help="data folder")
    parser.add_argument("--epochs", "--rounds", type=int, default=8, help="epochs of each peer")
    parser.add_argument("--only", nargs="+", help="peers whose name has one of these words")
    parser.add_argument("--pythae-python", default=sys.executable, help="has pythae")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    parser.add_argument("--smoke", action="store_true", help="fit alone, with digits")
    options = parser.parse_args(arguments)
    settings = settings_of(options.root, smoke=options.smoke, variance=VARIANCE)
    held_out = load(settings, train=False)
    seconds: dict[str, list[float]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {peer: folder / f"{number}.npz" for number, peer in enumerate(PEERS)}
        workers = started(
            settings,
            folder,
            options.pythae_python,
            only=options.only,
            peers={EAGER: "fit"} if options.smoke and not options.only else PEERS,
            options={peer: {"weights": str(path)} for peer, path in paths.items()},
            # What an earlier run has compiled shall not shorten this one's clock.
            environment={"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")},
            with_floor=False,
        )
        with Workers(workers):
            for worker in workers:
                worker.wait_until_ready()
            for _ in range(2 if options.smoke else options.epochs):
                for worker in workers:
                    figures = worker.turn()
                    if figures:
                        seconds.setdefault(worker.name, []).append(figures["seconds"])
                        score = evaluated(worker.name, paths[worker.name], settings, held_out)
                        scores.setdefault(worker.name, []).append(score)
        for worker in workers:
            if worker.skipped is not None:
                print(f"left out: {worker.name}: {worker.skipped}", file=sys.stderr)
    report(seconds, scores, settings, options.picture)


def evaluated(peer: str, path: Path, settings: dict[str, Any], x: Tensor) -> tuple[float, float]:
    """Mean held-out ELBO and its standard error over the data, in nats per datum."""
    size = Size(*settings["size"])
    vae: pv.VAE = vae_of(size, **settings["variance"])
    with np.load(path) as arrays:
        values = [arrays[key] for key in arrays.files]
    pairs = list(zip(values[::2], values[1::2], strict=True))
    copy_weights(linear_layers(vae.q_z_given_x, vae.p_x_given_z), pairs)
    if peer == PYTHAE:
        guide: Any = vae.q_z_given_x
        vae = vae.with_guide(LogVarianceGuide(guide.encoder, size.latent_dim))
    with seeded(0, "held-out"):
        elbo = diagnostics.elbo_terms(vae, x, num_samples=SAMPLES)["elbo"]
    return float(elbo.mean()), float(elbo.std(ddof=1)) / math.sqrt(len(x))


def report(
    seconds: dict[str, list[float]],
    scores: dict[str, list[tuple[float, float]]],
    settings: dict[str, Any],
    picture: Path | None,
) -> None:
    """The table and the picture."""
    clocks = {name: list(accumulate(values)) for name, values in seconds.items()}
    # What the slowest learner reaches in the end is what everybody reaches sooner or later.
    goal = min(found[-1][0] for found in scores.values())
    rows = []
    for name, found in scores.items():
        reached = next(
            (t for t, (elbo, _) in zip(clocks[name], found, strict=True) if elbo >= goal), math.nan
        )
        elbo, error = found[-1]
        rows.append(
            [
                name,
                f"{clocks[name][0]:.1f}",
                f"{statistics.median(seconds[name][1:] or seconds[name]):.2f}",
                f"{reached:.1f}",
                f"{clocks[name][-1]:.1f}",
                f"{elbo:.2f}",
                f"{error:.2f}",
            ]
        )
    header = ["peer", "first epoch, s", "a later one", f"to {goal:.2f} nats", "all epochs"]
    print(markdown([*header, "held-out ELBO", "se"], rows))
    layers = floor.vae_layers(*settings["size"])
    steps = -(-settings["num_data"] // settings["batch"])
    work = floor.flops(floor.training_products(layers, settings["batch"]))
    least = steps * work / floor.sgemm_rate()
    epochs = max(map(len, scores.values()))
    print(f"\n{machine()}; {epochs} epochs, batch {BATCH}, c = {VARIANCE:g} fixed")
    print(f"arithmetic floor of an epoch: {least:.2f} s, matrix products at the sgemm rate")
    print("se: of the mean over images; the same images and noise serve all")
    figure, (ax,) = pictures.panels(1, width=6.8, height=4.2)
    lines = {name: (clocks[name], [elbo for elbo, _ in found]) for name, found in scores.items()}
    every = [elbo for found in scores.values() for elbo, _ in found]
    lines["arithmetic floor of the epochs"] = ([least * epochs] * 2, [min(every), max(every)])
    pictures.curves(
        ax,
        lines,
        x_label="seconds of training (compilation included)",
        y_label="held-out ELBO, nats per datum",
        title=f"Time to quality, {NAMES[settings['data']]}, c = {VARIANCE:g}",
        logarithmic="x",
        ours=(COMPILED, EAGER),
    )
    pictures.write(figure, picture)


if __name__ == "__main__":
    main()
