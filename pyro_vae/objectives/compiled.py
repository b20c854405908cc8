"""Pyro's ELBOs with the programs compiled: traced once, and run without Pyro from then on."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_vae.capture import Arguments, Graph, GraphTable, Programs

from .importance_weighted import ImportanceWeighted_ELBO
from .plate_objective import Program, as_number
from .tensor_loss import can_be_tensor, tensor_loss

__all__ = [
    "CompiledImportanceWeighted_ELBO",
    "CompiledTraceMeanField_ELBO",
    "CompiledTrace_ELBO",
    "Compiled_ELBO",
]


class Compiled_ELBO(ELBO):  # Pyro's objectives are named so
    """Another objective, with the programs traced once to one graph and compiled.

    ``pyro.infer.SVI(model, guide, optim, Compiled_ELBO(Trace_ELBO()))`` is literal SVI: model and
    guide are as they were, and values and gradients those of the other objective at the same
    noise, up to rounding, since both draw from torch's global generators in the same order. What
    Pyro does in Python at each step, its traces, sites, plates and checks, is done once.

    The first run is an ordinary one, with Pyro's and torch's checks. At the second the programs
    are traced without numbers (``torch.fx``'s ``make_fx``), together with the gradient of the
    loss, and compiled (Inductor, the compiler of ``torch.compile``), which takes from 5 to 20
    seconds. Tensors are read anew at each step: parameters, buffers, data that a program closes
    over. Python's values are read once. Noticed are a new batch shape or type, a parameter that is
    frozen, cast or replaced, and for every module that runs its mode, its parts, its hooks and the
    numbers, words and tensors among its attributes; likewise those that a program looks up by
    name. The programs are then run and traced again: for a further shape after 20 runs, so that
    the smaller last batch of an epoch costs no compilation, and for 8 shapes at most. What is not
    noticed is a change inside a list or a dictionary, or behind another function: make a new
    objective after it.

    Programs that branch on the values of tensors, set attributes of their modules, draw random
    numbers other than torch's, or have parameters for each datum run as ordinary Pyro; so does
    everything where there is no C++ compiler. One warning tells the reason. Within Pyro's
    handlers, as ``with poutine.scale(...)``, programs run as ordinary Pyro too. Discrete sites
    that ``TraceEnum_ELBO`` sums out cannot be compiled.

    Args:
        elbo: ``Trace_ELBO``, ``TraceMeanField_ELBO``, or an objective of :mod:`pyro_vae`.
        required: Raise instead of warning where the programs cannot be compiled.
        backend: "inductor"; "eager" runs the graph uncompiled; "cuda_graphs" replays a GPU's
            kernels as one CUDA graph and has not been run where this was written.

    Attributes:
        elbo: The other objective.
        num_graphs: Number of graphs compiled so far.

    Raises:
        TypeError: If ``elbo`` is an objective that cannot be compiled.
        NotCapturable: On use, if ``required`` and there can be no graph.

    Example:
        >>> import pyro_vae as pv
        >>> vae, x = pv.gaussian_vae(features=3, latent_dim=1), torch.zeros(5, 3)
        >>> compiled, stock = Compiled_ELBO(Trace_ELBO(), backend="eager"), Trace_ELBO()
        >>> _ = compiled.loss(vae.model, vae.guide, x)
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     one = compiled.loss(vae.model, vae.guide, x)
        ...     _ = torch.manual_seed(0)
        ...     two = stock.loss(vae.model, vae.guide, x)
        >>> compiled.num_graphs, math.isclose(one, two, rel_tol=1e-5)
        (1, True)
    """

    def __init__(self, elbo: ELBO, *, required: bool = False, backend: str = "inductor") -> None:
        if not can_be_tensor(elbo):
            raise TypeError(
                "elbo must be a Trace_ELBO, a TraceMeanField_ELBO or an objective of pyro_vae to "
                f"be compiled; got {elbo!r}. Discrete sites that are summed out run as ordinary "
                "Pyro alone."
            )
        super().__init__(
            num_particles=elbo.num_particles,
            max_plate_nesting=elbo.max_plate_nesting,
            vectorize_particles=elbo.vectorize_particles,
        )
        self.elbo: Any = elbo
        self.graphs = GraphTable(backend=backend, required=required)

    @property
    def num_graphs(self) -> int:
        """Number of graphs compiled so far."""
        return self.graphs.num_graphs

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss, in nats, without gradient."""

        def function(params: dict[str, Tensor]) -> Callable[..., Sequence[Tensor]]:
            def value(*tensors: Tensor) -> Sequence[Tensor]:
                rebuilt = arguments.rebuilt(tensors)
                with torch.no_grad():
                    return (tensor_loss(self.elbo, model, guide, *rebuilt)[0],)

            return value

        programs = Programs(model, guide, "loss")
        arguments = Arguments(args, kwargs)
        graph = self.graphs.graph(programs, arguments, function)
        if graph is None:
            with self.graphs.watched(programs, arguments):
                return float(self.elbo.loss(model, guide, *args, **kwargs))
        with torch.no_grad():
            return as_number(graph.call(*arguments.tensors)[0])

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss, in nats, and its gradient added to the parameters."""
        programs = Programs(model, guide, "gradient")
        arguments = Arguments(args, kwargs)
        graph = self._gradient_graph(programs, arguments)
        if graph is None:
            with self.graphs.watched(programs, arguments):
                return float(self.elbo.loss_and_grads(model, guide, *args, **kwargs))
        with torch.no_grad():
            loss, *grads = graph.call(*arguments.tensors)
            for param, grad in zip(trainable(graph.params), grads, strict=True):
                # Size 0 stands for a parameter that the loss does not depend on.
                if grad.shape == param.shape:
                    param.grad = grad if param.grad is None else param.grad + grad
        if am_i_wrapped():
            for name in graph.params:  # SVI asks the programs for their parameters
                pyro.param(name)
        return as_number(loss)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss as a tensor with its gradient in the parameters (of first order alone)."""
        programs = Programs(model, guide, "gradient")
        arguments = Arguments(args, kwargs)
        graph = self._gradient_graph(programs, arguments)
        if graph is None:
            with self.graphs.watched(programs, arguments):
                loss: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
            return loss
        params = trainable(graph.params)
        with torch.no_grad():
            value, *grads = graph.call(*arguments.tensors)
        return _WithGradients.apply(value, grads, *params)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(model, guide, args, kwargs)

    def _gradient_graph(self, programs: Programs, arguments: Arguments) -> Graph | None:
        def function(params: dict[str, Tensor]) -> Callable[..., Sequence[Tensor]]:
            def value_and_gradients(*tensors: Tensor) -> Sequence[Tensor]:
                loss, gradients = loss_and_gradients(
                    self.elbo, programs, arguments.rebuilt(tensors), trainable(params)
                )
                return loss, *(loss.new_empty(0) if g is None else g for g in gradients)

            return value_and_gradients

        return self.graphs.graph(programs, arguments, function)


class CompiledTrace_ELBO(Compiled_ELBO):
    """``pyro.infer.Trace_ELBO``, compiled; see :class:`Compiled_ELBO`.

    Args:
        num_particles: Number of draws from the guide.
        vectorize_particles: Draw them in a plate of their own.
        max_plate_nesting: Of the programs, where draws are vectorized; found out unless given.
        required: Raise instead of warning where the programs cannot be compiled.
        backend: See :class:`Compiled_ELBO`.

    Example:
        >>> import pyro_vae as pv
        >>> vae, x = pv.gaussian_vae(features=3, latent_dim=1), torch.zeros(5, 3)
        >>> optim = pyro.optim.Adam({"lr": 1e-3})
        >>> elbo = CompiledTrace_ELBO(backend="eager")
        >>> svi = pyro.infer.SVI(vae.model, vae.guide, optim, elbo)
        >>> losses = [svi.step(x) for _ in range(3)]
        >>> elbo.num_graphs
        1
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        vectorize_particles: bool = False,
        max_plate_nesting: float = math.inf,
        required: bool = False,
        backend: str = "inductor",
    ) -> None:
        elbo = Trace_ELBO(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        super().__init__(elbo, required=required, backend=backend)


class CompiledTraceMeanField_ELBO(Compiled_ELBO):
    """``pyro.infer.TraceMeanField_ELBO``, compiled; see :class:`Compiled_ELBO`.

    (Pyro's own ``JitTraceMeanField_ELBO`` traces anew at each step.)

    Args:
        num_particles: Number of draws from the guide.
        required: Raise instead of warning where the programs cannot be compiled.
        backend: See :class:`Compiled_ELBO`.

    Example:
        >>> CompiledTraceMeanField_ELBO(2).elbo.num_particles
        2
    """

    def __init__(
        self, num_particles: int = 1, *, required: bool = False, backend: str = "inductor"
    ) -> None:
        elbo = TraceMeanField_ELBO(num_particles=num_particles)
        super().__init__(elbo, required=required, backend=backend)


class CompiledImportanceWeighted_ELBO(Compiled_ELBO):
    """:class:`ImportanceWeighted_ELBO`, compiled; see :class:`Compiled_ELBO`.

    The draws are laid out one after the other in the graph: compilation takes as many times as
    long as there are draws.

    Args:
        num_particles: Number of draws for each datum.
        gradient: Estimator of the gradient; see :class:`ImportanceWeighted_ELBO`.
        required: Raise instead of warning where the programs cannot be compiled.
        backend: See :class:`Compiled_ELBO`.

    Example:
        >>> CompiledImportanceWeighted_ELBO(5, gradient="dreg").elbo.gradient
        'doubly_reparametrized'
    """

    def __init__(
        self,
        num_particles: int,
        *,
        gradient: str = "plain",
        required: bool = False,
        backend: str = "inductor",
    ) -> None:
        elbo = ImportanceWeighted_ELBO(num_particles, gradient=gradient)
        super().__init__(elbo, required=required, backend=backend)


def trainable(params: dict[str, Tensor]) -> list[Tensor]:
    """The parameters that take a gradient, each once, in the order of their names.

    Two parts that share a parameter register it under two names.

    Example:
        >>> trainable({"b": torch.zeros(1, requires_grad=True), "a": torch.ones(1)})
        [tensor([0.], requires_grad=True)]
    """
    found = {id(params[name]): params[name] for name in sorted(params)}
    return [param for param in found.values() if param.requires_grad]


def loss_and_gradients(
    elbo: ELBO, programs: Programs, arguments: tuple[Any, Any], params: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss, and its gradient in each parameter or None where there is none.

    Example:
        >>> from pyro.distributions import Normal
        >>> weight = torch.tensor([3.0], requires_grad=True)
        >>> def model(x):
        ...     with pyro.plate("data", 1):
        ...         pyro.sample("x", Normal(weight, 1.0), obs=x)
        >>> programs = Programs(model, lambda x: None, "gradient")
        >>> loss_and_gradients(Trace_ELBO(), programs, ((torch.tensor([1.0]),), {}), [weight])[1]
        (tensor([2.]),)
    """
    with torch.enable_grad():
        loss, surrogate = tensor_loss(elbo, programs.model, programs.guide, *arguments)
        if not surrogate.requires_grad:
            return loss.detach(), [None] * len(params)
        gradients = torch.autograd.grad(surrogate, params, allow_unused=True)
    return loss.detach(), gradients


class _WithGradients(torch.autograd.Function):
    """A value, with gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: Sequence[Tensor], *params: Tensor) -> Tensor:
        ctx.gradients = [
            grad if grad.shape == param.shape else None
            for grad, param in zip(grads, params, strict=True)
        ]
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, *(g if g is None else outer[0] * g for g in ctx.gradients)
