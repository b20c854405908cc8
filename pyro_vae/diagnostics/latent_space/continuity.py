"""How evenly a decoder moves through its latent space."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.report import mean_and_error

__all__ = ["Estimate", "Segments", "local_change", "random_pairs", "segments"]

STEP = 0.1
"""Length of the steps of the local change, relative to the spread of the points."""

ROUNDS = 16
"""Random steps at each point."""

STILL = 1e3
"""A path shorter than this many roundings of its points is none."""

ROUNDING = torch.finfo(torch.float32).eps
"""That of most decoders, whatever the differences of their answers are computed in."""

Decode = Callable[[Tensor], Tensor]


class Estimate(NamedTuple):
    """A figure, its Monte Carlo standard error, and its standard error for new data."""

    value: float
    mcse: float
    se: float


class Segments(NamedTuple):
    """Decodings along straight segments.

    Attributes:
        unevenness: Coefficient of variation of the speed, averaged.
        path_over_chord: Average length of the decoded path over the average distance of its ends.
        peak: Largest speed over the mean speed, averaged.
        speed: Speeds over their mean, ``(pairs, steps)``; NaN where nothing moves.
    """

    unevenness: Estimate
    path_over_chord: Estimate
    peak: Estimate
    speed: Tensor


def segments(decode: Decode, starts: Tensor, ends: Tensor, num_steps: int) -> Segments:
    r"""Speeds of f along straight segments from z to z', in equal steps.

    .. math:: v_t = |f(z_t) - f(z_{t-1})|, \qquad z_t = z + \tfrac tT (z' - z)

    Args:
        decode: f, from ``(n, k)`` to ``(n, D)``.
        starts: ``(P, k)``.
        ends: ``(P, k)``.
        num_steps: Number T of steps.

    Returns:
        Figures over the pairs for which the decoding moves at all; NaN if there are none.

    Example:
        >>> a, b = torch.zeros(3, 1).double(), torch.ones(3, 1).double()
        >>> segments(lambda z: 3 * z, a, b, 4).speed[0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    share = torch.linspace(0, 1, num_steps + 1, dtype=starts.dtype, device=starts.device)
    lengths, chords, sizes = [], [], []
    for start, end in zip(starts, ends, strict=True):
        path = decode(torch.lerp(start, end, share.unsqueeze(1)))
        lengths.append(path.diff(dim=0).norm(dim=1))
        chords.append((path[-1] - path[0]).norm())
        sizes.append(path.norm(dim=1).max() * num_steps)
    speed, chord, size = torch.stack(lengths), torch.stack(chords), torch.stack(sizes)
    length = speed.sum(1)
    # The differences of constants are roundings.
    moves = length > STILL * ROUNDING * size
    relative = torch.where(moves, num_steps / length, math.nan).unsqueeze(1) * speed
    if not moves.any():
        none = Estimate(math.nan, math.nan, math.nan)
        return Segments(none, none, none, relative)
    moving = relative[moves]
    return Segments(
        _mean(moving.std(1, correction=0)),
        _ratio(length[moves], chord[moves]),
        _mean(moving.amax(1)),
        relative,
    )


def local_change(decode: Decode, points: Tensor) -> Estimate:
    r"""Squared change of a decoding for a small step, relative to that of a linear decoder.

    .. math:: \frac{\operatorname{mean}_{i, j}
              |f(z_i + \delta (z_j - \bar z)) - f(z_i)|^2 / \delta^2}
              {\operatorname{mean}_i |f(z_i) - \bar f|^2}, \qquad \delta = 0.1

    with :math:`\bar z` and :math:`\bar f` the means of the encoded points and of their decodings.
    The steps have a tenth of the points' own spread. For an affine f it is 1, to rounding. It is
    large where close points decode to different things. An affine map of the latent space changes
    nothing, nor does one of x that keeps ratios of distances.

    Args:
        decode: f, from ``(n, k)`` to ``(n, D)``.
        points: Encoded points in random order, ``(N, k)``.

    Returns:
        The figure; its Monte Carlo error is that of the choice of pairs (i, j).

    Example:
        >>> points = torch.tensor([[-1.0], [0.0], [3.0]]).double()
        >>> round(local_change(lambda z: 5 * z + 1, points).value, 6)
        1.0
        >>> local_change(lambda z: 0 * z, points).value  # nothing changes at all
        nan
    """
    num = len(points)
    steps = STEP * (points - points.mean(0))
    at = decode(points)
    spread = (at - at.mean(0)).square().sum(1)
    total = spread.mean().item()
    if total <= (STILL * ROUNDING) ** 2 * at.square().sum(1).mean().item():
        return Estimate(math.nan, math.nan, math.nan)
    # In each round every point is start once and step once.
    shifts = (1 + torch.randperm(num - 1, device=points.device)[:ROUNDS]).tolist()
    rounds, influence = [], torch.zeros_like(spread)
    for shift in shifts:
        change = (decode(points + steps.roll(shift, 0)) - at).square().sum(1) / STEP**2
        rounds.append(change.mean().item() / total)
        influence = influence + (change + change.roll(-shift, 0)) / len(shifts)
    value, noise, _ = _mean(torch.tensor(rounds, dtype=points.dtype, device=points.device))
    # A point moves the figure as start, as step and through the spread.
    over_data = (influence - value * spread).std().item() / math.sqrt(num) / total
    return Estimate(value, noise, math.hypot(over_data, noise))


def random_pairs(num_rows: int, num_pairs: int, generator: torch.Generator) -> Tensor:
    """Row numbers of pairs of two different rows, ``(num_pairs, 2)``.

    No row comes twice unless there are more pairs than half the rows.

    Example:
        >>> random_pairs(6, 3, torch.Generator(device="cpu")).flatten().sort().values.tolist()
        [0, 1, 2, 3, 4, 5]
    """
    found: list[Tensor] = []
    half = num_rows // 2
    for _ in range(math.ceil(num_pairs / half)):
        order = torch.randperm(num_rows, generator=generator, device="cpu")
        found.append(order[: 2 * half].view(half, 2))
    return torch.cat(found)[:num_pairs]


def _mean(values: Tensor) -> Estimate:
    mean, error = mean_and_error(values)
    return Estimate(mean, error, error)


def _ratio(above: Tensor, below: Tensor) -> Estimate:
    """Ratio of means, which a pair with two equal ends does not spoil."""
    if not below.any():
        return Estimate(math.nan, math.nan, math.nan)
    ratio = (above.mean() / below.mean()).item()
    error = _mean((above - ratio * below) / below.mean()).se
    return Estimate(ratio, error, error)
