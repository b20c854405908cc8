"""What the processes that share a fit have to agree on before they start."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vae.batches import Batches
from pyro_vae.optim import Processes

__all__ = ["check_same_call"]

ROWS_EACH = 2
"""Rows of a batch that every process needs at least."""


def check_same_call(processes: Processes, settings: Mapping[str, Any], batches: Batches) -> None:
    """Refuse calls that differ between processes, and batches too small to be shared.

    Args:
        processes: The processes; nothing is checked for one alone.
        settings: Of the fit.
        batches: The data of this process's call.

    Raises:
        ValueError: On every process, if settings or data differ, or a batch has not two rows for
            each process.

    Example:
        >>> check_same_call(Processes(), {"epochs": 3}, [])
    """
    if processes.size == 1:
        return
    x = getattr(batches, "x", None)
    data: list[Any] = [len(batches)]
    num_rows = settings["batch_size"]
    if isinstance(x, Tensor):
        data += [tuple(x.shape), str(x.dtype), float(x.sum())]
        num_rows = min(num_rows, len(x))
    # A function has no word of its own: its address differs.
    said = {k: v for k, v in settings.items() if k != "device" and " at 0x" not in str(v)}
    if not processes.same(repr((said, data))):
        raise ValueError(
            "fit must be called with the same data and settings on every process; got others on "
            f"process {processes.rank} of {processes.size}. Hand all processes all rows, and fit "
            "gives each its part."
        )
    least = ROWS_EACH * processes.size
    if num_rows < least:
        raise ValueError(
            f"batch_size must be at least {least} for {processes.size} processes, and x have as "
            f"many rows; got batches of {num_rows}."
        )
