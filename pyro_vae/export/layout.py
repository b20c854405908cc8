"""Names and dimensions under which Pyro's sites are stored."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from torch import Tensor

from pyro_vae.traces.sites import plate_shape, plates_of, scored_sites

__all__ = ["SiteLayout", "feature_coords", "latent_coords", "site_layouts"]

RESERVED = frozenset({"chain", "draw", "obs_id"})

OBSERVED = {1: ("feature",), 2: ("row", "col"), 3: ("channel", "row", "col")}
"""Dimensions of an observed site, by the rank of its event."""

LATENT = {1: ("latent",)}
"""The same of a latent site."""


@dataclass(frozen=True)
class SiteLayout:
    """How the values of a site are stored: ``(R, N, *shape)``.

    Attributes:
        variable: Name of the variable.
        dims: Names of the dimensions after those of draws and data: plates inside the plate
            "data", the leftmost first, then the event's.
        shape: Their sizes.
        event_rank: Number of the event's dimensions.
        plates: Batch shape of one run, with the data last.
    """

    variable: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    event_rank: int
    plates: tuple[int, ...]

    def by_datum(self, values: Tensor, *, num_draws: int | None) -> Tensor:
        """Values of a site, ``(R, N, *shape)``.

        Args:
            values: Those of one run, or of one inside a plate of draws.
            num_draws: Size R of that plate, None for one run.
        """
        if num_draws is not None:
            return values
        event = values.shape[values.dim() - self.event_rank :]
        num_data = values.shape[values.dim() - self.event_rank - 1]
        values = values.expand(*self.plates[:-1], num_data, *event)
        return values.movedim(len(self.plates) - 1, 0).reshape(1, num_data, *self.shape)


def site_layouts(model_trace: poutine.Trace) -> dict[str, SiteLayout]:
    """The layout of each site of a model, by the site's name.

    Names that netCDF does not take, such as those with a "/", which would be a group, are
    changed, and dimensions that have the name of a variable.

    Args:
        model_trace: Of the model.
    """
    sites: dict[str, Any] = dict(scored_sites(model_trace))
    variables: dict[str, str] = {}
    for name in sites:
        variables[name] = _free(name, RESERVED.union(variables.values()))
    taken = RESERVED.union(variables.values())
    # A plate is one dimension wherever it stands; that of an event belongs to its site.
    found: dict[tuple[str, ...], str] = {}
    layouts = {}
    for name, site in sites.items():
        frames = {f.dim: f.name for f in site["cond_indep_stack"] if f.vectorized}
        inner = sorted(dim for dim in frames if dim != -1)
        keys = {("plate", frames[dim]): frames[dim] for dim in inner}
        keys |= {(name, dim): dim for dim in _event_dims(variables[name], site, sites)}
        for key, wanted in keys.items():
            if key not in found:
                found[key] = _free(wanted, taken.union(found.values()))
        sizes = plates_of(site)
        layouts[name] = SiteLayout(
            variable=variables[name],
            dims=tuple(found[key] for key in keys),
            shape=(*(sizes[dim] for dim in inner), *site["fn"].event_shape),
            event_rank=len(site["fn"].event_shape),
            plates=tuple(plate_shape(sizes)),
        )
    return layouts


def latent_coords(layouts: Mapping[str, SiteLayout], names: Any) -> dict[str, list[str]]:
    """Names of latent dimensions, by dimension.

    Args:
        layouts: Of the latent sites, by site.
        names: Those of the one vector site, or a mapping from site to names, or None.

    Raises:
        ValueError: If they do not fit the sites.
    """
    vectors = {name: layout for name, layout in layouts.items() if layout.event_rank == 1}
    if names is None:
        return {}
    if not isinstance(names, Mapping):
        if len(vectors) != 1:
            raise ValueError(
                f"latent_names must be a mapping from site to names, with the vector sites "
                f"{list(vectors)}; got {names!r}."
            )
        names = dict.fromkeys(vectors, names)
    unknown = [name for name in names if name not in vectors]
    if unknown:
        raise ValueError(
            f"latent_names must name sites among {list(vectors)}; got {', '.join(unknown)}."
        )
    return {
        vectors[n].dims[-1]: _texts(some, vectors[n].shape[-1], "latent_names")
        for n, some in names.items()
    }


def feature_coords(
    layouts: Mapping[str, SiteLayout], columns: Sequence[str] | None, known: Sequence[str] | None
) -> dict[str, list[str]]:
    """Names of features, by dimension.

    Args:
        layouts: Of the observed sites, by site.
        columns: What the user calls the features, or None.
        known: What a table calls them, or None; used where they fit.

    Raises:
        ValueError: If ``columns`` do not fit the sites.
    """
    vectors = [layout for layout in layouts.values() if layout.event_rank == 1]
    if columns is not None:
        if len(vectors) != 1:
            raise ValueError(
                f"columns must be None unless x is one vector for each datum; got {columns!r}."
            )
        return {vectors[0].dims[-1]: _texts(columns, vectors[0].shape[-1], "columns")}
    # Programs of a user's own may observe a part of the table only.
    if known is None or len(vectors) != 1 or len(known) != vectors[0].shape[-1]:
        return {}
    return {vectors[0].dims[-1]: list(known)}


def _texts(names: Any, count: int, argument: str) -> list[str]:
    texts = [] if isinstance(names, str) else [str(name) for name in names]
    if len(texts) != count or len(set(texts)) != count:
        raise ValueError(f"{argument} must be {count} distinct names; got {names!r}.")
    return texts


def _event_dims(variable: str, site: Any, sites: dict[str, Any]) -> tuple[str, ...]:
    """Names of a site's event dimensions, with the variable's before them where it has peers."""
    rank = len(site["fn"].event_shape)
    names = (OBSERVED if site["is_observed"] else LATENT).get(rank)
    if names is None:
        return tuple(f"{variable}_dim_{i}" for i in range(rank))
    peers = [
        other
        for other in sites.values()
        if other["is_observed"] == site["is_observed"] and len(other["fn"].event_shape) > 0
    ]
    return names if len(peers) == 1 else tuple(f"{variable}_{name}" for name in names)


def _free(name: str, taken: frozenset[str]) -> str:
    """The name with what netCDF does not take replaced, and changed until nothing else has it."""
    free = re.sub(r"[^\w-]", "_", name)
    while not free or free in taken:
        free += "_"
    return free
