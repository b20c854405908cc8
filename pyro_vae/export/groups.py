"""Named arrays as a dataset that netCDF can hold. Neither torch nor Pyro is needed here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["Group", "netcdf_attrs"]


@dataclass(frozen=True)
class Group:
    """The variables of one group.

    Attributes:
        variables: Dimensions and values of each.
        coords: Values of the dimensions; 0, 1, 2, ... for those without an entry.
        attrs: Attributes, as :func:`netcdf_attrs` takes them.
    """

    variables: Mapping[str, tuple[Sequence[str], NDArray[Any]]]
    coords: Mapping[str, Any] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def dataset(self) -> xr.Dataset:
        """The group as a dataset, without a copy of the values.

        Raises:
            ValueError: If a dimension has two lengths, or the name of another variable.

        Example:
            >>> group = Group({"x": (("obs_id", "feature"), np.zeros((3, 2)))}, {"feature": "ab"})
            >>> dataset = group.dataset()
            >>> dataset["obs_id"].values.tolist(), dataset["feature"].values.tolist()
            ([0, 1, 2], ['a', 'b'])
        """
        variables = {name: (tuple(dims), _plain(a)) for name, (dims, a) in self.variables.items()}
        dataset = xr.Dataset(variables, attrs=netcdf_attrs(self.attrs))
        sizes = {str(dim): size for dim, size in dataset.sizes.items()}
        return dataset.assign_coords(
            {
                dim: _plain(list(self.coords[dim])) if dim in self.coords else np.arange(size)
                for dim, size in sizes.items()
            }
        )


def netcdf_attrs(attrs: Mapping[str, Any]) -> dict[str, float | str]:
    """Attributes as netCDF knows them, numbers and texts.

    Mappings are written as JSON, Booleans as 0 and 1, anything else as its text; None is left out.

    Example:
        >>> netcdf_attrs({"config": {"k": 2}, "flag": True, "seed": 0, "best": None})
        {'config': '{"k": 2}', 'flag': 1, 'seed': 0}
    """
    plain: dict[str, float | str] = {}
    for name, value in attrs.items():
        if isinstance(value, Mapping):
            plain[name] = json.dumps(value, default=str)
        elif isinstance(value, bool):
            plain[name] = int(value)
        elif value is not None:
            plain[name] = value if isinstance(value, str | int | float) else str(value)
    return plain


def _plain(values: Any) -> NDArray[Any]:
    """The values as numbers or texts."""
    array = np.asarray(values)
    return array if array.dtype.kind in "biufU" else np.asarray([str(v) for v in array.tolist()])
