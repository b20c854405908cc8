"""The ELBO of a data set: means, standard errors, in pieces that fit in memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.modes import evaluation_mode, frozen_parts_allowed
from pyro_vae.optim.processes import Processes
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
    programs: Programs,
    x: Tensor,
    *,
    seed: int,
    rows: Tensor | None = None,
    processes: Processes | None = None,
) -> dict[str, float]:
    """Mean ELBO and its two terms over data, one draw for each datum, in nats per datum.

    The noise is the same at every call with the same seed, so that a difference between two calls
    is one of the programs. The global random state is left alone.

    Args:
        programs: Model and guide; a module is evaluated in evaluation mode.
        x: Data, ``(N, *event_shape)``; with several processes this one's part, perhaps no rows.
        seed: Seed of the draws.
        rows: Row numbers of x where x is not all the data.
        processes: Those that evaluate a part each: what is returned is of all rows together, and
            the same for all of them. None for this process alone.

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
    processes = processes or Processes()
    parts = per_datum_parts(programs)
    found = [x.new_zeros(3, 0, dtype=torch.float64)]
    with evaluating(programs, seed, "evaluation", *processes.noise, device=x.device):
        for piece, index in pieces(parts, x, ROWS_AT_A_TIME, rows=rows) if len(x) else ():
            with at_rows(parts, index):
                terms = elbo_terms(programs, piece, num_samples=1)
            values = torch.cat([terms.elbo, terms.expected_log_likelihood, terms.kl])
            found.append(values.double())
    values = torch.cat(found, dim=1)
    num_data = processes.sum(values.new_tensor([len(x)])).item()
    means = processes.sum(values.sum(1)) / num_data
    squares = processes.sum((values[0] - means[0]).square().sum()).item()
    elbo, log_likelihood, kl = means.tolist()
    return {
        "elbo": elbo,
        "expected_log_likelihood": log_likelihood,
        "kl": kl,
        "elbo_se": math.sqrt(squares / (num_data - 1) / num_data) if num_data > 1 else math.nan,
    }
