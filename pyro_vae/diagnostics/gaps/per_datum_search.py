"""Searches for the best q of each datum, in one family or another, at the same noise."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.diagnostics.evidence.pareto import khat_threshold, pareto_khat, untrusted
from pyro_vae.families import Family, FullCovarianceNormal
from pyro_vae.seeding import seeded
from pyro_vae.traces import CHUNK_SIZE, Programs, latent_site

from .per_datum_joint import RowsJoint
from .per_datum_optimum import best_members, draw_log_weights
from .per_datum_start import Start, at_moments, embedded, start_of

__all__ = ["Member", "PerDatumSearch"]

CHOOSING_DRAWS = 200
"""Draws that tell whether an optimized q is better than where it started."""

LARGE_VARIANCE = 0.5
"""Variance of log weights, in square nats, from which on the evidence asks for a better q. Of few
draws it is a surer sign than k-hat, which misses tails of k = 0.8 with a variance of 1.5."""


class Member(NamedTuple):
    """One q for each of N data.

    Attributes:
        start: Family and parameters, where a further search may start.
        q: The distributions, batch ``(N,)``.
        log_weights: Log p(x, z) - log q(z) at S draws, ``(S, N)``.
        choosing: The same at other draws, to choose by.
        left: Nats that the search for it has left, ``(N,)``.
        left_mcse: Its error.
    """

    start: Start
    q: Any
    log_weights: Tensor
    choosing: Tensor
    left: Tensor
    left_mcse: Tensor


class PerDatumSearch:
    """Searches that begin at the guide's answer, with the model as it is.

    All members are evaluated at the same noise, so that their differences are paired, and it is
    another noise than that of the searches. A search whose end is no better than its start, by a
    third noise, ends where it started.

    Args:
        programs: Model and guide.
        x: Data, ``(N, *event_shape)``, on the programs' device and of their dtype.
        num_samples: Number S of draws of the evaluation.
        num_steps: Number of steps of a search.
        chunk_size: Rows times draws that go through the model at once, but at least 2 N.

    Raises:
        ValueError: If z is not one real vector for each datum, or nobody knows the guide's family.
    """

    def __init__(
        self,
        programs: Programs,
        x: Tensor,
        *,
        num_samples: int,
        num_steps: int,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        self._num_samples, self._num_steps = num_samples, num_steps
        self._device = x.device
        self._q = latent_site(programs, x).q
        self._joint = RowsJoint(programs, x, chunk_size=chunk_size)
        guide = getattr(programs, "q_z_given_x", None)
        start = start_of(guide, x, self._q)
        # x has a noise of its own; each purpose has one of that.
        self._seed = int(torch.randint(2**62, (), device="cpu"))
        self._answer = self._member(start, self._q)
        self._best: Member | None = None

    def answer(self) -> Member:
        """The guide's own q."""
        return self._answer

    def best(self) -> Member:
        """The best member of the guide's family."""
        if self._best is None:
            self._best = self._searched(self._answer.start, "guide", before=self._answer)
        return self._best

    def best_in(self, family: Family, name: str) -> Member:
        """The best member of another family, sought from the best one of the guide's.

        Args:
            family: The family.
            name: Of the noise of the search.
        """
        own = self.best()
        start = embedded(family, own.start)
        if start is None:
            return self._searched(at_moments(family, own.q), name, before=None)
        return self._searched(start, name, before=own)

    def proposal_log_weights(self, members: Sequence[Member]) -> Tensor:
        """Log weights for the evidence, ``(S, N)``: of the member whose log weights vary least.

        A full covariance is sought for the data whose weights vary too much, or have too heavy a
        tail, with all of the members. To choose by the draws of the evaluation would bias them, so
        it is done by other draws.
        """
        chosen, choosing = members[0].log_weights, members[0].choosing
        for member in members[1:]:
            keeps = choosing.var(0) <= member.choosing.var(0)
            chosen = torch.where(keeps, chosen, member.log_weights)
            choosing = torch.where(keeps, choosing, member.choosing)
        k = self._q.event_shape[0]
        if k == 1 or any(isinstance(m.start.family, FullCovarianceNormal) for m in members):
            return chosen
        heavy = untrusted(pareto_khat(choosing), khat_threshold(len(choosing)))
        rows = (heavy | untrusted(choosing.var(0), LARGE_VARIANCE)).nonzero().squeeze(-1)
        if len(rows):
            full, full_choosing = self._full_log_weights(rows, k)
            better = full_choosing.var(0) < choosing[:, rows].var(0)
            chosen = chosen.index_copy(1, rows, torch.where(better, full, chosen[:, rows]))
        return chosen

    def _full_log_weights(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of the best full covariance for some rows, at the noise of all: evaluated, to choose."""
        own, family = self.best(), FullCovarianceNormal(k)
        start = embedded(family, own.start) or at_moments(family, own.q)
        with self._joint.at(rows) as joint:
            with seeded(self._seed, "search", "evidence", device=self._device):
                found = best_members(
                    joint,
                    family,
                    start.table[rows],
                    num_steps=max(1, self._num_steps // 2),
                    thorough=False,
                )
            q = found.family(start.table.index_copy(0, rows, found.table))
            return self._log_weights(joint, q, rows=rows)

    def _searched(self, start: Start, name: str, *, before: Member | None) -> Member:
        with seeded(self._seed, "search", name, device=self._device):
            found = best_members(self._joint, start.family, start.table, num_steps=self._num_steps)
        member = self._member(Start(found.family, found.table), found.q)
        member = member._replace(left=found.left, left_mcse=found.left_mcse)
        if before is None:
            return member
        keeps = before.choosing.mean(0) >= member.choosing.mean(0)
        merged = _merged(keeps, before, member)
        # The networks of a flow have moved: its parameters before mean something else now.
        if not list(found.family.parameters()):
            table = torch.where(keeps.unsqueeze(1), start.table, found.table)
            merged = merged._replace(start=Start(found.family, table), q=found.family(table))
        return merged

    def _member(self, start: Start, q: Any) -> Member:
        log_weights, choosing = self._log_weights(self._joint, q)
        nothing = torch.zeros_like(log_weights[0])
        return Member(start, q, log_weights, choosing, nothing, nothing)

    def _log_weights(
        self, joint: RowsJoint, q: Any, *, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """At the draws of the evaluation, and at those to choose by."""
        with seeded(self._seed, "evaluation", device=self._device):
            log_weights = draw_log_weights(joint, q, self._num_samples, rows=rows)
        with seeded(self._seed, "choice", device=self._device):
            return log_weights, draw_log_weights(joint, q, CHOOSING_DRAWS, rows=rows)


def _merged(keeps: Tensor, before: Member, after: Member) -> Member:
    """One or the other for each datum; family, parameters and what is left are the second's."""
    return after._replace(
        log_weights=torch.where(keeps, before.log_weights, after.log_weights),
        choosing=torch.where(keeps, before.choosing, after.choosing),
    )
