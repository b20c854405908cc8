"""The command line: strings to objects, and nothing else.

Only the standard library is imported before the arguments are known, so that ``--help`` answers at
once; ``commands`` and torch come when there is something to do.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyro_vae.arguments import did_you_mean
from pyro_vae.config_file import check_resumable, config_words
from pyro_vae.kinds import FAMILIES, LIKELIHOODS, OBJECTIVES, PRIORS, written
from pyro_vae.option_types import fraction, kind_of, not_negative, one_of, positive, seed

__all__ = ["main"]

IMAGE_SETS = ("mnist", "fashion_mnist", "kmnist", "emnist", "celeba")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status.

    Args:
        arguments: Words after the program's name; those of the process unless given.
    """
    parser = _parser()
    options = _parsed(parser, arguments)
    try:
        config = _config_of(options)
        if config is not None:
            if getattr(options, "resume", None) is not None:
                check_resumable(config)
            words = list(sys.argv[1:] if arguments is None else arguments)
            options = _parsed(parser, _with_config(words, config, parser))
        if _is_one_of_many() and options.command != "fit":
            raise ValueError(
                f"{options.command} must be run by one process; got {os.environ['WORLD_SIZE']}. "
                "Start it without torchrun."
            )
        from pyro_vae import commands  # torch takes seconds to import

        run = getattr(commands, options.command)
        with _warnings_in_one_line():
            status: int = run(options) or 0  # most commands have no other outcome than done
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"{_speaker(options)}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{_speaker(options)}: interrupted", file=sys.stderr)
        return 130
    return status


def _config_of(options: argparse.Namespace) -> str | None:
    """Where the settings stand that the command line does not say."""
    resumed: str | None = getattr(options, "resume", None)
    if resumed is None:
        if getattr(options, "override", False):
            raise ValueError("override must come with --resume RUN; got no --resume.")
        return getattr(options, "config", None)
    for name in ("out", "config"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{name} must be left out with --resume, which goes on in the run's own "
                f"directory with its settings; got {getattr(options, name)}."
            )
    return resumed


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """The options; an unknown one ends the program, and the nearest known one is offered."""
    options, unknown = parser.parse_known_args(words)
    if unknown:
        (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        own = commands.choices[options.command]
        word = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
        offer = did_you_mean(word, own._option_string_actions)
        own.error(f"unrecognized arguments: {' '.join(unknown)}.{offer}")
    return options


def _is_one_of_many() -> bool:
    """Whether torchrun started this process and others."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _speaker(options: argparse.Namespace) -> str:
    process = f" (process {os.environ.get('RANK')})" if _is_one_of_many() else ""
    return f"pyro-vae {options.command}{process}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyro-vae", description="Variational autoencoders as variational inference in Pyro."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_fit(commands)
    _add_baselines(commands)
    info = commands.add_parser("info", help="show what a run directory holds")
    info.add_argument("run", help="directory that 'pyro-vae fit' wrote")
    sample = commands.add_parser("sample", help="draw x from the prior of a fitted VAE")
    sample.add_argument("run", help="directory that 'pyro-vae fit' wrote")
    sample.add_argument("--num", type=positive(int), default=64, help="number of draws (64)")
    sample.add_argument("--mean", action="store_true", help="the mean of p(x|z), not a draw")
    sample.add_argument("--seed", type=int, default=0, help="seed of the draws (0)")
    sample.add_argument("--out", help="a .png picture, or raw values as .npy or .csv")
    reconstruct = commands.add_parser("reconstruct", help="reconstruct data by a fitted VAE")
    reconstruct.add_argument("run", help="directory that 'pyro-vae fit' wrote")
    reconstruct.add_argument(
        "--file", help="data (.npy, .npz, .csv) in place of the held-out rows"
    )
    reconstruct.add_argument("--out", help="a .png picture, or raw values as .npy or .csv")
    impute = commands.add_parser("impute", help="fill in what is missing in a table, by its VAE")
    impute.add_argument("run", help="directory that 'pyro-vae fit' wrote")
    impute.add_argument("--file", help="data (.npy, .npz, .csv) in place of the run's own file")
    impute.add_argument(
        "--num-draws", type=positive(int), default=100, help="completed tables in an .npz (100)"
    )
    impute.add_argument("--seed", type=int, default=0, help="seed of the draws (0)")
    impute.add_argument(
        "--out", required=True, help=".csv, the table with means filled in; .npz, draws as well"
    )
    _add_diagnose(commands)
    _add_compare(commands)
    return parser


def _add_diagnose(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    diagnose = commands.add_parser(
        "diagnose", help="how good a fitted VAE is, why, and what to do: verdicts on an HTML page"
    )
    diagnose.add_argument("run", help="directory that 'pyro-vae fit' wrote")
    diagnose.add_argument("--file", help="data (.npy, .npz, .csv) in place of the held-out rows")
    _add_sizes(diagnose)
    diagnose.add_argument(
        "--quick", action="store_true", help="fewer rows and draws, no Markov chains"
    )
    diagnose.add_argument("--out", help="the page (default: diagnosis.html in the run)")


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = commands.add_parser(
        "compare", help="fitted VAEs side by side, by paired differences on the same held-out rows"
    )
    compare.add_argument("run", nargs="+", help="directories that 'pyro-vae fit' wrote")
    _add_sizes(compare)
    compare.add_argument("--out", help="the page (default: comparison.html in the first run)")


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-data", type=positive(int), default=500, help="largest number of rows (500)"
    )
    parser.add_argument(
        "--num-samples", type=positive(int), default=1000, help="draws for each row (1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of rows and draws (0)")


def _add_fit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    fit = commands.add_parser(
        "fit",
        help="fit a VAE, print its ELBO, leave a run directory",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    fit.add_argument(
        "--config", help="config.toml, or a run directory: what is not said here is as there"
    )
    gaps = "empty cells, NA and NaN of the file are missing values, and no error"
    _add_switch(_add_data(fit), "--missing", gaps)
    model = fit.add_argument_group("model")
    model.add_argument("--latent-dim", type=positive(int), default=2, help="dimension k of z")
    model.add_argument(
        "--hidden", type=positive(int), nargs="*", default=[400], help="widths of hidden layers"
    )
    model.add_argument(
        "--networks", type=one_of("mlp", "conv"), default="mlp", help="mlp, or conv for images"
    )
    model.add_argument(
        "--prior", type=kind_of(PRIORS), default="standard", help=f"p(z): {written(PRIORS)}"
    )
    model.add_argument(
        "--likelihood",
        type=kind_of(LIKELIHOODS),
        default="gaussian",
        help=f"p(x|z): {written(LIKELIHOODS)}",
    )
    model.add_argument(
        "--family", type=kind_of(FAMILIES), default="diagonal", help=f"q(z|x): {written(FAMILIES)}"
    )
    model.add_argument(
        "--variance",
        type=positive(float),
        help="variance c of p(x|z), where it has one, or its starting value (0.1)",
    )
    kinds = model.add_mutually_exclusive_group()
    _add_switch(kinds, "--fixed-variance", "keep c as it is")
    _add_switch(kinds, "--variance-per-feature", "learn one c a feature")
    _add_switch(kinds, "--variance-of-z", "learn c as a function of z")
    model.add_argument(
        "--dtype", type=one_of("float32", "float64"), default="float32", help="floating type"
    )
    training = fit.add_argument_group("training")
    _add_training(training, epochs=100)
    training.add_argument(
        "--objective",
        type=kind_of(OBJECTIVES),
        default="trace",
        help=f"what is maximized: {written(OBJECTIVES)}; the ELBO is reported whatever it is",
    )
    weights = training.add_mutually_exclusive_group()
    weights.add_argument(
        "--kl-weight", type=not_negative, default=1.0, help="factor of the KL in training"
    )
    weights.add_argument(
        "--kl-warmup", type=fraction, help="share of training in which that factor rises from 0"
    )
    weights.add_argument(
        "--free-bits", type=not_negative, help="nats that the KL of a latent dimension has free"
    )
    training.add_argument("--clip-norm", type=positive(float), help="largest gradient norm")
    training.add_argument(
        "--compile",
        action="store_true",
        help="compile model, guide and optimizer to one graph: seconds once, then faster steps",
    )
    training.add_argument(
        "--patience",
        type=positive(int),
        help="stop after so many epochs without a better ELBO on a tenth of the training rows",
    )
    fit.add_argument("--out", help="run directory, new or empty (default: a new one in runs/)")
    _add_checkpoints(fit)


def _add_checkpoints(fit: argparse.ArgumentParser) -> None:
    kept = fit.add_argument_group("checkpoints")
    kept.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a fit that was stopped, bitwise as if it had not been, in its directory",
    )
    kept.add_argument(
        "--override",
        action="store_true",
        help="with --resume: go on though data or settings differ, with those given here",
    )
    kept.add_argument(
        "--checkpoint-epochs", type=positive(int), help="epochs between two states on disk"
    )
    kept.add_argument(
        "--checkpoint-seconds",
        type=positive(float),
        default=60.0,
        help="seconds between two states on disk, one more of which is written at the end",
    )


def _add_baselines(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    baselines = commands.add_parser(
        "baselines",
        help="held-out reconstruction error of PCA, linear AE, AE and VAE",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_data(baselines)
    baselines.add_argument(
        "--latent-dims", type=positive(int), nargs="+", default=[2, 5, 10, 20], help="every k"
    )
    baselines.add_argument(
        "--hidden", type=positive(int), nargs="*", default=[400], help="widths of hidden layers"
    )
    _add_training(baselines, epochs=100)
    baselines.add_argument("--out", help="write the table to this .csv file as well")


def _add_data(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default="digits",
        help=f"digits (embedded), {', '.join(IMAGE_SETS)}, or a .npy, .npz or .csv file",
    )
    data.add_argument("--root", help="folder of the image sets (default: $PYRO_VAE_DATA)")
    data.add_argument("--download", action="store_true", help="download a missing image set")
    data.add_argument("--labels", help="column (.csv) or array (.npz) that holds labels")
    data.add_argument("--key", help="array of an .npz file that holds x")
    scaling = data.add_mutually_exclusive_group()
    scaling.add_argument("--divide", type=positive(float), help="x = raw / this, for files")
    _add_switch(scaling, "--raw", "x = raw, as counts and classes are")
    _add_switch(scaling, "--standardize", "x = (raw - mean) / sd of the training rows")
    data.add_argument(
        "--held-out", type=fraction, default=0.2, help="share held out, where no test set exists"
    )
    data.add_argument(
        "--split-seed",
        type=seed,
        help="seed of that split; the one of --seed unless given, so that runs of several seeds "
        "are comparable if it is",
    )
    return data


def _add_training(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup", *, epochs: int
) -> None:
    parser.add_argument(
        "--epochs", type=positive(int), default=epochs, help="passes over the data"
    )
    parser.add_argument("--batch-size", type=positive(int), default=128, help="rows in a step")
    parser.add_argument(
        "--learning-rate", type=positive(float), default=3e-3, help="of Adam, before the cosine"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of weights, order and noise (and see --split-seed)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_switch(group: "argparse._ArgumentGroup", name: str, words: str) -> None:
    """An option that is off, and ``--no-...`` against a configuration where it is on."""
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=False, help=words)


def _with_config(words: list[str], path: str, parser: argparse.ArgumentParser) -> list[str]:
    """A configuration's words before those of the command line, which have the last say."""
    (fit,) = (
        action.choices["fit"]
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    known = [action.option_strings[0] for action in fit._actions if action.option_strings]
    said = {word.partition("=")[0] for word in words}
    overruled = set()
    for group in fit._mutually_exclusive_groups:
        options = {option for action in group._group_actions for option in action.option_strings}
        if options & said:
            overruled |= options
    settings = config_words(path, [name.removeprefix("--") for name in known])
    kept = [word for setting in settings if setting[0] not in overruled for word in setting]
    return [words[0], *kept, *words[1:]]


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print a warning without the line of code that it comes from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"pyro-vae: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual
