"""The steps of a fit: what SVI is handed, and what is watched while it runs."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.batches import Batches
from pyro_vae.checkpoint import (
    CheckpointError,
    TrainingState,
    as_module,
    buffers_kept,
    copied_into,
    named_tensors,
)
from pyro_vae.checkpoint.errors import reason_of
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.held import HeldModel, registered
from pyro_vae.interrupt import InterruptGuard
from pyro_vae.modes import frozen_parts_allowed
from pyro_vae.objectives import KLWeight
from pyro_vae.optim import DistributedOptim, Schedule
from pyro_vae.program_checks import check_registration, check_sites
from pyro_vae.program_module import ProgramModule
from pyro_vae.rows import at_rows, per_datum_parts
from pyro_vae.seeding import random_states, set_random_states
from pyro_vae.traces import Programs

__all__ = ["TrainingLoop"]

MAX_SKIPPED_IN_A_ROW = 10

READ_ON_A_GPU = 10
"""Compiled steps whose losses are read at once on a GPU: each reading waits for the device. (Not
run where this was written, which has none; on the CPU every step is read.)"""


class Saves(Protocol):
    """What saves a fit between two steps."""

    def is_due(self) -> bool:
        """Whether it is time to."""

    def save(self, epoch: int) -> None:
        """Save it; ``epoch`` full epochs are done."""


class _Launched(NamedTuple):
    """A step that was taken, and whose loss may not have been read yet."""

    status: Tensor | float
    skipped: bool
    num_rows: int
    progress: float


class TrainingLoop:
    """The steps of a fit, and its best state.

    Attributes:
        batch: Batches that are done of an epoch that was left before its end, else 0.
        sums: Loss of the epoch so far in nats, a sum over data; and rows: this process's.
        every_sum: The sums of all processes where the epoch was left, one after the other.
        is_kept: Whether the states are written to a directory.
        random: Random states of this process where the epoch was left, or is in the middle.

    Args:
        vae: Model and guide.
        svi: Pyro's SVI on them.
        optim: The optimizer that ``svi`` has.
        batches: The data.
        schedule: Maps progress to a factor of the learning rate.
        epochs: Number of epochs that make up the whole progress.
        guard: Tells when Ctrl-C was pressed.
        kl_weight: What is told of the progress before each step.
        holds_model: Whether the model is held fixed and the guide alone trained.
        device: Where the steps run.
    """

    def __init__(
        self,
        vae: Programs,
        svi: SVI,
        optim: DistributedOptim,
        batches: Batches,
        schedule: Schedule,
        epochs: int,
        guard: InterruptGuard,
        kl_weight: KLWeight,
        *,
        holds_model: bool,
        device: torch.device,
    ) -> None:
        self._device = device
        self._vae, self._svi, self._optim, self._batches = vae, svi, optim, batches
        self._schedule, self._epochs, self._guard = schedule, epochs, guard
        self._kl_weight = kl_weight
        self._holds_model = holds_model
        self._held: HeldModel | None = None
        self._per_datum_parts = per_datum_parts(vae)
        self._objective: Any = getattr(svi.loss, "__self__", svi.loss)
        self._is_first_step, self._is_resumed = True, False
        self._skipped_in_a_row = 0
        self._best_elbo = -math.inf
        self._best: dict[str, Tensor] = {}
        self._tensors = named_tensors(as_module(vae))
        self.batch, self.is_kept = 0, False
        self.sums = [0.0, 0.0]
        self.every_sum = [0.0, 0.0]
        self.random: dict[str, Tensor] = {}

    def run(self, epoch: int, *, checkpoints: Saves | None = None) -> float:
        """Take the steps of one epoch, or those that are left of it.

        Args:
            epoch: Number of the epoch, from 0.
            checkpoints: Asked after each step but the last one whether to save, and told to.

        Returns:
            The mean loss in nats per datum.
        """
        processes = self._optim.processes
        launched: list[_Launched] = []
        first, self.batch = self.batch, 0
        if first == 0:
            self.sums = [0.0, 0.0]
        with (
            _argument_validation(enabled=False),
            frozen_parts_allowed(),
            closing(
                self._batches.epoch(epoch, start=first, at_start=self._take_over_random_states)
            ) as batches,
        ):
            for index, batch in enumerate(batches, start=first):
                progress = (epoch + index / len(self._batches)) / self._epochs
                with at_rows(self._per_datum_parts, batch.rows):
                    status = self._step(batch.x, progress)
                skipped = self._optim.skipped_last
                launched.append(_Launched(status, skipped, len(batch.x), progress))
                if len(launched) >= _reads_at_once(batch.x):
                    self._read(launched)
                if index + 1 == len(self._batches):
                    continue
                alone = processes.size == 1
                stops = self._guard.requested if alone else self._optim.wants_stop
                saves = alone and checkpoints is not None and checkpoints.is_due()
                if stops or saves:
                    self._read(launched)
                    self.batch, self.random = index + 1, self._random_states(batch.x.device)
                    sums = torch.tensor(self.sums, dtype=torch.float64, device="cpu")
                    every = processes.every(sums.view(torch.uint8)).view(torch.float64)
                    self.every_sum = every.flatten().tolist()
                if stops:
                    break
                if saves and checkpoints is not None:
                    checkpoints.save(epoch)
                    self.batch, self.random = 0, {}
            self._read(launched)
        if isinstance(self._vae, nn.Module):
            # Averages that networks keep of their batches are of other rows on each process.
            processes.broadcast(self._vae.buffers())
        total, count = processes.sum(
            torch.tensor(self.sums, dtype=torch.float64, device="cpu")
        ).tolist()
        return total / count if count else math.nan

    def keep_if_best(self, elbo: float) -> bool:
        """Remember the parameters and buffers if ``elbo`` is the highest so far."""
        if not elbo > self._best_elbo:
            return False
        self._best_elbo = elbo
        self._best = {name: t.detach().clone() for name, t in self._all_tensors().items()}
        return True

    def restore_best(self) -> None:
        """Put the remembered state back."""
        if self._best:
            copied_into(self._all_tensors(), self._best, "the best epoch")

    def state(self) -> dict[str, Any]:
        """What of a :class:`~pyro_vae.checkpoint.TrainingState` the loop knows."""
        return {
            "tensors": dict(self._tensors),
            "batch": self.batch,
            "sums": list(self.every_sum) if self.batch else [0.0, 0.0],
            "optimizer": self._optim.state(self._names),
            "random": dict(self.random),
            "batches": self._batches.state(),
            "num_skipped": self._optim.num_skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "best": dict(self._best),
            "best_elbo": self._best_elbo,
            "graphs": self._svi.graphs if isinstance(self._svi, CompiledSVI) else {},
        }

    def restore(self, state: TrainingState) -> None:
        """Go on from a state; parameters and buffers have been put back already."""
        self._is_resumed = True
        rank = self._optim.processes.rank
        self.batch, self.sums = state.batch, [*state.sums[2 * rank : 2 * rank + 2], 0.0, 0.0][:2]
        self.random = dict(state.random)
        self._optim.restore(state.optimizer, self._names)
        self._batches.restore(state.batches, self._device)
        self._optim.num_skipped = state.num_skipped
        self._skipped_in_a_row = state.skipped_in_a_row
        self._best, self._best_elbo = dict(state.best), state.best_elbo
        if isinstance(self._svi, CompiledSVI):
            self._svi.go_on(state.graphs)

    @property
    def num_skipped(self) -> int:
        """Steps left out so far because the gradient was not finite."""
        return self._optim.num_skipped

    def _check_found(self) -> None:
        """Refuse to keep a fit of which a part would not be kept."""
        unknown = self._all_tensors().keys() - self._tensors.keys()
        if unknown:
            raise ValueError(
                "run_dir must come with model and guide whose networks can be found, to be saved; "
                f"got {len(unknown)} parameters of others. Make the networks attributes of one "
                "nn.Module with model and guide as methods."
            )

    def _all_tensors(self) -> dict[str, Tensor]:
        """Also parameters of networks that are found in no attribute or variable."""
        names = self._names
        others = [param for param in self._optim.params if id(param) not in names]
        return {**self._tensors, **{f"parameter {i}": p for i, p in enumerate(others)}}

    @property
    def _names(self) -> dict[int, str]:
        return {id(tensor): name for name, tensor in self._tensors.items()}

    def _random_states(self, device: torch.device) -> dict[str, Tensor]:
        """The global random states of every process, ``(size, bytes)``."""
        every = self._optim.processes.every
        return {name: every(state) for name, state in random_states(device).items()}

    def _take_over_random_states(self) -> None:
        """Go on with the noise where a part of an epoch was done."""
        if not self.random:
            return
        rank = self._optim.processes.rank
        own = {name: states[rank] for name, states in self.random.items() if rank < len(states)}
        try:
            set_random_states(own, self._device)
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                "resume must find a whole state; its random states are none of this torch: "
                f"{reason_of(error)}"
            ) from error
        self.random = {}

    def release(self) -> None:
        """Let a model that was held fixed be trained again."""
        if self._held is not None:
            self._held.release()

    def _step(self, x: Tensor, progress: float) -> Tensor | float:
        self._optim.num_data = len(x)
        self._optim.rate_factor = self._schedule(progress)
        self._optim.wants_stop = self._guard.requested
        self._kl_weight.at(progress)
        try:
            if len(x) == 0:  # the other processes have the rows of a small last batch
                if self._is_resumed and not self._optim.params:
                    self._get_to_know_parameters()
                self._optim.take_part()
                return 0.0
            if self._is_first_step:
                with _argument_validation(enabled=True):
                    self._look(x)
                    loss = float(self._svi.step(x))
                check_registration(self._vae, self._optim)
                if self.is_kept:
                    self._check_found()
                self._is_first_step = False
                return loss
            if isinstance(self._svi, CompiledSVI):
                return self._svi.launch(x)
            return float(self._svi.step(x))
        except BaseException:
            # SVI zeroes gradients in its last line only; a later fit must not inherit these.
            for param in self._optim.params:
                param.grad = None
            raise

    def _look(self, x: Tensor) -> None:
        """Check the programs on some rows, and hold the model if it is not to be trained."""
        with buffers_kept([as_module(self._vae)]):
            if not isinstance(self._vae, ProgramModule):  # whose sites are known
                check_sites(self._vae, x, self._objective)
            if self._holds_model and self._held is None:
                self._held = HeldModel(self._vae, x)

    def _get_to_know_parameters(self) -> None:
        """Register them where the first step of a resumed fit has no rows for this process."""
        x = self._batches.some_rows().x[:2]
        rows = torch.arange(len(x), device=x.device)
        with at_rows(self._per_datum_parts, rows), buffers_kept([as_module(self._vae)]):
            self._look(x)
            found = registered(self._svi.guide, x) | registered(self._svi.model, x)
        self._optim.register(param for _, param in found.values())

    def _read(self, launched: list[_Launched]) -> None:
        """Add losses and rows of the launched steps to ``sums``, and look for divergence."""
        for step in launched:
            loss, skipped = step.status, step.skipped
            if isinstance(loss, Tensor) and isinstance(self._svi, CompiledSVI):
                loss = self._svi.read(loss)
                skipped = self._optim.skipped_last
            if math.isfinite(loss):
                self.sums[0] += float(loss)
                self.sums[1] += step.num_rows
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
            if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                self.restore_best()
                each = loss / max(1, step.num_rows)
                raise FloatingPointError(
                    f"gradient must be finite; got {MAX_SKIPPED_IN_A_ROW} steps in a row where "
                    f"it is not, at {step.progress:.1%} of the fit, with a loss of {each:.4g} "
                    "nats per datum. The parameters are those of the best epoch, or, in the "
                    "first, those before these steps. Try a lower learning_rate, clip_norm=100, "
                    "or a larger variance to start from."
                )
        launched.clear()


def _reads_at_once(x: Tensor) -> int:
    return READ_ON_A_GPU if x.is_cuda else 1


@contextmanager
def _argument_validation(*, enabled: bool) -> Iterator[None]:
    """Pyro's and torch's checks of arguments on or off; afterwards each as it was."""
    # Pyro's own context manager puts Pyro's setting back in torch's place, where they may differ.
    torch_setting = Distribution._validate_args
    try:
        with pyro.validation_enabled(enabled):
            yield
    finally:
        Distribution.set_default_validate_args(torch_setting)
