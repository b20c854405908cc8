"""What a graph takes for granted: arguments, parameters, modules and their modes."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Arguments", "ProgramState", "modules_of"]


class Arguments:
    """The arguments of a call: tensors, and all else, which a graph takes as it is.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Attributes:
        tensors: The tensors among them, in order.
        key: Hashable: equal for calls that one graph can serve.

    Raises:
        TypeError: If an argument that is no tensor cannot be hashed.

    Example:
        >>> one, two = (Arguments((torch.zeros(n, 3), "a"), {}) for n in (5, 5))
        >>> one.key == two.key, one.key == Arguments((torch.zeros(4, 3), "a"), {}).key
        (True, False)
        >>> args, kwargs = one.rebuilt([torch.ones(5, 3)])
        >>> args[1]
        'a'
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
            # As nearly always; the general way takes as long as a small layer.
            self._leaves: list[Any] = [args[0]]
            self._spec: Any = None
            structure: Hashable = None
        else:
            self._leaves, self._spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
            structure = str(self._spec)
        self.tensors = [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]
        self.key: Hashable = (
            structure,
            tuple(_described(leaf) for leaf in self._leaves),
            torch.get_default_dtype(),
        )
        hash(self.key)

    def rebuilt(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with other tensors in place of these."""
        if self._spec is None:
            return (tensors[0],), {}
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs


class ProgramState:
    """Parameters and modules of two programs as they were when a graph was written down.

    A graph is out of date once the parameter store holds another tensor under a name, a parameter
    was moved, cast, frozen or thawed, or a module of the programs has got another mode, part or
    parameter.

    Args:
        params: Name in Pyro's parameter store, and unconstrained tensor.
        programs: Model and guide, whose modules count as :func:`modules_of` finds them.
        closed_over: Other tensors that the graph reads.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> state = ProgramState({}, [net.forward])
        >>> state.is_current()
        True
        >>> _ = net.eval()
        >>> state.is_current()
        False
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        programs: Sequence[Callable[..., Any]],
        closed_over: Sequence[Tensor] = (),
    ) -> None:
        self.params = dict(params)
        tensors = {id(t): t for t in (*params.values(), *closed_over)}
        self._tensors = [(tensor, _described(tensor)) for tensor in tensors.values()]
        self._modules = [(module, _parts_of(module)) for module in modules_of(*programs)]

    def is_current(self) -> bool:
        """Whether all is as it was."""
        held = pyro.get_param_store()._params
        return (
            all(held.get(name) is param for name, param in self.params.items())
            and all(_described(tensor) == known for tensor, known in self._tensors)
            and all(_parts_of(module) == known for module, known in self._modules)
        )


def _described(leaf: Any) -> Hashable:
    if not isinstance(leaf, Tensor):
        return (type(leaf), leaf)
    return (leaf.shape, leaf.dtype, leaf.device, leaf.stride(), leaf.requires_grad)


def modules_of(*programs: Any) -> list[nn.Module]:
    """The modules that programs run: their own object's, and those that a function refers to.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> def program(x):
        ...     return net(x)
        >>> modules_of(program) == modules_of(net.forward) == [net]
        True
    """
    found: dict[int, nn.Module] = {}
    for program in programs:
        for owner in _referred_to(program):
            found |= {id(module): module for module in owner.modules()}
    return list(found.values())


def _referred_to(program: Any) -> list[nn.Module]:
    while not isinstance(program, nn.Module):
        inner = getattr(program, "__wrapped__", None) or getattr(program, "func", None)
        if inner is None:
            break
        program = inner  # a messenger around a program, or a partial of one
    owner = getattr(program, "__self__", program)
    function = getattr(program, "__func__", program)
    objects = [owner]
    if inspect.isfunction(function):
        closure = inspect.getclosurevars(function)
        objects += [*closure.nonlocals.values(), *closure.globals.values()]
    return [thing for thing in objects if isinstance(thing, nn.Module)]


def _parts_of(module: nn.Module) -> Hashable:
    """Mode of a module, and the identities of what it holds."""
    parts = (*module._modules.values(), *module._parameters.values(), *module._buffers.values())
    return (module.training, *map(id, parts))
