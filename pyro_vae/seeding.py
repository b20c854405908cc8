"""Random numbers that leave the global random state as they found it."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

__all__ = ["generator", "mixed_seed", "random_states", "seeded", "set_random_states"]


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


def random_states(device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Global random states of the CPU and of ``device``, as bytes.

    Example:
        >>> states = random_states()
        >>> one = torch.rand(3)
        >>> set_random_states(states)
        >>> torch.equal(one, torch.rand(3))
        True
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(
    states: Mapping[str, torch.Tensor], device: torch.device | str = "cpu"
) -> None:
    """Put the global random states back that :func:`random_states` returned.

    Example:
        >>> set_random_states(random_states())
    """
    # Copies, since torch reads beyond the end of a part of another tensor.
    if "cpu" in states:
        torch.set_rng_state(states["cpu"].clone())
    if "cuda" in states and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].clone(), device)


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
    before = random_states(device)
    try:
        torch.default_generator.manual_seed(mixed_seed(seed, *purpose))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(mixed_seed(seed, *purpose))
        yield
    finally:
        set_random_states(before, device)
