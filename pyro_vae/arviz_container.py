"""Datasets as an ArviZ container and back, and ArviZ's statistics of chains.

Neither torch nor Pyro is needed here, so that it runs wherever an ArviZ does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["chain_statistics", "container", "group"]


def container(groups: Mapping[str, xr.Dataset], *, attrs: Mapping[str, float | str]) -> Any:
    """The groups as ``arviz.InferenceData`` (0.x) or ``xarray.DataTree`` (1.x).

    Args:
        groups: Datasets by the name of their group; draws have the dimensions ``chain`` and
            ``draw`` first.
        attrs: Attributes of the whole and of each group: numbers and texts, as netCDF needs.

    Example:
        >>> draws = xr.Dataset({"mu": (("chain", "draw"), np.zeros((4, 100)))})
        >>> made = container({"posterior": draws}, attrs={"seed": 0})
        >>> dict(group(made, "posterior").sizes), made.attrs["seed"]
        ({'chain': 4, 'draw': 100}, 0)
    """
    import arviz

    made: dict[str, Any] = {name: dataset.assign_attrs(attrs) for name, dataset in groups.items()}
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(attrs=dict(attrs), **made)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(attrs)), **made})


def group(made: Any, name: str) -> xr.Dataset:
    """One group of a container of either ArviZ.

    Raises:
        ValueError: If it has no such group.

    Example:
        >>> made = container({"posterior": xr.Dataset({"mu": ("chain", [1.0])})}, attrs={})
        >>> group(made, "posterior")["mu"].to_numpy()
        array([1.])
    """
    try:
        found = made[name]
    except (KeyError, TypeError):
        raise ValueError(
            f"reference must be an ArviZ container with the group {name!r}; got "
            f"{type(made).__name__}."
        ) from None
    return found if isinstance(found, xr.Dataset) else found.to_dataset()


def chain_statistics(draws: xr.DataArray) -> xr.Dataset:
    r"""ArviZ's statistics of several chains, over the dimensions besides ``chain`` and ``draw``.

    Args:
        draws: Dimensions ``chain`` and ``draw``, and any others.

    Returns:
        ``mean`` and ``sd`` with their Monte Carlo standard errors ``mean_mcse`` and ``sd_mcse``,
        in units of the draws; ``r_hat`` (rank-normalized, split) and ``ess_bulk``.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(4, 100))
        >>> statistics = chain_statistics(xr.DataArray(draws, dims=("chain", "draw")))
        >>> bool(statistics["r_hat"] < 1.05), bool(statistics["mean"] == draws.mean())
        (True, True)

    References:
        Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and
        localization: an improved R-hat, section 4. https://arxiv.org/abs/1903.08008
    """
    import arviz

    dataset = xr.Dataset({"draws": draws})
    sample = ("chain", "draw")
    # A chain that never moved has no spread to divide by: NaN.
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "mean": draws.mean(sample),
            "sd": draws.std(sample, ddof=1),
            "mean_mcse": arviz.mcse(dataset, method="mean")["draws"],
            "sd_mcse": arviz.mcse(dataset, method="sd")["draws"],
            "r_hat": arviz.rhat(dataset)["draws"],
            "ess_bulk": arviz.ess(dataset, method="bulk")["draws"],
        }
    return xr.Dataset(found)
