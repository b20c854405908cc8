"""Undoes what a function does to tensors while its operations are written down."""

import random
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["Unchanged"]


class Unchanged:
    """Puts back, on leaving, tensors that are written to, random states, and modules' attributes.

    Args:
        modules: Modules that the function runs.

    Attributes:
        found: On leaving, what was changed that a graph cannot change, or None.

    Tensors without numbers take the place of those that a function is handed, but an operation
    among tensors from outside alone, as BatchNorm's count of batches, is carried out.

    Example:
        >>> count = torch.zeros(1)
        >>> def function(x):
        ...     return (x + count.add_(1),)
        >>> with Unchanged() as unchanged:
        ...     unchanged.call(function, torch.zeros(1))
        (tensor([1.]),)
        >>> count
        tensor([0.])
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._modules = list(modules)
        self.found: str | None = None

    def __enter__(self) -> Self:
        self._random_state = torch.get_rng_state()
        self._other_states: tuple[Any, Any] = random.getstate(), np.random.get_state()
        self._tables = [
            (module, table, dict(table))
            for module in self._modules
            for table in (vars(module), module._buffers, module._parameters)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        torch.set_rng_state(self._random_state)
        with torch.no_grad():
            for tensor, saved in self._saved.values():
                tensor.data.copy_(saved)
        self._restore_tables()
        self._restore_other_states()

    def _restore_tables(self) -> None:
        for module, table, known in self._tables:
            changed = [name for name in {*table, *known} if table.get(name) is not known.get(name)]
            if changed:
                self.found = (
                    f"{type(module).__name__} sets its attribute {sorted(changed)[0]!r} anew at "
                    "each run"
                )
                table.clear()
                table.update(known)

    def _restore_other_states(self) -> None:
        python, numpy = self._other_states
        drawn: Any = np.random.get_state()
        if random.getstate() == python and drawn[2:] == numpy[2:] and all(drawn[1] == numpy[1]):
            return
        self.found = "random numbers come from Python or numpy, not from torch"
        random.setstate(python)
        np.random.set_state(numpy)

    def call(self, function: Callable[..., Sequence[Tensor]], *tensors: Tensor) -> tuple[Any, ...]:
        """What ``function`` returns, as a tuple, with each tensor saved before it is changed."""
        with _SaveBeforeWriting(self._saved):
            return tuple(function(*tensors))


class _SaveBeforeWriting(TorchDispatchMode):
    def __init__(self, saved: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._saved = saved

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable:
            named = {**dict(enumerate(args)), **(kwargs or {})}
            for place, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._save(named.get(place, named.get(argument.name)))
        return func(*args, **(kwargs or {}))

    def _save(self, value: Any) -> None:
        if isinstance(value, list | tuple):
            for each in value:
                self._save(each)
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return
        if id(value) not in self._saved:
            with _disable_current_modes(), torch.no_grad():
                self._saved[id(value)] = (value, value.detach().clone())
