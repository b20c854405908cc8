"""A fit that is kept in a directory: what it finds there, and what it leaves."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

__all__ = ["KeptFit", "memory_explained"]

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 1000


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
        with processes.together("run_dir"):
            if run_dir is not None and processes.is_first:
                run = _directory(run_dir, resume=bool(resume))
                words = {name: described(value) for name, value in settings.items()}
                words |= {
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
            # More epochs, or other settings, may have more to do.
            state.is_finished = state.is_finished and state.epoch >= settings["epochs"]
            state.stopped_early = False
        if resume and state is None and processes.is_first:
            logger.warning("run_dir holds no state yet: the fit starts at its beginning.")
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
            writes_config=not isinstance(run_dir, RunDirectory),
        )

    @property
    def is_finished(self) -> bool:
        """Whether the fit in the directory has come to its end."""
        return self._state is not None and self._state.is_finished

    def put_back(self) -> None:
        """Give model and guide the parameters and buffers of the state, if there is one.

        Raises:
            CheckpointError: If they do not fit.
        """
        if self._state is not None:
            put_back(self._state, self._module)

    def begin(self, epochs: FitEpochs, cadence: Cadence) -> None:
        """Let the epochs go on from the state, and be kept from now on."""
        if self._state is not None:
            epochs.go_on(self._state)
        if self._run is None:
            return
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

    def write_failure(self, result: FitResult, error: Exception) -> None:
        """Write the parameters that were put back, and a report of what happened."""
        if self._run is None:
            return
        self._run.write_weights(self._module)
        lines = [
            f"The fit ended in epoch {len(result.rows) + 1}, because {error}",
            f"{result.num_skipped} steps were left out, since their gradient was not finite.",
            "",
            result.history.to_string(index=False) if result.rows else "No epoch was finished.",
        ]
        self._run.write_report("\n".join(lines) + "\n")

    def _write_config(self, **end: Any) -> None:
        if self._run is not None:
            columns = getattr(self._module, "columns", None)
            self._run.write_config(
                {"fit": {**self._settings, **end}, "data": {"columns": columns}}
            )


@contextmanager
def memory_explained(batch_size: int, device: torch.device) -> Iterator[None]:
    """Say what to do where a step finds too little memory.

    Args:
        batch_size: Rows of a step.
        device: Where it ran.

    Raises:
        torch.OutOfMemoryError: In place of the allocator's own error.

    Example:
        >>> with memory_explained(128, torch.device("cpu")):
        ...     pass
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_memory and "can't allocate memory" not in str(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise torch.OutOfMemoryError(
            f"batch_size must be small enough for the memory of {device}; got {batch_size}. Try "
            f"batch_size={max(1, batch_size // 2)}. The parameters are those after the last step "
            f"that was finished. ({reason})"
        ) from error


def _directory(run_dir: str | Path | RunDirectory, *, resume: bool) -> RunDirectory:
    if isinstance(run_dir, RunDirectory):
        return run_dir
    if resume:
        return RunDirectory.continued(run_dir, name="run_dir")
    return RunDirectory.create(run_dir, name="run_dir")


def _digest_of(rows: Any) -> str:
    return "none" if rows is None else digest(rows.split(ROWS_AT_A_TIME), len(rows))
