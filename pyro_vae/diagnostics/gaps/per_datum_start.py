"""Where the search for a datum's own q begins: the guide's answer, as parameters of a family."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.evaluation import evaluating
from pyro_vae.families import (
    DiagonalNormal,
    Family,
    Flow,
    FullCovarianceNormal,
    IsotropicNormal,
    LowRankNormal,
)
from pyro_vae.families.normal import fill_triangle
from pyro_vae.traces import Programs, Runs, latent_site

__all__ = ["Start", "at_moments", "embedded", "full_params", "has_family", "start_of"]

MIN_SCALE, MAX_SCALE = 1e-4, 1e3
"""Those of a new family; wider only where a guide's scales lie beyond them."""

DRAWS_FOR_MOMENTS = 1000


class Start(NamedTuple):
    """Members of a family, one for each datum.

    Attributes:
        family: The family.
        table: Its parameters, ``(N, num_params)``.
    """

    family: Family
    table: Tensor


def has_family(programs: Programs, x: Tensor) -> bool:
    """Whether the gap can be divided: a better q can be sought in a family of the guide's.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype; a few rows do.

    Raises:
        ValueError: If the programs do not run on x as model and guide of one another.

    Example:
        >>> import pyro_vae as pv
        >>> has_family(pv.gaussian_vae(features=3, latent_dim=2), torch.zeros(2, 3))
        True
    """
    with evaluating(programs, 0, "has_family", device=x.device):
        Runs(programs, x)  # its errors are not about the family
        try:
            q = latent_site(programs, x).q
        except ValueError:  # not one real vector for each datum
            return False
        return _known_start(getattr(programs, "q_z_given_x", None), x, q) is not None


def start_of(guide: Any, x: Tensor, q: Any) -> Start:
    """The guide's answer as a member of the guide's family.

    A guide with a ``family`` and ``params(x)`` says it itself. Of another guide the family is
    known where q is normal: diagonal, low rank or full, as its distribution has it.

    Args:
        guide: The module that made q, if there is one.
        x: Data, ``(N, *event_shape)``.
        q: Its answer, batch ``(N,)``, event ``(k,)``.

    Raises:
        ValueError: If nobody knows the family.
    """
    start = _known_start(guide, x, q)
    if start is None:
        raise ValueError(
            "guide must have a family in which a better q(z|x) can be sought: a normal "
            "distribution over real vectors, or a guide with the attribute family, as "
            f"guides.AmortizedGuide(family, encoder) has; got {type(_plain(q)).__name__}."
        )
    return start


def embedded(family: Family, smaller: Start) -> Start | None:
    """The same distributions as members of a larger family; None where it has them not."""
    try:
        matrix, shift = (t.to(smaller.table) for t in family.embedding(smaller.family))
    except ValueError:
        return None
    return Start(family, smaller.table @ matrix.mT + shift)


def at_moments(family: Family, q: Any) -> Start:
    """Members of a family with the mean of other distributions, and their spread if it has it.

    Args:
        family: Where to start.
        q: The distributions, batch ``(N,)``, event ``(k,)``.

    Raises:
        ValueError: If it is a family of which nobody knows what its parameters mean.

    Example:
        >>> from pyro.distributions import Normal
        >>> q = Normal(torch.tensor([[1.0, -2.0]]), 0.5).to_event(1)
        >>> start = at_moments(FullCovarianceNormal(2), q)
        >>> start.family(start.table).covariance_matrix
        tensor([[[0.2500, 0.0000],
                 [0.0000, 0.2500]]])
    """
    mean, covariance = _moments(q)
    k = mean.shape[-1]
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    if isinstance(family, FullCovarianceNormal):
        return Start(family, full_params(family, mean, torch.linalg.cholesky(covariance)))
    params = family.start_params().to(mean).repeat(len(mean), 1)
    params[:, :k] = mean
    if isinstance(family, IsotropicNormal):
        params[:, k:] = _raw(scale.square().mean(-1, keepdim=True).sqrt(), family)
    elif isinstance(family, DiagonalNormal | LowRankNormal | Flow):
        params[:, k : 2 * k] = _raw(scale, family)
    else:
        raise ValueError(
            "families must contain the guide's family, say how by embedding(), or be normal or a "
            f"flow, for a search to start from the guide's answer; got {family}."
        )
    return Start(family, params)


def full_params(family: FullCovarianceNormal, mean: Tensor, tril: Tensor) -> Tensor:
    """The family's parameters, ``(N, num_params)``, of means and Cholesky factors."""
    k = mean.shape[-1]
    scale = tril.diagonal(dim1=-2, dim2=-1)
    square = (math.sqrt(k) * tril / scale.unsqueeze(-1)).tril(-1)
    square = square + _raw(scale, family).diag_embed()
    numbers = torch.arange(family.num_params - k, device=mean.device)
    rows, columns = torch.tril_indices(k, k, device=mean.device)
    values = mean.new_zeros(*mean.shape[:-1], len(numbers))
    values[..., fill_triangle(numbers, k)[rows, columns]] = square[..., rows, columns]
    return torch.cat([mean, values], dim=-1)


def _known_start(guide: Any, x: Tensor, q: Any) -> Start | None:
    family = getattr(guide, "family", None)
    if family is not None and hasattr(guide, "params"):
        return Start(family, guide.params(x).detach())
    plain = _plain(q)
    k = q.event_shape[0]
    if isinstance(plain, torch.distributions.Normal):
        family = DiagonalNormal(k, **_bounds(plain.scale))
    elif isinstance(plain, torch.distributions.LowRankMultivariateNormal):
        scale = plain.cov_diag.sqrt()
        rank = plain.cov_factor.shape[-1]
        if rank <= k:
            family = LowRankNormal(k, rank, **_bounds(scale))
            factor = (plain.cov_factor / scale.unsqueeze(-1)).flatten(-2)
            return Start(family, torch.cat([plain.loc, _raw(scale, family), factor], dim=-1))
    elif isinstance(plain, torch.distributions.MultivariateNormal):
        scale = plain.scale_tril.diagonal(dim1=-2, dim2=-1)
        family = FullCovarianceNormal(k, **_bounds(scale))
    return None if family is None else at_moments(family, q)


def _plain(q: Any) -> Any:
    return q.base_dist if isinstance(q, torch.distributions.Independent) else q


def _moments(q: Any) -> tuple[Tensor, Tensor]:
    """Mean and covariance, from draws where there is no closed form."""
    try:
        mean, covariance = q.mean, getattr(q, "covariance_matrix", None)
        if covariance is None:
            covariance = q.variance.diag_embed()
    except NotImplementedError:
        draws = q.sample((DRAWS_FOR_MOMENTS,))
        mean = draws.mean(0)
        residual = draws - mean
        covariance = torch.einsum("sni,snj->nij", residual, residual) / len(draws)
    return mean.detach(), covariance.detach()


def _bounds(scale: Tensor) -> dict[str, float]:
    smallest, largest = float(scale.min()), float(scale.max())
    return {
        "min_scale": MIN_SCALE if smallest > 2 * MIN_SCALE else smallest / 2,
        "max_scale": MAX_SCALE if largest < MAX_SCALE / 2 else largest * 2,
    }


def _raw(scale: Tensor, family: Family) -> Tensor:
    """Inverse of the family's scale as a function of its parameter, just inside its bounds."""
    low, high = family.min_scale, family.max_scale
    dtype = scale.dtype
    scale = scale.double().clamp(low + 1e-6 * low, high - 1e-6 * high)
    excess = scale - low
    raw = excess + torch.log(-torch.expm1(-excess)) - torch.log1p(-torch.exp(scale - high))
    return raw.to(dtype)
