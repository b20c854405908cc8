"""How many parameters two programs have."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .runs import Programs, store_untouched

__all__ = ["num_parameters"]


def num_parameters(programs: Programs, x: Tensor) -> int:
    """Number of real parameters that model and guide register while they run, each once.

    Args:
        programs: Model and guide.
        x: Some data to run them on.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())  # f: 9, g and h: 16, c: 1
        >>> num_parameters(vae, torch.zeros(5, 3))
        26
    """
    guide = _registered(programs.guide, x)
    return sum((_registered(programs.model, x) | guide).values())


def _registered(program: Callable[..., Any], x: Tensor) -> dict[str, int]:
    with torch.no_grad(), store_untouched():
        trace = poutine.trace(program, param_only=True).get_trace(x)
    sites: dict[str, Any] = dict(trace.nodes)
    return {name: site["value"].numel() for name, site in sites.items() if site["type"] == "param"}
