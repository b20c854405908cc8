"""Pyro's losses as tensors, without the numbers that Pyro takes from them on the way."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.trace_elbo import _compute_log_r
from torch import Tensor
from torch.distributions import kl_divergence

from .plate_objective import PlateObjective

__all__ = ["can_be_tensor", "tensor_loss"]


def can_be_tensor(elbo: ELBO) -> bool:
    """Whether :func:`tensor_loss` knows the objective.

    Example:
        >>> from pyro.infer import TraceEnum_ELBO
        >>> can_be_tensor(Trace_ELBO()), can_be_tensor(TraceEnum_ELBO(max_plate_nesting=1))
        (True, False)
    """
    return type(elbo) in {Trace_ELBO, TraceMeanField_ELBO} or isinstance(elbo, PlateObjective)


def tensor_loss(
    elbo: ELBO, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Tensor, Tensor]:
    """The loss, and a surrogate whose gradient is that of the loss in expectation.

    Values and gradients are those of ``elbo.loss_and_grads`` at the same noise. They differ from
    each other where a latent site is not reparametrized.

    Args:
        elbo: ``Trace_ELBO``, ``TraceMeanField_ELBO``, or an objective of this package.
        model: The model.
        guide: The guide.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.

    Returns:
        Two tensors of shape ``()``, in nats.

    Raises:
        TypeError: If the objective is another one.

    Example:
        >>> import pyro
        >>> from pyro.distributions import Normal
        >>> def model():
        ...     pyro.sample("z", Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", Normal(0.0, 1.0))
        >>> tensor_loss(TraceMeanField_ELBO(), model, guide, (), {})[0].item()
        0.0
    """
    if isinstance(elbo, PlateObjective):
        own = elbo.differentiable_loss(model, guide, *args, **kwargs)
        return own, own
    if not can_be_tensor(elbo):
        raise TypeError(
            "elbo must be a Trace_ELBO, a TraceMeanField_ELBO or an objective of pyro_vae to be "
            f"compiled; got {type(elbo).__name__}."
        )
    one = _mean_field_elbo if isinstance(elbo, TraceMeanField_ELBO) else _trace_elbo
    loss: Any = 0.0
    surrogate: Any = 0.0
    for model_trace, guide_trace in elbo._get_traces(model, guide, args, kwargs):
        value, differentiable = one(model_trace, guide_trace)
        loss = loss - value / elbo.num_particles
        surrogate = surrogate - differentiable / elbo.num_particles
    return _as_tensor(loss), _as_tensor(surrogate)


def _as_tensor(value: Any) -> Tensor:
    """A tensor as it is, wherever the default device is; a number on the CPU."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value), device="cpu")


def _trace_elbo(model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
    elbo, surrogate = 0.0, 0.0
    for site in _sample_sites(model_trace):
        elbo = elbo + site["log_prob_sum"]
        surrogate = surrogate + site["log_prob_sum"]
    log_r = None
    for site in _sample_sites(guide_trace):
        _, score_function, entropy_term = site["score_parts"]
        elbo = elbo - site["log_prob_sum"]
        if not is_identically_zero(entropy_term):
            surrogate = surrogate - entropy_term.sum()
        if not is_identically_zero(score_function):
            log_r = _compute_log_r(model_trace, guide_trace) if log_r is None else log_r
            weight = log_r.sum_to(site["cond_indep_stack"])
            surrogate = surrogate + (weight * score_function).sum()
    return elbo, surrogate


def _mean_field_elbo(model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
    elbo: Any = 0.0
    for site in _sample_sites(model_trace):
        if site["is_observed"]:
            elbo = elbo + site["log_prob_sum"]
            continue
        drawn = guide_trace.nodes[site["name"]]
        try:
            kl = kl_divergence(drawn["fn"], site["fn"])
        except NotImplementedError:
            elbo = elbo + site["log_prob_sum"] - drawn["score_parts"].entropy_term.sum()
        else:
            elbo = elbo - scale_and_mask(kl, scale=drawn["scale"], mask=drawn["mask"]).sum()
    for site in _sample_sites(guide_trace):
        if site["name"] not in model_trace.nodes:  # an auxiliary site
            elbo = elbo - site["score_parts"].entropy_term.sum()
    return elbo, elbo


def _sample_sites(trace: Any) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]
