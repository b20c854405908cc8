"""Log evidence by importance sampling against the bare decoder passes that it takes.

    PYRO_VAE_DATA=folder python benchmarks/evidence.py --picture evidence.png

Fashion-MNIST, MLP 784-400-20, S = 5000 draws for each image. The bare passes decode as many latent
vectors and do nothing with the result; the floor is the matrix multiplications of these passes at
the rate of a large one. All are timed in turns; ratios are of medians. The peak memory is that of
the process in which ``log_evidence`` ran, data and imports included.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import floor
import pictures
import torch
from tables import machine, markdown, spread
from torch import Tensor

import pyro_vae as pv
from pyro_vae import datasets
from pyro_vae.diagnostics.evidence import importance
from pyro_vae.seeding import seeded
from pyro_vae.traces import CHUNK_SIZE

EVIDENCE, PASSES, FLOOR = "log_evidence", "bare decoder passes", "matrix products at their rate"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table and draw one picture."""
    parser = argparse.ArgumentParser(description="Seconds and memory of the log evidence.")
    parser.add_argument("--num-data", type=int, default=1000, help="images for the memory")
    parser.add_argument("--num-samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed-data", type=int, default=250, help="images in the timed rounds")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    parser.add_argument("--smoke", action="store_true", help="few draws of digits")
    options = parser.parse_args(arguments)
    if options.smoke:
        x, hidden, k = datasets.digits().flatten().x[:50], 16, 2
        options.num_samples, options.rounds, options.timed_data = 20, 1, 20
    else:
        x = datasets.fashion_mnist(train=False).flatten().x[: options.num_data]
        hidden, k = 400, 20
    with seeded(0, "weights"):
        vae = pv.gaussian_vae(features=x.shape[1], latent_dim=k, hidden=(hidden,))
    pv.fit(vae, x, epochs=3, progress=False)

    started = time.perf_counter()
    evidence = importance.log_evidence(vae, x, num_samples=options.num_samples)
    whole = time.perf_counter() - started
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    few = x[: options.timed_data]
    total = len(few) * options.num_samples
    decoder = floor.vae_layers(x.shape[1], hidden, k)[2:]
    times = timed(vae, few, total, k, options)
    rates = times.pop("rates")
    work = floor.flops(floor.forward_products(decoder, total))
    times[FLOOR] = [work / rate for rate in rates]
    medians = {name: statistics.median(each) for name, each in times.items()}
    rows = [
        [
            name,
            *spread(each),
            *(f"{medians[name] / medians[other]:.2f}" for other in (PASSES, FLOOR)),
        ]
        for name, each in times.items()
    ]
    print(markdown(["", "median s", "min", "max", "/ passes", "/ floor"], rows))
    print(f"\n{machine()}; {options.rounds} rounds, {len(few)} images, S = {options.num_samples}")
    print(
        f"{len(x)} images: {whole:.0f} s, peak memory of the process {peak:.2f} GiB, "
        f"mean {evidence['log_evidence'].mean():.1f} nats per datum"
    )
    figure, (ax,) = pictures.panels(1, width=6.4, height=2.2)
    pictures.bars(
        ax,
        {name: each for name, each in times.items() if name != FLOOR},
        label=f"seconds, {len(few)} images, S = {options.num_samples}",
        floor=medians[FLOOR],
        ours=[EVIDENCE],
    )
    pictures.write(figure, options.picture)


def timed(
    vae: pv.VAE, x: Tensor, total: int, latent_dim: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of both in turns, and the rate of a large product in each round."""
    z = torch.randn(CHUNK_SIZE, latent_dim)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(math.ceil(total / CHUNK_SIZE)):
                vae.decode(z)

    runs: dict[str, Callable[[], object]] = {
        EVIDENCE: lambda: importance.log_evidence(vae, x, num_samples=options.num_samples),
        PASSES: bare,
    }
    times: dict[str, list[float]] = {name: [] for name in [*runs, "rates"]}
    for _ in range(options.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
        times["rates"].append(floor.sgemm_rate(repeats=5))
    return times


if __name__ == "__main__":
    main()
