"""An epoch of Fashion-MNIST: ``pv.fit`` against a hand-written loop and against stock Pyro.

    PYRO_VAE_DATA=folder python benchmarks/epoch.py

One model for all three: MLP 784-400-20-400-784 with ReLU, p(x|z) = N(f(z), c I) with a learned
scalar c, a diagonal normal guide, Adam at 1e-3, batches of 128. One process, the peers in turn,
round after round; the first round warms up and is not counted. Medians and ratios are printed.

- fit: ``pv.fit(vae, x, epochs=1)``, with its checks, evaluation of the ELBO and history; each call
  starts Adam's moments anew, so its ELBO may lag behind.
- hand-written: the shortest honest PyTorch loop, tensors in memory, closed-form KL, torch's Adam.
- stock Pyro: SVI as Pyro's own VAE example does it: a torchvision data set through a DataLoader
  with ToTensor, ``pyro.optim.Adam``, Trace_ELBO, argument validation as Python's default has it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

import pyro_vae as pv
from pyro_vae import datasets

FEATURES, HIDDEN, LATENT, BATCH, RATE = 784, 400, 20, 128, 1e-3


class Networks(nn.Module):
    """The same networks for both peers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FEATURES)
        )
        self.log_variance = nn.Parameter(torch.tensor(math.log(0.1)))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of q(z|x)."""
        mean, raw = self.encoder(x).chunk(2, -1)
        return mean, nn.functional.softplus(raw) + 1e-4


def with_fit(x: Tensor) -> Callable[[], float]:
    """An epoch by this package."""
    vae = pv.gaussian_vae(features=FEATURES, latent_dim=LATENT, hidden=(HIDDEN,))
    options: dict[str, Any] = {"schedule": pv.optim.constant, "progress": False}

    def epoch() -> float:
        fit = pv.fit(vae, x, epochs=1, batch_size=BATCH, learning_rate=RATE, **options)
        return -fit.rows[-1]["loss"]

    return epoch


def by_hand(x: Tensor) -> Callable[[], float]:
    """An epoch of a plain PyTorch loop."""
    nets = Networks()
    optimizer = torch.optim.Adam(nets.parameters(), lr=RATE)

    def epoch() -> float:
        total = 0.0
        order = torch.randperm(len(x))
        for start in range(0, len(x), BATCH):
            rows = x[order[start : start + BATCH]]
            mean, scale = nets.encode(rows)
            z = mean + scale * torch.randn_like(mean)
            distance = (rows - nets.decoder(z)).square().sum()
            constant = rows.numel() * (nets.log_variance + math.log(2 * math.pi))
            kl = 0.5 * (scale.square() + mean.square() - 1 - 2 * scale.log()).sum()
            loss = 0.5 * (distance / nets.log_variance.exp() + constant) + kl
            optimizer.zero_grad()
            (loss / len(rows)).backward()
            optimizer.step()
            total += loss.item()
        return -total / len(x)

    return epoch


def with_stock_pyro(root: str) -> Callable[[], float]:
    """An epoch as Pyro's VAE example has it."""
    loader = DataLoader(FashionMNIST(root, transform=ToTensor()), batch_size=BATCH, shuffle=True)
    nets = Networks()

    def model(x: Tensor) -> None:
        pyro.module("networks", nets)
        with pyro.plate("data", len(x)):
            zeros, ones = x.new_zeros(len(x), LATENT), x.new_ones(len(x), LATENT)
            z = pyro.sample("latent", dist.Normal(zeros, ones).to_event(1))
            scale = (0.5 * nets.log_variance).exp()
            pyro.sample("obs", dist.Normal(nets.decoder(z), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("networks", nets)
        with pyro.plate("data", len(x)):
            pyro.sample("latent", dist.Normal(*nets.encode(x)).to_event(1))

    adam = pyro.optim.Adam({"lr": RATE})  # type: ignore[attr-defined]
    svi = pyro.infer.SVI(model, guide, adam, pyro.infer.Trace_ELBO())

    def epoch() -> float:
        total = sum(svi.step(x.reshape(-1, FEATURES)) for x, _ in loader)
        return -total / len(loader.dataset)  # type: ignore[arg-type]

    return epoch


def main() -> None:
    """Run the peers in turn and print one table."""
    parser = argparse.ArgumentParser(description="Seconds for one epoch of Fashion-MNIST.")
    parser.add_argument("--root", default=os.environ.get("PYRO_VAE_DATA"), help="data folder")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    options = parser.parse_args()
    x = datasets.fashion_mnist(root=options.root).x
    peers = {
        "pv.fit": with_fit(x),
        "hand-written PyTorch": by_hand(x),
        "stock Pyro, as its example": with_stock_pyro(options.root),
    }
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    elbo: dict[str, float] = {}
    for round_number in range(options.rounds + 1):
        for name, epoch in peers.items():
            started = time.perf_counter()
            elbo[name] = epoch()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians["pv.fit"]
    print(f"{'':28}{'median s':>10}{'min':>8}{'max':>8}{'fit / this':>12}{'ELBO':>9}")
    for name, median in medians.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(
            f"{name:28}{median:10.2f}{low:8.2f}{high:8.2f}{ours / median:12.2f}{elbo[name]:9.1f}"
        )
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds;"
    )
    print("ELBO: mean over the last epoch, nats per datum; all peers after as many epochs")


if __name__ == "__main__":
    main()
