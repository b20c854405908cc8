"""Likelihoods with a positive parameter beside the decoder: a variance, scale or concentration."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .data_checks import constant_features, warn_of_features
from .likelihood import Likelihood

__all__ = [
    "PositiveParameterLikelihood",
    "PositiveValue",
    "ScaleLikelihood",
    "VarianceLikelihood",
]

PositiveValue = float | Tensor | np.ndarray | Sequence[float] | nn.Module
"""A number, an array of the event shape, or a network of z."""


class PositiveParameterLikelihood(Likelihood, abc.ABC):
    r"""A likelihood with one positive parameter that its decoder does not give.

    The parameter is a fixed number, an array with one number for each feature, a learned one of
    either kind, or a function of z: a network :math:`\rho(z)` makes it
    :math:`\epsilon + \operatorname{softplus}(\rho(z))`.

    Args:
        decoder: Network from ``(..., k)`` to ``num_outputs`` numbers for each z.
        event_shape: Shape of one x.
        name: What the parameter is called.
        value: Its value, its start where it is learned, or the network, whose output for each z is
            one number, an array of the event shape, or one that broadcasts to it.
        learn: Whether a number or array is learned. A network always is.
        floor: Smallest value :math:`\epsilon` that a learned parameter or a network's can take.

    Attributes:
        depends_on_z: Whether the parameter is a network's, so that it has no one value.

    Raises:
        ValueError: If the value is not positive and finite, not above the floor where it is
            learned, or of another shape.
    """

    log_excess: nn.Parameter
    # Whether the density grows without bound where the parameter falls to zero.
    _is_unbounded: bool = False

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: Sequence[int],
        *,
        name: str,
        value: PositiveValue,
        learn: bool,
        floor: float,
    ) -> None:
        super().__init__(decoder, event_shape)
        self._name, self._floor = name, float(floor)
        self.depends_on_z = isinstance(value, nn.Module)
        self._is_learned = learn and not self.depends_on_z
        if not self._floor >= 0:
            raise ValueError(f"{name}_floor must not be negative; got {floor}.")
        if isinstance(value, nn.Module):
            if self._floor == 0:
                raise ValueError(
                    f"{name}_floor must be positive where {name} is a network; got {floor}."
                )
            self.add_module(f"{name}_network", value)
            return
        start = _as_positive(value, name, self.event_shape)
        if learn:
            if not bool((start > self._floor).all()):
                raise ValueError(
                    f"{name} must be above {name}_floor = {self._floor} where it is learned; got "
                    f"{value}."
                )
            # floor + exp(log_excess): a step of the optimizer is a relative change.
            excess = (start - self._floor).log()
            self.log_excess = nn.Parameter(excess.to(torch.get_default_dtype()))
        elif start.dim() == 0:
            # A number is a setting, not a weight: kept in full precision whatever dtype runs.
            setattr(self, f"fixed_{name}", float(start))
        else:
            self.register_buffer(f"fixed_{name}", start.to(torch.get_default_dtype()))

    def _positive(self, z: Tensor) -> Tensor | float:
        """The parameter at z: a number, or a tensor that broadcasts to batch and event shape."""
        if self._is_learned:
            return self._floor + self.log_excess.exp()
        if self.depends_on_z:
            network: nn.Module = getattr(self, f"{self._name}_network")
            return self._of_network(network(z), z.shape[:-1])
        fixed: Tensor | float = getattr(self, f"fixed_{self._name}")
        return fixed

    def _positive_tensor(self, z: Tensor, like: Tensor) -> Tensor:
        """The same as a tensor of the type and on the device of ``like``."""
        value = self._positive(z)
        return value if isinstance(value, Tensor) else like.new_full((), value)

    def _constant(self) -> Tensor:
        """Its value where it does not depend on z, without gradient."""
        if self.depends_on_z:
            raise ValueError(
                f"{self._name} must not depend on z to be one value; here it is a function of z. "
                f"Call {self._name}_at(z)."
            )
        if self._is_learned:
            return (self._floor + self.log_excess.exp()).detach()
        fixed = getattr(self, f"fixed_{self._name}")
        if isinstance(fixed, Tensor):
            return fixed
        return torch.tensor(fixed, dtype=torch.float64, device="cpu")

    def _at(self, z: Tensor) -> Tensor:
        """Its value at each z and for each feature, ``(..., *event_shape)``, without gradient."""
        with torch.no_grad():
            return self._positive_tensor(z, z).expand(z.shape[:-1] + self.event_shape)

    def _of_network(self, raw: Tensor, batch: torch.Size) -> Tensor:
        """Raw numbers of the network, shaped to batch and event shape, and made positive."""
        split, event = len(batch), self.event_shape
        each = raw.shape[split:]
        if raw.shape[:split] == batch:
            if each.numel() == 1:
                raw = raw.reshape(batch + (1,) * len(event))
            elif each.numel() == event.numel():
                raw = raw.reshape(batch + event)
            if _broadcasts(raw.shape[split:], event):
                return self._floor + functional.softplus(raw)
        raise ValueError(
            f"{self._name} must be a network that returns one number for each z, or numbers of "
            f"the event shape {tuple(event)}; got shape {tuple(raw.shape)} for z with batch shape "
            f"{tuple(batch)}."
        )

    def check_data(self, x: Tensor, columns: Sequence[str] | None = None) -> None:
        """Warn where the data leave a learned parameter without a maximum.

        Args:
            x: Data, ``(N, *event_shape)``.
            columns: Names of the features, where they have any.

        Warns:
            UserWarning: If each feature has a variance or scale of its own to learn and some
                feature is constant, or all have one and all are constant: it falls to the floor
                and the density grows as far.
        """
        if not self._is_learned or not self._is_unbounded or len(x) < 2:
            return
        constant = constant_features(x)[0]
        if self.log_excess.dim() == 0 and not bool(constant.all()):
            return
        warn_of_features(
            constant,
            columns,
            f"are constant ({{names}}): their learned {self._name} falls to {self._name}_floor = "
            f"{self._floor}, and the ELBO grows without meaning. Drop them, or "
            + ("learn one" if self.log_excess.dim() else "fix the")
            + f" {self._name} for all features.",
        )

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        if self.depends_on_z:
            return f"{super().extra_repr()}, {self._name} a function of z"
        kind = "learned" if self._is_learned else "fixed"
        value = self._constant()
        shown = f"{value.item():.4g}" if value.dim() == 0 else f"per feature {tuple(value.shape)}"
        return f"{super().extra_repr()}, {self._name}={shown} ({kind})"


class VarianceLikelihood(PositiveParameterLikelihood, abc.ABC):
    """A likelihood with a variance c; see :class:`PositiveParameterLikelihood`."""

    _is_unbounded = True

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: Sequence[int],
        *,
        variance: PositiveValue = 1.0,
        learn_variance: bool = False,
        variance_floor: float = 1e-6,
    ) -> None:
        super().__init__(
            decoder,
            event_shape,
            name="variance",
            value=variance,
            learn=learn_variance,
            floor=variance_floor,
        )
        self.learn_variance, self.variance_floor = learn_variance, float(variance_floor)

    @property
    def variance(self) -> Tensor:
        """Value of c, without gradient: shape ``()`` or ``event_shape``.

        Raises:
            ValueError: If c is a function of z; call :meth:`variance_at`.
        """
        return self._constant()

    def variance_at(self, z: Tensor) -> Tensor:
        """Value of c at each z and for each feature, ``(..., *event_shape)``, without gradient."""
        return self._at(z)


class ScaleLikelihood(PositiveParameterLikelihood, abc.ABC):
    """A likelihood with a scale s, in units of x; see :class:`PositiveParameterLikelihood`."""

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: Sequence[int],
        *,
        scale: PositiveValue = 1.0,
        learn_scale: bool = False,
        scale_floor: float = 1e-3,
    ) -> None:
        super().__init__(
            decoder, event_shape, name="scale", value=scale, learn=learn_scale, floor=scale_floor
        )
        self.learn_scale, self.scale_floor = learn_scale, float(scale_floor)

    @property
    def scale(self) -> Tensor:
        """Value of s in units of x, without gradient: shape ``()`` or ``event_shape``.

        Raises:
            ValueError: If s is a function of z; call :meth:`scale_at`.
        """
        return self._constant()

    def scale_at(self, z: Tensor) -> Tensor:
        """Value of s at each z and for each feature, ``(..., *event_shape)``, without gradient."""
        return self._at(z)


def _as_positive(value: Any, name: str, event_shape: torch.Size) -> Tensor:
    try:
        array = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must be a number, an array or a network; got {value!r}."
        ) from None
    if array.dim() > 0 and array.shape != event_shape:
        raise ValueError(
            f"{name} must be a number or have the event shape {tuple(event_shape)}; got shape "
            f"{tuple(array.shape)}."
        )
    if not bool((array > 0).all()) or not bool(array.isfinite().all()):
        raise ValueError(f"{name} must be positive and finite; got {value}.")
    return array


def _broadcasts(shape: torch.Size, event_shape: torch.Size) -> bool:
    return len(shape) == len(event_shape) and all(
        size in {1, target} for size, target in zip(shape, event_shape, strict=True)
    )
