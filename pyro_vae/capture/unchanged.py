"""Undoes what a function does to tensors while its operations are written down."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = ["Unchanged"]


class Unchanged:
    """Puts tensors that are written to, and the CPU's random state, back on leaving.

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

    def __init__(self) -> None:
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> Self:
        self._random_state = torch.get_rng_state()
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
            for value, argument in zip(args, func._schema.arguments, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._save(value)
        return func(*args, **(kwargs or {}))

    def _save(self, value: Any) -> None:
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return
        if id(value) not in self._saved:
            with _disable_current_modes(), torch.no_grad():
                self._saved[id(value)] = (value, value.detach().clone())
