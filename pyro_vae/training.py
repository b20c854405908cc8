"""Training: Pyro's SVI on a model and a guide, and nothing left behind but their parameters."""

import operator
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, ReweightedWakeSleep
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from pyro_vae.arguments import named_options, positive_integer
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.fit_checkpoints import Cadence
from pyro_vae.fit_epochs import FitEpochs
from pyro_vae.fit_objective import compiled_objective, weighted_objective
from pyro_vae.fit_processes import check_same_call
from pyro_vae.fit_result import FitResult
from pyro_vae.fit_settings import described
from pyro_vae.interrupt import InterruptGuard
from pyro_vae.kept_fit import KeptFit
from pyro_vae.objectives import FreeBits, kl_weighted
from pyro_vae.optim import DistributedOptim, Processes, Schedule, adam, cosine
from pyro_vae.program_module import ProgramModule, missing_only_if_accepted
from pyro_vae.rows import per_datum_parts
from pyro_vae.run_directory import RunDirectory
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import Programs
from pyro_vae.training_loop import TrainingLoop

__all__ = ["Callback", "fit"]

Callback = Callable[[FitResult], object]
"""Called with the partial result after every epoch; returning True ends the fit."""


@named_options
def fit(
    vae: Programs,
    x: Any,
    *,
    mask: Any = None,
    validation: Any = None,
    validation_mask: Any = None,
    epochs: int = 100,
    batch_size: int = 128,
    num_data: int | None = None,
    learning_rate: float = 1e-3,
    schedule: Schedule = cosine,
    optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
    clip_norm: float | None = None,
    elbo: ELBO | None = None,
    kl_weight: float | Callable[[float], float] | FreeBits = 1.0,
    train: str = "all",
    patience: int | None = None,
    seed: int = 0,
    device: torch.device | str = "auto",
    progress: bool = True,
    compile: bool | str = False,
    run_dir: str | Path | RunDirectory | None = None,
    resume: bool | str = False,
    checkpoint_epochs: int | None = None,
    checkpoint_seconds: float | None = 60.0,
    callbacks: Iterable[Callback] = (),
) -> FitResult:
    r"""Maximize the ELBO of a model and a guide by Pyro's SVI.

    .. math:: \max \frac1N \sum_{i=1}^N \mathbb E_{q(z \mid x_i)} \log p(x_i \mid z)
              - \mathrm{KL}(q(z \mid x_i) \,\|\, p(z))

    Where ``torch.distributed`` is open, all its processes fit together: each calls this function
    with the same arguments and takes its part of every batch, starts from the first one's
    parameters, and ends with the same ones; see :class:`pyro_vae.optim.DistributedOptim`. The
    first alone shows a bar and writes ``run_dir``. A DataLoader or a stream has to bring all rows
    on every process in the same order, hence without a ``DistributedSampler``. A callback that
    raises on one process alone ends the others when they have waited in vain.

    A second call goes on from the parameters as they are. Pyro's parameter store, the global
    random state, argument validation and signal handlers are afterwards as they were before.

    Args:
        vae: A :class:`pyro_vae.VAE`, or any object with ``model(x)`` and ``guide(x)`` whose sites
            lie in the plate "data". An object that is no ``nn.Module`` stays on its device and
            in its mode.
        x: Data, ``(N, *event_shape)``: array, tensor, DataFrame,
            :class:`~pyro_vae.datasets.Dataset`; a file that is never read whole, as
            :func:`pyro_vae.datasets.memory_mapped` or ``np.load(..., mmap_mode="r")`` opens it; or
            a torch ``Dataset``, ``IterableDataset`` or ``DataLoader`` that yields x or tuples
            with x first. A torch Dataset of up to 2 GiB is read once.
        mask: Where x has missing values, True where a value was observed: an array, tensor or
            DataFrame of x's shape; or "nan" where NaN says what is missing. The bound is then one
            on the density of the observed values, right where values are missing at random, and
            ``vae.missing`` is True afterwards (:class:`pyro_vae.VAE`). Values that were not
            observed have no influence. A ``numpy.ma`` array brings its own mask. Programs of
            one's own get x with NaN.
        validation: Held-out data on which the ELBO is evaluated after every epoch; with NaN for
            what is missing, where x has missing values.
        validation_mask: Its ``mask``: that of x says nothing of other rows.
        epochs: Passes over the data.
        batch_size: Rows in a step, of all processes together (a DataLoader brings its own).
        num_data: Number N of rows of an epoch, for an IterableDataset, which does not tell it.
        learning_rate: Step size of Adam before the schedule.
        schedule: Maps progress, 0 to 1, to a factor of the learning rate; see
            :mod:`pyro_vae.optim`.
        optimizer: Makes another torch optimizer from the list of parameters; its own learning rate
            then takes the place of ``learning_rate``.
        clip_norm: Largest global norm of the gradient, in nats per datum; None for no clipping.
        elbo: Any Pyro objective, or one of :mod:`pyro_vae.objectives`; ``Trace_ELBO()`` unless
            given. With discrete latent sites, ``TraceEnum_ELBO(max_plate_nesting=1)``.
        kl_weight: Factor :math:`\beta \ge 0` of the KL in training alone; what is reported is
            always the true bound. A number; a schedule that maps progress, 0 to 1, to a number, as
            ``objectives.kl_warmup(0.3)`` does; or ``objectives.FreeBits(0.1)``. With a Gaussian
            likelihood of fixed variance c a constant :math:`\beta` has the optima of the ELBO at
            variance :math:`\beta c`, that is with :math:`C / \beta` in place of
            :math:`C = 1/(2c)`; where c is learned, or reported, say so by c and not by
            :math:`\beta`.
        train: "all", or "guide" to hold the model p(x, z) fixed and train q(z|x) alone.
        patience: Stop when the validation ELBO has not risen for so many epochs; in the end the
            parameters of the best epoch are put back.
        seed: Seed of the order of the data and of all noise.
        device: "auto" for the module's own device if it is not the CPU, else a GPU where there is
            one; or a torch device. The module is moved there and stays there.
        progress: Show one progress bar.
        compile: Trace model and guide once and compile them, with the gradient and Adam's update,
            to one graph (:class:`~pyro_vae.objectives.Compiled_ELBO`). That takes from 5 to 20
            seconds before the third step, and steps are then faster than those of a plain loop
            in PyTorch (benchmarks/README.md); noise and results are the same up to rounding.
            Programs that cannot be traced run as they are, which a warning tells; with
            "required" they raise.
        run_dir: New or empty directory for all that is needed to go on after a crash, and for the
            settings, the history and the weights: plain files, of which none is ever half written.
            SIGTERM then ends the fit after the current step, saved, with status 143.
        resume: Go on from the state in ``run_dir``, bitwise as if the fit had never stopped (see
            README.md for when that holds), or begin where there is none yet; data and settings
            have to be the same. With "override" they need not, and the fit goes on with these.
        checkpoint_epochs: Epochs after which a state is written; None for no such cadence.
        checkpoint_seconds: Seconds after which a state is written, within an epoch too (not with
            several processes, which wait for its end); None for none. Seldomer where it would take
            more than 2 % of the time. One is always written at the start and at the end.
        callbacks: Each is called with the partial :class:`FitResult` after every epoch; one that
            returns True ends the fit. What one raises ends it too. Every process calls them.

    Returns:
        The history in nats per datum, and how the fit ended. A module is left in evaluation mode.

    Raises:
        ValueError: If data or settings are not usable, or differ from those of the fit to be
            resumed; before the first step.
        TypeError: If x is not numeric, or ``vae`` has no model and guide.
        RuntimeError: If the device is not there.
        torch.OutOfMemoryError: If a step does not fit into memory, with a batch size to try.
        FloatingPointError: If ten steps in a row have a gradient that is not finite. No such
            gradient reaches a parameter, and the best epoch's parameters are put back.
        NotCapturable: If ``compile="required"`` and model and guide cannot be compiled.
        FileExistsError: If ``run_dir`` holds files already and ``resume`` is False.
        CheckpointError: If no state in ``run_dir`` can be read, or it is that of another model.
        OSError: If a state cannot be written; the last one is intact, and ``vae`` as it is.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=1, hidden=())
        >>> x = torch.arange(150.0).reshape(50, 3) / 150
        >>> fit = pv.fit(vae, x, epochs=2, progress=False)
        >>> list(fit.history.columns)[:4]
        ['epoch', 'elbo', 'expected_log_likelihood', 'kl']
    """
    _check_programs(vae)
    if not (isinstance(compile, bool) or compile == "required"):
        raise ValueError(f"compile must be True, False or 'required'; got {compile!r}.")
    if not (isinstance(resume, bool) or resume == "override"):
        raise ValueError(f"resume must be True, False or 'override'; got {resume!r}.")
    cadence = Cadence.checked(checkpoint_epochs, checkpoint_seconds)
    epochs = positive_integer(epochs, "epochs")
    batch_size = positive_integer(batch_size, "batch_size")
    if patience is not None:
        patience = positive_integer(patience, "patience")
        if validation is None:
            raise ValueError(f"patience must come with validation data; got {patience} and none.")
    seed = _integer(seed, "seed")
    if train not in {"all", "guide"}:
        raise ValueError(f"train must be 'all' or 'guide'; got {train!r}.")
    if validation is not None and per_datum_parts(vae):
        raise ValueError(
            "validation must be None for a guide with parameters for each datum, which knows the "
            f"training data alone; got {type(validation).__name__}."
        )
    if elbo is not None and (not isinstance(elbo, ELBO) or isinstance(elbo, ReweightedWakeSleep)):
        raise TypeError(
            f"elbo must be an instance of pyro.infer.ELBO with one loss; got {elbo!r}."
        )
    for name, function in {"schedule": schedule, "optimizer": optimizer or adam}.items():
        if not callable(function):
            raise TypeError(
                f"{name} must be a function; got {function!r}. See pyro_vae.optim: pass "
                f"optim.{'cosine' if name == 'schedule' else 'adam(1e-3)'}, not its name."
            )
    callbacks = tuple(callbacks)
    if not all(map(callable, callbacks)):
        raise TypeError(f"callbacks must be functions of a FitResult; got {callbacks!r}.")
    processes = Processes.current()
    is_kept = processes.any(run_dir is not None)  # which is the first process's to say
    if resume and not is_kept:
        raise ValueError(f"resume must come with the run_dir of a fit; got {resume!r} and none.")
    optim = DistributedOptim(optimizer or adam(learning_rate), clip_norm=clip_norm)
    objective, weight = weighted_objective(elbo, kl_weight)
    programs = kl_weighted(vae.model, weight), kl_weighted(vae.guide, weight)
    compiled = compiled_objective(objective, required=compile == "required") if compile else None
    if compiled is not None:
        svi: SVI = CompiledSVI(*programs, optim, compiled)
    else:
        svi = SVI(*programs, optim, loss=objective)

    resolved = resolve_device(vae, device)
    source = DataSource(vae, resolved)
    part = processes.part if processes.size > 1 else None
    settings: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": described(schedule),
        "optimizer": None if optimizer is None else described(optimizer),
        "clip_norm": clip_norm,
        "kl_weight": kl_weight if isinstance(kl_weight, int | float) else described(kl_weight),
        "train": train,
        "patience": patience,
        "elbo": type(objective).__name__,
        "compile": compile,
        "seed": seed,
    }
    with missing_only_if_accepted(vae):
        batches = source.batches(
            x, batch_size=batch_size, seed=seed, num_data=num_data, part=part, mask=mask
        )
        held_out = (
            None
            if validation is None
            else source.rows(validation, name="validation", mask=validation_mask)
        )
        check_same_call(processes, {**settings, "resume": resume}, batches)
        kept = None
        if is_kept:
            kept = KeptFit.opened(
                run_dir,
                vae,
                processes,
                settings=settings,
                objective=objective,
                data={"x": batches, "validation": held_out},
                device=resolved,
                resume=resume,
            )
    if held_out is not None:
        held_out = processes.part(held_out)
    if isinstance(vae, nn.Module):
        vae.to(resolved).train()
    if kept is not None:
        kept.put_back()
    if isinstance(vae, nn.Module):
        processes.broadcast([*vae.parameters(), *vae.buffers()])
    result = FitResult(vae=vae, seed=seed)
    if isinstance(vae, ProgramModule):
        vae.columns = source.columns
    loop: TrainingLoop | None = None
    taken: FitEpochs | None = None
    try:
        with (
            pyro.get_param_store().scope(),
            InterruptGuard(terminate=kept is not None) as guard,
            tqdm(
                total=epochs,
                desc="fit",
                unit="epoch",
                mininterval=0.5,
                disable=not (progress and processes.is_first),
            ) as bar,
        ):
            loop = TrainingLoop(
                vae,
                svi,
                optim,
                batches,
                schedule,
                epochs,
                guard,
                weight,
                holds_model=train == "guide",
                device=resolved,
            )
            taken = FitEpochs(
                result,
                loop,
                batches,
                held_out,
                epochs=epochs,
                batch_size=batch_size,
                patience=patience,
                callbacks=callbacks,
                guard=guard,
                processes=processes,
                device=resolved,
            )
            if kept is not None:
                kept.begin(taken, cadence)
            taken.take(bar)
    except FloatingPointError as error:
        if kept is not None:
            kept.write_failure(result, error)
        raise
    except BaseException:
        if kept is not None:
            kept.close()
        raise
    finally:
        batches.close()
        if loop is not None:
            loop.release()
        if isinstance(vae, nn.Module):
            vae.eval()
        if taken is not None:
            result.seconds = taken.seconds
    if kept is not None:
        kept.write_end(result)
    return result


def _check_programs(vae: Any) -> None:
    for name in ("model", "guide"):
        if not callable(getattr(vae, name, None)):
            raise TypeError(
                f"vae must have a {name}(x), a Pyro program; got {type(vae).__name__}. "
                "Make one with pyro_vae.VAE or pyro_vae.gaussian_vae."
            )


def _integer(value: Any, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer; got {value!r}.") from None
