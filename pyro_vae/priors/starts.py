"""Where a learned prior starts: the parameters of a family at a mean and scale 1."""

from typing import Any

import torch
from torch import Tensor

from pyro_vae.bounds import inverse_positive
from pyro_vae.families import IsotropicNormal, LowRankNormal

__all__ = ["unit_scale"]

# Standard deviation of the entries of a low-rank factor.
SMALL = 0.1


def unit_scale(family: Any, loc: Tensor) -> Tensor:
    r"""Parameters of a family's members with the means ``loc`` and covariance I.

    A low-rank normal gets a random factor F of small entries, and covariance
    :math:`I + FF^\top`: at F = 0 the density has no gradient with respect to F.

    Args:
        family: A family that contains the isotropic normal.
        loc: Means, ``(..., k)``.

    Returns:
        Shape ``(..., family.num_params)``.

    Raises:
        TypeError: If it is no family.
        ValueError: If scale 1 is not between its ``min_scale`` and ``max_scale``, or it does not
            contain the isotropic normal.

    Example:
        >>> from pyro_vae.families import DiagonalNormal
        >>> family = DiagonalNormal(2)
        >>> q = family(unit_scale(family, torch.tensor([3.0, 4.0])))
        >>> q.mean, q.stddev.round(decimals=4)
        (tensor([3., 4.]), tensor([1., 1.]))
    """
    if not hasattr(family, "embedding") or isinstance(family, type):
        raise TypeError(
            f"family must be an instance such as families.DiagonalNormal(latent_dim); got "
            f"{family!r}."
        )
    low, high = family.min_scale, family.max_scale
    if not low < 1 < high:
        raise ValueError(
            f"family must have min_scale < 1 < max_scale, as its scales start at 1; got "
            f"min_scale = {low} and max_scale = {high}."
        )
    scale = loc.new_full((*loc.shape[:-1], 1), inverse_positive(1.0, low, high))
    if isinstance(family, LowRankNormal):
        k = loc.shape[-1]
        factor = SMALL * torch.randn(*loc.shape[:-1], k * family.rank).to(loc)
        return torch.cat([loc, scale.expand_as(loc), factor], dim=-1)
    isotropic = torch.cat([loc, scale], dim=-1)
    contained = IsotropicNormal(loc.shape[-1], min_scale=low, max_scale=high)
    matrix, shift = family.embedding(contained)
    return isotropic @ matrix.to(loc).mT + shift.to(loc)
