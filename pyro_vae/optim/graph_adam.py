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
WIDE = {torch.float32, torch.float64}


class GraphAdam:
    r"""The update that :class:`OneTorchOptim` makes with ``torch.optim.Adam``, as tensor code.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
              v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
              \theta \leftarrow \theta - \frac{\alpha\, m / (1 - \beta_1^t)}
              {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with :math:`g` the gradient of a sum over data divided by ``optim.num_data``, and by more where
    ``optim.clip_norm`` asks it. Where the norm of g is not finite nothing changes. Moments and
    counts of steps are those in the torch optimizer's own state, so ordinary and compiled steps
    may alternate, and a saved state serves both. Each parameter has its own count t.

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
        # In double precision: 1 - 0.999 has four digits in single.
        self._rate = torch.zeros((), dtype=torch.float64, device=optim.params[0].device)
        self._bias: dict[int, tuple[Tensor, Tensor]] = {}
        self.refresh()

    @staticmethod
    def exists(optim: OneTorchOptim) -> bool:
        """Whether the optimizer is a plain Adam that has stepped all its trained parameters."""
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
        trained = [p for p in optim.params if p.requires_grad]
        return (
            len(settings) == 1
            and len(set(optim._learning_rates)) == 1
            and all(p.dtype in WIDE and optimizer.state.get(p) for p in trained)
        )

    @property
    def key(self) -> Hashable:
        """What a graph takes for granted: divisor, clipping, settings, the moments' tensors."""
        moments = (id(self._state(p).get("exp_avg")) for p in self._optim.params)
        eps = self._group["eps"]
        return (self._optim.num_data, self._optim.clip_norm, *self._betas, eps, *moments)

    def refresh(self) -> None:
        """Take over the counts of steps, after steps that were not made by a graph."""
        beta1, beta2 = self._betas
        for param in self._optim.params:
            if not self._state(param):
                continue
            taken = float(self._state(param)["step"])
            bias, root = self._corrections(param)
            bias.fill_(1 - beta1 ** (taken + 1))
            root.fill_(math.sqrt(1 - beta2 ** (taken + 1)))

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
        if not found:
            raise RuntimeError("no parameter has a gradient")
        divisor: float | Tensor = self._optim.num_data
        squares: Any = sum(grad.square().sum() for _, grad in found)
        norm: Tensor = squares.sqrt() / divisor
        is_finite = norm.isfinite()
        if self._optim.clip_norm is not None:
            divisor = divisor * (norm / self._optim.clip_norm).clamp(min=1)
        beta1, beta2 = self._betas
        eps = self._group["eps"]
        for param, grad in found:
            state = self._state(param)
            bias, root = self._corrections(param)
            m, v = state["exp_avg"], state["exp_avg_sq"]
            g = grad / divisor
            new_m = torch.lerp(m, g, 1 - beta1)
            new_v = v * beta2 + (1 - beta2) * (g * g)
            change = self._rate / bias * new_m / (new_v.sqrt() / root + eps)
            param.copy_(torch.where(is_finite, param - change, param))
            m.copy_(torch.where(is_finite, new_m, m))
            v.copy_(torch.where(is_finite, new_v, v))
        for param, _ in found:
            count = self._state(param)["step"]
            count.add_(is_finite.to(count.dtype))
            # For the next step: where they are used they would be computed for each number anew.
            bias, root = self._corrections(param)
            bias.copy_(1 - beta1 ** (count.double() + 1))
            root.copy_((1 - beta2 ** (count.double() + 1)).sqrt())
        return norm

    def _corrections(self, param: Tensor) -> tuple[Tensor, Tensor]:
        """For the biases of both moments in the next step, as tensors that live on."""
        if id(param) not in self._bias:
            self._bias[id(param)] = (torch.zeros_like(self._rate), torch.zeros_like(self._rate))
        return self._bias[id(param)]

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
