"""Checks of the parts that a VAE is put together from."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor, nn

__all__ = [
    "ROLES",
    "check_cover",
    "check_shape",
    "check_types",
    "covers_the_line",
    "declared",
    "is_discrete",
    "is_real",
    "probe",
]


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


def check_shape(
    role: str, made: dist.TorchDistribution, *, batch: tuple[int, ...], event: torch.Size
) -> None:
    """Refuse a distribution of another shape than that of its role, made of 2 rows.

    Args:
        role: Which part returned it.
        made: The distribution.
        batch: Its batch shape.
        event: Its declared event shape.
    """
    # A part may ignore its input; the plate then expands its empty batch shape.
    if made.event_shape != event or made.batch_shape not in {torch.Size(()), batch}:
        raise ValueError(
            f"{role} must return a distribution with its declared event shape "
            f"{tuple(event)} and batch shape {batch} for an input of 2 rows; got event "
            f"shape {tuple(made.event_shape)} and batch shape {tuple(made.batch_shape)}. "
            "Does it lack a .to_event(), or has its network another width?"
        )


def check_cover(p_z: dist.TorchDistribution, q: dist.TorchDistribution, z: Tensor) -> None:
    """Refuse a prior without a density where the guide draws.

    Args:
        p_z: The prior's distribution.
        q: The guide's.
        z: Some points, ``(n, *event_shape)``.
    """
    if is_real(q) and not covers_the_line(p_z, z):
        raise ValueError(
            f"prior must have a density wherever the guide draws, on all real vectors; got "
            f"{type(p_z).__name__} with support {p_z.support}. Give the guide a family with "
            "that support, or the prior one on the whole line."
        )


def check_types(parts: nn.Module) -> None:
    """Refuse parts with parameters of different floating types, which no batch could fit.

    Args:
        parts: Has the parts under the names in ``ROLES``.
    """
    found = {}
    for name, role in ROLES.items():
        params = (p.dtype for p in getattr(parts, name).parameters() if p.is_floating_point())
        dtype = next(params, None)
        if dtype is not None:
            found[role] = dtype
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{role} {dtype}" for role, dtype in found.items())
        raise ValueError(
            f"parts must share one floating type; got {shown}. Call .to(dtype) on each."
        )


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
