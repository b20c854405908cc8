"""Texts of a run directory: digests in them, and reading those of strangers."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

__all__ = ["DIGEST_LINE", "check_digest_line", "json_line", "sha256_of_text", "text_of"]

DIGEST_LINE = "# sha256 of what follows: "

MAX_BYTES = 2**28
"""Largest text file that is read: a history of half a million epochs fits."""


def sha256_of_text(text: str) -> str:
    """Digest of a text in UTF-8.

    Example:
        >>> sha256_of_text("")[:8]
        'e3b0c442'
    """
    return hashlib.sha256(text.encode()).hexdigest()


def check_digest_line(text: str) -> None:
    """Refuse a configuration that differs from the digest in its first line, if it has one.

    Raises:
        ValueError: If it does.

    Example:
        >>> check_digest_line("latent_dim = 2")
    """
    first, _, rest = text.partition("\n")
    if first.startswith(DIGEST_LINE) and first.removeprefix(DIGEST_LINE) != sha256_of_text(rest):
        raise ValueError(
            "it differs from its sha256. If you have changed it yourself, delete its first line."
        )


def text_of(path: Path) -> str:
    """The text of a file, which a stranger may have made: a pipe would never end.

    Raises:
        ValueError: If it is no regular file, too large, or no text.

    Example:
        >>> text_of(Path("."))
        Traceback (most recent call last):
        ValueError: it is no regular file.
    """
    if not path.is_file():
        raise ValueError("it is no regular file.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB.")
    return path.read_text("utf-8")


def json_line(row: Mapping[str, float]) -> str:
    """A row of a history as a line of JSON, null for what is not finite.

    Example:
        >>> json_line({"epoch": 1, "kl": math.nan}).strip()
        '{"epoch": 1, "kl": null}'
    """
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(values) + "\n"
