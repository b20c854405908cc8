"""Modes in which a module runs for a while."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode", "frozen_parts_allowed"]


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


@contextmanager
def frozen_parts_allowed() -> Iterator[None]:
    """Keep Pyro from warning of parameters with ``requires_grad=False``: a choice, no mistake.

    Example:
        >>> import pyro
        >>> with frozen_parts_allowed():
        ...     _ = pyro.module("net", nn.Linear(2, 1).requires_grad_(False))
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*because requires_grad=False")
        yield
