"""Log densities of the guide's draws under model and guide."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyro
import torch
from torch import Tensor

from pyro_vae.rows import at_rows, per_datum_parts

from .kl import analytic_entropy, analytic_kl
from .runs import Programs, Runs, draws_of_a_run, values_of, with_values

__all__ = ["CHUNK_SIZE", "LogDensities", "log_densities", "log_densities_by_draws", "log_weights"]

CHUNK_SIZE = 2000
"""Rows times draws that go through the model at once."""

ROWS_AT_A_TIME = 2000
"""Rows of a matrix of log weights that are computed together: noise belongs to so many."""

FEW_DRAWS = 8
"""From so many draws on, a plate of draws is worth the runs that find out whether it may be."""

MOST_ROWS = 500
"""Up to so many rows, draws are laid out as rows where programs do not take a plate of draws."""


@dataclass(frozen=True)
class LogDensities:
    r"""Log densities of S draws from the guide at N data, by site, each ``(S, N)``, in nats.

    Attributes:
        log_p: Sites of the model: latent ones at the guide's draws, observed ones at the data.
            Sites that were summed out have no entry. What depends on them stands by its density
            given the sites before it, latent ones first, with theirs summed out:
            ``log_p["z"]`` is :math:`\log \sum_y p(y)\, p(z \mid y)`, and the entries still add up
            to :math:`\log p(x, z)`.
        log_q: Sites of the guide.
        observed: Names of the model's observed sites: their entries are :math:`\log p(x \mid z)`.
        summed_out: Names of the discrete sites that were summed out.
        analytic_kl: KL(q || p) of the single latent site, ``(N,)``, where the
            program has just one and theory has a closed form; else None.
        kl_per_dim: The same for each latent dimension, ``(N, k)``, where q and p factorize.
        analytic_entropy: Entropy of q, ``(N,)``, under the same condition; else None.
        entropy_per_dim: The same for each latent dimension, ``(N, k)``, where q factorizes.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    observed: tuple[str, ...]
    summed_out: tuple[str, ...]
    analytic_kl: Tensor | None
    kl_per_dim: Tensor | None
    analytic_entropy: Tensor | None
    entropy_per_dim: Tensor | None

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z|x), ``(S, N)``."""
        return sum(self.log_p.values()) - sum(self.log_q.values())  # type: ignore[return-value]


def log_densities(
    programs: Programs, x: Tensor, *, num_samples: int, chunk_size: int = CHUNK_SIZE
) -> LogDensities:
    r"""Log densities of all sites at ``num_samples`` draws from the guide.

    The programs run inside a plate of draws where they take one, which runs the encoder once for
    64 draws; else, where x has few rows, on some copies of each row; else S times on x as it is
    (see :class:`Runs`). Pyro's parameter store is read where
    it already holds a program's parameter and is never written to.

    A discrete latent site that the model marks ``infer={"enumerate": "parallel"}`` and the guide
    does not have is summed out exactly, as ``TraceEnum_ELBO`` does. Such a mark in the guide has
    no effect here: its site is drawn from q like any other, one value a draw, so that the S log
    weights of a datum remain S draws. The average over draws is the ELBO either way.

    Plates inside the plate "data", as one of pixels, are summed over. A site that the guide marks
    ``infer={"is_auxiliary": True}`` counts in log q alone, as in Pyro's objectives: right where
    the latent site is a function of it, a ``Delta`` with its ``log_density``.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        num_samples: Number S of draws for each datum.
        chunk_size: Rows times draws that go through the model at once: it bounds the memory, and
            the result does not depend on it. The guide takes the N rows of x at once.

    Raises:
        ValueError: If model and guide have not the same latent sites, or a site does not lie in a
            plate of N rows, as the rightmost batch dimension.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> densities = log_densities(vae, torch.zeros(5, 3), num_samples=7)
        >>> sorted(densities.log_p), densities.log_weights.shape
        (['x', 'z'], torch.Size([7, 5]))
    """
    found = list(
        log_densities_by_draws(programs, x, num_samples=num_samples, chunk_size=chunk_size)
    )
    return replace(
        found[0],
        log_p=_joined([block.log_p for block in found]),
        log_q=_joined([block.log_q for block in found]),
    )


def log_densities_by_draws(
    programs: Programs, x: Tensor, *, num_samples: int, chunk_size: int = CHUNK_SIZE
) -> Iterator[LogDensities]:
    """:func:`log_densities` of a few draws at a time, for what is averaged over draws.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        num_samples: Number S of draws for each datum, in all.
        chunk_size: Rows times draws that go through the model at once.

    Yields:
        Log densities of at most 64 draws, fewer where x has many rows: ``(R, N)``.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> blocks = log_densities_by_draws(vae, torch.zeros(5, 3), num_samples=100)
        >>> [len(block.log_weights) for block in blocks]
        [64, 36]
    """
    runs = Runs(programs, x)
    num_data = max(1, len(x))
    if num_samples >= FEW_DRAWS and runs.takes_draws:
        blocks = _many_at_once(runs, num_samples, max(1, chunk_size // num_data))
    elif num_samples >= FEW_DRAWS and 2 * len(x) <= MOST_ROWS and runs.takes_rows:
        blocks = _as_rows(runs, num_samples, MOST_ROWS // num_data)
    else:
        blocks = _one_by_one(runs, num_samples)
    found: LogDensities | None = None
    for log_p, log_q in blocks:
        if found is None:  # only now is it known that the sites are per datum
            kl, kl_per_dim = analytic_kl(runs.model_trace, runs.guide_trace, list(log_q))
            entropy, entropy_per_dim = analytic_entropy(runs.guide_trace, list(log_q))
            found = LogDensities(
                log_p=log_p,
                log_q=log_q,
                observed=runs.observed,
                summed_out=tuple(runs.summed_out),
                analytic_kl=kl,
                kl_per_dim=kl_per_dim,
                analytic_entropy=entropy,
                entropy_per_dim=entropy_per_dim,
            )
        found = replace(found, log_p=log_p, log_q=log_q)
        yield found


def log_weights(
    programs: Programs, x: Tensor, *, num_samples: int, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    r"""The matrix :math:`\log p(x, z_s) - \log q(z_s \mid x)`, ``(S, N)``, in nats.

    What :func:`log_densities` holds by site is summed as it comes, so that there is one matrix and
    no other of its size, and rows go through the programs some at a time.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        num_samples: Number S of draws for each datum.
        chunk_size: Rows times draws that go through the model at once.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> log_weights(vae, torch.zeros(5, 3), num_samples=7).shape
        torch.Size([7, 5])
    """
    parts = per_datum_parts(programs)
    matrix: Tensor | None = None
    for start in range(0, len(x), ROWS_AT_A_TIME):
        index = torch.arange(start, min(start + ROWS_AT_A_TIME, len(x)), device=x.device)
        draw = 0
        with at_rows(parts, None if len(index) == len(x) else index):
            blocks = log_densities_by_draws(
                programs,
                x[start : start + ROWS_AT_A_TIME],
                num_samples=num_samples,
                chunk_size=chunk_size,
            )
            for block in blocks:
                values = block.log_weights
                if matrix is None:
                    matrix = values.new_empty(num_samples, len(x))
                matrix[draw : draw + len(values), start : start + len(index)] = values
                draw += len(values)
    if matrix is None:
        raise ValueError("x must have a row; got none.")
    return matrix


Pair = tuple[dict[str, Tensor], dict[str, Tensor]]


def _one_by_one(runs: Runs, num_samples: int) -> Iterator[Pair]:
    """Log densities of the model's and the guide's sites, ``(1, N)`` each time."""
    guide_trace, model_trace = runs.guide_trace, runs.model_trace
    for draw in range(num_samples):
        if draw:
            guide_trace = runs.new_guide_trace()
            model_trace = runs.replayed(guide_trace)
        yield _with_draws(runs.log_p(model_trace)), _with_draws(runs.log_q(guide_trace))


def _many_at_once(runs: Runs, num_samples: int, draws_at_a_time: int) -> Iterator[Pair]:
    """The same, ``(R, N)`` each time, R up to the number of draws that the guide makes at once."""
    for num_draws in draws_of_a_run(num_samples, runs.num_data):
        guide_trace = runs.new_guide_trace(num_draws)
        values = values_of(guide_trace)
        log_ps = []
        for first in range(0, num_draws, draws_at_a_time):
            some = {name: v[first : first + draws_at_a_time] for name, v in values.items()}
            replayed = with_values(runs.guide_trace, some)
            size = min(draws_at_a_time, num_draws - first)
            # The runs that found out whether a plate may be have validated x and parameters; to do
            # it again for each chunk costs a tenth of the time.
            with pyro.validation_enabled(False):  # noqa: FBT003
                log_ps.append(runs.log_p(runs.replayed(replayed, size)))
        yield _joined(log_ps), runs.log_q(guide_trace)


def _as_rows(runs: Runs, num_samples: int, draws_at_a_time: int) -> Iterator[Pair]:
    """The same with draws laid out as rows, ``draws_at_a_time`` of each datum."""
    for start in range(0, num_samples, draws_at_a_time):
        repeated = runs.repeated(min(draws_at_a_time, num_samples - start))
        guide_trace = repeated.new_guide_trace()
        yield repeated.log_p(repeated.replayed(guide_trace)), repeated.log_q(guide_trace)


def _with_draws(log_probs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: log_prob.unsqueeze(0) for name, log_prob in log_probs.items()}


def _joined(pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
