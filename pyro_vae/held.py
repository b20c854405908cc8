"""Holding the model fixed while its guide is trained."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.modes import evaluation_mode
from pyro_vae.seeding import seeded
from pyro_vae.traces import Programs

__all__ = ["HeldModel", "registered"]


class HeldModel:
    """The parameters of p(x, z), which no gradient reaches until they are released.

    Which parameters are the model's is asked of the programs: those that ``pyro.module`` registers
    while the model runs. Modules that hold no others are put into evaluation mode, so that
    BatchNorm's averages and dropout leave p(x, z) as it is too.

    Args:
        programs: Model and guide.
        x: Some data to run them on.

    Raises:
        ValueError: If the guide has no parameters, or shares some with the model.
    """

    def __init__(self, programs: Programs, x: Tensor) -> None:
        with evaluation_mode(programs):  # BatchNorm must not learn from this look
            model, guide = registered(programs.model, x), registered(programs.guide, x)
        if not guide:
            raise ValueError(
                "train must be 'all' for a guide without parameters; got 'guide', and nothing to "
                "train."
            )
        shared = sorted(name for key, (name, _) in guide.items() if key in model)
        if shared:
            raise ValueError(
                f"train must be 'all' where model and guide share parameters, as {shared[0]}; got "
                "'guide', which would change the model too. Give the guide parameters of its own: "
                "vae.with_guide(copy.deepcopy(vae.q_z_given_x)), or in programs of your own a "
                "pyro.module for the model's networks and another for the guide's."
            )
        self._held = [param for _, param in model.values()]
        for param in self._held:
            param.requires_grad_(False)  # noqa: FBT003
        for module in programs.modules() if isinstance(programs, nn.Module) else ():
            own = [id(param) for param in module.parameters()]
            if own and model.keys() >= set(own):
                module.eval()
        for name in ("p_z", "p_x_given_z"):  # whose parameters may all be frozen already
            part = getattr(programs, name, None)
            if isinstance(part, nn.Module):
                part.eval()

    def release(self) -> None:
        """Let the parameters be trained again."""
        for param in self._held:
            param.requires_grad_(True)  # noqa: FBT003


def registered(program: Callable[..., Any], x: Tensor) -> dict[int, tuple[str, Tensor]]:
    """Name and tensor of every parameter that a program registers while it runs, by identity.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=1, hidden=())
        >>> [name for name, _ in registered(vae.guide, torch.zeros(2, 3)).values()]
        ['encoder.layers.0.weight', 'encoder.layers.0.bias']
    """
    with torch.no_grad(), seeded(0, "registered parameters", device=x.device):
        trace = poutine.trace(program, param_only=True).get_trace(x)
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            value: Any = site["value"]
            param: Tensor = value.unconstrained()
            found[id(param)] = (name.partition("$$$")[2] or name, param)
    return found
