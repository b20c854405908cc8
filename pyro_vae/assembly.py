"""Checks of the parts that a VAE is put together from."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor, nn

__all__ = ["ROLES", "covers_the_line", "declared", "is_discrete", "is_real", "probe"]


def is_discrete(distribution: dist.TorchDistribution) -> bool:
    """Whether a distribution says that its values are discrete."""
    try:
        return bool(getattr(distribution.support, "is_discrete", False))
    except (AttributeError, NotImplementedError):  # a distribution need not declare its support
        return False


def is_real(distribution: dist.TorchDistribution) -> bool:
    """Whether a distribution says that its values are any real vectors."""
    try:
        support: Any = distribution.support
    except (AttributeError, NotImplementedError):
        return False
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support in {constraints.real, constraints.real_vector}


def covers_the_line(p: dist.TorchDistribution, z: Tensor) -> bool:
    """Whether points far out on both sides lie in the support, where it is declared."""
    try:
        far = torch.stack([z[0] - FAR, z[0] + FAR])
        support: Any = p.support
        return bool(support.check(far).all())
    except (AttributeError, NotImplementedError):
        return True


FAR = 1e5 + 0.25
"""A point that no integer grid holds, and no bounded interval in use."""

ROLES = {"p_z": "prior", "p_x_given_z": "likelihood", "q_z_given_x": "guide"}


def declared(name: str, part: Any) -> nn.Module:
    """A part as it is, if it is a module that declares its event shape."""
    role = ROLES[name]
    if not isinstance(part, nn.Module):
        raise TypeError(f"{role} must be an instance of nn.Module; got {part!r}.")
    if getattr(part, "event_shape", None) is None:
        raise TypeError(
            f"{role} must declare event_shape, the shape of one event of its distribution; got "
            f"{type(part).__name__} without it. "
            "Set self.event_shape = torch.Size([...]) in __init__."
        )
    return part


def probe(role: str, part: nn.Module, *inputs: Tensor) -> dist.TorchDistribution:
    """What a part returns, if it is a distribution; errors name the part."""
    try:
        made: dist.TorchDistribution = part(*inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise ValueError(f"{role} must accept an input of shape {shapes}; got: {error}") from error
    if not (hasattr(made, "log_prob") and hasattr(made, "event_shape")):
        raise TypeError(
            f"{role} must return a distribution; got {type(made).__name__}. A network returns "
            "tensors: wrap it, as likelihoods.Gaussian and guides.AmortizedGuide do."
        )
    return made
