"""Random numbers that leave the global random state as they found it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["generator", "mixed_seed", "seeded"]


def mixed_seed(seed: int, *purpose: int | str) -> int:
    """A seed for one purpose, drawn from the user's by hashing.

    Streams for different purposes do not overlap, and none depends on how many numbers another has
    used: looking at a fit does not change it.

    Example:
        >>> mixed_seed(0, "order", 1) == mixed_seed(0, "order", 1)
        True
        >>> mixed_seed(0, "order", 1) == mixed_seed(0, "order", 2)
        False
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """A CPU generator for one purpose.

    Example:
        >>> a, b = (torch.rand(3, generator=generator(0, "order", 1)) for _ in range(2))
        >>> torch.equal(a, b)
        True
    """
    return torch.Generator(device="cpu").manual_seed(mixed_seed(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: int | str, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global state of the CPU and of ``device``; put both back on leaving.

    Pyro's distributions draw from the global state alone, so there is no generator to hand them.

    Example:
        >>> before = torch.get_rng_state()
        >>> with seeded(1):
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    device = torch.device(device)
    cpu_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        torch.default_generator.manual_seed(mixed_seed(seed, *purpose))
        if cuda_state is not None:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(mixed_seed(seed, *purpose))
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)
