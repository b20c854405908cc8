"""A worker of ``epoch.py`` and ``quality.py``: a peer that trains an epoch in each turn."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import floor
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from workers import Channel, serve

import pyro_vae as pv
from peers.by_hand import Networks, eager_step, linear_layers
from peers.in_pyro import stock_svi, vae_of
from peers.problem import Size
from pyro_vae import datasets

__all__ = ["load", "save"]

FOREVER = 1_000_000
"""Epochs that a trainer is told to take; it is stopped when no turns are left."""


def main(channel: Channel, options: dict[str, Any]) -> None:
    """Train an epoch in each turn; write the weights afterwards if asked to."""
    peer = options["peer"]
    torch.manual_seed(0)
    if peer == "floor":
        channel.repeat(lambda: floor_turn(options))
        return
    x = load(options, train=True)
    # Libraries are loaded in part when they are first used: that is no time of training.
    pv.fit(vae_of(Size(8, 4, 2)), torch.zeros(4, 8), epochs=1, progress=False)
    if peer.startswith("fit"):
        through_fit(channel, x, options, compiled=peer == "fit compiled")
        return
    nets = Networks(Size(*options["size"]), **options["variance"])
    if peer == "stock":
        epoch = with_stock_pyro(nets, x, options)
    else:
        epoch = by_hand(nets, x, options, fused=peer == "hand fused")

    def turn() -> dict[str, float]:
        started = time.perf_counter()
        elbo = epoch()
        seconds = time.perf_counter() - started
        save(options, nets)
        return {"seconds": seconds, "elbo": elbo}

    channel.repeat(turn)


def through_fit(channel: Channel, x: Tensor, options: dict[str, Any], *, compiled: bool) -> None:
    """One call of ``pv.fit`` that waits for its turn after every epoch."""
    vae = vae_of(Size(*options["size"]), **options["variance"])
    channel.ready()
    if not channel.wait():
        return
    started = time.perf_counter()

    def after_epoch(result: pv.FitResult) -> bool:
        nonlocal started
        seconds = time.perf_counter() - started
        save(options, vae.q_z_given_x, vae.p_x_given_z)
        channel.report(seconds=seconds, elbo=-result.rows[-1]["loss"])
        goes_on = channel.wait()
        started = time.perf_counter()
        return not goes_on

    settings: dict[str, Any] = {"compile": "required"} if compiled else {}
    pv.fit(
        vae,
        x,
        epochs=FOREVER,
        batch_size=options["batch"],
        learning_rate=options["rate"],
        schedule=pv.optim.constant,
        progress=False,
        callbacks=[after_epoch],
        **settings,
    )


def by_hand(
    nets: Networks, x: Tensor, options: dict[str, Any], *, fused: bool
) -> Callable[[], float]:
    """The shortest honest loop: tensors in memory, closed-form KL, torch's Adam."""
    batch, step = options["batch"], eager_step(nets, options["rate"], fused=fused)

    def epoch() -> float:
        order = torch.randperm(len(x))
        total = sum(step(x[rows]) for rows in order.split(batch))
        return -total / len(x)

    return epoch


def with_stock_pyro(nets: Networks, x: Tensor, options: dict[str, Any]) -> Callable[[], float]:
    """An epoch as Pyro's VAE example has it: a DataLoader that decodes each image, SVI."""
    if options["data"] == "fashion_mnist":
        from torchvision.datasets import FashionMNIST
        from torchvision.transforms import ToTensor

        images: Any = FashionMNIST(options["root"], transform=ToTensor())
    else:
        images = TensorDataset(x, x)
    loader: DataLoader[Any] = DataLoader(images, batch_size=options["batch"], shuffle=True)
    svi = stock_svi(nets, options["rate"])

    def epoch() -> float:
        total = sum(svi.step(rows.reshape(len(rows), -1)) for rows, _ in loader)
        return -float(total) / len(x)

    return epoch


def floor_turn(options: dict[str, Any]) -> dict[str, float]:
    """Matrix multiplications and Adam of an epoch's steps."""
    layers = floor.vae_layers(*options["size"])
    steps = -(-options["num_data"] // options["batch"])
    products = floor.training_products(layers, options["batch"])
    return {
        "seconds": steps * floor.product_seconds(products, repeats=50),
        "adam": steps * floor.adam_seconds(layers, repeats=50),
    }


def load(options: dict[str, Any], *, train: bool) -> Tensor:
    """Rows to train on, or to judge by."""
    if options["data"] == "fashion_mnist":
        return datasets.fashion_mnist(root=options["root"], train=train).flatten().x
    x = datasets.digits().flatten().x
    return x[:1500] if train else x[1500:]


def save(options: dict[str, Any], *modules: nn.Module) -> None:
    """Write weights and biases, layer after layer, if a path for them is given."""
    if options.get("weights"):
        arrays = [
            tensor.detach().numpy()
            for layer in linear_layers(*modules)
            for tensor in (layer.weight, layer.bias)
        ]
        with Path(options["weights"]).open("wb") as file:
            np.savez(file, *arrays)


if __name__ == "__main__":
    serve(main)
