"""When the state of a fit is written to its directory, and how a fit goes on from there."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.checkpoint import (
    CheckpointError,
    TrainingState,
    copied_into,
    named_tensors,
)
from pyro_vae.checkpoint.state_file import packed, unpacked
from pyro_vae.fit_settings import differences
from pyro_vae.optim import Processes
from pyro_vae.raw_bytes import same_bits
from pyro_vae.run_directory import RunDirectory

__all__ = ["Cadence", "Checkpoints", "ConstantBuffers", "check_fits", "loaded_state", "put_back"]

logger = logging.getLogger(__name__)

MOST_OF_THE_TIME = 0.02
"""Share of the time that checkpoints by the clock take at most."""


class Cadence(NamedTuple):
    """How often a state is written.

    Attributes:
        epochs: Epochs between two states; None for no cadence by epochs.
        seconds: Seconds between two states, also within an epoch; None for none. They are more
            where writing takes longer than a fiftieth of that.

    Example:
        >>> Cadence.checked(2, None)
        Cadence(epochs=2, seconds=None)
    """

    epochs: int | None
    seconds: float | None

    @classmethod
    def checked(cls, epochs: Any, seconds: Any) -> "Cadence":
        """The cadence that a user asks for.

        Raises:
            ValueError: If epochs are no positive integer, or seconds not positive.
        """
        if epochs is not None:
            epochs = positive_integer(epochs, "checkpoint_epochs")
        if seconds is not None:
            seconds = finite_number(seconds, "checkpoint_seconds", "positive or None", above=0)
        return cls(epochs, seconds)


class Checkpoints:
    """Writes the state of a fit every few epochs, every few seconds, or both.

    Args:
        run: Where.
        state: From the number of full epochs to the state as it is now.
        cadence: How often.
    """

    def __init__(
        self, run: RunDirectory, state: Callable[[int], TrainingState], cadence: Cadence
    ) -> None:
        self._run, self._state, self._cadence = run, state, cadence
        self._last = time.monotonic()
        self._wait = cadence.seconds
        self._best_epoch = 0

    def is_due(self) -> bool:
        """Whether it is time to write a state."""
        return self._wait is not None and time.monotonic() - self._last >= self._wait

    def after_epoch(self, epoch: int) -> None:
        """Write a state at the end of an epoch if it is time to.

        Raises:
            OSError: If it cannot be written; the last one is intact.
        """
        every = self._cadence.epochs
        by_epochs = every is not None and epoch % every == 0
        if by_epochs or self.is_due():
            self.save(epoch)

    def save(self, epoch: int) -> None:
        """Write a state, and the best one if it is new.

        Raises:
            OSError: If it cannot be written; the last one is intact.
        """
        begun = time.monotonic()
        state = self._state(epoch)
        if state.best_epoch != self._best_epoch and state.best:
            best = {
                "tensors": state.best,
                "epoch": state.best_epoch,
                "elbo": state.best_elbo,
                "settings": state.settings,
            }
            self._run.states.save_best(best)
            self._best_epoch = state.best_epoch
        self._run.states.save(state.to_dict())
        self._last = time.monotonic()
        if self._cadence.seconds is not None:
            self._wait = max(self._cadence.seconds, (self._last - begun) / MOST_OF_THE_TIME)


class ConstantBuffers:
    """Buffers that no step has changed: settings of the model, as a fixed variance is.

    Averages that a network keeps of its batches are left out.

    Args:
        module: All modules of model and guide.
        start: The buffers as they were when the fit began; as they are now unless given.

    Example:
        >>> import torch
        >>> net = nn.Module()
        >>> net.register_buffer("variance", torch.tensor(0.1))
        >>> list(ConstantBuffers(net).unchanged())
        ['variance']
    """

    def __init__(self, module: nn.Module, *, start: Mapping[str, Tensor] | None = None) -> None:
        norms = nn.modules.batchnorm._NormBase
        moving = {id(b) for m in module.modules() if isinstance(m, norms) for b in m.buffers()}
        self._buffers = {n: b for n, b in module.named_buffers() if id(b) not in moving}
        self._start = (
            {name: buffer.detach().clone() for name, buffer in self._buffers.items()}
            if start is None
            else dict(start)
        )

    def unchanged(self) -> dict[str, Tensor]:
        """Those that are as they were."""
        return {
            name: value
            for name, value in self._start.items()
            if name in self._buffers and _same(value, self._buffers[name])
        }

    def different(self) -> list[str]:
        """Those that are not."""
        return [name for name in self._start if name not in self.unchanged()]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and same_bits(a.to(b), b)


def loaded_state(run: RunDirectory | None, processes: Processes) -> TrainingState | None:
    """The state in a run directory, the same for all processes; None where there is none yet.

    Args:
        run: The directory; only the first process's counts.
        processes: Those that fit together.

    Raises:
        CheckpointError: On every process, if there are states and none can be read.
    """
    content, state = None, None
    with processes.together("run_dir"):
        if run is not None and run.states.exist:
            content = run.states.load()
            state = TrainingState.from_dict(content, str(run.path))
    if processes.size == 1:
        return state
    data = processes.first_says(b"" if content is None else packed(content))
    if not data:
        return None
    return TrainingState.from_dict(unpacked(data, "the state"), "the state")


def check_fits(
    state: TrainingState,
    module: nn.Module,
    *,
    settings: Mapping[str, str],
    environment: Mapping[str, str],
    override: bool,
) -> None:
    """Refuse a state of another fit, and tell where the bits may differ.

    Args:
        state: What the directory holds.
        module: All modules of model and guide.
        settings: What this fit is asked to do, to which data, in words.
        environment: On what its bits depend.
        override: Go on whatever differs, as long as the tensors fit.

    Raises:
        ValueError: If settings, data or constants of the model differ.
    """
    found = differences(state.settings, settings)
    constants = ConstantBuffers(module, start=state.start).different()
    found += [f"{name} of the model" for name in constants]
    if found and not override:
        raise ValueError(
            f"resume must go on with the same data and settings; got others: {'; '.join(found)}. "
            "Call fit as before, or pass resume='override' (on the command line --override) to go "
            "on from the saved state with these."
        )
    if found:
        logger.warning("the fit goes on with other data or settings: %s", "; ".join(found))
    others = differences(state.environment, environment)
    if others:
        warnings.warn(
            f"the fit goes on, but not bitwise as it would have without the stop, because the "
            f"environment has changed: {'; '.join(others)}.",
            UserWarning,
            stacklevel=3,
        )


def put_back(state: TrainingState, module: nn.Module) -> None:
    """Copy a state's parameters and buffers into the modules, in place.

    Raises:
        CheckpointError: If they do not fit.
    """
    try:
        copied_into(named_tensors(module), state.tensors, "the state in run_dir")
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} Build model and guide as they were for the fit that is to be resumed."
        ) from error
