"""Adam for :class:`OneTorchOptim`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.arguments import finite_number

__all__ = ["adam"]


def adam(learning_rate: float) -> Callable[[list[Tensor]], Optimizer]:
    """Adam for :class:`OneTorchOptim`, fused where the device has such a kernel.

    Args:
        learning_rate: Step size before any schedule.

    Raises:
        ValueError: If ``learning_rate`` is not positive and finite.

    Example:
        >>> adam(1e-3)([torch.zeros(2, requires_grad=True)]).defaults["lr"]
        0.001
    """
    learning_rate = finite_number(learning_rate, "learning_rate", "positive and finite", above=0)

    def make(params: list[Tensor]) -> Optimizer:
        fused = all(p.device.type in {"cpu", "cuda"} and p.is_floating_point() for p in params)
        return torch.optim.Adam(params, lr=learning_rate, fused=fused)

    return make
