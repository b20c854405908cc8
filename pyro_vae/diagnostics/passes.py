"""Passes over the data: in pieces that fit in memory, with noise of their own."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from pyro_vae.evaluation import evaluating
from pyro_vae.rows import PerDatumPart, at_rows, per_datum_parts, pieces
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs

__all__ = [
    "Columns",
    "by_rows",
    "complete",
    "each_piece",
    "no_stand_in",
    "per_datum_dataset",
    "piece_size",
]

Columns = dict[str, Tensor]

NUMBERS_OF_X = 2**21
"""Numbers of x in a piece, where a row has many: 16 MB in double precision."""

NUMBERS_OF_DRAWS = 2**18
"""Rows times draws whose log weights are held at once: 2 MB in double precision."""


def piece_size(most: int, x: Tensor, *, num_draws: int = 1) -> int:
    """Number of rows in a piece of x: fewer where rows are large or each has many draws.

    It does not depend on what a user says of memory, since the noise belongs to a piece.

    Args:
        most: What it is for small rows with few draws.
        x: Data, ``(N, *event_shape)``.
        num_draws: Number S of numbers that are held for each row.

    Example:
        >>> import torch
        >>> piece_size(2000, torch.empty(9, 3, 64, 64)), piece_size(250, torch.empty(9, 3))
        (170, 250)
        >>> piece_size(250, torch.empty(9, 3), num_draws=100_000)
        2
    """
    of_x = NUMBERS_OF_X // max(1, math.prod(x.shape[1:]))
    return max(1, min(most, of_x, NUMBERS_OF_DRAWS // num_draws))


def no_stand_in(mend: str = "") -> str:
    """What to say of data that had to be complete, and are not.

    Args:
        mend: What else can be done.

    Example:
        >>> no_stand_in().split(": ")[0]
        'No other rows stand in for these'
    """
    return (
        "No other rows stand in for these: the complete ones alone mislead unless values are "
        "missing completely at random, and in imputed ones the model judges its own draws. "
        f"{mend}Pass the complete rows only where values are missing completely at random."
    )


def complete(x: Tensor, purpose: str, *, name: str = "x", mend: str = "") -> Tensor:
    """The data as they are, if nothing of them is missing.

    Args:
        x: Data, ``(N, *event_shape)``, with NaN where missing.
        purpose: What compares x as a whole.
        name: What to call the data.
        mend: What else can be done where a value is missing.

    Raises:
        ValueError: If a value is missing.

    Example:
        >>> import torch
        >>> complete(torch.tensor([[0.0, float("nan")]]), "a check")
        Traceback (most recent call last):
        ValueError: x must be complete for a check, which compares all of it with what the model
        draws; got 1 missing values in 1 of 1 rows. No other rows stand in for these: the complete
        ones alone mislead unless values are missing completely at random, and in imputed ones the
        model judges its own draws. Pass the complete rows only where values are missing
        completely at random.
    """
    missing = x.isnan()
    if bool(missing.any()):
        rows = int(missing.reshape(len(x), -1).any(1).sum())
        raise ValueError(
            f"{name} must be complete for {purpose}, which compares all of it with what the model "
            f"draws; got {int(missing.sum())} missing values in {rows} of {len(x)} rows. "
            f"{no_stand_in(mend)}"
        )
    return x


def by_rows(
    vae: Programs,
    x: Any,
    compute: Callable[[Tensor], Columns],
    *,
    seed: int,
    purpose: str,
    at_a_time: int,
    num_draws: int = 1,
    rows: Tensor | None = None,
) -> Columns:
    """Compute something for each datum, piece by piece.

    Each piece runs in evaluation mode, without gradient, and with a noise that depends on
    ``seed``, ``purpose`` and the piece's number alone. The global random state is left alone.

    Args:
        vae: Model and guide.
        x: Data as a user gives them.
        compute: From a piece of x, ``(n, *event_shape)``, to named tensors, ``(n, ...)`` each.
        seed: Seed of the noise.
        purpose: What the noise is for.
        at_a_time: Largest number of rows in a piece; see :func:`piece_size`.
        num_draws: Number of draws of which something is held for each row.
        rows: Row numbers, where not all of x is wanted.

    Returns:
        The same names with the pieces put together, ``(N, ...)``, on the CPU, in double precision
        unless they are integer or Boolean.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> x = torch.ones(5, 3)
        >>> by_rows(vae, x, lambda x: {"sum": x.sum(1)}, seed=0, purpose="example", at_a_time=2)
        {'sum': tensor([3., 3., 3., 3., 3.], dtype=torch.float64)}
    """
    data = DataSource(vae, resolve_device(vae, "auto")).rows(x, name="x")
    num_rows = len(data) if rows is None else len(rows)
    size = piece_size(at_a_time, data, num_draws=num_draws)
    found: Columns = {}
    start = 0

    def put(piece: Tensor) -> None:
        nonlocal start
        for name, values in compute(piece).items():
            kept = _kept(values)
            if name not in found:
                # Filled in piece by piece, so that there is no second copy.
                found[name] = kept.new_empty(num_rows, *kept.shape[1:])
            found[name][start : start + len(piece)] = kept
        start += len(piece)

    _visit_all(vae, data, put, size, rows, seed, purpose)
    return found


def each_piece(
    vae: Programs,
    x: Any,
    visit: Callable[[Tensor], None],
    *,
    seed: int,
    purpose: str,
    at_a_time: int,
    num_draws: int = 1,
    rows: Tensor | None = None,
) -> None:
    """Show every piece of the data, for what is summed over data: nothing is kept.

    Each piece runs as :func:`by_rows` has it.

    Args:
        vae: Model and guide.
        x: Data as a user gives them.
        visit: Called with each piece of x, ``(n, *event_shape)``.
        seed: Seed of the noise.
        purpose: What the noise is for.
        at_a_time: Largest number of rows in a piece; see :func:`piece_size`.
        num_draws: Number of draws of which something is held for each row.
        rows: Row numbers, where not all of x is wanted.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae, seen = pv.gaussian_vae(features=3, latent_dim=2), []
        >>> def visit(piece):
        ...     seen.append(len(piece))
        >>> each_piece(vae, torch.ones(5, 3), visit, seed=0, purpose="example", at_a_time=2)
        >>> seen
        [2, 2, 1]
    """
    data = DataSource(vae, resolve_device(vae, "auto")).rows(x, name="x")
    _visit_all(
        vae, data, visit, piece_size(at_a_time, data, num_draws=num_draws), rows, seed, purpose
    )


def per_datum_dataset(
    columns: Mapping[str, Tensor],
    *,
    dims: Mapping[str, str] | None = None,
    attrs: Mapping[str, float | str],
) -> xr.Dataset:
    """A dataset over ``obs_id``.

    Args:
        columns: Named tensors, ``(N,)`` or ``(N, K)``.
        dims: Name of the second dimension of those that have one; ``latent`` unless given.
        attrs: Attributes besides ``units``, which are nats per datum unless given.

    Example:
        >>> import torch
        >>> dict(per_datum_dataset({"kl": torch.zeros(5, 2)}, attrs={"seed": 0}).sizes)
        {'obs_id': 5, 'latent': 2}
    """
    second = dims or {}
    dataset = xr.Dataset(
        {
            name: (("obs_id", second.get(name, "latent"))[: values.dim()], values.cpu().numpy())
            for name, values in columns.items()
        },
        attrs={"units": "nats per datum", **attrs},
    )
    return dataset.assign_coords(
        {str(dim): np.arange(size) for dim, size in dataset.sizes.items()}
    )


def _visit_all(
    vae: Programs,
    data: Tensor,
    visit: Callable[[Tensor], None],
    size: int,
    rows: Tensor | None,
    seed: int,
    purpose: str,
) -> None:
    parts = per_datum_parts(vae)
    for number, (piece, index) in enumerate(_pieces(parts, data, size, rows)):
        with evaluating(vae, seed, purpose, number, device=data.device), at_rows(parts, index):
            visit(piece)


def _pieces(
    parts: Sequence[PerDatumPart], data: Tensor, size: int, rows: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    if rows is None:
        return pieces(parts, data, size)
    return ((data[index], index) for index in rows.to(data.device).split(size))


def _kept(values: Tensor) -> Tensor:
    return (values.double() if values.is_floating_point() else values).detach().cpu()
