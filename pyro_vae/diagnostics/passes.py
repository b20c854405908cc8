"""Passes over the data: in pieces that fit in memory, with noise of their own."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.evaluation import evaluating
from pyro_vae.rows import at_rows, per_datum_parts, pieces
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs

__all__ = ["by_rows", "per_datum_dataset"]

Columns = dict[str, Tensor]


def by_rows(
    vae: Programs,
    x: Any,
    compute: Callable[[Tensor], Columns],
    *,
    seed: int,
    purpose: str,
    at_a_time: int,
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
        at_a_time: Largest number of rows in a piece.

    Returns:
        The same names with the pieces put together, ``(N, ...)``, on the CPU, in double precision
        unless they are integer or Boolean.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> x = torch.ones(5, 3)
        >>> by_rows(vae, x, lambda x: {"sum": x.sum(1)}, seed=0, purpose="example", at_a_time=2)
        {'sum': tensor([3., 3., 3., 3., 3.], dtype=torch.float64)}
    """
    device = resolve_device(vae, "auto")
    rows = DataSource(vae, device).tensor(x, name="x")
    parts = per_datum_parts(vae)
    found: list[Columns] = []
    for piece, index in pieces(parts, rows, at_a_time):
        with evaluating(vae, seed, purpose, len(found), device=device), at_rows(parts, index):
            found.append({name: _kept(values) for name, values in compute(piece).items()})
    return {name: torch.cat([columns[name] for columns in found]) for name in found[0]}


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


def _kept(values: Tensor) -> Tensor:
    return (values.double() if values.is_floating_point() else values).detach().cpu()
