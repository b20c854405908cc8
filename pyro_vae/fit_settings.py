"""What a fit was asked to do, in words that another process finds too."""

import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["described", "differences", "model_in_words"]

SHOWN = 60
"""Characters of a setting that an error shows."""


def described(value: Any) -> str:
    """A setting in words: functions by their names and by what they close over.

    Example:
        >>> from pyro_vae.optim import cosine, warmup
        >>> described(1e-3), described(cosine)
        ('0.001', 'pyro_vae.optim.schedules.cosine')
        >>> described(warmup(0.2)) == described(warmup(0.3))
        False
    """
    if isinstance(value, functools.partial):
        parts = [described(value.func), *map(described, value.args)]
        parts += [f"{name}={described(each)}" for name, each in value.keywords.items()]
        return f"partial({', '.join(parts)})"
    if inspect.isfunction(value):
        held = [described(cell.cell_contents) for cell in value.__closure__ or ()]
        inside = f"({', '.join(held)})" if held else ""
        return f"{value.__module__}.{value.__qualname__}{inside}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def model_in_words(programs: Any, module: nn.Module) -> str:
    """Model and guide in words: their parts, as ``print`` shows a module.

    Args:
        programs: What is fitted.
        module: All of its modules as one.

    Example:
        >>> model_in_words(nn.Identity(), nn.Identity())
        'torch.nn.modules.linear.Identity: Identity()'
    """
    kind = type(programs)
    # What is learned has another value in every run.
    parts = re.sub(r"\S+ \(learned\)", "(learned)", described(module))
    return f"{kind.__module__}.{kind.__qualname__}: {parts}"


def differences(saved: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Settings that differ, each with what it was and what it is.

    Example:
        >>> differences({"epochs": "3", "seed": "0"}, {"epochs": "5", "seed": "0"})
        ['epochs (3 there, 5 here)']
    """
    found = []
    for name in [*saved, *(name for name in own if name not in saved)]:
        there, here = saved.get(name, "nothing"), own.get(name, "nothing")
        if there != here:
            there, here = _where_they_differ(there, here)
            found.append(f"{name} ({there} there, {here} here)")
    return found


def _where_they_differ(one: str, other: str) -> tuple[str, str]:
    """The first lines in which two texts differ, cut where they are long."""
    lines = zip(f"{one}\n".split("\n"), f"{other}\n".split("\n"), strict=False)
    for a, b in lines:
        if a != b:
            one, other = a.strip() or "nothing", b.strip() or "nothing"
            break
    return tuple(t if len(t) <= SHOWN else f"{t[: SHOWN - 3]}..." for t in (one, other))  # type: ignore[return-value]
