"""Which graph serves which call, and when programs run as ordinary Pyro instead."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyro import poutine
from torch import Tensor

from pyro_vae.rows import PerDatumPart

from .compiler import compiled
from .graph import NotCapturable, capture
from .specification import Arguments, ProgramState, modules_of

__all__ = ["Graph", "GraphTable", "Programs"]

RUNS_BEFORE_A_FURTHER_GRAPH = 20
"""A compilation takes seconds. The first shape of a pair of programs is compiled at its second
run; a further one, as the smaller last batch of an epoch, only once it has come up so often."""


class Programs(NamedTuple):
    """Model and guide, and what a graph of them is for.

    Attributes:
        model: The model.
        guide: The guide.
        purpose: What the graph computes.
        settings: What else it takes for granted.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    purpose: str
    settings: Hashable = ()


class Graph(NamedTuple):
    """A compiled graph.

    Attributes:
        call: Of the arguments' tensors, to what the captured function returns.
        params: The parameters that the programs register, by name, unconstrained.
    """

    call: Callable[..., Sequence[Tensor]]
    params: dict[str, Tensor]


class _Entry:
    def __init__(self) -> None:
        self.runs = 0
        self.state: ProgramState | None = None
        self.graph: Graph | None = None
        self.refused = False


class GraphTable:
    """Graphs of programs, one for each kind of arguments.

    Programs first run as ordinary Pyro, which registers their parameters and checks their sites.
    What cannot be captured goes on so, and that is told once.

    Args:
        backend: See :func:`pyro_vae.capture.compiled`.
        required: Raise instead of warning where there can be no graph.

    Example:
        >>> GraphTable(backend="eager", required=False).num_graphs
        0
    """

    def __init__(self, *, backend: str, required: bool) -> None:
        self.backend, self.required = backend, required
        self._entries: dict[Hashable, _Entry] = {}
        self._compiled_for: set[Hashable] = set()
        self._told = False

    @property
    def num_graphs(self) -> int:
        """Number of graphs that were compiled."""
        return sum(entry.graph is not None for entry in self._entries.values())

    def graph(
        self,
        programs: Programs,
        arguments: Arguments,
        function: Callable[[dict[str, Tensor]], Callable[..., Sequence[Tensor]]],
    ) -> Graph | None:
        """The graph for a call, or None where the programs have to run this time.

        Args:
            programs: Model, guide and purpose.
            arguments: Of the call.
            function: What to capture, given the parameters that the programs register.

        Raises:
            NotCapturable: If there can be no graph and one is required.
        """
        entry = self._entries.get((programs, arguments.key))
        if entry is None or entry.refused or entry.state is None:
            return None
        if not entry.state.is_current():
            del self._entries[programs, arguments.key]
            return None
        if entry.graph is None:
            is_first = programs[:3] not in self._compiled_for
            enough = 1 if is_first else RUNS_BEFORE_A_FURTHER_GRAPH
            if entry.runs < enough:
                return None
            try:
                self._compile(entry, programs, arguments, function)
            except NotCapturable as error:
                self._refuse(entry, error)
        return entry.graph

    @contextmanager
    def watched(self, programs: Programs, arguments: Arguments) -> Iterator[None]:
        """Look at an ordinary run of the programs: which parameters they register."""
        key = (programs, arguments.key)
        entry = self._entries.get(key)
        if entry is not None and entry.state is not None and entry.state.is_current():
            entry.runs += 1
            yield
            return
        with poutine.trace(param_only=True) as found:
            yield
        sites: dict[str, Any] = dict(found.trace.nodes)
        params = {
            name: site["value"].unconstrained()
            for name, site in sites.items()
            if site["type"] == "param"
        }
        entry = self._entries.setdefault(key, _Entry())
        entry.runs += 1
        entry.state = ProgramState(params, programs[:2])

    def _compile(
        self,
        entry: _Entry,
        programs: Programs,
        arguments: Arguments,
        function: Callable[[dict[str, Tensor]], Callable[..., Sequence[Tensor]]],
    ) -> None:
        if any(isinstance(module, PerDatumPart) for module in modules_of(*programs[:2])):
            raise NotCapturable("a guide with parameters for each datum is told its rows anew")
        if any(tensor.requires_grad for tensor in arguments.tensors):
            raise NotCapturable("an argument requires a gradient")
        params = {} if entry.state is None else entry.state.params
        captured = capture(function(params), arguments.tensors)
        run = compiled(captured, arguments.tensors, backend=self.backend)
        tensors = captured.tensors
        entry.state = ProgramState(params, programs[:2], tensors)
        entry.graph = Graph(lambda *args: run(*tensors, *args), params)
        self._compiled_for.add(programs[:3])

    def _refuse(self, entry: _Entry, error: NotCapturable) -> None:
        if self.required:
            raise NotCapturable(
                f"model and guide must be traceable to one graph to be compiled; got {error}. "
                "Leave required=False (in fit: compile=True) to run them as ordinary Pyro."
            ) from error
        entry.refused = True
        if not self._told:
            self._told = True
            warnings.warn(
                f"model and guide are not compiled and run as ordinary Pyro, because {error}.",
                UserWarning,
                stacklevel=6,
            )
