"""Base of the objectives that Pyro lacks: per datum first, and the plate's scale last."""

import abc
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from torch import Tensor

from .plate import latent_sites

__all__ = ["PlateObjective", "as_number"]

Program = Callable[..., Any]


class PlateObjective(ELBO, abc.ABC):
    """An objective of programs with reparametrized latent sites in one data plate.

    Subclasses write ``differentiable_loss``; the rest of what ``pyro.infer.SVI`` and
    ``ELBO.__call__`` ask for follows from it.
    """

    @abc.abstractmethod
    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the objective, a sum over the plate times its scale, with its gradient."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the objective, a sum over the plate times its scale, in nats."""
        with torch.no_grad():
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        return as_number(loss)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The same, with the gradient added to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return as_number(loss)

    def _drawn(self, guide: Program, args: Any, kwargs: Any) -> poutine.Trace:
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        for name, site in latent_sites(trace).items():
            if not getattr(site["fn"], "has_rsample", False):
                raise ValueError(
                    f"site {name!r} must be reparametrized for {type(self).__name__}; got "
                    f"{type(site['fn']).__name__}. Use pyro.infer.TraceEnum_ELBO for a discrete "
                    "site, and Trace_ELBO for any other."
                )
        return trace

    def _replayed(
        self, model: Program, guide_trace: poutine.Trace, args: Any, kwargs: Any
    ) -> poutine.Trace:
        return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)

    def _get_trace(
        self, model: Program, guide: Program, args: Any, kwargs: Any
    ) -> tuple[poutine.Trace, poutine.Trace]:
        guide_trace = self._drawn(guide, args, kwargs)
        return self._replayed(model, guide_trace, args, kwargs), guide_trace


def as_number(loss: Tensor) -> float:
    """The number that a loss holds; NaN is warned of, as Pyro's own objectives do.

    Example:
        >>> as_number(torch.tensor(1.5))
        1.5
    """
    value = loss.item()
    if math.isnan(value):
        warnings.warn("Encountered NaN: loss", UserWarning, stacklevel=3)
    return value
