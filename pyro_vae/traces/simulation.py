"""Latent values and data simulated from the model."""

from typing import NamedTuple

from pyro import poutine
from torch import Tensor

from .runs import Programs, store_untouched
from .sites import scored_sites

__all__ = ["Simulation", "simulate"]


class Simulation(NamedTuple):
    """A draw from the joint density p(z) p(x|z) for each of N data.

    Attributes:
        values: The latent sites by name, ``(N, *event_shape)`` each.
        x: The data, ``(N, *event_shape)``.
    """

    values: dict[str, Tensor]
    x: Tensor


def simulate(programs: Programs, like: Tensor) -> Simulation:
    """Run the model with its observed site drawn too.

    Args:
        programs: Model and guide.
        like: Stands in for x: its shape, ``(N, *event_shape)``, type and device are used.

    Raises:
        ValueError: If the model does not have one observed site of the shape of x.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
        >>> simulation = simulate(vae, torch.zeros(5, 3))
        >>> simulation.values["z"].shape, simulation.x.shape
        (torch.Size([5, 2]), torch.Size([5, 3]))
    """
    with store_untouched():
        trace = poutine.trace(poutine.uncondition(programs.model)).get_trace(like)
    values: dict[str, Tensor] = {}
    observed: dict[str, Tensor] = {}
    for name, site in scored_sites(trace):
        (observed if site["infer"].get("was_observed") else values)[name] = site["value"]
    if len(observed) != 1 or next(iter(observed.values())).shape != like.shape:
        shapes = {name: tuple(value.shape) for name, value in observed.items()}
        raise ValueError(
            f"model must have one observed site of the shape of x, {tuple(like.shape)}, for data "
            f"to be simulated from it; got {shapes}."
        )
    return Simulation(values, next(iter(observed.values())))
