"""Which latent units tell of x at all."""

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.monte_carlo import Moments
from pyro_vae.diagnostics.passes import each_piece
from pyro_vae.traces import Programs, latent_site
from pyro_vae.traces.runs import draws_of_a_run

__all__ = [
    "active_units",
    "checked_means",
    "known_means",
    "posterior_means",
    "variance_of_means",
]

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

    means = Moments(4)
    noise: Any = 0.0

    def visit(piece: Tensor) -> None:
        nonlocal noise
        mean, of_draws = posterior_means(latent_site(vae, piece).q, num_samples)
        means.add(mean)
        noise = noise + of_draws.sum(0)

    each_piece(vae, x, visit, seed=seed, purpose="active", at_a_time=ROWS_AT_A_TIME)
    variance, error = (v.cpu() for v in variance_of_means(means, noise / means.count))
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
            "mean_is_analytic": int(not noise.any()),
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
    mean = known_means(q)
    if mean is not None:
        return mean, torch.zeros_like(mean)
    draws = Moments()
    for size in draws_of_a_run(max(2, num_samples), q.batch_shape[0]):
        draws.add(q.sample(torch.Size([size])))
    return checked_means(draws.mean, q), draws.variance() / draws.count


def known_means(q: Any) -> Tensor | None:
    """Means of q(z|x), ``(n, k)``, in double precision; None where they have no closed form.

    Args:
        q: Batch ``(n,)``, event ``(k,)``.

    Raises:
        ValueError: If a mean is not finite.

    Example:
        >>> from pyro.distributions import Normal
        >>> known_means(Normal(torch.ones(1, 2), 1.0).to_event(1))
        tensor([[1., 1.]], dtype=torch.float64)
    """
    try:
        return checked_means(q.mean.double(), q)
    except NotImplementedError:
        return None


def checked_means(mean: Tensor, q: Any) -> Tensor:
    """The means, if all of them are finite.

    Args:
        mean: Means of ``q``, ``(n, k)``.
        q: Batch ``(n,)``, event ``(k,)``.

    Raises:
        ValueError: If one is not finite.

    Example:
        >>> checked_means(torch.ones(1), None)
        tensor([1.])
    """
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
    return mean


def variance_of_means(means: Moments, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Variance over data, divisor N, without that of the noise, and its standard error.

    Args:
        means: Of the N means, of order 4.
        noise: Variance of a mean's Monte Carlo error, averaged over data, ``(k,)``.

    Example:
        >>> means = Moments(4)
        >>> means.add(torch.tensor([[0.0], [2.0]]))
        >>> variance, error = variance_of_means(means, torch.zeros(1))
        >>> variance.item(), error.item()
        (1.0, 0.0)
    """
    square = means.variance(0)
    spread = (means.fourth() - square.square()).clamp(min=0)
    return (square - noise).clamp(min=0), (spread / means.count).sqrt()
