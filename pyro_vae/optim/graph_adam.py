"""Adam's update as operations that can be part of a graph."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .distributed import DistributedOptim
from .one_torch import OneTorchOptim

__all__ = ["GraphAdam"]

PLAIN = {"weight_decay": 0, "amsgrad": False, "maximize": False, "differentiable": False}


class GraphAdam:
    r"""The update that :class:`OneTorchOptim` makes with ``torch.optim.Adam``, as tensor code.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
              v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
              \theta \leftarrow \theta - \frac{\alpha\, m / (1 - \beta_1^t)}
              {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with :math:`g` the gradient of a sum over data divided by ``optim.num_data``, and by more where
    ``optim.clip_norm`` asks it. Where the norm of g is not finite nothing changes. Moments and
    counts of steps are those in the torch optimizer's own state, so ordinary and compiled steps
    may alternate, and a saved state serves both.

    Args:
        optim: The optimizer, which has taken a step.

    Attributes:
        key: What a graph of :meth:`update` takes for granted; hashable.

    Raises:
        ValueError: If there is no such update for it; see :meth:`exists`.

    Example:
        >>> from pyro_vae.optim import adam
        >>> weight = torch.tensor([1.0], requires_grad=True)
        >>> optim = OneTorchOptim(adam(0.1))
        >>> GraphAdam.exists(optim)
        False

    References:
        Kingma and Ba (2015), Adam, algorithm 1. https://arxiv.org/abs/1412.6980
    """

    def __init__(self, optim: OneTorchOptim) -> None:
        if not self.exists(optim):
            raise ValueError(
                "optim must hold a plain torch.optim.Adam that has taken a step; got "
                f"{optim._optimizer!r}."
            )
        self._optim = optim
        reference = optim.params[0]
        # In double precision: 1 - 0.999 has four digits in single.
        self._rate, self._bias, self._root_bias = (
            torch.zeros((), dtype=torch.float64, device=reference.device) for _ in range(3)
        )
        self.refresh()

    @staticmethod
    def exists(optim: OneTorchOptim) -> bool:
        """Whether the optimizer is a plain Adam whose parameters are all at the same step."""
        optimizer = optim._optimizer
        is_ours = type(optim) is OneTorchOptim or (
            # The gradients of several processes meet outside of the graph.
            type(optim) is DistributedOptim and optim.processes.size == 1
        )
        if not is_ours or type(optimizer) is not torch.optim.Adam:
            return False
        groups = optimizer.param_groups
        if any(group.get(name) != value for group in groups for name, value in PLAIN.items()):
            return False
        settings = {(*group["betas"], group["eps"]) for group in groups}
        rates = set(optim._learning_rates)
        states = [optimizer.state.get(p) for p in optim.params]
        if len(settings) != 1 or len(rates) != 1 or not all(states):
            return False
        return len({float(state["step"]) for state in states if state}) == 1

    @property
    def key(self) -> Hashable:
        """What a graph takes for granted: the divisor, the clipping, the moments' tensors."""
        moments = (id(self._state(p)["exp_avg"]) for p in self._optim.params)
        return (self._optim.num_data, self._optim.clip_norm, *moments)

    def refresh(self) -> None:
        """Take over the count of steps, after steps that were not made by a graph."""
        taken = float(self._state(self._optim.params[0])["step"])
        beta1, beta2 = self._betas
        self._bias.fill_(1 - beta1 ** (taken + 1))
        self._root_bias.fill_(math.sqrt(1 - beta2 ** (taken + 1)))

    def prepare(self) -> None:
        """Set the learning rate of the next step."""
        self._rate.fill_(self._optim._learning_rates[0] * self._optim.rate_factor)

    def update(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Tensor:
        """Change parameters and moments in place.

        Args:
            params: Parameters that the optimizer knows.
            grads: Their gradients; a parameter without one stays as it is.

        Returns:
            The global norm of the gradient per datum, shape ``()``.
        """
        found = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
        divisor: float | Tensor = self._optim.num_data
        squares: Any = sum(grad.square().sum() for _, grad in found)
        norm: Tensor = squares.sqrt() / divisor
        is_finite = norm.isfinite()
        if self._optim.clip_norm is not None:
            divisor = divisor * (norm / self._optim.clip_norm).clamp(min=1)
        beta1, beta2 = self._betas
        eps = self._group["eps"]
        step_size = self._rate / self._bias
        counts = []
        for param, grad in found:
            state = self._state(param)
            m, v = state["exp_avg"], state["exp_avg_sq"]
            g = grad / divisor
            new_m = torch.lerp(m, g, 1 - beta1)
            new_v = v * beta2 + (1 - beta2) * (g * g)
            change = step_size * new_m / (new_v.sqrt() / self._root_bias + eps)
            param.copy_(torch.where(is_finite, param - change, param))
            m.copy_(torch.where(is_finite, new_m, m))
            v.copy_(torch.where(is_finite, new_v, v))
            counts.append(state["step"])
        for count in counts:
            count.add_(is_finite.to(count.dtype))
        next_step = counts[0].double() + 1
        self._bias.copy_(1 - beta1**next_step)
        self._root_bias.copy_((1 - beta2**next_step).sqrt())
        return norm

    @property
    def _group(self) -> dict[str, Any]:
        optimizer: Any = self._optim._optimizer
        group: dict[str, Any] = optimizer.param_groups[0]
        return group

    @property
    def _betas(self) -> tuple[float, float]:
        beta1, beta2 = self._group["betas"]
        return beta1, beta2

    def _state(self, param: Tensor) -> dict[str, Any]:
        optimizer: Any = self._optim._optimizer
        state: dict[str, Any] = optimizer.state[param]
        return state
