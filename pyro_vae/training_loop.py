"""The steps of a fit: what SVI is handed, and what is watched while it runs."""

import math
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.batches import Batches
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.held import HeldModel
from pyro_vae.interrupt import InterruptGuard
from pyro_vae.modes import evaluation_mode, frozen_parts_allowed
from pyro_vae.objectives import KLWeight
from pyro_vae.optim import DistributedOptim, OneTorchOptim, Schedule
from pyro_vae.program_module import ProgramModule
from pyro_vae.rows import at_rows, per_datum_parts
from pyro_vae.seeding import seeded
from pyro_vae.traces import Programs, log_densities

__all__ = ["TrainingLoop"]

MAX_SKIPPED_IN_A_ROW = 10

READ_ON_A_GPU = 10
"""Compiled steps whose losses are read at once on a GPU: each reading waits for the device. (Not
run where this was written, which has none; on the CPU every step is read.)"""


class _Launched(NamedTuple):
    """A step that was taken, and whose loss may not have been read yet."""

    status: Tensor | float
    skipped: bool
    num_rows: int
    progress: float


class TrainingLoop:
    """The steps of a fit, and its best state.

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
    ) -> None:
        self._vae, self._svi, self._optim, self._batches = vae, svi, optim, batches
        self._schedule, self._epochs, self._guard = schedule, epochs, guard
        self._kl_weight = kl_weight
        self._holds_model = holds_model
        self._held: HeldModel | None = None
        self._per_datum_parts = per_datum_parts(vae)
        self._objective: Any = getattr(svi.loss, "__self__", svi.loss)
        self._is_first_step = True
        self._skipped_in_a_row = 0
        self._best_elbo = -math.inf
        self._best_state: list[tuple[Tensor, Tensor]] = []

    def run(self, epoch: int) -> float:
        """Take the steps of one epoch; return the mean loss in nats per datum."""
        sums, processes = [0.0, 0.0], self._optim.processes
        launched: list[_Launched] = []
        with (
            _argument_validation(enabled=False),
            frozen_parts_allowed(),
            closing(self._batches.epoch(epoch)) as batches,
        ):
            for index, batch in enumerate(batches):
                progress = (epoch + index / len(self._batches)) / self._epochs
                with at_rows(self._per_datum_parts, batch.rows):
                    status = self._step(batch.x, progress)
                skipped = self._optim.skipped_last
                launched.append(_Launched(status, skipped, len(batch.x), progress))
                if len(launched) >= _reads_at_once(batch.x):
                    self._read(launched, sums)
                alone = processes.size == 1
                if self._guard.requested if alone else self._optim.wants_stop:
                    break
            self._read(launched, sums)
        if isinstance(self._vae, nn.Module):
            # Averages that networks keep of their batches are of other rows on each process.
            processes.broadcast(self._vae.buffers())
        total, count = processes.sum(
            torch.tensor(sums, dtype=torch.float64, device="cpu")
        ).tolist()
        return total / count if count else math.nan

    def keep_if_best(self, elbo: float) -> bool:
        """Remember the parameters and buffers if ``elbo`` is the highest so far."""
        if not elbo > self._best_elbo:
            return False
        self._best_elbo = elbo
        tensors = {id(t): t for t in self._optim.params}
        if isinstance(self._vae, nn.Module):
            tensors |= {id(t): t for t in self._vae.buffers()}
        self._best_state = [(t, t.detach().clone()) for t in tensors.values()]
        return True

    def restore_best(self) -> None:
        """Put the remembered state back."""
        with torch.no_grad():
            for tensor, kept in self._best_state:
                tensor.copy_(kept)

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
                self._optim.take_part()
                return 0.0
            if self._is_first_step:
                with _argument_validation(enabled=True):
                    if not isinstance(self._vae, ProgramModule):  # whose sites are known
                        _check_sites(self._vae, x, self._objective)
                    if self._holds_model:
                        self._held = HeldModel(self._vae, x)
                    loss = float(self._svi.step(x))
                _check_registration(self._vae, self._optim)
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

    def _read(self, launched: list[_Launched], sums: list[float]) -> None:
        """Add losses and rows of the launched steps to ``sums``, and look for divergence."""
        for step in launched:
            loss, skipped = step.status, step.skipped
            if isinstance(loss, Tensor) and isinstance(self._svi, CompiledSVI):
                loss = self._svi.read(loss)
                skipped = self._optim.skipped_last
            if math.isfinite(loss):
                sums[0] += float(loss)
                sums[1] += step.num_rows
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


def _check_sites(vae: Programs, x: Tensor, objective: Any) -> None:
    """Refuse before the first step what could not be reported after the last."""
    with evaluation_mode(vae), torch.no_grad(), seeded(0, "sites", device=x.device):
        summed_out = log_densities(vae, x, num_samples=1).summed_out
    if summed_out and not isinstance(objective, TraceEnum_ELBO):
        raise ValueError(
            f"elbo must be TraceEnum_ELBO(max_plate_nesting=1) for a model whose sites "
            f"{list(summed_out)} are summed out; got {type(objective).__name__}, which would draw "
            "them from their prior."
        )


def _check_registration(vae: Programs, optim: OneTorchOptim) -> None:
    """Make sure that what SVI steps is what the user holds."""
    if not optim.params:
        raise ValueError(
            "vae must register its parameters with Pyro; got programs without any pyro.module. "
            "SVI would run and train nothing: write pyro.module('name', self) in model and guide."
        )
    store = pyro.get_param_store()
    names = {id(store._params[name]): name for name in store}
    named = vae.named_parameters() if isinstance(vae, nn.Module) else ()
    owned = {id(param): name for name, param in named if param.requires_grad}
    lost = [name for key, name in names.items() if key not in owned and "$$$" not in name]
    if lost:
        raise ValueError(
            f"vae must hold its parameters in modules; got pyro.param sites {lost}, which would "
            "be lost with the parameter store that fit opens. Make each an nn.Parameter of a "
            "module that pyro.module registers."
        )
    idle = [name for key, name in owned.items() if key not in names]
    if idle:
        warnings.warn(
            f"{len(idle)} parameter(s) of vae are not trained, because no pyro.module registers "
            f"them, or because they are not contiguous in memory: {', '.join(idle[:5])}"
            f"{', ...' if len(idle) > 5 else ''}.",
            UserWarning,
            stacklevel=2,
        )
