"""``pyro-vae fit``: fit, report, draw, keep."""

import math
import shlex
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_vae import baselines, diagnostics, likelihoods, plots, priors
from pyro_vae.commands.data_choice import (
    Data,
    as_images,
    data_settings,
    load_or_map,
    some_in_memory,
)
from pyro_vae.commands.incomplete import (
    complete_rows,
    num_observed,
    observed_in_words,
    ratio_and_error,
)
from pyro_vae.commands.model_choice import VARIANCE, build, has_variance, heading, is_density
from pyro_vae.commands.progress import one_speaks, shows_progress
from pyro_vae.commands.training_choice import training_in_words, training_options
from pyro_vae.datasets import Dataset
from pyro_vae.diagnosis.messages import collected_messages
from pyro_vae.fit_result import FitResult
from pyro_vae.optim.processes import Processes, started
from pyro_vae.report import concerns, fit_report, mean_and_error, with_error
from pyro_vae.run_directory import RunDirectory
from pyro_vae.seeding import seeded
from pyro_vae.sources import resolve_device
from pyro_vae.training import fit as fit_vae
from pyro_vae.vae import VAE

__all__ = ["fit"]

KHAT_ROWS, KHAT_DRAWS = 50, 500
"""Held-out rows whose k-hat the report looks at, and draws for each: a second or two."""

MAX_REPORTED = 10_000
"""Rows on which the report evaluates the ELBO; enough for a standard error below a nat."""


MAX_NAME = 100
"""Characters of a run's name: a file system has a limit, and a number may follow."""


def fit(options: Namespace) -> None:
    """``pyro-vae fit``, by one process or by those that ``torchrun`` started."""
    with started(device=options.device) as processes, one_speaks(processes):
        settings = _settings(options)
        with processes.first_ahead() if options.download else nullcontext():
            train, held_out = load_or_map(settings)
        if options.networks == "conv":
            train, held_out = as_images(train), as_images(held_out)
        vae = build(settings["model"], train, seed=options.seed)
        training = training_options(settings["fit"])
        # Data that p(x|z) cannot have are told before there is a directory, where they are few.
        vae.prepare(some_in_memory(train))
        resolve_device(vae, options.device)  # a wrong one is told before there is a directory
        run = _run(options) if processes.is_first else None
        if run is not None and (options.resume is None or options.override):
            run.plan_config(_resolved(settings, train, held_out))

        # Where the validation rows choose the epoch, the report needs others.
        learned_from, validation = train, held_out
        if options.patience is not None:
            learned_from, validation = train.split(held_out=0.1, seed=options.seed)
        result = fit_vae(
            vae,
            learned_from,
            validation=validation,
            progress=shows_progress(options),
            run_dir=run,
            resume="override" if options.override else options.resume is not None,
            **training,
        )
    # The others are not needed any more, and need not wait.
    if run is not None:
        _report(run, options, settings, (train, held_out), result, processes)


def _run(options: Namespace) -> RunDirectory:
    if options.resume is not None:
        return RunDirectory.continued(options.resume, name="resume")
    if options.out is not None:
        return RunDirectory.create(options.out)
    return RunDirectory.create_numbered("runs", _name(options))


def _report(
    run: RunDirectory,
    options: Namespace,
    settings: dict[str, Any],
    data: tuple[Data, Data],
    result: FitResult,
    processes: Processes,
) -> None:
    """Evaluate, draw, write and print."""
    (train, held_out), vae = data, result.vae
    parts = [some_in_memory(part, most=MAX_REPORTED) for part in (train, held_out)]
    terms = [diagnostics.elbo_terms(vae, part.x) for part in parts]
    summaries = dict(zip(("train", "held out"), map(diagnostics.elbo_summary, terms), strict=True))
    run.write_table("summary.csv", pd.concat(summaries, names=["data", "term"]).reset_index())
    reference: dict[str, list[tuple[float, float]]] = {}
    if any(part.num_missing for part in parts):
        gain = ["probabilistic PCA needs complete rows: no reference"]
    elif is_density(settings["model"]):
        reference, gain = _probabilistic_pca(
            some_in_memory(train), parts, options.latent_dim, terms[1]
        )
    else:
        gain = ["p(x|z) is no density of x: no comparison with probabilistic PCA"]
    kept = result.best_epoch if options.patience is not None else len(result.rows)
    shared = f" by {processes.size} processes" if processes.size > 1 else ""
    text = fit_report(
        heading=heading(settings["model"], train, held_out),
        summaries=summaries,
        reference=reference,
        closing=[
            *observed_in_words(parts),
            *_variance_in_words(vae, parts, terms),
            *training_in_words(settings["fit"], terms),
            *gain,
            *_concerns(vae, parts),
            *_stops_in_words(result, run),
            f"{len(result.rows)} epochs in {result.seconds:.0f} s{shared}; "
            f"highest validation ELBO after epoch {result.best_epoch}, weights of epoch {kept}",
        ],
    )
    run.write_report(text)
    incomplete = _draw(run, vae, held_out, result.history, reference)
    print(text, end="")
    if incomplete:
        print(incomplete)
    print(f"everything is in {run.path}")


def _name(options: Namespace) -> str:
    """Name of a run: its data, and the parts that are not the usual ones."""
    parts = [Path(options.data).stem, f"k{options.latent_dim}", options.family]
    parts += [options.prior] if options.prior != "standard" else []
    parts += [options.likelihood] if options.likelihood != "gaussian" else []
    return "-".join(parts).replace(":", "")[:MAX_NAME]


def _settings(options: Namespace) -> dict[str, Any]:
    """The command line as a configuration."""
    is_constant = options.kl_warmup is None and options.free_bits is None
    return {
        "data": data_settings(options),
        "model": {
            "latent_dim": options.latent_dim,
            "hidden": options.hidden,
            "networks": options.networks,
            "prior": options.prior,
            "likelihood": options.likelihood,
            "family": options.family,
            "variance": options.variance or (VARIANCE if has_variance(options) else None),
            "learn_variance": not options.fixed_variance,
            "variance_per_feature": options.variance_per_feature,
            "variance_of_z": options.variance_of_z,
            "dtype": options.dtype,
        },
        "fit": {
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "objective": options.objective,
            "kl_weight": options.kl_weight if is_constant else None,
            "kl_warmup": options.kl_warmup,
            "free_bits": options.free_bits,
            "clip_norm": options.clip_norm,
            "compile": options.compile,
            "checkpoint_epochs": options.checkpoint_epochs,
            "checkpoint_seconds": options.checkpoint_seconds,
            "patience": options.patience,
            "seed": options.seed,
            "device": options.device,
        },
    }


def _resolved(settings: dict[str, Any], train: Data, held_out: Data) -> dict[str, Any]:
    """The configuration with what was found in the data."""
    data = {
        **settings["data"],
        "num_train": len(train),
        "num_held_out": len(held_out),
        "event_shape": list(train.event_shape),
        "image_shape": None if train.image_shape is None else list(train.image_shape),
        "columns": None if train.columns is None else list(train.columns),
        "scaling": train.scaling.to_dict(),
    }
    return {**settings, "data": data}


def _probabilistic_pca(
    train: Dataset, parts: list[Dataset], latent_dim: int, held_out_terms: xr.Dataset
) -> tuple[dict[str, list[tuple[float, float]]], list[str]]:
    """The exact reference on both parts, and by how much the ELBO beats it on the same rows."""
    if latent_dim >= min(train.num_features, train.num_data):
        return {}, [
            "probabilistic PCA needs fewer dimensions than features and rows: no reference"
        ]
    try:
        pca = baselines.PCA(latent_dim).fit(train.x)
    except ValueError as error:  # no noise is left: its likelihood has no bound
        return {}, [f"no reference by probabilistic PCA: {error}"]
    log_p = [pca.log_prob(part.x).double() for part in parts]
    elbo = torch.from_numpy(held_out_terms["elbo"].to_numpy())
    gain = with_error(*mean_and_error(elbo - log_p[1]))
    name = f"probabilistic PCA, k = {latent_dim}: log p(x)"
    return {name: [mean_and_error(values) for values in log_p]}, [
        f"held-out ELBO less probabilistic PCA's exact log p(x), row by row: {gain} nats per datum"
    ]


def _concerns(vae: VAE, parts: list[Dataset]) -> list[str]:
    """Inactive units on the training rows, and k-hat on some of the held-out ones."""
    train, held_out = parts
    with collected_messages():  # which the report says in its own words
        units = diagnostics.active_units(vae, train.x)
        evidence = diagnostics.log_evidence(vae, held_out.x[:KHAT_ROWS], num_samples=KHAT_DRAWS)
    return concerns(units, evidence)


def _draw(
    run: RunDirectory,
    vae: VAE,
    held_out: Data,
    history: pd.DataFrame,
    reference: Mapping[str, list[tuple[float, float]]],
) -> str:
    """Pictures, in units of x; up to 2000 held-out rows in the latent plane.

    Returns:
        Which rows are in them, if not all are, in words.
    """
    shape, columns = held_out.image_shape, held_out.columns
    lines = {f"{name}, held out": values[1][0] for name, values in reference.items()}
    plots.save(plots.history(history, reference=lines), run.file("history.png"))
    some = some_in_memory(held_out, most=2000)
    whole, words = complete_rows(some.x)
    with torch.no_grad(), seeded(0, "pictures"):
        means, covariances = _moments(vae.encode(some.x))
        usual = isinstance(vae.p_z, priors.StandardNormal)
        draws = None if usual else vae.p_z().sample((2000,))
        pictures = {
            "samples": plots.samples(
                vae.sample(64 if shape else 2000, mean=shape is not None).flatten(1),
                image_shape=shape,
                columns=columns,
                data=None if whole is None else whole.flatten(1),
                title=f"{'means of' if shape else 'draws from'} $p(x|z)$, $z$ from the prior",
            ),
            "latent": plots.latent(means, covariances, some.labels, prior=draws),
        }
        if whole is not None:
            pictures["reconstructions"] = plots.reconstructions(
                whole.flatten(1),
                vae.reconstruct(whole).flatten(1),
                image_shape=shape,
                columns=columns,
            )
        if vae.latent_shape == (2,):
            pictures["plane"] = plots.plane(
                lambda z: vae.decode(z).flatten(1),
                image_shape=shape,
                columns=columns,
                reference=means,
                prior=draws,
            )
    for name, figure in pictures.items():
        plots.save(figure, run.file(f"{name}.png"))
    if whole is None:
        return f"no reconstructions.png, no data in samples.png: only {words}"
    return f"in reconstructions.png and beside the samples are {words}" if words else ""


def _moments(q: Any) -> tuple[Tensor, Tensor]:
    """Means of q(z|x) and covariances, or variances where q is diagonal; of draws from a flow."""
    try:
        return q.mean, getattr(q, "covariance_matrix", q.variance)
    except NotImplementedError:
        draws = q.sample((200,))
        centered = draws - draws.mean(0)
        covariances = torch.einsum("sni,snj->nij", centered, centered) / (len(draws) - 1)
        return draws.mean(0), covariances


def _stops_in_words(result: FitResult, run: RunDirectory) -> list[str]:
    """That the fit was resumed, or stopped and can be."""
    lines = []
    if result.resumed_after is not None:
        lines.append(f"resumed after {result.resumed_after} full epochs")
    if result.interrupted:
        path = shlex.quote(str(run.path))
        lines.append(f"Ctrl-C ended the fit early; pyro-vae fit --resume {path} goes on")
    return lines


def _variance_in_words(vae: VAE, parts: list[Dataset], terms: list[xr.Dataset]) -> list[str]:
    r"""The observation variance, and the mean squared distance that it stands for.

    At its optimum c is the mean of :math:`\mathbb E_q |x - f(z)|^2 / n` over the data, which the
    expected log-likelihood :math:`-C \mathbb E_q|x - f(z)|^2 - (n/2) \log 2 \pi c` tells. Where
    values are missing, n is the number of observed ones of a row.
    """
    likelihood = vae.p_x_given_z
    if not isinstance(likelihood, likelihoods.Gaussian) or likelihood.depends_on_z:
        return []
    variance = likelihood.variance
    if variance.dim() > 0:
        return [f"c between {variance.min():.4g} and {variance.max():.4g}, one for each feature"]
    c, shown = float(variance), []
    for part, found in zip(parts, terms, strict=True):
        n = num_observed(part.x)
        log_likelihood = torch.from_numpy(found["expected_log_likelihood"].to_numpy())
        distance = -2 * c * (log_likelihood + n / 2 * math.log(2 * math.pi * c))
        shown.append(with_error(*ratio_and_error(distance, n)))
    return [
        f"c = {c:.4g} in squared units of x, so C = 1/(2c) = {1 / (2 * c):.4g}",
        f"mean of E_q|x - f(z)|^2 / n: train {shown[0]}, held out {shown[1]}",
    ]
