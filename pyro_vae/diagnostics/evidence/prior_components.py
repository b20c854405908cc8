"""Where the components of a mixture prior lie: places at which to look for peaks."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily

from pyro_vae.traces import Programs
from pyro_vae.traces.runs import Runs

__all__ = ["PriorComponents", "prior_components"]

NUM_DRAWS = 64
"""Draws that tell the mean and standard deviation of a component without a formula for them."""


class PriorComponents(NamedTuple):
    """Means and standard deviations of J components, ``(J, N, K)`` each, in units of z."""

    mean: Tensor
    sd: Tensor

    def points(self, num_sds: float) -> Tensor:
        """The means, and ``num_sds`` from them either way in each coordinate, ``(.., N, K)``."""
        eye = torch.eye(self.mean.shape[-1], dtype=self.mean.dtype, device=self.mean.device)
        steps = num_sds * torch.cat([0 * eye[:1], eye, -eye])  # (1 + 2K, K)
        return (self.mean + steps[:, None, None] * self.sd).flatten(0, 1)


def prior_components(programs: Programs, x: Tensor) -> PriorComponents | None:
    """The components of p(z) where it is one site with a ``MixtureSameFamily``; else None.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=1)
        >>> prior_components(vae, torch.zeros(5, 3)) is None
        True
        >>> mixture = vae.with_prior(pv.priors.GaussianMixture(1, 4))
        >>> prior_components(mixture, torch.zeros(5, 3)).mean.shape
        torch.Size([4, 5, 1])
    """
    runs = Runs(programs, x)
    if len(runs.latent) != 1:
        return None
    site = cast(Any, runs.model_trace.nodes[runs.latent[0]])
    mixture, num_dims = site["fn"], site["fn"].event_shape.numel()
    while not isinstance(mixture, MixtureSameFamily) and hasattr(mixture, "base_dist"):
        mixture = mixture.base_dist
    if not isinstance(mixture, MixtureSameFamily):
        return None
    parts = mixture.component_distribution
    if num_dims > 1 and mixture.event_shape.numel() != num_dims:
        return None  # a mixture for each coordinate: components of the vector are their products

    def laid_out(value: Tensor) -> Tensor:
        num_components = parts.batch_shape[-1]
        shape = (*mixture.batch_shape, num_components, *mixture.event_shape)
        rows = value.expand(shape).reshape(-1, num_components, num_dims)
        return rows.expand(len(x), -1, -1).transpose(0, 1).double()

    draws: list[Tensor] = []
    mean = laid_out(_moment(parts, lambda p: p.mean, lambda d: d.mean(0), draws))
    sd = laid_out(_moment(parts, lambda p: p.variance.sqrt(), lambda d: d.std(0), draws))
    return PriorComponents(mean, sd.nan_to_num(0.0, posinf=0.0))


def _moment(
    parts: Distribution,
    formula: Callable[[Distribution], Tensor],
    of_draws: Callable[[Tensor], Tensor],
    draws: list[Tensor],
) -> Tensor:
    """By formula where there is one and it is finite, else from draws."""
    try:
        value = formula(parts)
        if value.isfinite().all():
            return value
    except NotImplementedError:
        pass
    if not draws:
        draws.append(parts.sample(torch.Size([NUM_DRAWS])))
    return of_draws(draws[0])
