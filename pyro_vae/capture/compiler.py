"""From a captured graph to a function without its Python."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .graph import Captured, NotCapturable

__all__ = ["BACKENDS", "compiled"]

BACKENDS = ("inductor", "cuda_graphs", "eager")

# Inductor's own random numbers would be others than Pyro's for the same seed.
OPTIONS: dict[str, Any] = {"fallback_random": True}


def compiled(
    captured: Captured, args: Sequence[Tensor], *, backend: str = "inductor"
) -> Callable[..., Sequence[Tensor]]:
    """A function of ``(*captured.tensors, *args)`` that does what the graph says.

    Shapes, types, strides and devices are those of the tensors handed over here, and are not
    checked again. Random numbers come from torch's global generators, in the order of the graph,
    so that a seed gives the numbers that it gives without compilation.

    Args:
        captured: The graph.
        args: Tensors like those to come.
        backend: "inductor" for the compiler of ``torch.compile``, which needs a C++ compiler (on
            a GPU, Triton); "cuda_graphs" for the same with its kernels replayed as one CUDA
            graph, which has not been run on a GPU; "eager" for the graph as it is.

    Raises:
        ValueError: If there is no such backend.
        NotCapturable: If the compiler fails, as it does where there is no C++ compiler.

    Example:
        >>> from pyro_vae.capture import capture
        >>> x = torch.tensor([3.0])
        >>> function = compiled(capture(lambda x: (2 * x,), [x]), [x], backend="eager")
        >>> function(x)[0]
        tensor([6.])
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")
    if backend == "eager":
        return captured.graph
    graphs = {"triton.cudagraphs": True} if backend == "cuda_graphs" else {}
    inputs: list[Any] = [*captured.tensors, *args]
    try:
        # The compiler makes tensors of its own, which belong on the CPU whatever the default is.
        # Its own warnings say nothing about the programs.
        with torch.no_grad(), torch.device("cpu"), warnings.catch_warnings(action="ignore"):
            # Without Dynamo in front: a graph needs none, and its guards take as long as a
            # small network.
            return torch._inductor.standalone_compile(
                captured.graph,
                inputs,
                dynamic_shapes="from_example_inputs",
                options={"config_patches": {**OPTIONS, **graphs}},
            )
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise NotCapturable(
            f"backend {backend!r} failed: {type(error).__name__}: {lines[0]}"
        ) from error
