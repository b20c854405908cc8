"""What a graph takes for granted of its programs: parameters, modules, modes and settings."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyro
from torch import Tensor, nn

from .arguments import described

__all__ = ["ProgramState", "modules_of"]

SETTINGS = (bool, int, float, str, type(None))


class ProgramState:
    """Parameters, modules and settings of two programs as they were when a graph was written down.

    A graph is out of date once the parameter store holds another tensor under a name; a parameter
    was moved, cast, frozen or thawed; a module of the programs has got another mode, part,
    parameter, hook, or another number, word or tensor as an attribute; or a function refers to
    another such thing by a name.

    Args:
        params: Name in Pyro's parameter store, and unconstrained tensor.
        programs: Model and guide.
        modules: Modules that ran, besides those that :func:`modules_of` finds.
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
        *,
        modules: Iterable[nn.Module] = (),
        closed_over: Sequence[Tensor] = (),
    ) -> None:
        self.params = dict(params)
        tensors = {id(t): t for t in (*params.values(), *closed_over)}
        self._tensors = [(tensor, described(tensor)) for tensor in tensors.values()]
        found = {id(m): m for m in (*modules_of(*programs), *modules)}
        self.modules = list(found.values())
        tables = [table for module in self.modules for table in _tables(module)]
        self._lengths = [(table, len(table)) for table in tables]
        self._values = [(table, name, value) for table in tables for name, value in table.items()]
        for module in self.modules:
            self._values += _settings(vars(module))
        for names in map(_names, programs):
            self._values += _settings(names)
        self._cells = [cell for program in programs for cell in _cells(program)]

    def is_current(self) -> bool:
        """Whether all is as it was."""
        held = pyro.get_param_store()._params
        return (
            all([held.get(name) is param for name, param in self.params.items()])
            and all([table.get(name) is value for table, name, value in self._values])
            and all([len(table) == length for table, length in self._lengths])
            and all([cell.cell_contents is value for cell, value in self._cells])
            and all([described(tensor) == known for tensor, known in self._tensors])
        )


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
        owner, _ = _unwrapped(program)
        cells = [value for _, value in _cells(program)]
        for thing in _flat((owner, *_names(program).values(), *cells)):
            found |= {id(module): module for module in thing.modules()}
    return list(found.values())


def _unwrapped(program: Any) -> tuple[Any, Any]:
    """The object whose method a program is, or itself; and its function."""
    while not isinstance(program, nn.Module):
        inner = getattr(program, "__wrapped__", None) or getattr(program, "func", None)
        if inner is None:
            break
        program = inner  # a messenger around a program, or a partial of one
    return getattr(program, "__self__", program), getattr(program, "__func__", program)


def _names(program: Any) -> dict[str, Any]:
    """The names that a program looks up, in its module or in its object, as a live table."""
    owner, function = _unwrapped(program)
    if owner is not function and not isinstance(owner, nn.Module):
        table: dict[str, Any] = getattr(owner, "__dict__", {})
        return table
    if inspect.isfunction(function) and not isinstance(owner, nn.Module):
        return _Looked(function.__globals__, inspect.getclosurevars(function).globals)
    return {}


class _Looked(dict[str, Any]):
    """Some names of a larger table, whose values are looked up in that."""

    def __init__(self, table: dict[str, Any], names: Iterable[str]) -> None:
        super().__init__({name: table[name] for name in names})
        self._table = table

    def get(self, name: str, default: Any = None) -> Any:
        return self._table.get(name, default)


def _cells(program: Any) -> list[tuple[Any, Any]]:
    """Variables of enclosing functions, and what they hold."""
    _, function = _unwrapped(program)
    cells = getattr(function, "__closure__", None) or ()
    return [(cell, cell.cell_contents) for cell in cells if _is_filled(cell)]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False


def _flat(things: Iterable[Any]) -> Iterator[nn.Module]:
    for thing in things:
        if isinstance(thing, nn.Module):
            yield thing
        elif isinstance(thing, list | tuple):
            yield from _flat(thing)
        elif isinstance(thing, dict):
            yield from _flat(thing.values())


def _tables(module: nn.Module) -> list[dict[Any, Any]]:
    return [
        module._modules,
        module._parameters,
        module._buffers,
        module._forward_pre_hooks,
        module._forward_hooks,
    ]


def _settings(table: dict[str, Any]) -> list[tuple[dict[str, Any], str, Any]]:
    """Numbers, words and tensors in a table of attributes or names."""
    return [
        (table, name, value)
        for name, value in table.items()
        if isinstance(value, (*SETTINGS, Tensor))
    ]
