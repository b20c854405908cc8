"""TOML files: writing them, which Python cannot, and reading those of strangers."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["dumps", "read"]

MAX_BYTES = 2**24
"""Largest file that is read: a standardization of 300 000 features fits."""


def read(path: str | Path, *, name: str = "config") -> dict[str, Any]:
    r"""What a TOML file holds.

    Args:
        path: The file.
        name: What to call the argument in errors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, a pipe or a device, is larger than 16 MiB, or is no TOML.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "config.toml"
        >>> _ = path.write_text("[model]\nlatent_dim = 2\n")
        >>> read(path)
        {'model': {'latent_dim': 2}}
    """
    path = Path(path)
    wrong = f"{name} must be a TOML file; got {path}"
    if not path.exists():
        raise FileNotFoundError(f"{wrong}, which is not there.")
    if not path.is_file():
        raise ValueError(f"{wrong}, which is no regular file.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{wrong}, which has more than {MAX_BYTES >> 20} MiB.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{wrong}, whose brackets are nested too deep.") from None
    # Of bytes that are no text and of numbers with thousands of digits, too.
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}") from error


def dumps(config: Mapping[str, Any]) -> str:
    """A nested mapping as TOML text; ``tomllib.loads`` gives it back.

    Args:
        config: Strings, numbers, booleans, lists of these, and mappings of these. None is left
            out, since TOML has no such value.

    Raises:
        TypeError: If a value is of another type, or a key is no string.

    Example:
        >>> print(dumps({"name": "digits", "model": {"latent_dim": 2, "hidden": [400]}}))
        name = "digits"
        <BLANKLINE>
        [model]
        latent_dim = 2
        hidden = [400]
        <BLANKLINE>
    """
    return "\n".join(_lines(config, prefix=())) + "\n"


def _lines(table: Mapping[str, Any], *, prefix: tuple[str, ...]) -> list[str]:
    plain = {key: v for key, v in table.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            path = (*prefix, key)
            lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
            lines += _lines(value, prefix=path)
    return lines


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"config must have strings as keys; got {key!r}.")
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # float() because numpy's floats are floats whose repr names their type.
        return repr(float(value)) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return f"[{', '.join(_value(item) for item in value)}]"
    raise TypeError(f"config must hold strings, numbers, booleans and lists; got {value!r}.")
