"""The epochs of a fit: steps, evaluation, what is kept, and when it ends."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pyro_vae.batches import Batches
from pyro_vae.checkpoint import TrainingState
from pyro_vae.evaluation import evaluate
from pyro_vae.fit_checkpoints import Cadence, Checkpoints, ConstantBuffers
from pyro_vae.fit_result import FitResult
from pyro_vae.interrupt import InterruptGuard
from pyro_vae.memory import memory_explained
from pyro_vae.optim import Processes
from pyro_vae.run_directory import RunDirectory
from pyro_vae.seeding import seeded
from pyro_vae.training_loop import TrainingLoop

__all__ = ["FitEpochs"]


class FitEpochs:
    """Takes a fit from one epoch to the next.

    Args:
        result: What the user gets, which grows with each epoch.
        loop: Takes the steps.
        batches: The data.
        held_out: This process's part of the validation data, or None.
        epochs: Number of epochs.
        batch_size: Rows of a step, as the user gave it.
        patience: Epochs without a better ELBO after which it ends, or None.
        callbacks: What the user wants called after each epoch.
        guard: Tells when Ctrl-C was pressed or SIGTERM came.
        processes: Those that fit together.
        device: Where it runs.
    """

    def __init__(
        self,
        result: FitResult,
        loop: TrainingLoop,
        batches: Batches,
        held_out: Any,
        *,
        epochs: int,
        batch_size: int,
        patience: int | None,
        callbacks: Iterable[Callable[[FitResult], object]],
        guard: InterruptGuard,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self._result, self._loop = result, loop
        self._batches, self._held_out = batches, held_out
        self._epochs, self._batch_size = epochs, batch_size
        self._patience, self._callbacks = patience, tuple(callbacks)
        self._guard, self._processes, self._device = guard, processes, device
        self._run: RunDirectory | None = None
        self._checkpoints: Checkpoints | None = None
        self._known: dict[str, Any] = {}
        self._done = 0
        self._is_finished = False
        self._begun, self._seconds_before = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Duration of the fit, with what was done before it was resumed."""
        return self._seconds_before + time.perf_counter() - self._begun

    def keep_in(
        self,
        run: RunDirectory,
        module: nn.Module,
        *,
        cadence: Cadence,
        settings: Mapping[str, str],
        environment: Mapping[str, str],
        state: TrainingState | None,
    ) -> None:
        """Write states and history to a directory, the first state before the first step.

        Args:
            run: The directory.
            module: All modules of model and guide.
            cadence: How often.
            settings: What is done to which data, in words.
            environment: On what the bits depend.
            state: From which the fit goes on, if it was stopped before.
        """
        self._run = run
        start = None if state is None else state.start
        self._known = {
            "constants": ConstantBuffers(module, start=start),
            "settings": dict(settings),
            "environment": dict(environment),
        }
        self._checkpoints = Checkpoints(run, self._state, cadence)
        self._loop.is_kept = True
        extra = [type(m).__name__ for m in module.modules() if _has_extra_state(m)]
        if extra:
            warnings.warn(
                f"{', '.join(sorted(set(extra)))} has a state of its own besides parameters and "
                "buffers, which is not kept: a fit that is resumed starts it anew.",
                UserWarning,
                stacklevel=4,
            )
        run.write_history(self._result.rows)
        if state is None:
            self._checkpoints.save(0)

    def go_on(self, state: TrainingState) -> None:
        """Go on from a state; parameters and buffers have been put back already."""
        self._loop.restore(state)
        self._done, self._seconds_before = state.epoch, state.seconds
        result = self._result
        if state.is_finished:  # perhaps by patience, before the last epoch
            self._done, result.stopped_early = self._epochs, state.stopped_early
        result.rows = [dict(row) for row in state.rows]
        result.best_epoch = state.best_epoch or None
        result.num_skipped, result.resumed_after = state.num_skipped, state.epoch

    def take(self, bar: "tqdm[Any]") -> None:
        """Take the epochs that are left."""
        result = self._result
        bar.update(self._done)
        for epoch in range(self._done, self._epochs):
            begun = time.perf_counter()
            # Noise is a function of seed and epoch, whatever callbacks and evaluations draw.
            noise: tuple[int | str, ...] = ("noise", epoch, *self._processes.noise)
            with seeded(result.seed, *noise, device=self._device):
                with memory_explained(self._batch_size, self._device):
                    loss = self._loop.run(epoch, checkpoints=self._checkpoints)
            was_left = self._loop.batch > 0
            if was_left:
                # Before the part of an epoch has its row: the rest of it comes after a resumption.
                self._save(epoch)
                self._end_if_terminated()
            row = {"epoch": epoch + 1, **self._scores(), "loss": loss}
            self._add({**row, "seconds": time.perf_counter() - begun}, epoch)
            bar.set_postfix(
                {name: f"{row[name]:.3f}" for name in row if name.endswith("elbo")}, refresh=False
            )
            bar.update()
            self._ask_whether_to_end(epoch)
            ends = result.stopped_early or result.interrupted
            # Also where Ctrl-C came in the very epoch that was the last one anyway.
            is_over = result.stopped_early or epoch + 1 == self._epochs
            self._is_finished = is_over and not was_left
            if not was_left:
                if ends or self._is_finished:
                    self._save(epoch + 1)
                elif self._checkpoints is not None:
                    self._checkpoints.after_epoch(epoch + 1)
            if result.interrupted:
                self._end_if_terminated()
            if ends:
                break
        if self._patience is not None:
            self._loop.restore_best()

    def _scores(self) -> dict[str, float]:
        """The ELBO and its terms, on training and validation data."""
        seed, processes = self._result.seed, self._processes
        some = self._batches.some_rows()
        numbers = some.rows
        if numbers is None:
            numbers = torch.arange(len(some.x), device=some.x.device)
        scores = evaluate(
            self._result.vae,
            processes.part(some.x),
            seed=seed,
            rows=processes.part(numbers),
            processes=processes,
        )
        if self._held_out is None:
            return scores
        held = evaluate(self._result.vae, self._held_out, seed=seed, processes=processes)
        return scores | {f"validation_{name}": value for name, value in held.items()}

    def _add(self, row: dict[str, float], epoch: int) -> None:
        result = self._result
        result.rows.append(row)
        result.num_skipped = self._loop.num_skipped
        if self._run is not None:
            self._run.add_to_history(row)
        if self._loop.keep_if_best(row["elbo" if self._held_out is None else "validation_elbo"]):
            result.best_epoch = epoch + 1

    def _ask_whether_to_end(self, epoch: int) -> None:
        result, processes = self._result, self._processes
        result.interrupted = processes.any(self._guard.requested)
        waited = epoch + 1 - (result.best_epoch or 0)
        stops = [callback(result) is True for callback in self._callbacks]
        result.stopped_early = processes.any(any(stops)) or (
            self._patience is not None and waited >= self._patience
        )
        result.interrupted = processes.any(self._guard.requested)  # perhaps in a callback

    def _end_if_terminated(self) -> None:
        if self._processes.any(self._guard.terminated):
            self._guard.end()

    def _save(self, epoch: int) -> None:
        if self._checkpoints is not None:
            self._checkpoints.save(epoch)

    def _state(self, epoch: int) -> TrainingState:
        result = self._result
        return TrainingState(
            **self._loop.state(),
            epoch=epoch,
            rows=[dict(row) for row in result.rows],
            best_epoch=result.best_epoch or 0,
            seconds=self.seconds,
            is_finished=self._is_finished,
            stopped_early=result.stopped_early,
            start=self._known["constants"].unchanged(),
            settings=self._known["settings"],
            environment=self._known["environment"],
        )


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state
