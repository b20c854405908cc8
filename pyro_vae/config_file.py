"""A configuration file as words of the command line, so that both are checked in one place."""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pyro_vae.arguments import did_you_mean

__all__ = ["config_words"]

SECTIONS = ("data", "model", "fit")

RENAMED = {"source": "data"}
"""Keys that the command line calls by another name."""

FOUND = {
    "data": {"num_train", "num_held_out", "event_shape", "image_shape", "columns", "scaling"},
    "model": set(),
    "fit": {"interrupted", "epochs_done"},
}
"""Keys that a fit finds out and writes beside its settings."""


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
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"config must be a TOML file; got {path}: {error}") from error
    unknown = sorted(set(config) - {*SECTIONS, "format"})
    if unknown:
        raise ValueError(
            f"config must have the sections {', '.join(SECTIONS)}; got {unknown} in {path}. "
            "'pyro-vae fit' writes such a file."
        )
    words: list[list[str]] = []
    for section in SECTIONS:
        settings: Mapping[str, Any] = config.get(section, {})
        for key, value in settings.items():
            if key not in FOUND[section]:
                words.append(_option(key, value, options))
    return [setting for setting in words if setting]


def _option(key: str, value: Any, options: Collection[str]) -> list[str]:
    if key == "learn_variance":
        key, value = "fixed_variance", not value
    name = RENAMED.get(key, key).replace("_", "-")
    if name not in options:
        hint = did_you_mean(key, [option.replace("-", "_") for option in options])
        raise ValueError(f"config must hold settings of 'pyro-vae fit'; got {key!r}.{hint}")
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    # A negative number by itself would read as an option.
    return [f"--{name}", str(value)] if not str(value).startswith("-") else [f"--{name}={value}"]
