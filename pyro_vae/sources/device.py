"""Where programs live, and in which type they compute."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["floating_type", "normalizes_over_the_batch", "resolve_device"]


def resolve_device(programs: Any, device: torch.device | str) -> torch.device:
    """The device to train on.

    "auto" is the module's own device if it is not the CPU, else a GPU where there is one.

    Raises:
        ValueError: If torch knows no such device.
        RuntimeError: If a GPU is asked for and there is none.
    """
    if device == "auto":
        reference = _reference(programs)
        if reference is not None and reference.device.type != "cpu":
            return reference.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"device must be 'auto', 'cpu', 'cuda' or another that torch knows; got {device!r}."
        ) from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"device must be available; got {device!r}, and torch finds no GPU. "
            "Pass device='cpu' or device='auto'."
        )
    return resolved


def _reference(programs: Any) -> Tensor | None:
    if not isinstance(programs, nn.Module):
        return None
    tensors = [*programs.parameters(), *programs.buffers()]
    return next((t for t in tensors if t.is_floating_point()), None)


def floating_type(programs: Any) -> torch.dtype:
    """Type of the first floating parameter or buffer; torch's default where there is none.

    Example:
        >>> floating_type(nn.Linear(2, 1).double())
        torch.float64
    """
    reference = _reference(programs)
    return torch.get_default_dtype() if reference is None else reference.dtype


def normalizes_over_the_batch(programs: Any) -> bool:
    """Whether some part is a BatchNorm.

    Example:
        >>> normalizes_over_the_batch(nn.Linear(2, 1))
        False
    """
    norms = nn.modules.batchnorm._BatchNorm
    return isinstance(programs, nn.Module) and any(
        isinstance(m, norms) for m in programs.modules()
    )
