"""One torch optimizer behind Pyro's interface.

Pyro makes one optimizer object for each tensor and clips each tensor's gradient by itself. Here
one optimizer holds all of them, so that fused updates and the global norm are possible, and
``pyro.infer.SVI`` stays as it is.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.arguments import finite_number

__all__ = ["OneTorchOptim"]

FUSED = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum"}
"""What torch's optimizers with a fused update remember: one count, the rest like the parameter."""


class OneTorchOptim(PyroOptim):
    r"""One torch optimizer over all parameters that SVI hands over.

    SVI's gradient is that of a sum over the batch. It is divided by ``num_data``, which the caller
    sets before each step, so that the optimizer sees nats per datum whatever the batch size, and
    the division stays outside the objective, where a plate scale would turn an importance-weighted
    bound into none.

    Args:
        constructor: Makes the optimizer from a list of parameters.
        clip_norm: Largest global norm of the per-datum gradient; None leaves it as it is.

    Attributes:
        num_data: Number of data behind the next gradient.
        rate_factor: Factor of every learning rate in the next step, as a schedule sets it.
        num_skipped: Updates left out so far because the gradient was not finite.
        skipped_last: Whether the last update was one of them.

    Raises:
        ValueError: If ``clip_norm`` is neither positive nor None.

    Example:
        >>> import pyro_vae as pv
        >>> vae, x = pv.gaussian_vae(features=3, latent_dim=1), torch.zeros(5, 3)
        >>> optim = OneTorchOptim(pv.optim.adam(1e-3), clip_norm=100.0)
        >>> svi = pyro.infer.SVI(vae.model, vae.guide, optim, pyro.infer.Trace_ELBO())
        >>> optim.num_data = len(x)
        >>> loss = svi.step(x)
        >>> len(optim.params) == len(list(vae.parameters()))
        True
    """

    def __init__(
        self,
        constructor: Callable[[list[Tensor]], Optimizer],
        *,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(constructor, {})
        if clip_norm is not None:
            clip_norm = finite_number(clip_norm, "clip_norm", "positive or None", above=0)
        self.clip_norm = clip_norm
        self.num_data = 1
        self.rate_factor = 1.0
        self.num_skipped = 0
        self.skipped_last = False
        self._constructor = constructor
        self._optimizer: Optimizer | None = None
        self._params: list[Tensor] = []
        self._ids: set[int] = set()
        self._learning_rates: list[float] = []
        self._saved: Mapping[str, Any] = {}
        self._names: Mapping[int, str] = {}

    @property
    def params(self) -> list[Tensor]:
        """Parameters seen so far, in the order of their names in the parameter store."""
        return self._params

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take one step with the gradients that ``params`` hold, and release them."""
        self._register(params)
        grads = [p.grad for p in self._params if p.grad is not None]
        if not grads or self._optimizer is None:
            return
        norm = _global_norm(grads) / self.num_data
        self.skipped_last = not math.isfinite(norm)
        if self.skipped_last:
            self.num_skipped += 1
        else:
            for group, rate in zip(
                self._optimizer.param_groups, self._learning_rates, strict=True
            ):
                group["lr"] = rate * self.rate_factor
            excess = 1.0 if self.clip_norm is None else max(1.0, norm / self.clip_norm)
            self._step_divided(self.num_data * excess, grads)
        # None rather than zeros: the next backward pass then stores instead of adding.
        for param in self._params:
            param.grad = None

    def state(self, names: Mapping[int, str]) -> dict[str, Any]:
        """What the torch optimizer remembers of each parameter, as plain data.

        Args:
            names: From the identity of each parameter to a name that is the same in every run.

        Example:
            >>> weight = torch.tensor([1.0], requires_grad=True)
            >>> optim = OneTorchOptim(lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
            >>> optim.state({id(weight): "weight"})
            {}
        """
        if self._optimizer is None:
            return dict(self._saved)
        states = {
            names[id(param)]: dict(self._optimizer.state.get(param, {})) for param in self._params
        }
        # What the parameters of a restored state remember that no step has handed over yet.
        waiting = {name: kept for name, kept in self._waiting().items() if name not in states}
        # Rates are those of the constructor and the schedule; other entries may change with steps.
        groups = [
            {key: value for key, value in group.items() if key not in {"params", "lr"}}
            for group in self._optimizer.param_groups
        ]
        kind = type(self._optimizer).__name__
        return {"kind": kind, "of_each": {**waiting, **states}, "groups": groups}

    def restore(self, state: Mapping[str, Any], names: Mapping[int, str]) -> None:
        """Take over what :meth:`state` returned, for each parameter when it is first seen.

        Args:
            state: It.
            names: As there.
        """
        self._saved, self._names = dict(state), dict(names)

    def register(self, params: Iterable[Tensor]) -> None:
        """Get to know parameters without a step, as the first step with them would."""
        self._register(params)

    def _waiting(self) -> dict[str, Any]:
        of_each: dict[str, Any] = self._saved.get("of_each", {})
        return of_each

    def _take_over(self, new: list[Tensor]) -> None:
        """Give new parameters the saved state of theirs."""
        optimizer, waiting = self._optimizer, self._waiting()
        known = {self._names.get(id(param)) for param in new} & waiting.keys()
        if optimizer is None or not known:
            return
        kind = type(optimizer).__name__
        if self._saved["kind"] != kind:
            raise ValueError(
                f"optimizer must be the {self._saved['kind']} whose state was saved; got {kind}."
            )
        # torch's own loading puts each value where its optimizer wants it.
        content = optimizer.state_dict()
        # It numbers them group by group.
        numbered = [param for group in optimizer.param_groups for param in group["params"]]
        for index, param in enumerate(numbered):
            name = self._names.get(id(param))
            if name is not None and name in known:
                content["state"][index] = {
                    key: _in_memory_of(param, value, key) for key, value in waiting[name].items()
                }
        saved_groups = self._saved.get("groups", [])
        if len(saved_groups) == len(content["param_groups"]):
            for group, saved in zip(content["param_groups"], saved_groups, strict=True):
                group.update({key: saved[key] for key in group.keys() & saved.keys()})
        try:
            optimizer.load_state_dict(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"optimizer must have the state that was saved; got one that {kind} refuses: "
                f"{error}"
            ) from error

    def _step_divided(self, divisor: float, grads: list[Tensor]) -> None:
        """One step with the gradients divided by ``divisor``."""
        optimizer = self._optimizer
        if optimizer is None:
            return
        is_exact = divisor == int(divisor) < 2**24
        if is_exact and getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer divides in the pass in which it updates, as it does for gradients
            # that torch.amp has scaled; it takes the divisor in single precision.
            scale = grads[0].new_full((), divisor, dtype=torch.float32)
            optimizer.grad_scale = scale  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.grad_scale  # type: ignore[attr-defined]
            return
        if divisor != 1:
            for grad in grads:
                grad.div_(divisor)
        optimizer.step()

    def _register(self, params: Iterable[Tensor]) -> None:
        new = [p for p in params if id(p) not in self._ids]
        if not new:
            return
        # SVI hands over a set, whose order differs from run to run.
        new.sort(key=lambda p: str(pyro.get_param_store().param_name(p)))
        self._params += new
        self._ids.update(id(p) for p in new)
        if self._optimizer is None:
            self._optimizer = self._constructor(new)
        else:
            self._optimizer.add_param_group({"params": new})
        known = len(self._learning_rates)
        self._learning_rates += [group["lr"] for group in self._optimizer.param_groups[known:]]
        self._take_over(new)


def _in_memory_of(param: Tensor, value: Any, name: str) -> Any:
    """What an optimizer remembered of a parameter, in memory laid out as the parameter's.

    A fused update takes its tensors to be so and does not look: others, as a file of a stranger
    may hold, would let it write where it must not.
    """
    if not isinstance(value, Tensor):
        return value
    shape = torch.Size() if name == "step" else param.shape
    if value.layout != torch.strided or value.is_meta or (name in FUSED and value.shape != shape):
        raise ValueError(
            f"optimizer must have the state that was saved; got {name} of shape "
            f"{tuple(value.shape)} for a parameter of shape {tuple(param.shape)}."
        )
    if value.shape != param.shape:
        return value.clone()
    return torch.empty_like(param, dtype=value.dtype, requires_grad=False).copy_(value)


def _global_norm(grads: list[Tensor]) -> float:
    """Euclidean norm of all numbers in a list of gradients."""
    if all(grad.is_cpu for grad in grads):
        # One kernel for all is a gain on a GPU alone; here its dispatch costs more than the norms.
        norms = [torch.linalg.vector_norm(grad) for grad in grads]
        return float(torch.linalg.vector_norm(torch.stack(norms)))
    return float(torch.nn.utils.get_total_norm(grads))
