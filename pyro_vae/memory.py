"""What to do where a step finds too little memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["memory_explained"]


@contextmanager
def memory_explained(batch_size: int, device: torch.device) -> Iterator[None]:
    """Say what to do where a step finds too little memory.

    Args:
        batch_size: Rows of a step.
        device: Where it ran.

    Raises:
        torch.OutOfMemoryError: In place of the allocator's own error.

    Example:
        >>> with memory_explained(128, torch.device("cpu")):
        ...     raise MemoryError
        Traceback (most recent call last):
        torch.OutOfMemoryError: batch_size must be small enough for the memory of cpu; got 128. Try
        batch_size=64. The parameters are those after the last step that was finished.
        (MemoryError)
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_memory and "can't allocate memory" not in str(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise torch.OutOfMemoryError(
            f"batch_size must be small enough for the memory of {device}; got {batch_size}. Try "
            f"batch_size={max(1, batch_size // 2)}. The parameters are those after the last step "
            f"that was finished. ({reason})"
        ) from error
