"""Log evidence by importance sampling against the bare decoder passes that it takes.

    OMP_NUM_THREADS=2 PYRO_VAE_DATA=../shared/data python benchmarks/evidence.py

Fashion-MNIST, MLP 784-400-20, S = 5000 draws for each image. The bare passes decode as many latent
vectors and do nothing with the result. Both are timed in turns; the ratio is one of medians. The
peak memory is that of the process in which ``log_evidence`` ran, data and imports included.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable

import torch

import pyro_vae as pv
from pyro_vae import datasets
from pyro_vae.diagnostics.evidence import importance
from pyro_vae.traces import CHUNK_SIZE


def main() -> None:
    """Print memory and the ratio of times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num-data", type=int, default=1000)
    parser.add_argument("--num-samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed-data", type=int, default=250, help="images in the timed rounds")
    options = parser.parse_args()
    x = datasets.fashion_mnist(train=False).flatten().x[: options.num_data]
    torch.manual_seed(0)
    vae = pv.gaussian_vae(features=784, latent_dim=20, hidden=(400,))
    pv.fit(vae, x, epochs=3, progress=False)

    started = time.perf_counter()
    evidence = importance.log_evidence(vae, x, num_samples=options.num_samples)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"log_evidence of {len(x)} images, S = {options.num_samples}: {seconds:.0f} s, "
        f"peak memory of the process {peak:.2f} GiB, mean {evidence['log_evidence'].mean():.1f} "
        "nats per datum"
    )

    few = x[: options.timed_data]
    total = len(few) * options.num_samples
    z = torch.randn(CHUNK_SIZE, 20)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(math.ceil(total / CHUNK_SIZE)):
                vae.decode(z)

    runs: dict[str, Callable[[], object]] = {
        "log_evidence": lambda: importance.log_evidence(vae, few, num_samples=options.num_samples),
        "bare decoder passes": bare,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, median in medians.items():
        print(f"{name}: median {median:.2f} s of {options.rounds}, {len(few)} images")
    print(f"ratio {medians['log_evidence'] / medians['bare decoder passes']:.2f}")
    print(f"pieces of {importance.ROWS_AT_A_TIME} rows, chunks of {CHUNK_SIZE}")


if __name__ == "__main__":
    main()
