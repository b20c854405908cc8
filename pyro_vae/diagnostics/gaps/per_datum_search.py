"""Searches for the best q of each datum, in one family or another, at the same noise."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.families import Family, FullCovarianceNormal
from pyro_vae.seeding import seeded
from pyro_vae.traces import JointDensity, Programs, latent_site

from .per_datum_optimum import best_members, draw_log_weights
from .per_datum_start import Start, at_moments, embedded, start_of

__all__ = ["Member", "PerDatumSearch"]

CHOOSING_DRAWS = 200
"""Draws that tell whether an optimized q is better than where it started."""


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

    Raises:
        ValueError: If z is not one real vector for each datum, or nobody knows the guide's family.
    """

    def __init__(self, programs: Programs, x: Tensor, *, num_samples: int, num_steps: int) -> None:
        self._num_samples, self._num_steps = num_samples, num_steps
        self._device = x.device
        self._q = latent_site(programs, x).q
        self._joint = JointDensity(programs, x)
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

    def proposal(self, members: Sequence[Member]) -> Member:
        """For each datum the one whose log weights vary least: to draw from for the evidence.

        It is sought in the full covariance too where none of the members has it.
        """
        k = self._q.event_shape[0]
        if k > 1 and not any(isinstance(m.start.family, FullCovarianceNormal) for m in members):
            members = [*members, self.best_in(FullCovarianceNormal(k), "evidence")]
        chosen = members[0]
        for member in members[1:]:
            keeps = chosen.choosing.var(0) <= member.choosing.var(0)
            chosen = _merged(keeps, chosen, member)
        return chosen

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
        with seeded(self._seed, "evaluation", device=self._device):
            log_weights = draw_log_weights(self._joint, q, self._num_samples)
        with seeded(self._seed, "choice", device=self._device):
            choosing = draw_log_weights(self._joint, q, CHOOSING_DRAWS)
        nothing = torch.zeros_like(log_weights[0])
        return Member(start, q, log_weights, choosing, nothing, nothing)


def _merged(keeps: Tensor, before: Member, after: Member) -> Member:
    """One or the other for each datum; family, parameters and what is left are the second's."""
    return after._replace(
        log_weights=torch.where(keeps, before.log_weights, after.log_weights),
        choosing=torch.where(keeps, before.choosing, after.choosing),
    )
