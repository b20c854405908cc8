"""Which latent units tell of x at all."""

import math
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.passes import by_rows
from pyro_vae.traces import Programs, latent_site

__all__ = ["active_units", "mean_and_draws", "posterior_means", "variance_of_means"]

ROWS_AT_A_TIME = 2000


def active_units(
    vae: Programs, x: Any, *, threshold: float = 0.01, num_samples: int = 100, seed: int = 0
) -> xr.Dataset:
    r"""Variance over the data of each latent unit's posterior mean; which units are active.

    .. math:: A_j = \operatorname{Var}_n(\mathbb E_{q(z \mid x_n)} z_j), \qquad
              \text{unit } j \text{ is active if } A_j > \text{threshold}

    The divisor is N, as in the linear theory, where :math:`A_j = 1 - c / \lambda_j` with the
    eigenvalues of the covariance that has divisor N. An inactive unit is not a fault by itself:
    ``collapse_report`` says how many a linear VAE would have. Where q(z|x) is no diagonal normal
    units may be mixtures of each other; that report counts directions, which do not depend on it.

    Args:
        vae: A VAE, or any model and guide with one latent vector for each datum.
        x: Data, ``(N, *event_shape)``.
        threshold: Variance above which a unit is active, in squared units of z.
        num_samples: Draws from q(z|x) behind each mean where it has no closed form, as for a flow;
            what their noise adds to the variance is taken out.
        seed: Seed of those draws.

    Returns:
        Over ``latent``: ``variance``; ``variance_se``, its standard error for a claim about new
        data; ``active``. Attribute ``mean_is_analytic`` is 1 or 0, ``num_active`` their number.

    Raises:
        ValueError: If there is not one continuous latent vector for each datum, its q(z|x) has no
            finite mean, as a Cauchy, or an argument does not fit.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> active_units(vae, torch.zeros(5, 3))["active"].values.tolist()  # all x are equal
        [False, False]

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, section 5.2.
        https://arxiv.org/abs/1509.00519
    """
    threshold = finite_number(threshold, "threshold", "positive", above=0)
    num_samples = positive_integer(num_samples, "num_samples")

    def compute(piece: Tensor) -> dict[str, Tensor]:
        mean, noise = posterior_means(latent_site(vae, piece).q, num_samples)
        return {"mean": mean, "noise": noise}

    columns = by_rows(vae, x, compute, seed=seed, purpose="active", at_a_time=ROWS_AT_A_TIME)
    variance, error = variance_of_means(columns["mean"], columns["noise"])
    active = variance > threshold
    return xr.Dataset(
        {
            "variance": ("latent", variance.numpy()),
            "variance_se": ("latent", error.numpy()),
            "active": ("latent", active.numpy()),
        },
        coords={"latent": range(len(variance))},
        attrs={
            "units": "squared units of z",
            "threshold": threshold,
            "num_active": int(active.sum()),
            "mean_is_analytic": int(not columns["noise"].any()),
            "num_samples": num_samples,
            "seed": seed,
        },
    )


def posterior_means(q: Any, num_samples: int) -> tuple[Tensor, Tensor]:
    """Means of q(z|x), ``(n, k)``, and the variance of their noise, 0 where they are analytic.

    Args:
        q: Batch ``(n,)``, event ``(k,)``.
        num_samples: Draws where the mean has no closed form; at least 2 of them are made.

    Example:
        >>> from pyro.distributions import Normal
        >>> posterior_means(Normal(torch.ones(1, 2), 1.0).to_event(1), 5)
        (tensor([[1., 1.]], dtype=torch.float64), tensor([[0., 0.]], dtype=torch.float64))
    """
    mean, z = mean_and_draws(q, num_samples)
    return mean, torch.zeros_like(mean) if z is None else z.var(0) / len(z)


def mean_and_draws(q: Any, num_samples: int) -> tuple[Tensor, Tensor | None]:
    """Means of q(z|x), ``(n, k)``, and the draws behind them, ``(S, n, k)``; None if analytic.

    Args:
        q: Batch ``(n,)``, event ``(k,)``.
        num_samples: Draws where the mean has no closed form; at least 2 of them are made.

    Raises:
        ValueError: If a mean is not finite.

    Example:
        >>> from pyro.distributions import Normal
        >>> mean_and_draws(Normal(torch.ones(1, 2), 1.0).to_event(1), 5)
        (tensor([[1., 1.]], dtype=torch.float64), None)
    """
    z = None
    try:
        mean = q.mean.double()
    except NotImplementedError:
        z = q.sample(torch.Size([max(2, num_samples)])).double()
        mean = z.mean(0)
    if not mean.isfinite().all():
        number = int((~mean.isfinite()).sum())
        base = q
        while hasattr(base, "base_dist"):
            base = base.base_dist
        raise ValueError(
            f"guide must have finite means for its units to be called active or not; got "
            f"{type(base).__name__} with {number} of {mean.numel()} means not finite. A Cauchy, "
            "as a Student t with df <= 1, has none: use a guide with lighter tails."
        )
    return mean, z


def variance_of_means(mean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Variance over data, divisor N, without that of the noise, and its standard error.

    Args:
        mean: ``(N, k)``.
        noise: Variance of each mean's Monte Carlo error, ``(N, k)``.

    Example:
        >>> variance, error = variance_of_means(torch.tensor([[0.0], [2.0]]), torch.zeros(2, 1))
        >>> variance.item(), error.item()
        (1.0, 0.0)
    """
    squares = (mean - mean.mean(0)).square()
    variance = (squares.mean(0) - noise.mean(0)).clamp(min=0)
    return variance, squares.std(0, correction=0) / math.sqrt(len(mean))
