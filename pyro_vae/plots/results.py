"""Is it what a diagnostic returned? Said at once, and not by an error from deep inside."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

__all__ = ["check_result"]


def check_result(found: Any, needed: Sequence[str], *, name: str, source: str) -> None:
    """Raise unless it is a dataset with all the variables that a picture needs.

    Args:
        found: What a user passes.
        needed: Names of variables.
        name: Name of the argument.
        source: Diagnostic whose result it must be.

    Raises:
        TypeError: If it is no dataset.
        ValueError: If a variable is missing.

    Example:
        >>> check_result({}, ["elbo"], name="found", source="trend")
        Traceback (most recent call last):
        TypeError: found must be what diagnostics.trend returned, an xarray.Dataset; got dict.
    """
    if not isinstance(found, xr.Dataset):
        raise TypeError(
            f"{name} must be what diagnostics.{source} returned, an xarray.Dataset; got "
            f"{type(found).__name__}."
        )
    missing = [variable for variable in needed if variable not in found.variables]
    if missing:
        raise ValueError(
            f"{name} must be what diagnostics.{source} returned; got a Dataset without "
            f"{', '.join(missing)}."
        )
