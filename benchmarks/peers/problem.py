"""The problem that every peer is given: sizes, first weights, data. NumPy alone."""

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Array", "Size", "data", "weights"]

Array = np.ndarray[Any, np.dtype[np.float32]]


class Size(NamedTuple):
    """Widths of the networks: features, hidden units, latent dimensions."""

    features: int
    hidden: int
    latent_dim: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """From ``"784-400-20"``.

        Raises:
            ValueError: If it does not hold three integers.
        """
        features, hidden, latent_dim = map(int, text.split("-"))
        return cls(features, hidden, latent_dim)

    def __str__(self) -> str:
        return "-".join(map(str, self))


def weights(size: Size) -> list[tuple[Array, Array]]:
    """First weight ``(out, in)`` and bias ``(out,)`` of the four layers, as torch draws them."""
    n, hidden, k = size
    random = np.random.default_rng(0)

    def uniform(fan_in: int, *shape: int) -> Array:
        bound = fan_in**-0.5
        return random.uniform(-bound, bound, shape).astype(np.float32)

    layers = (n, hidden), (hidden, 2 * k), (k, hidden), (hidden, n)
    return [(uniform(i, o, i), uniform(i, o)) for i, o in layers]


def data(num_data: int, features: int) -> Array:
    """Rows in (0, 1) that ten directions explain, ``(num_data, features)``."""
    random = np.random.default_rng(1)
    directions = random.standard_normal((10, features), dtype=np.float32)
    scores = random.standard_normal((num_data, 10), dtype=np.float32)
    return (1 / (1 + np.exp(-scores @ directions / 2))).astype(np.float32)
