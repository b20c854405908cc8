"""The ELBO of a data set: means, standard errors, in pieces that fit in memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.modes import evaluation_mode, frozen_parts_allowed
from pyro_vae.rows import at_rows, per_datum_parts, pieces
from pyro_vae.seeding import seeded
from pyro_vae.traces import Programs, elbo_terms

__all__ = ["evaluate", "evaluating"]

ROWS_AT_A_TIME = 2000
"""Rows that go through the programs at once where an ELBO is evaluated."""


@contextmanager
def evaluating(
    programs: object, seed: int, *purpose: int | str, device: torch.device
) -> Iterator[None]:
    """Evaluation mode, no gradient, seeded noise, and frozen parts taken as they are.

    Example:
        >>> with evaluating(None, 0, "example", device=torch.device("cpu")):
        ...     torch.is_grad_enabled()
        False
    """
    with (
        evaluation_mode(programs),
        frozen_parts_allowed(),
        torch.no_grad(),
        seeded(seed, *purpose, device=device),
    ):
        yield


def evaluate(
    programs: Programs, x: Tensor, *, seed: int, rows: Tensor | None = None
) -> dict[str, float]:
    """Mean ELBO and its two terms over data, one draw for each datum, in nats per datum.

    The noise is the same at every call with the same seed, so that a difference between two calls
    is one of the programs. The global random state is left alone.

    Args:
        programs: Model and guide; a module is evaluated in evaluation mode.
        x: Data, ``(N, *event_shape)``.
        seed: Seed of the draws.
        rows: Row numbers of x where x is not all the data.

    Returns:
        ``elbo``, ``expected_log_likelihood``, ``kl``, and ``elbo_se``: the standard error of the
        mean ELBO, which contains both the spread of the data and that of the draws.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> row = evaluate(vae, torch.zeros(5, 3), seed=0)
        >>> abs(row["expected_log_likelihood"] - row["kl"] - row["elbo"]) < 1e-5
        True
    """
    parts = per_datum_parts(programs)
    found: list[Tensor] = []
    with evaluating(programs, seed, "evaluation", device=x.device):
        for piece, index in pieces(parts, x, ROWS_AT_A_TIME, rows=rows):
            with at_rows(parts, index):
                terms = elbo_terms(programs, piece, num_samples=1)
            found.append(torch.cat([terms.elbo, terms.expected_log_likelihood, terms.kl]))
    elbo, log_likelihood, kl = torch.cat(found, dim=1).double()
    return {
        "elbo": elbo.mean().item(),
        "expected_log_likelihood": log_likelihood.mean().item(),
        "kl": kl.mean().item(),
        "elbo_se": elbo.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan,
    }
