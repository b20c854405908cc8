"""The two programs of a VAE where some of x is missing."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.capture.state import is_capturing
from pyro_vae.distributions import ObservedEntries
from pyro_vae.distributions.row_choice import chosen_rows
from pyro_vae.likelihoods.data_checks import warn_of_features

__all__ = [
    "observed_part",
    "posterior_of_observed",
    "refusal",
    "tell_of_zeros",
    "warn_of_unobserved",
]

logger = logging.getLogger(__name__)


def observed_part(p: dist.TorchDistribution, x: Tensor) -> dist.TorchDistribution:
    """p(x|z), or its margin over the observed entries where some of x is NaN.

    Example:
        >>> p = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> observed_part(p, torch.zeros(5, 3)) is p
        True
    """
    # A graph is to serve batches with missing entries too.
    return ObservedEntries(p) if is_capturing() or bool(x.isnan().any()) else p


def posterior_of_observed(
    guide: nn.Module, prior: Callable[[], Any], x: Tensor
) -> dist.TorchDistribution:
    """q(z|x), with p(z) in rows of x without any observed entry.

    A guide that does not declare ``takes_missing`` is shown zeros in place of NaN.

    Args:
        guide: Module that maps x to q(z|x).
        prior: Returns p(z).
        x: Data with NaN where missing, ``(N, *event_shape)``.

    Example:
        >>> import pyro_vae as pv
        >>> vae, x = pv.gaussian_vae(features=3, latent_dim=2), torch.full((1, 3), torch.nan)
        >>> posterior_of_observed(vae.q_z_given_x, vae.p_z, x).variance.tolist()
        [[1.0, 1.0]]
    """
    observed = ~x.isnan()
    q: dist.TorchDistribution = guide(x if _takes(guide) else torch.where(observed, x, 0.0))
    has_some = observed.reshape(len(x), -1).any(-1)
    if not is_capturing() and bool(has_some.all()):
        return q
    choice: dist.TorchDistribution = chosen_rows(q, prior(), has_some)
    return choice


def refusal(p: dist.TorchDistribution) -> str | None:
    """Why no entry of x may be missing under p(x|z), or None.

    Example:
        >>> refusal(dist.Normal(torch.zeros(3), 1.0).to_event(1)) is None
        True
    """
    try:
        ObservedEntries(p)
    except ValueError as error:
        return str(error)
    return None


def tell_of_zeros(guide: nn.Module) -> bool:
    """Log that a guide is shown zeros for missing values, if it is; there is no more to tell."""
    if not _takes(guide):
        logger.warning(
            "The guide does not know missing values and is shown zeros in their place. An encoder "
            "under networks.WithMask sees which entries are missing, for a tighter bound."
        )
    return True


def warn_of_unobserved(x: Tensor, columns: Sequence[str] | None) -> None:
    """Warn of features without any observed value.

    Args:
        x: Data with NaN where missing, ``(N, *event_shape)``.
        columns: Names of the features, where they have any.

    Warns:
        UserWarning: If there are any.
    """
    warn_of_features(
        x.isnan().reshape(len(x), -1).all(0),
        columns,
        "have no observed value ({names}): nothing is learned of them, and what the model says of "
        "them means nothing. Drop them.",
    )


def _takes(guide: nn.Module) -> bool:
    return bool(getattr(guide, "takes_missing", False))
