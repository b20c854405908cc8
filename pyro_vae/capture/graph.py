"""A function of tensors as one graph of operations, written down while it runs once."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

from .state import now_capturing
from .unchanged import Unchanged

__all__ = ["Captured", "NotCapturable", "capture"]


class NotCapturable(RuntimeError):
    """A program does what no graph can say: it branches on values, or leaves torch.

    Example:
        >>> raise NotCapturable("a branch on a value")
        Traceback (most recent call last):
            ...
        pyro_vae.capture.graph.NotCapturable: a branch on a value
    """


@dataclass(frozen=True)
class Captured:
    """A graph, and the tensors that the function closes over.

    Attributes:
        graph: Takes ``(*tensors, *args)`` and returns a tuple of tensors.
        tensors: Those that the function read without being handed them: parameters, buffers, data
            in a closure. They are read anew, and written where the function writes them, at each
            call.
    """

    graph: GraphModule
    tensors: tuple[Tensor, ...]


def capture(
    function: Callable[..., Sequence[Tensor]],
    args: Sequence[Tensor],
    *,
    modules: Iterable[nn.Module] = (),
) -> Captured:
    """Write down what ``function`` does to tensors of the shapes and types of ``args``.

    It runs once, on tensors without numbers: nothing is computed, no random number is drawn and
    nothing is changed. Python's own decisions are taken as they are now: an ``if`` on a setting, a
    loop's length, a number. One on a tensor's value cannot be.

    Args:
        function: Of tensors, to tensors. It may take gradients.
        args: Tensors like those to come.
        modules: Modules that the function runs; their attributes are put back.

    Raises:
        NotCapturable: If the function branches on values, turns tensors into numbers or arrays,
            sets attributes of the modules, or draws random numbers other than torch's; also if it
            raises anything else.

    Example:
        >>> import torch
        >>> weight = torch.tensor([2.0])
        >>> found = capture(lambda x: (x * weight,), [torch.tensor([3.0])])
        >>> found.tensors[0] is weight
        True
        >>> found.graph(torch.tensor([5.0]), torch.tensor([3.0]))
        (tensor([15.]),)
    """
    validation = Distribution._validate_args
    try:
        # A check of values would be a branch on them. Pyro's context manager alone would put its
        # own setting back in place of torch's.
        with (
            warnings.catch_warnings(action="ignore"),  # the first run has told them
            pyro.validation_enabled(False),  # noqa: FBT003
            now_capturing(),
            (unchanged := Unchanged(modules)),
        ):
            graph = make_fx(
                lambda *tensors: unchanged.call(function, *tensors),
                tracing_mode="fake",
                _allow_non_fake_inputs=True,
            )(*args)
    except Exception as error:
        raise NotCapturable(_reason(error)) from error
    finally:
        Distribution.set_default_validate_args(validation)
    if unchanged.found is not None:
        raise NotCapturable(unchanged.found)
    tensors = _lift(graph)
    return Captured(graph, tensors)


def _lift(graph: GraphModule) -> tuple[Tensor, ...]:
    """Make inputs of the tensors that the graph holds as constants."""
    nodes = graph.graph
    nodes.eliminate_dead_code()
    first: Any = next(iter(nodes.nodes))
    inputs: dict[int, Any] = {}
    tensors: list[Tensor] = []
    for node in list(nodes.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(graph, str(node.target))
        if not isinstance(value, Tensor):
            continue
        if id(value) not in inputs:
            with nodes.inserting_before(first):
                inputs[id(value)] = nodes.placeholder(f"closed_over_{len(tensors)}")
            tensors.append(value)
        node.replace_all_uses_with(inputs[id(value)])
        nodes.erase_node(node)
    nodes.set_codegen(CodeGen())
    nodes.lint()
    graph.recompile()
    return tuple(tensors)


def _reason(error: BaseException) -> str:
    """What to tell of an error, in one line."""
    name = type(error).__name__
    if (
        "DataDependent" in name
        or "UnbackedSymInt" in name
        or "aten._local_scalar_dense" in str(error)
    ):
        return "a branch or a Python number depends on the value of a tensor"
    lines = str(error).strip().splitlines()
    return f"{name}: {lines[0]}" if lines else name
