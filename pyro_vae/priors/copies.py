"""Copies of whole distributions, tensor by tensor, as Pyro's kind of distribution."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import pyro.distributions.torch as pyro_torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

__all__ = ["copied"]


def copied(
    distribution: Distribution, change: Callable[[Tensor], Tensor]
) -> dist.TorchDistribution:
    """A copy of a distribution in which every tensor is replaced by its change.

    Distributions inside it, transforms and their networks are copied too, whatever was shared is
    shared again, and what transforms remember of their last call is left out. Distributions of
    torch become Pyro's of the same kind, as ``pyro.sample`` needs; closed forms of the KL are
    found for them as before.

    Args:
        distribution: Any distribution of torch or Pyro; it is left as it is.
        change: From a tensor to the tensor in its place.

    Example:
        >>> import torch
        >>> normal = torch.distributions.Normal(torch.tensor(1.0), torch.tensor(2.0))
        >>> copy = copied(normal, torch.Tensor.double)
        >>> type(copy) is dist.Normal, copy.mean
        (True, tensor(1., dtype=torch.float64))
    """
    copy: dist.TorchDistribution = _Copier(change)(distribution)
    return copy


class _Copier:
    """Copies values inside of which there may be tensors; deepcopy refuses those with a graph."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change
        self.made: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if id(value) in self.made:
            return self.made[id(value)]
        made: Any
        if isinstance(value, Tensor):
            made = self.change(value)
        elif isinstance(value, Distribution | Transform | nn.Module):
            return self._copy_object(value)
        elif isinstance(value, dict):
            made = type(value)((key, self(item)) for key, item in value.items())
        elif type(value) in {list, tuple}:
            made = type(value)(self(item) for item in value)
        elif isinstance(value, functools.partial):
            made = functools.partial(self(value.func), *self(value.args), **self(value.keywords))
        elif isinstance(value, MethodType):
            made = MethodType(value.__func__, self(value.__self__))
        else:
            return value
        self.made[id(value)] = made
        return made

    def _copy_object(self, value: Any) -> Any:
        kind: Any = type(value)
        new = object.__new__(_pyro_kind(kind) if isinstance(value, Distribution) else kind)
        self.made[id(value)] = new  # before its parts, which may refer to it
        for name, item in vars(value).items():
            new.__dict__[name] = (None, None) if name == "_cached_x_y" else self(item)
        if isinstance(new, nn.Module):
            new.__dict__["training"] = False  # BatchNorm would take its argument as a batch
        return new


@functools.cache
def _pyro_kind(kind: Any) -> Any:
    """The class itself if it is Pyro's, else one with Pyro's methods added."""
    if issubclass(kind, TorchDistributionMixin):
        return kind
    known = getattr(pyro_torch, kind.__name__, None)
    # One with an __init__ of its own may need attributes that torch's does not have.
    if isinstance(known, type) and kind in known.__bases__ and "__init__" not in vars(known):
        return known
    return type(kind.__name__, (kind, TorchDistributionMixin), {"__module__": kind.__module__})
