"""What of programs shows only when they run: their sites, and the parameters they register."""

import warnings
from typing import Any

import pyro
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_vae.modes import evaluation_mode
from pyro_vae.optim import OneTorchOptim
from pyro_vae.seeding import seeded
from pyro_vae.traces import Programs, log_densities

__all__ = ["check_registration", "check_sites"]


def check_sites(vae: Programs, x: Tensor, objective: Any) -> None:
    """Refuse before the first step what could not be reported after the last."""
    with evaluation_mode(vae), torch.no_grad(), seeded(0, "sites", device=x.device):
        summed_out = log_densities(vae, x, num_samples=1).summed_out
    if summed_out and not isinstance(objective, TraceEnum_ELBO):
        raise ValueError(
            f"elbo must be TraceEnum_ELBO(max_plate_nesting=1) for a model whose sites "
            f"{list(summed_out)} are summed out; got {type(objective).__name__}, which would draw "
            "them from their prior."
        )


def check_registration(vae: Programs, optim: OneTorchOptim) -> None:
    """Make sure that what SVI steps is what the user holds."""
    if not optim.params:
        raise ValueError(
            "vae must register its parameters with Pyro; got programs without any pyro.module. "
            "SVI would run and train nothing: write pyro.module('name', self) in model and guide."
        )
    store = pyro.get_param_store()
    names = {id(store._params[name]): name for name in store}
    named = vae.named_parameters() if isinstance(vae, nn.Module) else ()
    owned = {id(param): name for name, param in named if param.requires_grad}
    lost = [name for key, name in names.items() if key not in owned and "$$$" not in name]
    if lost:
        raise ValueError(
            f"vae must hold its parameters in modules; got pyro.param sites {lost}, which would "
            "be lost with the parameter store that fit opens. Make each an nn.Parameter of a "
            "module that pyro.module registers."
        )
    idle = [name for key, name in owned.items() if key not in names]
    if idle:
        warnings.warn(
            f"{len(idle)} parameter(s) of vae are not trained, because no pyro.module registers "
            f"them, or because they are not contiguous in memory: {', '.join(idle[:5])}"
            f"{', ...' if len(idle) > 5 else ''}.",
            UserWarning,
            stacklevel=2,
        )
