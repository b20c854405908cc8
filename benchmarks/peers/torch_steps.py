"""A worker of ``step.py``: one of the peers that run on torch, or the arithmetic floor."""

import time
from collections.abc import Callable
from typing import Any

import floor
import torch
from torch import Tensor
from workers import Channel, serve

from peers.by_hand import Networks, eager_step, whole_step
from peers.problem import Size, data

__all__: list[str] = []


def main(channel: Channel, options: dict[str, Any]) -> None:
    """Take turns of ``steps`` steps each."""
    size, batch, steps = Size(*options["size"]), options["batch"], options["steps"]
    torch.manual_seed(0)
    if options["peer"] == "floor":
        channel.repeat(lambda: floor_turn(size, batch, steps))
        return
    x = torch.from_numpy(data(steps * batch, size.features)).view(steps, batch, -1)
    step = made(options["peer"], size, options["rate"])

    def turn() -> dict[str, float]:
        total = 0.0
        started = time.perf_counter()
        for rows in x:
            total += step(rows)
        seconds = time.perf_counter() - started
        return {"seconds": seconds / steps, "loss": total / steps / batch}

    channel.repeat(turn)


def made(peer: str, size: Size, rate: float) -> Callable[[Tensor], float]:
    """The step of one peer."""
    if peer.startswith("hand"):
        nets = Networks(size)
        if peer == "hand whole":
            return whole_step(nets, rate)
        fused, compiled = peer != "hand eager", peer == "hand compiled"
        return eager_step(nets, rate, fused=fused, compiled_loss=compiled)
    # Pyro is imported where it is needed: the others shall not pay for it.
    import pyro

    from peers import in_pyro

    if peer == "stock":
        return in_pyro.stock_svi(Networks(size), rate).step
    # As in fit, which checks arguments in its first step only.
    pyro.enable_validation(False)  # noqa: FBT003
    return {"eager": in_pyro.eager_step, "compiled": in_pyro.compiled_step}[peer](size, rate)


def floor_turn(size: Size, batch: int, steps: int) -> dict[str, float]:
    """Matrix multiplications, Adam, and the rate of a large multiplication."""
    layers = floor.vae_layers(*size)
    products = floor.training_products(layers, batch)
    return {
        "seconds": floor.product_seconds(products, repeats=steps),
        "adam": floor.adam_seconds(layers, repeats=steps),
        "rate": floor.sgemm_rate(repeats=3),
        "flops": floor.flops(products),
    }


if __name__ == "__main__":
    serve(main)
