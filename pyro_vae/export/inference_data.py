"""From programs and data to an ArviZ container."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_vae import __version__
from pyro_vae.arguments import positive_integer
from pyro_vae.arviz_container import container
from pyro_vae.datasets import Dataset
from pyro_vae.fit_result import FitResult
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs

from .draws import Draws, make_draws
from .groups import Group, netcdf_attrs
from .layout import feature_coords, latent_coords

__all__ = ["to_arviz"]

Array = NDArray[Any]

ROWS_AT_A_TIME = 2000
"""Rows that are hashed at once."""

DRAWS_OF_X = 100
"""Draws of x for each datum, unless more or fewer are asked for."""

NOTES = {
    "posterior": "draws from q(z|x), one approximate posterior for each datum",
    "sample_stats": "at each draw from q(z|x), in nats per datum: lp = log p(x, z), "
    "log_q = log q(z|x), log_weight = lp - log_q",
    "log_likelihood": "log p(x|z) in nats, one value for each datum, all its features together. "
    "Only that datum informs its z, so loo is unstable; log p(x) is what compares models",
    "posterior_predictive": "draws from p(x|z) at the first draws of the posterior group",
    "prior": "draws from p(z)",
    "prior_predictive": "draws from p(x|z) at the draws of the prior group",
    "observed_data": "the data as the model has them",
    "predictions": "draws from q(z|x) at held-out data, and from p(x|z) at those",
    "predictions_constant_data": "the held-out data",
    "fit": "history of the fit, in nats per datum",
}


def to_arviz(
    vae: Programs,
    x: Any,
    *,
    fit: FitResult | None = None,
    num_samples: int = 1000,
    num_predictive: int | None = None,
    seed: int = 0,
    labels: Any = None,
    columns: Sequence[str] | None = None,
    latent_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    predictions: Any = None,
    config: Mapping[str, Any] | None = None,
) -> Any:
    r"""A fitted VAE at data x as ArviZ's container, for ``az.summary``, ``az.plot_*`` and netCDF.

    Groups, with S draws from :math:`q(z \mid x_i)` for each datum i and dimensions ``chain``
    (of length 1), ``draw`` and ``obs_id`` wherever there are draws:

    =========================  ==============================================================
    ``posterior``              ``z`` and any other latent site of the guide; ``latent``
    ``sample_stats``           ``lp`` = log p(x, z), ``log_q`` = log q(z|x), ``log_weight`` =
                               ``lp`` - ``log_q``: nats per datum, not sums over the data
    ``log_likelihood``         ``x``: log p(x|z), one value for each datum
    ``observed_data``          ``x``; ``feature``, or ``row`` and ``col``, or these after
                               ``channel``
    ``posterior_predictive``   ``x`` from p(x|z) at the first draws of ``posterior``
    ``prior``                  ``z`` from p(z)
    ``prior_predictive``       ``x`` from p(x|z) at these
    ``constant_data``          ``labels``
    ``predictions``            ``z`` and ``x`` at held-out data, which are in
                               ``predictions_constant_data``
    ``fit``                    the columns of ``fit.history``; ``epoch``
    =========================  ==============================================================

    With several vector sites the dimension is called after the site: ``z1_latent``. Characters
    that netCDF does not take, as the "/" and "." of Pyro's site names, become "_", and the
    attribute ``site_names`` says what was what. A site that is summed out has draws in ``prior``
    alone.

    ``log_likelihood`` is conditional on a z that only one datum informs: leaving the datum out
    leaves its z without data, so ``az.loo`` has large k-hats and is no way to compare VAEs. Use
    :math:`\log p(x)` of :func:`pyro_vae.diagnostics.log_evidence`. ``r_hat`` of z over several
    fits has no meaning either, because a rotation of z is the same model.

    Memory: one array is kept for each variable, and no second copy. That is
    :math:`S N (k + 4)` numbers, and :math:`2 N n` more for each draw of x.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        fit: What :func:`pyro_vae.fit` returned.
        num_samples: Number S of draws from q(z|x) for each datum.
        num_predictive: Number of draws of x for each datum, and of the prior, from 0 (which leaves
            these groups out) to S; the lesser of 100 and S by default. ``az.plot_loo_pit`` needs
            S.
        seed: Seed of the draws; the global random state is left alone.
        labels: One for each datum: numbers or texts.
        columns: Names of the features of x; by default those of the table that was fitted, or of
            x.
        latent_names: Names of the latent dimensions; with several vector sites, by site.
        predictions: Held-out data, ``(M, *event_shape)``.
        config: What to store, as JSON, about how the fit was made; the parts of ``vae`` by
            default.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with ArviZ 1.x. Attributes, of
        the whole and of each group: versions, ``seed``, ``config`` and ``data_sha256``, the hash
        of the bytes of x as the model had them.

    Raises:
        TypeError: If ``vae`` has no posterior, as an autoencoder, or ``fit`` is no fit.
        ValueError: If x, a number of draws or a number of names does not fit.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> data = to_arviz(vae, torch.zeros(5, 3), num_samples=10, columns=["a", "b", "c"])
        >>> dict(data["posterior"].sizes)
        {'chain': 1, 'draw': 10, 'obs_id': 5, 'latent': 2}
        >>> data["observed_data"]["feature"].values.tolist()
        ['a', 'b', 'c']

    References:
        Merkle, Furr and Rabe-Hesketh (2019), Bayesian comparison of latent variable models:
        conditional versus marginal likelihoods. https://doi.org/10.1007/s11336-019-09679-0
    """
    for program in ("model", "guide"):
        if not callable(getattr(vae, program, None)):
            raise TypeError(
                f"vae must have a posterior, Pyro programs model and guide; got "
                f"{type(vae).__name__} without {program}."
            )
    if fit is not None and not isinstance(fit, FitResult):
        raise TypeError(f"fit must be what pyro_vae.fit returned; got {type(fit).__name__}.")
    num_samples = positive_integer(num_samples, "num_samples")
    num_predictive = _predictive_number(num_predictive, num_samples)
    if predictions is not None and num_predictive == 0:
        raise ValueError("num_predictive must be positive where predictions are given; got 0.")
    if labels is None and isinstance(x, Dataset):
        labels = x.labels
    source = DataSource(vae, resolve_device(vae, "auto"))
    rows = source.tensor(x, name="x")
    held_out = None if predictions is None else source.tensor(predictions, name="predictions")
    constant = {} if labels is None else {"labels": (("obs_id",), _labels(labels, len(rows)))}
    draws = make_draws(
        vae,
        rows,
        num_samples=num_samples,
        num_predictive=num_predictive,
        seed=seed,
        purpose="arviz",
    )
    latent = {name: draws.layouts[name] for name in draws.latent}
    observed = {name: draws.layouts[name] for name in draws.observed}
    coords = latent_coords(latent, latent_names)
    coords |= feature_coords(observed, columns, source.columns)
    groups = {
        name: Group(draws.variables(name), coords, {"note": NOTES[name]}) for name in draws.groups
    }
    groups["constant_data"] = Group(constant)
    if held_out is not None:
        new = make_draws(
            vae,
            held_out,
            num_samples=num_predictive,
            num_predictive=num_predictive,
            seed=seed,
            purpose="arviz predictions",
            prior=False,
        )
        groups |= _predictions(new, coords)
    if fit is not None:
        groups["fit"] = _history(fit)
    names = {layout.variable: name for name, layout in draws.layouts.items()}
    attrs = {
        "inference_library": "pyro-ppl",
        "inference_library_version": pyro.__version__,
        "creation_library": "pyro_vae",
        "creation_library_version": __version__,
        "seed": seed,
        "config": _parts(vae) if config is None else config,
        "data_sha256": _sha256(rows),
        "site_names": {new: name for new, name in names.items() if new != name} or None,
    }
    made = {name: group.dataset() for name, group in groups.items() if group.variables}
    return container(made, attrs=netcdf_attrs(attrs))


def _predictive_number(value: int | None, num_samples: int) -> int:
    if value is None:
        return min(DRAWS_OF_X, num_samples)
    number = 0 if value == 0 else positive_integer(value, "num_predictive")
    if number > num_samples:
        raise ValueError(
            f"num_predictive must be at most num_samples, {num_samples}; got {number}."
        )
    return number


def _predictions(draws: Draws, coords: Mapping[str, Any]) -> dict[str, Group]:
    drawn = draws.variables("posterior") | draws.variables("posterior_predictive")
    variables = {
        "predictions": drawn,
        "predictions_constant_data": draws.variables("observed_data"),
    }
    return {name: Group(some, coords, {"note": NOTES[name]}) for name, some in variables.items()}


def _history(fit: FitResult) -> Group:
    history = fit.history
    attrs = {
        "note": NOTES["fit"],
        "fit_seed": fit.seed,
        "interrupted": fit.interrupted,
        "stopped_early": fit.stopped_early,
        "best_epoch": fit.best_epoch,
        "num_skipped": fit.num_skipped,
        "seconds": fit.seconds,
    }
    columns = [name for name in history if name != "epoch"]
    variables = {str(name): (("epoch",), history[name].to_numpy(float)) for name in columns}
    return Group(variables, {"epoch": history["epoch"]} if columns else {}, attrs)


def _labels(labels: Any, num_data: int) -> Array:
    array = _numpy(labels) if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (num_data,):
        raise ValueError(
            f"labels must be one for each of the {num_data} rows of x; got shape {array.shape}."
        )
    return array


def _sha256(x: Tensor) -> str:
    """Hash of the bytes of x, without a copy of it."""
    hashed = hashlib.sha256()
    for part in x.split(ROWS_AT_A_TIME):
        hashed.update(_numpy(part).tobytes())
    return hashed.hexdigest()


def _numpy(x: Tensor) -> Array:
    # numpy has no bfloat16.
    return np.asarray((x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy())


def _parts(vae: Programs) -> dict[str, Any]:
    parts = (
        {name: repr(part) for name, part in vae.named_children()}
        if isinstance(vae, nn.Module)
        else {}
    )
    return {"class": type(vae).__name__, **parts}
