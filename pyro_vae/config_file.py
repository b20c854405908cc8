"""Configuration files: as words of the command line, and what one by a stranger may ask for."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vae import toml
from pyro_vae.arguments import did_you_mean

__all__ = ["check_resumable", "check_settings", "check_sizes", "config_words"]

SECTIONS = ("data", "model", "fit")

RENAMED = {"source": "data"}
"""Keys that the command line calls by another name."""

FOUND = {
    "data": {"num_train", "num_held_out", "event_shape", "image_shape", "columns", "scaling"},
    "model": set(),
    "fit": {"interrupted", "epochs_done"},
}
"""Keys that a fit finds out and writes beside its settings."""

NEVER = {"config", "help", "out", "override", "resume"}
"""What only the user may say: where to write."""

MAX_PARAMETER_BYTES = 2**32
"""Largest networks that a configuration may ask for; there is no limit in Python."""

MAX_LAYERS = 1000
"""Largest number of hidden layers, and of steps of a flow."""

FLOWS = ("flow", "spline")

MAX_SIZE = 2**40
"""Largest number of anything."""

WIDTH_OF_STEPS = 64
"""Of the networks in the steps of a flow."""

Check = tuple[Callable[[Any], bool], str]

TEXT: Check = (lambda value: isinstance(value, str), "a string")
SWITCH: Check = (lambda value: isinstance(value, bool), "true or false")
WHOLE: Check = (lambda value: type(value) is int, "an integer")
SIZE: Check = (lambda value: type(value) is int and 0 < value <= MAX_SIZE, "a positive integer")
NUMBER: Check = (
    lambda value: type(value) in (int, float) and 0 < value < math.inf,
    "a positive number",
)
SHARE: Check = (lambda value: type(value) is float and 0 < value < 1, "between 0 and 1")
SIZES: Check = (
    lambda value: isinstance(value, list) and all(map(SIZE[0], value)),
    "a list of positive integers",
)
NAMES: Check = (
    lambda value: isinstance(value, list) and all(map(TEXT[0], value)),
    "a list of strings",
)
TABLE: Check = (lambda value: isinstance(value, dict), "a table")

NEEDED: dict[str, dict[str, Check]] = {
    "data": {"source": TEXT, "held_out": SHARE},
    "model": {
        "latent_dim": SIZE,
        "hidden": SIZES,
        "networks": TEXT,
        "prior": TEXT,
        "likelihood": TEXT,
        "family": TEXT,
        "learn_variance": SWITCH,
        "variance_per_feature": SWITCH,
        "variance_of_z": SWITCH,
        "dtype": TEXT,
    },
    "fit": {"seed": WHOLE},
}
"""What the configuration of a run must hold."""

POSSIBLE: dict[str, dict[str, Check]] = {
    "data": {
        "root": TEXT,
        "download": SWITCH,
        "labels": TEXT,
        "key": TEXT,
        "missing": SWITCH,
        "divide": NUMBER,
        "raw": SWITCH,
        "standardize": SWITCH,
        "split_seed": WHOLE,
        "event_shape": SIZES,
        "image_shape": SIZES,
        "columns": NAMES,
        "scaling": TABLE,
    },
    "model": {"variance": NUMBER},
    "fit": {},
}
"""What it may hold and is read back."""


def config_words(path: str | Path, options: Collection[str]) -> list[list[str]]:
    r"""The settings in a ``config.toml``, as ``pyro-vae fit`` takes them.

    A file that a fit left behind says what to fit again; one written by hand may hold as few keys
    as it likes in the sections ``[data]``, ``[model]`` and ``[fit]``.

    Args:
        path: The file, or a run directory that holds it.
        options: Names of the options that there are, without dashes in front.

    Returns:
        Words for each setting, such as ``["--latent-dim", "2"]``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as a configuration, or has a key that is no option;
            the nearest option is named.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "config.toml"
        >>> _ = path.write_text("[model]\nlatent_dim = 2\nlearn_variance = false\n")
        >>> config_words(path, ["latent-dim", "fixed-variance"])
        [['--latent-dim', '2'], ['--fixed-variance']]
    """
    path = Path(path)
    path = path / "config.toml" if path.is_dir() else path
    config = toml.read(path)
    unknown = sorted(set(config) - {*SECTIONS, "format"})
    if unknown:
        raise ValueError(
            f"config must have the sections {', '.join(SECTIONS)}; got {unknown} in {path}. "
            "'pyro-vae fit' writes such a file."
        )
    words: list[list[str]] = []
    for section in SECTIONS:
        settings: Any = config.get(section, {})
        if not isinstance(settings, Mapping):
            raise ValueError(f"config must have a table [{section}]; got {settings!r} in {path}.")
        for key, value in settings.items():
            if key not in FOUND[section]:
                words.append(_option(key, value, options))
    return [setting for setting in words if setting]


def check_resumable(run: str) -> None:
    """Refuse to resume what ``pyro_vae.fit`` began: its model and data are not on disk.

    Args:
        run: The run's directory.

    Raises:
        ValueError: If it is such a run.

    Example:
        >>> check_resumable("nowhere")  # whoever reads the settings will tell
    """
    try:
        config = toml.read(Path(run) / "config.toml", name="resume")
    except (OSError, ValueError):  # which whoever reads the settings tells better
        return
    data = config.get("data")
    if "fit" in config and not (isinstance(data, dict) and "source" in data):
        raise ValueError(
            f"resume must name a run that 'pyro-vae fit' began; got {run}, which pyro_vae.fit did "
            f"in Python. There, pyro_vae.fit(..., run_dir={run!r}, resume=True) goes on."
        )


def check_settings(
    config: Mapping[str, Any], *, sections: Sequence[str] = SECTIONS, name: str = "config"
) -> None:
    """Refuse settings of a run that are none, before anything is made of them.

    Args:
        config: What ``config.toml`` of a run holds.
        sections: Those to look at.
        name: What to call it in errors.

    Raises:
        ValueError: If a setting is missing or of another kind, or the networks would be enormous.

    Example:
        >>> check_settings({"data": {"source": "digits", "held_out": 7}}, sections=["data"])
        Traceback (most recent call last):
        ValueError: config must have data.held_out between 0 and 1; got 7.
    """
    for section in sections:
        settings = config.get(section)
        if not isinstance(settings, Mapping):
            raise ValueError(f"{name} must have a table [{section}]; got {_short(settings)}.")
        for key, (is_right, words) in {**NEEDED[section], **POSSIBLE[section]}.items():
            value = settings.get(key)
            if value is None and key in NEEDED[section]:
                raise ValueError(f"{name} must have {section}.{key}, {words}; got none.")
            if value is not None and not is_right(value):
                raise ValueError(f"{name} must have {section}.{key} {words}; got {_short(value)}.")
    event_shape = config["data"].get("event_shape") if "data" in sections else None
    if "model" in sections and event_shape is not None:
        check_sizes(config["model"], event_shape)


def check_sizes(model: Mapping[str, Any], event_shape: Sequence[int]) -> None:
    r"""Refuse networks that would take more than 4 GiB, before they are made.

    Counted are the matrices of encoder and decoder, :math:`\sum_l w_l w_{l+1}`, and what each
    number behind the name of a part multiplies: that is nearly all there is.

    Args:
        model: The section ``model`` of a configuration.
        event_shape: Shape of one x.

    Raises:
        ValueError: If there are too many layers, steps or parameters.

    Example:
        >>> model = {"latent_dim": 2, "hidden": [10**9], "dtype": "float32"}
        >>> check_sizes(model, (64,))
        Traceback (most recent call last):
        ValueError: model must have at most 4 GiB of parameters; got 737 GiB for 64 features, 2
        latent dimensions and 1 hidden layers of up to 1000000000. Make it smaller, or put the VAE
        together in Python, where there is no limit.
    """
    k, hidden, n = model["latent_dim"], list(model["hidden"]), math.prod(event_shape)
    family, rank = _kind(model, "family")
    prior, components = _kind(model, "prior")
    likelihood, classes = _kind(model, "likelihood")
    steps = [number for kind, number in ((family, rank), (prior, components)) if kind in FLOWS]
    if max(len(hidden), len(event_shape), *steps, 0) > MAX_LAYERS:
        raise ValueError(
            f"model must have at most {MAX_LAYERS} hidden layers and steps of a flow; got "
            f"{max(len(hidden), len(event_shape), *steps, 0)}."
        )
    scales = {"full": k * (k + 1) // 2, "lowrank": k * (1 + min(rank, k))}.get(family, k)
    outputs = n * (classes if likelihood == "categorical" else 2)
    # Convolutions have widths of their own.
    between = [] if model.get("networks") == "conv" else hidden
    weights = _matrices([n, *between, k + scales]) + _matrices([k, *between[::-1], outputs])
    weights += sum(steps) * WIDTH_OF_STEPS * k
    weights += {"vamp": components * n, "mixture": 2 * components * k}.get(prior, 0)
    if model.get("variance_of_z"):
        weights += _matrices([k, *hidden[::-1], n])
    size = weights * (8 if model.get("dtype") == "float64" else 4)
    if size > MAX_PARAMETER_BYTES:
        raise ValueError(
            f"model must have at most {MAX_PARAMETER_BYTES >> 30} GiB of parameters; got "
            f"{size >> 30} GiB for {n} features, {k} latent dimensions and {len(hidden)} hidden "
            f"layers of up to {max(hidden, default=0)}. Make it smaller, or put the VAE together "
            "in Python, where there is no limit."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(model: Mapping[str, Any], key: str) -> tuple[str, int]:
    """Name of a part and the number behind it, rounded up; 100 for one that it has by default."""
    name, _, number = str(model.get(key, "")).partition(":")
    try:
        value = math.ceil(float(number)) if number else 100
    except (ValueError, OverflowError):  # told where parts are made
        value = 100
    return name.replace("-", "_"), value


def _matrices(widths: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))


def _option(key: str, value: Any, options: Collection[str]) -> list[str]:
    if key == "learn_variance":
        key, value = "fixed_variance", not value
    name = RENAMED.get(key, key).replace("_", "-")
    if name in NEVER:
        raise ValueError(
            f"config must not hold {key!r}; got {_short(value)}. Say it on the command line."
        )
    if name not in options:
        hint = did_you_mean(key, [option.replace("-", "_") for option in options])
        raise ValueError(f"config must hold settings of 'pyro-vae fit'; got {key!r}.{hint}")
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    # A negative number by itself would read as an option.
    return [f"--{name}", str(value)] if not str(value).startswith("-") else [f"--{name}={value}"]
