"""The tensors of model and guide by name: what is trained, and what else networks remember."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.capture import modules_of
from pyro_vae.raw_bytes import same_bits

from .errors import CheckpointError

__all__ = ["as_module", "buffers_kept", "copied_into", "is_copyable", "named_tensors"]


def as_module(programs: Any) -> nn.Module:
    """One module that holds all of model and guide.

    Args:
        programs: A module, or an object whose model and guide use modules: as attributes, as
            variables of enclosing functions, or by global names.

    Example:
        >>> class Programs:
        ...     def __init__(self):
        ...         self.net = nn.Linear(2, 1)
        ...     def model(self, x):
        ...         self.net(x)
        ...     def guide(self, x):
        ...         pass
        >>> [name for name, _ in as_module(Programs()).named_parameters()]
        ['0.weight', '0.bias']
    """
    if isinstance(programs, nn.Module):
        return programs
    found = modules_of(programs.model, programs.guide)
    inner = {id(part) for module in found for part in module.modules() if part is not module}
    return nn.ModuleList(module for module in found if id(module) not in inner)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, also buffers that no ``state_dict`` holds.

    Example:
        >>> list(named_tensors(nn.BatchNorm1d(2)))
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put buffers back on leaving, as after a look at programs that has to leave no trace.

    BatchNorm's averages learn from every run in which no mode holds them.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with buffers_kept([net]):
        ...     _ = net(torch.ones(3, 2))
        >>> net.running_mean
        tensor([0., 0.])
    """
    buffers = dict(nn.ModuleList(modules).named_buffers())
    before = {name: buffer.detach().clone() for name, buffer in buffers.items()}
    try:
        yield
    finally:
        copied_into(buffers, before, "the look")


def copied_into(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Copy saved values into tensors, in place; all of them, or none and an error.

    Args:
        tensors: Name to tensor; each keeps its identity, type and device.
        saved: Name to values.
        what: What to call the file in errors.

    Raises:
        CheckpointError: If names, shapes or kinds differ.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> values = {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}
        >>> copied_into(named_tensors(net), values, "weights")
        >>> net(torch.tensor([3.0])).item()
        3.0
    """
    if tensors.keys() != saved.keys():
        raise CheckpointError(
            f"path must hold this module's weights; {what} lacks "
            f"{sorted(tensors.keys() - saved.keys())} and has "
            f"{sorted(saved.keys() - tensors.keys())} besides."
        )
    wrong = [name for name, tensor in tensors.items() if tensor.shape != saved[name].shape]
    if wrong:
        shapes = [f"{n}: {tuple(saved[n].shape)}, not {tuple(tensors[n].shape)}" for n in wrong]
        raise CheckpointError(f"path must hold weights of this module's shapes; got {shapes}.")
    unlike = [name for name, tensor in tensors.items() if not is_copyable(saved[name], tensor)]
    if unlike:
        kinds = [f"{n}: {saved[n].layout} {saved[n].dtype} on {saved[n].device}" for n in unlike]
        raise CheckpointError(f"path must hold dense numbers of this module's kind; got {kinds}.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            values = saved[name].to(tensor)
            # What is right is not touched: an expanded buffer could not be written to.
            if not same_bits(tensor, values):
                tensor.copy_(values)


def is_copyable(source: Tensor, target: Tensor) -> bool:
    """Whether ``source`` holds numbers that a copy into ``target`` takes over as they are.

    Example:
        >>> is_copyable(torch.zeros(2), torch.zeros(2, dtype=torch.int64))
        False
    """
    both_floating = source.is_floating_point() and target.is_floating_point()
    same_kind = source.dtype == target.dtype or both_floating
    return same_kind and source.layout == torch.strided and not source.is_meta
