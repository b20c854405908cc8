"""A fit that is kept in a directory: what it finds there, and what it leaves."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae.batches import digest
from pyro_vae.checkpoint import TrainingState, as_module
from pyro_vae.environment import decides_bits, environment
from pyro_vae.fit_checkpoints import Cadence, check_fits, loaded_state, put_back
from pyro_vae.fit_epochs import FitEpochs
from pyro_vae.fit_result import FitResult
from pyro_vae.fit_settings import described, model_in_words
from pyro_vae.optim import Processes
from pyro_vae.run_directory import RunDirectory

__all__ = ["KeptFit"]

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 1000

FAILURE = "The fit ended"
"""How the report of a fit that failed begins."""


class KeptFit:
    """The directory of a fit.

    Args:
        run: The directory; None on all processes but the first.
        module: All modules of model and guide.
        state: From which the fit goes on, or None.
        settings: What the fit is asked to do.
        words: The same in words, with the data's digests and the model.
        facts: The :func:`environment`.
        device: Where the fit runs.
        writes_config: Whether the settings are this object's to write.
    """

    def __init__(
        self,
        run: RunDirectory | None,
        module: nn.Module,
        state: TrainingState | None,
        *,
        settings: Mapping[str, Any],
        words: Mapping[str, str],
        facts: Mapping[str, Any],
        device: torch.device,
        writes_config: bool,
    ) -> None:
        self._run, self._module, self._state = run, module, state
        self._settings, self._words, self._facts = settings, words, facts
        self._device, self._writes_config = device, writes_config

    @classmethod
    def opened(
        cls,
        run_dir: str | Path | RunDirectory | None,
        programs: Any,
        processes: Processes,
        *,
        settings: Mapping[str, Any],
        objective: Any,
        data: Mapping[str, Any],
        device: torch.device,
        resume: bool | str,
    ) -> "KeptFit":
        """Open or make the directory, and look for a state in it if the fit is to be resumed.

        Args:
            run_dir: Where; only the first process's counts.
            programs: Model and guide.
            processes: Those that fit together.
            settings: What the fit is asked to do.
            objective: What is maximized.
            data: Training batches as "x", and validation data, or None, as "validation".
            device: Where the fit runs.
            resume: Whether to go on; "override" whatever differs.

        Raises:
            FileExistsError: If the directory holds files, and is not to be resumed.
            CheckpointError: If no state in it can be read.
            ValueError: If the state is that of another fit.
        """
        module, run, words = as_module(programs), None, {}
        facts = environment()
        try:
            with processes.together("run_dir"):
                if run_dir is not None and processes.is_first:
                    run = _directory(run_dir, resume=bool(resume))
                    run.lock()
                    if not resume and run.states.exist:  # as where it was opened to go on
                        raise FileExistsError(
                            "run_dir must be new or empty, since a run is never written over; got "
                            f"{run.path}. Name another, or pass resume=True."
                        )
                    words = {name: described(value) for name, value in settings.items()}
                    words |= {
                        "elbo": described(objective),
                        "x": data["x"].digest(),
                        "validation": _digest_of(data["validation"]),
                        "model": model_in_words(programs, module),
                    }
            state = loaded_state(run, processes) if resume else None
            with processes.together("resume"):
                if state is not None and run is not None:
                    check_fits(
                        state,
                        module,
                        settings=words,
                        environment=decides_bits(facts, device),
                        override=resume == "override",
                    )
            if state is not None and resume == "override":
                _overridden(state, settings)
            if state is not None and state.is_finished and processes.is_first:
                logger.warning("the fit in run_dir is finished: nothing is left to do.")
            if resume and state is None and processes.is_first:
                logger.warning("run_dir holds no state yet: the fit starts at its beginning.")
        except BaseException:
            if run is not None:
                run.unlock()
            raise
        return cls(
            run,
            module,
            state,
            settings={**settings, "device": str(device)},
            words=words,
            facts={
                **facts,
                "seed": settings["seed"],
                "data": {name: words[name] for name in ("x", "validation") if name in words},
            },
            device=device,
            writes_config=not (isinstance(run_dir, RunDirectory) and run_dir.is_open),
        )

    def close(self) -> None:
        """Let other processes write to the directory. What ends a fit calls it."""
        if self._run is not None:
            self._run.unlock()

    @property
    def is_finished(self) -> bool:
        """Whether the fit in the directory has come to its end."""
        return self._state is not None and self._state.is_finished

    def put_back(self) -> None:
        """Give model and guide the parameters and buffers of the state, if there is one.

        Raises:
            CheckpointError: If they do not fit.
        """
        try:
            if self._state is not None:
                put_back(self._state, self._module)
        except BaseException:
            self.close()
            raise

    def begin(self, epochs: FitEpochs, cadence: Cadence) -> None:
        """Let the epochs go on from the state, and be kept from now on."""
        if self._state is not None:
            epochs.go_on(self._state)
        if self._run is None:
            return
        self._run.write_planned()
        if self._writes_config:
            self._write_config()
        if not self.is_finished:
            after = {} if self._state is None else {"after_epoch": self._state.epoch}
            self._run.write_environment({**self._facts, **after})
        epochs.keep_in(
            self._run,
            self._module,
            cadence=cadence,
            settings=self._words,
            environment=decides_bits(self._facts, self._device),
            state=self._state,
        )

    def write_end(self, result: FitResult) -> None:
        """Write the weights, and how the fit ended."""
        if self._run is None:
            return
        if self._writes_config:
            self._write_config(interrupted=result.interrupted, epochs_done=len(result.rows))
        self._run.write_weights(self._module)
        if self._run.report().startswith(FAILURE):  # of an attempt before this one
            self._run.file("report.txt").unlink()
        self.close()

    def write_failure(self, result: FitResult, error: Exception) -> None:
        """Write the parameters that were put back, and a report of what happened."""
        if self._run is None:
            return
        self._run.write_weights(self._module)
        lines = [
            f"{FAILURE} in epoch {len(result.rows) + 1}, because {error}",
            f"{result.num_skipped} steps were left out, since their gradient was not finite.",
            "",
            result.history.to_string(index=False) if result.rows else "No epoch was finished.",
        ]
        self._run.write_report("\n".join(lines) + "\n")
        self.close()

    def _write_config(self, **end: Any) -> None:
        if self._run is not None:
            columns = getattr(self._module, "columns", None)
            self._run.write_config(
                {"fit": {**self._settings, **end}, "data": {"columns": columns}}
            )


def _directory(run_dir: str | Path | RunDirectory, *, resume: bool) -> RunDirectory:
    if isinstance(run_dir, RunDirectory):
        if run_dir.is_open:  # by the command line, which has looked
            return run_dir
        run_dir = run_dir.path
    if not isinstance(run_dir, str | Path):
        raise TypeError(f"run_dir must be a path; got {run_dir!r}.")
    if not str(run_dir):
        raise ValueError("run_dir must be a path; got an empty one.")
    if resume:
        return RunDirectory.continued(run_dir, name="run_dir")
    return RunDirectory.create(run_dir, name="run_dir")


def _overridden(state: TrainingState, settings: Mapping[str, Any]) -> None:
    """Let a state serve a fit with other settings."""
    if state.epoch >= settings["epochs"]:
        raise ValueError(
            f"epochs must be more than the {state.epoch} that are done for the fit to go on; got "
            f"{settings['epochs']}."
        )
    state.is_finished = state.stopped_early = False
    other = {name for name in settings if state.settings.get(name) != described(settings[name])}
    state.optimizer.pop("groups", None)  # those of the new optimizer hold
    if "optimizer" in other:
        logger.warning("the optimizer starts anew, since it is another.")
        state.optimizer = {}
    if state.batch and "batch_size" in other:
        logger.warning("epoch %d begins anew, since its batches are others.", state.epoch + 1)
        state.batch, state.sums, state.random = 0, [0.0, 0.0], {}


def _digest_of(rows: Any) -> str:
    return "none" if rows is None else digest(rows.split(ROWS_AT_A_TIME), len(rows))
