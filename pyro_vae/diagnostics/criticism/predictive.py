"""Predictive checks: are data drawn from the model like the data, in the user's own statistics?"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.monte_carlo import share_error
from pyro_vae.diagnostics.passes import complete
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs

from .replication import replications

__all__ = ["Statistics", "posterior_predictive_check", "prior_predictive_check"]

Statistics = Mapping[str, Callable[[Tensor], Tensor | float]]
"""Functions of a whole data set, ``(N, *event_shape)``, with one number each, by their names."""


def prior_predictive_check(
    vae: Programs, x: Any, statistics: Statistics, *, num_samples: int = 200, seed: int = 0
) -> xr.Dataset:
    r"""Compare statistics of x with those of data sets that the model draws by itself.

    .. math:: z_i \sim p(z), \quad x^{\text{rep}}_i \sim p(x \mid z_i), \quad i = 1, \dots, N;
              \qquad p = P(T(x^{\text{rep}}) \ge T(x))

    A replicated data set has the N rows of x, and there is one of them at a time. Where x is not
    what the model was fitted to and the model is right, :math:`(r + 1) / (S + 1)` with r of S
    replications at or above T(x) is an exact p-value: uniform, for a T without ties, at any S. On
    the data of the fit p-values tend to 1/2, since the parameters followed those data: use
    held-out x for a sharp check.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        statistics: Names and functions T, each from a data set, ``(N, *event_shape)``, to one
            number; choose what the model does not fit by construction.
        num_samples: Number S of replicated data sets.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        Over ``statistic``: ``observed``, T(x); ``p_value``, P(T(x_rep) >= T(x)), near 0 where the
        data exceed the model and near 1 where they fall short of it; ``p_value_two_sided``, twice
        the smaller of it and P(T(x_rep) <= T(x)), 1 at most; and their ``_mcse``. ``replicated``,
        T(x_rep), over ``statistic`` and ``simulation``.

    Raises:
        ValueError: If there is no statistic, or one does not return one number, or the model does
            not have one observed site of the shape of x.
        TypeError: If the statistics are no mapping from names to functions, or the model has no
            latent site, as an autoencoder's.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> x = torch.full((50, 3), 1e3)  # far above all that the model draws
        >>> check = prior_predictive_check(vae, x, {"mean": torch.mean}, num_samples=19)
        >>> check["p_value"].values.tolist(), check["p_value_two_sided"].values.tolist()
        ([0.05], [0.1])

    References:
        Box (1980), Sampling and Bayes' inference in scientific modelling and robustness, section
        2. https://doi.org/10.2307/2982063
    """
    return _check(vae, x, statistics, num_samples, seed, from_guide=False)


def posterior_predictive_check(
    vae: Programs, x: Any, statistics: Statistics, *, num_samples: int = 200, seed: int = 0
) -> xr.Dataset:
    r"""Compare statistics of x with those of data sets drawn anew at the z that x speaks for.

    .. math:: z_i \sim q(z \mid x_i), \quad x^{\text{rep}}_i \sim p(x \mid z_i), \quad
              i = 1, \dots, N; \qquad p = P(T(x^{\text{rep}}) \ge T(x))

    x is used twice, to find z and to be compared, so the p-value is conservative: under a right
    model it is nearer to 1/2 than a uniform one, the more so the more of T(x) z can follow. Small
    values count; middling ones say little. Held-out x removes the part that the fit of the
    parameters has in this, not the part of z. :func:`prior_predictive_check` has neither.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        x: Data, ``(N, *event_shape)``.
        statistics: Names and functions T, each from a data set, ``(N, *event_shape)``, to one
            number; choose what z cannot follow, such as extremes or dependence in the residuals.
        num_samples: Number S of replicated data sets.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        The same variables as :func:`prior_predictive_check`.

    Raises:
        ValueError: As there; also if a discrete site is left to be summed out by the guide.
        TypeError: As there.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> x = torch.zeros(50, 3)  # less variable than all that the model draws
        >>> check = posterior_predictive_check(vae, x, {"sd": torch.std}, num_samples=19)
        >>> check["p_value"].values.tolist(), check["p_value_two_sided"].values.tolist()
        ([1.0], [0.1])

    References:
        Gelman, Meng and Stern (1996), Posterior predictive assessment of model fitness via
        realized discrepancies, sections 2 and 3. Statistica Sinica 6.
        https://www3.stat.sinica.edu.tw/statistica/oldpdf/A6n41.pdf

        Meng (1994), Posterior predictive p-values, section 3: why they are conservative.
        https://doi.org/10.1214/aos/1176325622
    """
    return _check(vae, x, statistics, num_samples, seed, from_guide=True)


def _check(
    vae: Programs,
    x: Any,
    statistics: Statistics,
    num_samples: int,
    seed: int,
    *,
    from_guide: bool,
) -> xr.Dataset:
    num_samples = positive_integer(num_samples, "num_samples")
    _check_functions(statistics)
    if not statistics:
        raise ValueError("statistics must name at least one function; got none.")
    rows = DataSource(vae, resolve_device(vae, "auto")).tensor(x, name="x")
    complete(rows, "a predictive check")
    observed = _values(statistics, rows)
    kind = "posterior" if from_guide else "prior"
    replicated = np.empty((len(statistics), num_samples))
    whole: Tensor | None = None  # filled in piece by piece, so that there is no second copy
    draw = 0
    for index, replication in replications(
        vae, rows, num_samples, from_guide=from_guide, seed=seed, purpose=f"{kind} predictive"
    ):
        if whole is None:
            whole = torch.empty_like(rows, dtype=replication.x.dtype)
        whole[index] = replication.x
        if index[-1] == len(rows) - 1:
            replicated[:, draw] = _values(statistics, whole)
            whole, draw = None, draw + 1
    above, above_error = _share((replicated >= observed[:, None]).sum(1), num_samples)
    below, below_error = _share((replicated <= observed[:, None]).sum(1), num_samples)
    smaller = np.where(above <= below, above_error, below_error)
    return xr.Dataset(
        {
            "observed": ("statistic", observed),
            "replicated": (("statistic", "simulation"), replicated),
            "p_value": ("statistic", above),
            "p_value_mcse": ("statistic", above_error),
            "p_value_two_sided": ("statistic", np.minimum(1.0, 2 * np.minimum(above, below))),
            "p_value_two_sided_mcse": ("statistic", 2 * smaller),
        },
        coords={"statistic": list(statistics), "simulation": np.arange(num_samples)},
        attrs={
            "units": "each statistic's own; p-values are probabilities",
            "predictive": kind,
            "num_data": len(rows),
            "num_samples": num_samples,
            "seed": seed,
        },
    )


def _check_functions(statistics: Any) -> None:
    if not isinstance(statistics, Mapping):
        raise TypeError(
            f"statistics must be a mapping from names to functions; got {statistics!r}. Give it a "
            'name, as in {"mean": torch.mean}.'
        )
    for name, statistic in statistics.items():
        if not callable(statistic):
            raise TypeError(f"statistics[{name!r}] must be a function; got {statistic!r}.")


def _values(statistics: Statistics, x: Tensor) -> np.ndarray:
    """Each statistic of one data set."""
    values = []
    for name, statistic in statistics.items():
        with torch.no_grad():
            value = torch.as_tensor(statistic(x), device=x.device)
        if value.numel() != 1:
            raise ValueError(
                f"statistics[{name!r}] must return one number for a data set of shape "
                f"{tuple(x.shape)}; got shape {tuple(value.shape)}."
            )
        values.append(float(value))
        if math.isnan(values[-1]):
            raise ValueError(
                f"statistics[{name!r}] must return a number for every data set; got NaN. Is it "
                "defined for all that the model can draw?"
            )
    return np.array(values)


def _share(count: np.ndarray, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """P-values (r + 1) / (S + 1), and the error of r / S as an estimate of a probability."""
    return (count + 1) / (num_samples + 1), share_error(count, num_samples)
