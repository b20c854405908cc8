"""What a fit was asked to do, in words that another process finds too."""

import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import re
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.utils import lazy_property

from pyro_vae.raw_bytes import raw_bytes

__all__ = ["described", "differences", "model_in_words"]

SHOWN = 60
"""Characters of a setting that an error shows."""

DIGITS = 12
"""Hexadecimal digits of the sums of functions and tensors."""

LIBRARIES = ("torch", "pyro", "pyro_vae")
"""Their functions are known by name: another version is another environment, not setting."""

PLAIN = (bool, int, float, complex, str, bytes, type(None))
HOLDERS = (tuple, list, set, frozenset, dict)

STATE: Mapping[type, frozenset[str]] = {
    ELBO: frozenset({"max_plate_nesting"}),  # which Pyro finds out in the first step
    PyroOptim: frozenset(
        {
            *("optim_objs", "grad_clip", "_state_waiting_to_be_consumed", "_saved", "_names"),
            *("_optimizer", "_params", "_ids", "_learning_rates", "num_data", "rate_factor"),
            *("num_skipped", "skipped_last"),
        }
    ),
    Distribution: frozenset({"_validate_args"}),
    Transform: frozenset({"_cached_x_y", "_inv"}),
}
"""Attributes that a fit changes."""


def described(value: Any) -> str:
    """A setting in words: functions by name, code, defaults and what they close over.

    Tensors and arrays are named by a digest of their numbers; an object that has no words of its
    own by its type and its attributes.

    Example:
        >>> from pyro_vae.optim import cosine, warmup
        >>> described(1e-3), described(cosine) == described(cosine)
        ('0.001', True)
        >>> described(warmup(0.2)) == described(warmup(0.3))
        False
        >>> described(lambda t: t) == described(lambda t: 1 - t)
        False
    """
    return _Words().of(value)


def model_in_words(programs: Any, module: nn.Module) -> str:
    """Model and guide in words: their parts, as ``print`` shows a module, and their constants.

    Constants are the plain attributes of every part, and tensors that are neither parameters nor
    buffers. Those of a model before a fit are compared with those before the fit that is resumed.
    A model that changes them while it runs, to count its calls for one, is thus another model
    when a fit is resumed in the same session: make it anew, or keep what changes in a buffer.

    Args:
        programs: What is fitted.
        module: All of its modules as one.

    Example:
        >>> model_in_words(nn.Identity(), nn.Identity())
        'torch.nn.modules.linear.Identity: Identity()'
    """
    return f"{_name(type(programs))}: {_Words().of_module(module)}"


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


class _Words:
    """Values in words. What is met again on the way to itself is "itself"."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        # With the values, whose identities no other may take meanwhile. Functions that use one
        # another by many ways are described once.
        self._known: dict[int, tuple[Any, str]] = {}

    def of(self, value: Any) -> str:
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name}"
        if isinstance(value, np.generic):
            return self.of(value.item())
        if type(value) in PLAIN:
            return repr(value)
        if id(value) in self._open:
            return "itself"
        if id(value) not in self._known:
            self._open.add(id(value))
            try:
                self._known[id(value)] = value, self._of_new(value)
            finally:
                self._open.remove(id(value))
        return self._known[id(value)][1]

    def of_module(self, module: nn.Module) -> str:
        """A module as printed, and under it the constants of its parts."""
        # What is learned has another value in every run.
        lines = [re.sub(r"\S+ \(learned\)", "(learned)", _without_address(repr(module)))]
        machinery = {*vars(nn.Module()), *vars(PyroModule())}
        # Pyro's name of a model, and what fit finds out about the data.
        machinery |= {"store_name", "columns", "missing"}
        for path, part in module.named_modules():
            held = {name: each for name, each in vars(part).items() if name not in machinery}
            for name, words in self._attributes(part, held).items():
                lines.append(f"{path}.{name} = {words}".removeprefix("."))
        return "\n".join(lines)

    def _of_new(self, value: Any) -> str:
        if isinstance(value, Tensor | np.ndarray):
            return _of_numbers(value)
        if isinstance(value, HOLDERS):
            return self._of_holder(value)
        if isinstance(value, functools.partial):
            parts = [self.of(value.func), *map(self.of, value.args)]
            parts += [f"{name}={self.of(each)}" for name, each in sorted(value.keywords.items())]
            return f"partial({', '.join(parts)})"
        if inspect.ismethod(value):
            return f"{self.of(value.__func__)} of {self.of(value.__self__)}"
        if isinstance(value, FunctionType):
            return self._of_function(value)
        if isinstance(value, type):
            return _name(value)
        if isinstance(value, nn.Module):
            return f"{_name(type(value))}: {self.of_module(value)}"
        return self._of_object(value)

    def _of_holder(self, value: Any) -> str:
        if isinstance(value, dict):
            # Those of one hash seed have another order under another.
            parts = sorted(f"{self.of(key)}: {self.of(each)}" for key, each in value.items())
        else:
            parts = [*map(self.of, value)]
        if isinstance(value, set | frozenset):
            parts.sort()
        kind = "" if type(value) in HOLDERS else _name(type(value))
        left, right = "()" if isinstance(value, tuple) else "[]"
        if isinstance(value, dict | set | frozenset):
            left, right = "{}"
        return f"{kind}{left}{', '.join(parts)}{right}"

    def _of_function(self, function: FunctionType) -> str:
        code = function.__code__
        held = [
            f"{name}={self._of_cell(cell)}"
            for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
        ]
        inside = f"({', '.join(held)})" if held else ""
        unseen = [
            self.of(each) for each in (function.__defaults__, function.__kwdefaults__) if each
        ]
        if not _is_of_a_library(function) or "<lambda>" in function.__qualname__:
            unseen += [self._of_code(code), *self._globals(function)]
        # After what can be read, which tells more of a difference.
        sum_ = f" #{_sum(repr(unseen).encode())}" if unseen else ""
        return f"{function.__module__}.{function.__qualname__}{inside}{sum_}"

    def _of_cell(self, cell: Any) -> str:
        try:
            return self.of(cell.cell_contents)
        except ValueError:
            return "not yet bound"

    def _of_code(self, code: CodeType) -> str:
        """What a code object does, without where it stands."""
        constants = [
            self._of_code(each) if isinstance(each, CodeType) else self.of(each)
            for each in code.co_consts
        ]
        return repr((code.co_code.hex(), constants, code.co_names, code.co_freevars))

    def _globals(self, function: FunctionType) -> list[str]:
        found = []
        for name in sorted(_global_names(function.__code__)):
            each = function.__globals__.get(name)
            if type(each) in PLAIN or isinstance(each, FunctionType):
                found.append(f"{name}={self.of(each)}")
        return found

    def _of_object(self, value: Any) -> str:
        says_itself = any("__repr__" in vars(kind) for kind in type(value).__mro__[:-1])
        if dataclasses.is_dataclass(value):
            held = {
                each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)
            }
            held |= getattr(value, "__dict__", {})
        elif says_itself and not isinstance(value, Distribution | Transform):
            return _without_address(repr(value))  # taken at its word
        elif hasattr(value, "__dict__"):
            held = vars(value)
        else:
            slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
            held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        parts = [f"{name}={each}" for name, each in self._attributes(value, held).items()]
        call = inspect.getattr_static(type(value), "__call__", None)
        if isinstance(call, FunctionType) and not _is_of_a_library(call):
            parts.append(f"called: {self.of(call)}")
        return f"{_name(type(value))}({', '.join(parts)})"

    def _attributes(self, owner: Any, held: Mapping[str, Any]) -> dict[str, str]:
        """Attributes in words, without those that use changes: caches, and the state of a fit."""
        changing = {name for kind in STATE if isinstance(owner, kind) for name in STATE[kind]}
        has_objects = not isinstance(owner, ELBO | nn.Module)  # theirs are their own affair
        words = {}
        for name, value in sorted(held.items()):
            kept = inspect.getattr_static(type(owner), name, None)
            if name in changing or isinstance(kept, lazy_property | functools.cached_property):
                continue
            if _is_plain(value) or (has_objects and not name.startswith("_")):
                words[name] = self.of(value)
        return words


def _is_plain(value: Any, *, depth: int = 20) -> bool:
    """Whether a value says all that there is to it, or is known by a sum."""
    if isinstance(value, HOLDERS):
        each = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(inner, depth=depth - 1) for inner in each)
    known = (*PLAIN, np.generic, np.ndarray, Tensor, torch.dtype, torch.device, enum.Enum, type)
    return isinstance(value, known + (FunctionType, functools.partial, Distribution))


def _of_numbers(value: Tensor | np.ndarray[Any, Any]) -> str:
    kind = f"{tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Tensor):
        if isinstance(value, nn.Parameter) or value.requires_grad:
            return f"learned {kind}"
        if value.is_meta:
            return f"tensor {kind}"
        value = value.detach().cpu()
        dense = value.to_dense() if value.layout != torch.strided else value
        numbers = raw_bytes(dense.resolve_conj().resolve_neg()).numpy().tobytes()
        return f"tensor {kind}, sha256 {_sum(numbers)}"
    numbers = repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
    return f"array {kind}, sha256 {_sum(_without_address(numbers.decode('latin-1')).encode())}"


def _global_names(code: CodeType) -> set[str]:
    names = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    for each in code.co_consts:
        names |= _global_names(each) if isinstance(each, CodeType) else set()
    return names


def _is_of_a_library(function: FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] in LIBRARIES


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [*slots]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def _without_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _where_they_differ(one: str, other: str) -> tuple[str, str]:
    """Two texts around the first sign in which they differ, cut where they are long."""
    start = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    before = max(0, start - SHOWN // 2) if max(len(one), len(other)) > SHOWN else 0
    return _cut(one, before), _cut(other, before)


def _cut(text: str, start: int) -> str:
    left, right = "..." if start else "", "..." if start + SHOWN < len(text) else ""
    room = SHOWN - len(left) - len(right)
    return f"{left}{' '.join(text[start : start + room].split()) or 'nothing'}{right}"
