"""Training: Pyro's SVI on a model and a guide, and nothing left behind but their parameters."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer
from tqdm import tqdm

from pyro_vae.batches import Batches
from pyro_vae.evaluation import evaluate
from pyro_vae.fit_result import FitResult
from pyro_vae.interrupt import InterruptGuard
from pyro_vae.objectives import kl_weighted
from pyro_vae.optim import OneTorchOptim, Schedule, adam, cosine
from pyro_vae.seeding import seeded
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs

__all__ = ["Callback", "fit"]

MAX_SKIPPED_IN_A_ROW = 10

Callback = Callable[[FitResult], object]
"""Called with the partial result after every epoch; returning True ends the fit."""


def fit(
    vae: Programs,
    x: Any,
    *,
    validation: Any = None,
    epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    schedule: Schedule = cosine,
    optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
    clip_norm: float | None = None,
    elbo: ELBO | None = None,
    kl_weight: float = 1.0,
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str = "auto",
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
) -> FitResult:
    r"""Maximize the ELBO of a model and a guide by Pyro's SVI.

    .. math:: \max \frac1N \sum_{i=1}^N \mathbb E_{q(z \mid x_i)} \log p(x_i \mid z)
              - \mathrm{KL}(q(z \mid x_i) \,\|\, p(z))

    A second call goes on from the parameters as they are. Pyro's parameter store, the global
    random state, argument validation and signal handlers are afterwards as they were before.

    Args:
        vae: A :class:`pyro_vae.VAE`, or any object with ``model(x)`` and ``guide(x)`` whose sites
            lie in the plate "data".
        x: Data, ``(N, *event_shape)``: array, tensor, DataFrame,
            :class:`~pyro_vae.datasets.Dataset`, or a torch ``Dataset`` or ``DataLoader`` that
            yields x or tuples with x first. A torch Dataset of up to 2 GiB is read once; pass a
            DataLoader to have it read every epoch.
        validation: Held-out data on which the ELBO is evaluated after every epoch.
        epochs: Passes over the data.
        batch_size: Rows in a step (a DataLoader brings its own).
        learning_rate: Step size of Adam before the schedule.
        schedule: Maps progress, 0 to 1, to a factor of the learning rate; see
            :mod:`pyro_vae.optim`.
        optimizer: Makes another torch optimizer from the list of parameters; its own learning rate
            then takes the place of ``learning_rate``.
        clip_norm: Largest global norm of the gradient, in nats per datum; None for no clipping.
        elbo: Any Pyro objective; ``Trace_ELBO()`` unless given.
        kl_weight: Factor of the KL in training alone; what is reported is always the true bound.
        patience: Stop when the validation ELBO has not risen for so many epochs, and put back the
            parameters of the best one.
        seed: Seed of the order of the data and of all noise.
        device: "auto" for the module's own device if it is not the CPU, else a GPU where there is
            one; or a torch device. The module is moved there and stays there.
        progress: Show one progress bar.
        callbacks: Each is called with the partial :class:`FitResult` after every epoch.

    Returns:
        The history in nats per datum, and how the fit ended. A module is left in evaluation mode.

    Raises:
        ValueError: If data or settings are not usable; before the first step.
        TypeError: If x is not numeric, or ``vae`` has no model and guide.
        RuntimeError: If the device is not there.
        FloatingPointError: If ten steps in a row have a gradient that is not finite. No such
            gradient reaches a parameter, and the best epoch's parameters are put back.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=1, hidden=())
        >>> fit = pv.fit(vae, torch.zeros(50, 3), epochs=2, progress=False)
        >>> list(fit.history.columns)[:4]
        ['epoch', 'elbo', 'expected_log_likelihood', 'kl']
    """
    _check_programs(vae)
    _check_positive_integers(epochs=epochs, batch_size=batch_size)
    if patience is not None:
        _check_positive_integers(patience=patience)
        if validation is None:
            raise ValueError(f"patience must come with validation data; got {patience} and none.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an integer; got {seed!r}.")
    if elbo is not None and not isinstance(elbo, ELBO):
        raise TypeError(f"elbo must be an instance of pyro.infer.ELBO; got {elbo!r}.")
    optim = OneTorchOptim(optimizer or adam(learning_rate), clip_norm=clip_norm)
    svi = SVI(
        kl_weighted(vae.model, kl_weight),
        kl_weighted(vae.guide, kl_weight),
        optim,
        loss=Trace_ELBO() if elbo is None else elbo,
    )

    resolved = resolve_device(vae, device)
    source = DataSource(vae, resolved)
    held_out = None if validation is None else source.tensor(validation, name="validation")
    batches = source.batches(x, batch_size=batch_size, seed=seed)
    if isinstance(vae, nn.Module):
        vae.to(resolved).train()

    result = FitResult(vae=vae, seed=seed)
    started = time.perf_counter()
    with (
        pyro.get_param_store().scope(),
        InterruptGuard() as guard,
        tqdm(total=epochs, desc="fit", unit="epoch", mininterval=0.5, disable=not progress) as bar,
    ):
        loop = _Loop(vae, svi, optim, batches, schedule, epochs, guard)
        for epoch in range(epochs):
            begun = time.perf_counter()
            row: dict[str, float] = {"epoch": epoch + 1}
            # Noise is a function of seed and epoch, whatever callbacks and evaluations draw.
            with seeded(seed, "noise", epoch, device=resolved):
                loss = loop.run(epoch)
            row |= evaluate(vae, batches.some_rows(), seed=seed)
            if held_out is not None:
                scores = evaluate(vae, held_out, seed=seed)
                row |= {f"validation_{name}": value for name, value in scores.items()}
            row |= {"loss": loss, "seconds": time.perf_counter() - begun}
            result.rows.append(row)
            result.num_skipped = optim.num_skipped
            if loop.keep_if_best(row["elbo" if held_out is None else "validation_elbo"]):
                result.best_epoch = epoch + 1
            shown = {name: f"{row[name]:.3f}" for name in row if name.endswith("elbo")}
            bar.set_postfix(shown, refresh=False)
            bar.update()
            result.interrupted = guard.requested
            waited = epoch + 1 - (result.best_epoch or 0)
            stops = [callback(result) for callback in callbacks]
            if patience is not None and waited >= patience:
                loop.restore_best()
                result.stopped_early = True
            if any(stop is True for stop in stops):
                result.stopped_early = True
            if result.stopped_early or result.interrupted:
                break
    if isinstance(vae, nn.Module):
        vae.eval()
    result.seconds = time.perf_counter() - started
    return result


class _Loop:
    """The steps of a fit, and its best state."""

    def __init__(
        self,
        vae: Programs,
        svi: SVI,
        optim: OneTorchOptim,
        batches: Batches,
        schedule: Schedule,
        epochs: int,
        guard: InterruptGuard,
    ) -> None:
        self._vae, self._svi, self._optim, self._batches = vae, svi, optim, batches
        self._schedule, self._epochs, self._guard = schedule, epochs, guard
        self._is_first_step = True
        self._skipped_in_a_row = 0
        self._best_elbo = -math.inf
        self._best_state: list[tuple[Tensor, Tensor]] = []

    def run(self, epoch: int) -> float:
        """Take the steps of one epoch; return the mean loss in nats per datum."""
        total, count = 0.0, 0
        with _argument_validation(enabled=False), warnings.catch_warnings():
            # Freezing a part by requires_grad_(False) is a choice, not a mistake.
            warnings.filterwarnings("ignore", ".*because requires_grad=False")
            for index, x in enumerate(self._batches.epoch(epoch)):
                progress = (epoch + index / len(self._batches)) / self._epochs
                loss = self._step(x, progress)
                if math.isfinite(loss):
                    total, count = total + loss, count + len(x)
                if self._guard.requested:
                    break
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

    def _step(self, x: Tensor, progress: float) -> float:
        self._optim.num_data = len(x)
        self._optim.rate_factor = self._schedule(progress)
        try:
            if self._is_first_step:
                with _argument_validation(enabled=True):
                    loss = float(self._svi.step(x))
                _check_registration(self._vae, self._optim)
                self._is_first_step = False
            else:
                loss = float(self._svi.step(x))
        except BaseException:
            # SVI zeroes gradients in its last line only; a later fit must not inherit these.
            for param in self._optim.params:
                param.grad = None
            raise
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._optim.skipped_last else 0
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            self.restore_best()
            raise FloatingPointError(
                f"gradient must be finite; got {MAX_SKIPPED_IN_A_ROW} steps in a row where it is "
                f"not, at {progress:.1%} of the fit, with a loss of {loss / len(x):.4g} nats per "
                "datum. The best parameters so far are back in place. Try a lower "
                "learning_rate, clip_norm=100, or a larger variance to start from."
            )
        return loss


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


def _check_registration(vae: Programs, optim: OneTorchOptim) -> None:
    """Make sure that what SVI steps is what the user holds."""
    if not optim.params:
        raise ValueError(
            "vae must register its parameters with Pyro; got programs without any pyro.module. "
            "SVI would run and train nothing: write pyro.module('name', self) in model and guide."
        )
    store = pyro.get_param_store()
    names = {id(store._params[name]): name for name in store}
    if not isinstance(vae, nn.Module):
        return
    owned = {id(param): name for name, param in vae.named_parameters() if param.requires_grad}
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


def _check_programs(vae: Any) -> None:
    for name in ("model", "guide"):
        if not callable(getattr(vae, name, None)):
            raise TypeError(
                f"vae must have a {name}(x), a Pyro program; got {type(vae).__name__}. "
                "Make one with pyro_vae.VAE or pyro_vae.gaussian_vae."
            )


def _check_positive_integers(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}.")
