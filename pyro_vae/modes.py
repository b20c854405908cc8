"""Evaluation mode of a module, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(module: object) -> Iterator[None]:
    """Put a module into evaluation mode, and each submodule back into its own mode on leaving.

    Anything else than a module passes unchanged: programs need not be one.

    Example:
        >>> net = nn.Sequential(nn.Dropout())
        >>> with evaluation_mode(net):
        ...     net[0].training
        False
        >>> net[0].training
        True
    """
    modes = {m: m.training for m in module.modules()} if isinstance(module, nn.Module) else {}
    try:
        for submodule in modes:
            submodule.training = False
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training
