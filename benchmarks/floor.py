"""The arithmetic floor: what the matrix multiplications of a network cost by themselves.

Whatever the programs around it, a step must multiply these matrices and must read and write Adam's
moments. Both are timed here with nothing else around them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "Layer",
    "Product",
    "adam_seconds",
    "flops",
    "forward_products",
    "num_params",
    "product_seconds",
    "sgemm_rate",
    "training_products",
    "vae_layers",
]

Layer = tuple[int, int]
"""Inputs and outputs of an affine map."""


class Product(NamedTuple):
    """A ``(rows, inner)`` matrix times an ``(inner, columns)`` matrix."""

    rows: int
    inner: int
    columns: int
    left_is_transposed: bool = False
    right_is_transposed: bool = False


def vae_layers(
    features: int, hidden: int, latent_dim: int, *, head: int | None = None
) -> list[Layer]:
    """The affine maps of encoder and decoder, in the order in which x runs through them.

    Args:
        features: Number n of features.
        hidden: Width of the one hidden layer of either network.
        latent_dim: Dimension k of z.
        head: Outputs of the encoder; 2k, those of a diagonal guide, unless given.
    """
    outputs = 2 * latent_dim if head is None else head
    return [(features, hidden), (hidden, outputs), (latent_dim, hidden), (hidden, features)]


def forward_products(layers: Sequence[Layer], rows: int) -> list[Product]:
    """The multiplications of a forward pass with so many rows."""
    return [Product(rows, i, o, right_is_transposed=True) for i, o in layers]


def training_products(layers: Sequence[Layer], rows: int) -> list[Product]:
    """Those of a forward and a backward pass; x itself needs no gradient."""
    weights = [Product(o, rows, i, left_is_transposed=True) for i, o in layers]
    inputs = [Product(rows, o, i) for i, o in layers[1:]]
    return [*forward_products(layers, rows), *reversed(weights), *reversed(inputs)]


def flops(products: Sequence[Product]) -> int:
    """Multiplications and additions: twice rows times inner times columns, summed."""
    return sum(2 * p.rows * p.inner * p.columns for p in products)


def num_params(layers: Sequence[Layer]) -> int:
    """Weights and biases."""
    return sum(i * o + o for i, o in layers)


def product_seconds(products: Sequence[Product], *, repeats: int = 20) -> float:
    """Seconds for all products one after another, as ``torch.mm`` into memory that is there."""
    operands = [_operands(product) for product in products]

    def once() -> None:
        for left, right, out in operands:
            torch.mm(left, right, out=out)

    return _median_seconds(once, repeats)


def sgemm_rate(*, size: int = 1024, repeats: int = 10) -> float:
    """Operations per second of one large square product in single precision."""
    product = Product(size, size, size)
    return flops([product]) / product_seconds([product], repeats=repeats)


def adam_seconds(layers: Sequence[Layer], *, repeats: int = 20) -> float:
    """Seconds for one step of fused Adam over the parameters of these layers, and nothing else."""
    params = [nn.Parameter(torch.zeros(shape)) for i, o in layers for shape in ((o, i), (o,))]
    for param in params:
        param.grad = torch.randn_like(param)
    return _median_seconds(torch.optim.Adam(params, lr=1e-3, fused=True).step, repeats)


def _operands(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    rows, inner, columns, left_is_transposed, right_is_transposed = product
    left = torch.randn(inner, rows).t() if left_is_transposed else torch.randn(rows, inner)
    right = torch.randn(columns, inner).t() if right_is_transposed else torch.randn(inner, columns)
    return left, right, torch.empty(rows, columns)


def _median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
