"""SVI whose whole step is one graph."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyro_vae.capture import Arguments, Programs, Unchanged, modules_of
from pyro_vae.checkpoint import buffers_kept
from pyro_vae.objectives import Compiled_ELBO
from pyro_vae.objectives.compiled import loss_and_gradients, trainable
from pyro_vae.optim import GraphAdam, OneTorchOptim
from pyro_vae.seeding import seeded

__all__ = ["CompiledSVI"]


class CompiledSVI(SVI):
    """Pyro's SVI, with the loss, its gradient and Adam's update compiled to one graph.

    :class:`~pyro_vae.objectives.CompiledTrace_ELBO` in a literal ``SVI`` compiles the loss and its
    gradient. Here the update is part of the graph too, so a step is one call, and gradients never
    become tensors that Python sees. The first two steps are ordinary ones of ``pyro.infer.SVI``;
    so is every step of programs that cannot be compiled. With another optimizer than a plain
    ``torch.optim.Adam`` loss and gradient alone are compiled.

    Args:
        model: The model.
        guide: The guide.
        optim: Holds all parameters; its ``num_data`` and ``rate_factor`` are read at each step.
        loss: What is maximized, and how programs are compiled.

    Example:
        >>> import pyro_vae as pv
        >>> from pyro_vae.objectives import CompiledTrace_ELBO
        >>> vae, x = pv.gaussian_vae(features=3, latent_dim=1), torch.zeros(5, 3)
        >>> optim = OneTorchOptim(pv.optim.adam(1e-3))
        >>> svi = CompiledSVI(vae.model, vae.guide, optim, CompiledTrace_ELBO(backend="eager"))
        >>> losses = [svi.step(x) for _ in range(4)]
        >>> svi.num_graphs
        1
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: OneTorchOptim,
        loss: Compiled_ELBO,
    ) -> None:
        super().__init__(model, guide, optim, loss=loss)
        self._objective = loss
        self._one_optim = optim
        # What runs where there is no graph yet: Pyro's own step, and its own objective.
        self._ordinary = SVI(model, guide, optim, loss=loss.elbo)
        self._adam: GraphAdam | None = None
        self._goes_on = False

    @property
    def graphs(self) -> dict[str, int]:
        """What :meth:`go_on` needs to know, so that another process takes the same steps."""
        return self._objective.graphs.runs

    def go_on(self, graphs: dict[str, int]) -> None:
        """Take the steps that an SVI would take after those that it has taken.

        A compiled step differs from an ordinary one in the last bits, so the first step here is a
        compiled one where the next step there would be.

        Args:
            graphs: What :attr:`graphs` was there.
        """
        self._objective.graphs.expect(graphs)
        self._goes_on = bool(graphs)

    @property
    def num_graphs(self) -> int:
        """Number of graphs compiled so far."""
        return self._objective.num_graphs

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take a gradient step; return the loss in nats, a sum over the data."""
        status = self.launch(*args, **kwargs)
        return status if isinstance(status, float) else self.read(status)

    def launch(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Take a step without waiting for it.

        Returns:
            What :meth:`read` turns into the loss, or the loss if the step was an ordinary one. On
            a GPU, reading several at once spares the wait at each step.
        """
        optim = self._one_optim
        arguments = Arguments(args, kwargs)
        if self._goes_on:
            self._prepare_to_go_on(arguments)
        if not GraphAdam.exists(optim):
            self._adam = None
            return float(super().step(*args, **kwargs))
        if self._adam is None:
            self._adam = GraphAdam(optim)
        adam = self._adam
        programs = Programs(self.model, self.guide, "step", adam.key)

        def function(params: dict[str, Tensor]) -> Callable[..., Sequence[Tensor]]:
            def whole_step(*tensors: Tensor) -> Sequence[Tensor]:
                some = trainable(params)
                loss, gradients = loss_and_gradients(
                    self._objective.elbo, programs, arguments.rebuilt(tensors), some
                )
                with torch.no_grad():
                    norm = adam.update(some, gradients)
                    return (torch.stack([loss.double(), norm.double()]),)

            return whole_step

        graphs = self._objective.graphs
        graph = graphs.graph(programs, arguments, function)
        if graph is None:
            with graphs.watched(programs, arguments):
                loss = float(self._ordinary.step(*args, **kwargs))
            adam.refresh()
            return loss
        adam.prepare()
        with torch.no_grad():
            return graph.call(*arguments.tensors)[0]

    def _prepare_to_go_on(self, arguments: Arguments) -> None:
        """Let the programs register their parameters, where ordinary steps would have done so."""
        optim, graphs = self._one_optim, self._objective.graphs
        if not optim.params:
            optim.register(self._rehearsed(arguments))
        programs = Programs(self.model, self.guide, "gradient")
        if GraphAdam.exists(optim):
            if self._adam is None:
                self._adam = GraphAdam(optim)
            programs = Programs(self.model, self.guide, "step", self._adam.key)
        if graphs.expects(programs, arguments):
            with graphs.watched(programs, arguments):
                self._rehearsed(arguments)

    def _rehearsed(self, arguments: Arguments) -> list[Tensor]:
        """Run model and guide, put back what that changes, and return their parameters."""
        args, kwargs = arguments.rebuilt(arguments.tensors)
        device = arguments.tensors[0].device if arguments.tensors else "cpu"

        def run() -> Sequence[Tensor]:
            with torch.no_grad():
                self._objective.elbo.loss(self.model, self.guide, *args, **kwargs)
            return ()

        modules = modules_of(self.model, self.guide)
        with (
            seeded(0, "rehearsal", device=device),
            buffers_kept(modules),  # torch does not say that BatchNorm writes to its averages
            Unchanged(modules) as unchanged,
            poutine.trace(param_only=True) as found,
        ):
            unchanged.call(run)
        sites: dict[str, Any] = dict(found.trace.nodes)
        params = [s["value"].unconstrained() for s in sites.values() if s["type"] == "param"]
        return list({id(param): param for param in params}.values())

    def read(self, status: Tensor) -> float:
        """The loss of a launched step, and note with the optimizer whether it was skipped."""
        loss, norm = status.tolist()
        self._one_optim.skipped_last = not math.isfinite(norm)
        self._one_optim.num_skipped += self._one_optim.skipped_last
        if math.isnan(loss):  # as Pyro's own objectives do
            warnings.warn("Encountered NaN: loss", UserWarning, stacklevel=3)
        return float(loss)
