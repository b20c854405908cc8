"""All that a fit needs to go on as if it had never stopped."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError

__all__ = ["TrainingState"]


@dataclass
class TrainingState:
    """A fit between two of its steps.

    Attributes:
        tensors: Parameters and buffers by name.
        epoch: Full epochs that are done.
        batch: Batches of the next epoch that are done.
        sums: Loss of those batches in nats, a sum over data, and their rows, as each process had
            them: two numbers a process.
        optimizer: What :meth:`pyro_vae.optim.OneTorchOptim.state` returned.
        random: Random states of each process, if a part of an epoch is done; otherwise they follow
            from the seed. "cpu", and "cuda" where there is one: ``(processes, bytes)``.
        batches: What the batches have as a state, such as that of a loader's generator.
        num_skipped: Steps left out so far because the gradient was not finite.
        skipped_in_a_row: How many of them were the last ones.
        rows: History so far.
        best: Parameters and buffers of the best epoch, by name.
        best_epoch: Its number, 0 for none.
        best_elbo: Its ELBO.
        graphs: What a compiled fit knows of its batches' shapes.
        seconds: Duration so far.
        is_finished: Whether the fit has come to its end, by itself or by ``patience``.
        stopped_early: Whether ``patience`` or a callback ended it.
        start: Buffers as they were when the fit began, of those that no step has changed.
        settings: What the fit was asked to do, and the data, in words.
        environment: Versions and settings on which the bits of a result depend.

    Example:
        >>> import torch
        >>> state = TrainingState(tensors={"weight": torch.ones(1)}, epoch=3)
        >>> TrainingState.from_dict(state.to_dict(), "state.pt").epoch
        3
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    batch: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    optimizer: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    batches: dict[str, Tensor] = field(default_factory=dict)
    num_skipped: int = 0
    skipped_in_a_row: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_elbo: float = float("-inf")
    graphs: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    is_finished: bool = False
    stopped_early: bool = False
    start: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with tensors on the CPU."""
        return {each.name: _on_cpu(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str) -> "TrainingState":
        """From what :meth:`to_dict` made.

        Args:
            content: It.
            name: What to call it in errors.

        Raises:
            CheckpointError: If a field is missing, or holds what no fit can have written.
        """
        defaults = cls()
        found: dict[str, Any] = {}
        for each in fields(cls):
            usual = getattr(defaults, each.name)
            value = content.get(each.name, _MISSING)
            if not isinstance(value, type(usual)) or not _is_right(each.name, value):
                got = "nothing" if value is _MISSING else f"a wrong {type(value).__name__}"
                raise CheckpointError(
                    f"resume must find a whole state; {name} has {got} as its {each.name}."
                )
            found[each.name] = value
        return cls(**found)


_MISSING = object()

PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)

TENSORS = {"tensors", "best", "start", "random", "batches"}
WORDS = {"settings", "environment"}


def _is_right(name: str, value: Any) -> bool:
    """Whether a value of the right type is one that a fit can have written."""
    if name in TENSORS:
        return all(isinstance(each, Tensor) for each in value.values())
    if name in WORDS:
        return all(isinstance(each, str) for each in value.values())
    if name == "sums":
        return len(value) >= 2 and len(value) % 2 == 0 and _are_numbers(value)
    if name == "rows":
        return all(
            isinstance(row, dict)
            and all(isinstance(v, int | float | str | None) for v in row.values())
            for row in value
        )
    if name == "optimizer":
        of_each = value.get("of_each", {})
        return (
            isinstance(of_each, dict)
            and all(isinstance(each, dict) for each in of_each.values())
            and isinstance(value.get("kind", None if of_each else ""), str)
        )
    return not isinstance(value, int) or value >= 0


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(each, int | float) for each in values)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_on_cpu(each) for each in value)
    if isinstance(value, list | deque):
        return [_on_cpu(each) for each in value]
    if isinstance(value, np.generic):  # which no reader without pickles takes
        return value.item()
    if not isinstance(value, PLAIN):
        raise TypeError(
            "what run_dir keeps (rows of the history, the optimizer's state) must be numbers, "
            f"words and tensors; got a {type(value).__name__}."
        )
    return value
