"""Which graph serves which call, and when programs run as ordinary Pyro instead."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.rows import PerDatumPart

from .arguments import Arguments
from .compiler import BACKENDS, compiled
from .graph import NotCapturable, capture
from .program_state import ProgramState

__all__ = ["Graph", "GraphTable", "Programs"]

MOST_GRAPHS = 8
"""Graphs for one pair of programs; other shapes run as ordinary Pyro."""

MOST_KINDS = 64
"""Kinds of arguments that are remembered."""

MOST_CHANGES = 100
"""Changes of programs between their runs, after which that is told."""

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
    What cannot be captured goes on so, and that is told once for each pair of programs.

    Args:
        backend: See :func:`pyro_vae.capture.compiled`.
        required: Raise instead of warning where there can be no graph.

    Raises:
        ValueError: If there is no such backend.

    Example:
        >>> GraphTable(backend="eager", required=False).num_graphs
        0
    """

    def __init__(self, *, backend: str, required: bool) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")
        self.backend, self.required = backend, required
        self._entries: dict[Hashable, _Entry] = {}
        self._compiled_for: set[Hashable] = set()
        self._told: set[Hashable] = set()
        self._changes: dict[Hashable, int] = {}
        self._known_runs: dict[str, int] = {}

    @property
    def runs(self) -> dict[str, int]:
        """How often the programs ran on each kind of arguments before there was a graph for it.

        For :meth:`expect` in another process; -1 where there is a graph.
        """
        found = dict(self._known_runs)
        for key, entry in self._entries.items():
            found[_word(key)] = -1 if entry.graph is not None else entry.runs
        return found

    def expect(self, runs: dict[str, int]) -> None:
        """Compile for each kind of arguments when a table with these :attr:`runs` would.

        What is compiled differs in the last bits from what is not, and a fit that was stopped has
        to go on with the same bits.
        """
        self._known_runs = dict(runs)

    def expects(self, programs: Programs, arguments: Arguments) -> bool:
        """Whether the table whose runs are known has a graph for this call, or would make one."""
        key = _key(programs, arguments)
        if key is None or key in self._entries:
            return False
        runs = self._known_runs.get(_word(key), 0)
        return runs == -1 or runs >= self._enough(programs, key)

    @property
    def num_graphs(self) -> int:
        """Number of graphs that are held."""
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
        key = _key(programs, arguments)
        if key is None:
            self._tell(programs, "an argument or a program cannot be hashed")
            return None
        entry = self._entries.get(key)
        if entry is None or entry.state is None or _stands_inside_handlers():
            return None
        if not entry.state.is_current():
            del self._entries[key]
            self._changes[programs[:3]] = self._changes.get(programs[:3], 0) + 1
            return None
        if entry.refused:
            return None
        if entry.graph is None:
            of_these = [k for k, e in self._entries.items() if e.graph and _same(k, programs)]
            if entry.runs < self._enough(programs, key) or len(of_these) >= MOST_GRAPHS:
                return None
            try:
                self._compile(entry, programs, arguments, function)
            except NotCapturable as error:
                entry.refused = True
                self._tell(programs, str(error), error)
        return entry.graph

    @contextmanager
    def watched(self, programs: Programs, arguments: Arguments) -> Iterator[None]:
        """Look at an ordinary run of the programs: which parameters they register."""
        key = _key(programs, arguments)
        if key is None or _stands_inside_handlers():
            yield
            return
        entry = self._entries.get(key)
        if entry is not None and entry.state is not None and entry.state.is_current():
            entry.runs += 1
            yield
            return
        ran: dict[int, nn.Module] = {}
        hook = register_module_forward_pre_hook(lambda m, _: ran.update({id(m): m}))
        try:
            with poutine.trace(param_only=True) as found:
                yield
        finally:
            hook.remove()
        sites: dict[str, Any] = dict(found.trace.nodes)
        params = {
            name: site["value"].unconstrained()
            for name, site in sites.items()
            if site["type"] == "param"
        }
        self._make_room()
        entry = self._entries.setdefault(key, _Entry())
        if entry.runs == 0 and self._known_runs.get(_word(key), -1) > 0:
            entry.runs = self._known_runs.pop(_word(key))
        entry.runs += 1
        entry.state = ProgramState(params, programs[:2], modules=ran.values())
        reason = None
        if not entry.state.is_current():
            reason = "the parameters are not those in Pyro's parameter store"
        elif any(isinstance(module, PerDatumPart) for module in entry.state.modules):
            reason = "a guide with parameters for each datum is told its rows anew"
        elif self._changes.get(programs[:3], 0) >= MOST_CHANGES:
            reason = "modules, parameters or settings change from run to run"
        if reason is not None:
            entry.refused = True
            self._tell(programs, reason)

    def _enough(self, programs: Programs, key: Any) -> int:
        """Runs on a kind of arguments before there is a graph for it."""
        is_first = programs[:3] not in self._compiled_for and -1 not in self._known_runs.values()
        was_compiled = self._known_runs.get(_word(key)) == -1
        return 1 if is_first or was_compiled else RUNS_BEFORE_A_FURTHER_GRAPH

    def _make_room(self) -> None:
        """Let go of graphs that are out of date, and of the oldest kinds of arguments."""
        current = {k: e for k, e in self._entries.items() if e.state and e.state.is_current()}
        oldest = list(current)[: max(0, len(current) - MOST_KINDS)]
        for key in oldest:
            if current[key].graph is None:
                del current[key]
        self._entries = current

    def _compile(
        self,
        entry: _Entry,
        programs: Programs,
        arguments: Arguments,
        function: Callable[[dict[str, Tensor]], Callable[..., Sequence[Tensor]]],
    ) -> None:
        if entry.state is None:
            return
        params, modules = entry.state.params, entry.state.modules
        if any(tensor.requires_grad for tensor in arguments.tensors):
            raise NotCapturable("an argument requires a gradient")
        captured = capture(function(params), arguments.tensors, modules=modules)
        tensors = captured.tensors
        known = {id(param) for param in params.values()}
        if any(tensor.requires_grad and id(tensor) not in known for tensor in tensors):
            raise NotCapturable(
                "a tensor that requires a gradient is registered by no pyro.module or pyro.param"
            )
        run = compiled(captured, arguments.tensors, backend=self.backend)
        entry.state = ProgramState(params, programs[:2], modules=modules, closed_over=tensors)
        entry.graph = Graph(lambda *args: run(*tensors, *args), params)
        self._compiled_for.add(programs[:3])

    def _tell(self, programs: Programs, reason: str, error: Exception | None = None) -> None:
        if self.required:
            raise NotCapturable(
                f"model and guide must be traceable to one graph to be compiled; got {reason}. "
                "Leave required=False (in fit: compile=True) to run them as ordinary Pyro."
            ) from error
        told = (id(programs.model), id(programs.guide), reason)
        if told not in self._told:
            self._told.add(told)
            warnings.warn(
                f"model and guide are not compiled and run as ordinary Pyro, because {reason}.",
                UserWarning,
                stacklevel=5,
            )


def _key(programs: Programs, arguments: Arguments) -> Hashable | None:
    key = (programs, arguments.key)
    try:
        hash(key)
    except TypeError:
        return None
    return None if arguments.key is None else key


def _word(key: Any) -> str:
    """A kind of arguments as a word that another process finds too: for what, and which shapes."""
    return repr((key[0][2], key[1]))


def _same(key: Any, programs: Programs) -> bool:
    return bool(key[0][:3] == programs[:3])


def _stands_inside_handlers() -> bool:
    """Whether a handler around the call would change what the programs say."""
    return any(not getattr(handler, "param_only", False) for handler in _PYRO_STACK)
