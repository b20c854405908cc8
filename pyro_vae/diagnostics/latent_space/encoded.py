"""A latent space as those diagnostics see it that ask for points and not for densities."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.diagnostics.passes import by_rows, complete
from pyro_vae.distributions import location
from pyro_vae.seeding import generator
from pyro_vae.sources import DataSource, resolve_device

__all__ = ["Encoded", "LatentSpace", "check_numbers", "shuffled", "two_parts"]

ROWS_AT_A_TIME = 2000
"""Rows that are encoded or decoded at once."""

MOST_CODES = 40_000
"""Of more data than that a random subset is encoded, unless more are to be compared."""


class Encoded(NamedTuple):
    """Codes of data, in double precision, and the data as they were given: no copy.

    Attributes:
        data: All the data, ``(M, *event_shape)``.
        numbers: Which of them these are, in order: row numbers, ``(N,)``.
        points: Codes, or means of q(z|x), ``(N, k)``.
        draws: Codes, or draws from q(z|x), ``(N, k)``.
    """

    data: Tensor
    numbers: Tensor
    points: Tensor
    draws: Tensor

    def first_rows(self, count: int) -> Tensor:
        """The data behind the first so many codes, ``(count, D)``, in double precision."""
        chosen = self.numbers[:count].to(self.data.device)
        return self.data[chosen].flatten(1).double().cpu()

    def at(self, order: Tensor | slice) -> "Encoded":
        """Some of the codes."""
        return Encoded(self.data, self.numbers[order], self.points[order], self.draws[order])


class LatentSpace:
    """What encodes, decodes and draws, of a VAE or an autoencoder: in double, on the CPU.

    Args:
        model: Has ``encode`` and ``decode``, and maybe ``p_z``.
        seed: Seed of the draws from q(z|x).
        most: Largest number of data that are encoded; of more a random subset is.

    Attributes:
        has_prior: Whether the model has p(z); N(0, I) takes its place if not.

    Raises:
        TypeError: If ``encode`` or ``decode`` is missing.

    Example:
        >>> import pyro_vae as pv
        >>> ae = pv.baselines.autoencoder(features=3, latent_dim=2)
        >>> latent = LatentSpace(ae, seed=0)
        >>> latent.encoded(torch.zeros(5, 3), "x").draws.shape, latent.has_prior
        (torch.Size([5, 2]), False)
    """

    def __init__(self, model: Any, seed: int, *, most: int = MOST_CODES) -> None:
        for name in ("encode", "decode"):
            if not callable(getattr(model, name, None)):
                raise TypeError(
                    f"model must have encode and decode; got {type(model).__name__} without "
                    f"{name}. Wrap programs of your own in pv.VAE."
                )
        self._model, self._seed, self._most = model, seed, most
        self._like: Tensor | None = None
        self.has_prior = callable(getattr(model, "p_z", None))

    def encoded(self, x: Any, name: str) -> Encoded:
        """Codes of data as a user gives them."""
        data = DataSource(self._model, resolve_device(self._model, "auto")).tensor(x, name=name)
        complete(data, "the regularity of a latent space", name=name)

        def compute(piece: Tensor) -> dict[str, Tensor]:
            code = self._model.encode(piece)
            point = code if isinstance(code, Tensor) else location(code)
            if point.dim() != 2:
                raise ValueError(
                    f"model must encode each datum to one vector; got codes of shape "
                    f"{tuple(point.shape)} for {len(piece)} data."
                )
            self._like = point[:1]
            draw = code if isinstance(code, Tensor) else code.sample()
            return {"points": point, "draws": draw}

        numbers = torch.arange(len(data), device="cpu")
        if len(data) > self._most:
            source = generator(self._seed, "regularity", "subset", name)
            order = torch.randperm(len(data), generator=source, device="cpu")
            numbers = order[: self._most].sort().values
        found = by_rows(
            self._model,
            data,
            compute,
            seed=self._seed,
            purpose=f"regularity of {name}",
            at_a_time=ROWS_AT_A_TIME,
            rows=None if len(data) <= self._most else numbers,
        )
        return Encoded(data, numbers, found["points"], found["draws"])

    def decoded(self, z: Tensor) -> Tensor:
        """Decodings of points ``(n, k)`` as ``(n, D)``."""
        like = self._own()
        pieces = z.to(dtype=like.dtype, device=like.device).split(ROWS_AT_A_TIME)
        return torch.cat([self._model.decode(p).flatten(1).double().cpu() for p in pieces])

    def prior_draws(self, num_draws: int) -> Tensor:
        """Draws from the prior, ``(num_draws, k)``."""
        like = self._own()
        if self.has_prior:
            z: Tensor = self._model.p_z().sample(torch.Size([num_draws]))
        else:
            z = torch.randn(num_draws, like.shape[1], dtype=like.dtype, device=like.device)
        # What the decoder sees: a point in its own precision.
        return z.to(like.dtype).double().cpu()

    def _own(self) -> Tensor:
        if self._like is None:
            raise RuntimeError("encoded must be called first: codes tell type and device.")
        return self._like


def two_parts(latent: LatentSpace, x: Any, held_out: Any, seed: int) -> tuple[Encoded, Encoded]:
    """Codes of x and of the held-out data; two random halves of x if there are none.

    Example:
        >>> import pyro_vae as pv
        >>> latent = LatentSpace(pv.baselines.autoencoder(features=3, latent_dim=2), seed=0)
        >>> [len(part.points) for part in two_parts(latent, torch.zeros(5, 3), None, 0)]
        [3, 2]
    """
    whole = latent.encoded(x, "x")
    if held_out is not None:
        return whole, latent.encoded(held_out, "held_out")
    whole = shuffled(whole, seed, "halves")
    half = len(whole.points) // 2
    return whole.at(slice(half, None)), whole.at(slice(half))


def shuffled(part: Encoded, seed: int, purpose: str) -> Encoded:
    """The data in random order.

    Example:
        >>> codes = torch.arange(3).unsqueeze(1)
        >>> mixed = shuffled(Encoded(codes, torch.arange(3), codes, codes), 0, "example")
        >>> torch.equal(mixed.first_rows(3), mixed.draws.double()), mixed.draws.sum().item()
        (True, 3)
    """
    source = generator(seed, "regularity", purpose)
    return part.at(torch.randperm(len(part.points), generator=source, device="cpu"))


def check_numbers(
    num_codes: int, num_held: int, num_samples: int, num_neighbors: int, level: float
) -> None:
    """Raise unless there are data enough for so many neighbors and such a level."""
    least = max(num_neighbors + 3, math.ceil(level / (1 - level) - 1e-9), 20)
    for name, number in (
        ("x", num_codes),
        ("held_out", num_held),
        ("num_samples", num_samples),
    ):
        if number < least:
            raise ValueError(
                f"{name} must be at least {least}{'' if name == 'num_samples' else ' rows'} for "
                f"num_neighbors={num_neighbors} and level={level}; got {number}."
                + (" Without held_out x is cut into halves." if name != "num_samples" else "")
            )
