"""The affine map between data as recorded and data as modeled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import as_tensor
from .finite import FiniteScan

__all__ = ["Scaling"]


@dataclass(frozen=True, eq=False)
class Scaling:
    r"""Affine map from raw data to model units.

    .. math:: x = (\text{raw} - \text{shift}) / \text{scale}

    A density is per unit of its variable, so log densities of ``x`` and of ``raw`` differ by the
    constant :meth:`log_abs_det`; models are only comparable in the same units.

    Args:
        shift: A number, or one per feature with the event shape, in raw units.
        scale: A positive number, or one per feature with the event shape, in raw units.

    Raises:
        ValueError: If ``shift`` is not finite, ``scale`` is not positive and finite, or both are
            per feature with different shapes.

    Example:
        >>> scaling = Scaling(shift=3, scale=2)
        >>> print(scaling)
        x = (raw - 3) / 2
        >>> scaling.apply(torch.tensor([[3.0, 7.0]]))
        tensor([[0., 2.]])
    """

    shift: float | Tensor = 0.0
    scale: float | Tensor = 1.0

    def __post_init__(self) -> None:
        shift, scale = _canonical(self.shift), _canonical(self.scale)
        _check(shift, "shift", "finite", positive=False)
        _check(scale, "scale", "positive and finite", positive=True)
        shapes = {tuple(part.shape) for part in (shift, scale) if isinstance(part, Tensor)}
        if len(shapes) > 1:
            raise ValueError(f"shift and scale must share a shape; got {sorted(shapes)}.")
        object.__setattr__(self, "shift", shift)
        object.__setattr__(self, "scale", scale)

    @classmethod
    def identity(cls) -> Scaling:
        """The scaling that changes nothing, x = raw."""
        return cls(0.0, 1.0)

    @classmethod
    def divide(cls, by: float) -> Scaling:
        """The scaling x = raw / by, such as ``divide(255)`` for 8-bit gray values.

        Args:
            by: The positive divisor, in raw units.

        Returns:
            The scaling with shift 0.
        """
        return cls(0.0, by)

    @classmethod
    def standardize(cls, raw: object, *, missing: bool = False) -> Scaling:
        r"""The scaling to mean 0 and standard deviation 1 of each feature of ``raw``.

        The standard deviation is that of the population, with divisor :math:`N`. A constant
        feature has none: it is centered with scale 1, and a warning names it. A feature without
        any observed value is left as it is.

        Args:
            raw: Data, shape ``(N, *event_shape)``, in any form that ``as_tensor`` takes; or a
                ``MappedDataset``, which is read twice.
            missing: Whether NaN is a missing value; the moments are those of the observed ones.

        Returns:
            A scaling per feature, computed in float64. Fit it to the training part alone.

        Raises:
            ValueError: As ``as_tensor`` does.
            TypeError: As ``as_tensor`` does.

        Example:
            >>> scaling = Scaling.standardize([[1.0, 10.0], [3.0, 30.0]])
            >>> scaling.to_dict()
            {'shift': [2.0, 20.0], 'scale': [1.0, 10.0]}
            >>> raw = [[1.0, 10.0], [3.0, 30.0], [float("nan"), 50.0]]
            >>> Scaling.standardize(raw, missing=True).shift
            tensor([ 2., 30.], dtype=torch.float64)
        """
        if callable(getattr(raw, "chunks", None)):
            columns = None
            shift, scale, constant = _moments_of_chunks(raw, missing=missing)
        else:
            checked = as_tensor(raw, name="raw", missing=missing)
            values, columns = checked.tensor.to(torch.float64), checked.columns
            shift = values.nanmean(0).nan_to_num(nan=0.0)
            scale = (values - shift).square().nanmean(0).sqrt()
            # Not scale == 0: the mean of many equal values is rounded, and leaves a tiny scale.
            above, below = values.nan_to_num(nan=-math.inf), values.nan_to_num(nan=math.inf)
            constant = above.amax(0) == below.amin(0)
            scale = scale.nan_to_num(nan=1.0)  # of what was never observed
        if constant.any():
            warnings.warn(
                f"raw must vary in each column to be standardized; got constant "
                f"{_named(constant, columns)}, centered with scale 1. Drop what is "
                "constant, it tells a model nothing.",
                stacklevel=2,
            )
        return cls(shift, scale.masked_fill(constant, 1.0))

    def apply(self, raw: Tensor) -> Tensor:
        """Data in model units.

        Args:
            raw: Data in raw units, shape ``(..., *event_shape)``; integers become torch's default
                type.

        Returns:
            A tensor of the same shape, on the same device.
        """
        x = raw if raw.is_floating_point() else raw.to(torch.get_default_dtype())
        if not _is_number(self.shift, 0.0):
            x = x - _like(self.shift, x)
        if not _is_number(self.scale, 1.0):
            x = x / _like(self.scale, x)
        return x

    def invert(self, x: Tensor) -> Tensor:
        """Data in raw units, the inverse of :meth:`apply`.

        Args:
            x: Data in model units, shape ``(..., *event_shape)``.

        Returns:
            A tensor of the same shape, on the same device.
        """
        raw = x if _is_number(self.scale, 1.0) else x * _like(self.scale, x)
        return raw if _is_number(self.shift, 0.0) else raw + _like(self.shift, raw)

    def log_abs_det(self, num_features: int) -> float:
        r"""Log volume of a model unit in raw units, a constant in nats per datum.

        .. math:: \log |d\,\text{raw} / d x| = \sum_j \log \text{scale}_j, \quad
                  \log p_{\text{raw}}(\text{raw}) = \log p_x(x) - \sum_j \log \text{scale}_j

        Args:
            num_features: Number of features of a datum, the product of its event shape.

        Returns:
            What must be subtracted from a log density (or an ELBO) in units of ``x`` to have it in
            raw units.

        Raises:
            ValueError: If the scaling is per feature, for another number of features.

        Example:
            >>> round(Scaling.divide(16).log_abs_det(64), 4)  # 64 log 16
            177.4457
        """
        if not isinstance(self.scale, Tensor):
            return num_features * math.log(self.scale)
        if self.scale.numel() != num_features:
            raise ValueError(
                f"num_features must be {self.scale.numel()}, the number of scales; "
                f"got {num_features}."
            )
        return float(self.scale.log().sum())

    def reshape(self, *event_shape: int) -> Scaling:
        """The same scaling for data whose event shape is changed to ``event_shape``."""
        shift, scale = (
            part.reshape(event_shape) if isinstance(part, Tensor) else part
            for part in (self.shift, self.scale)
        )
        return Scaling(shift, scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for TOML or JSON; :meth:`from_dict` reads them back."""
        return {
            "shift": self.shift.tolist() if isinstance(self.shift, Tensor) else self.shift,
            "scale": self.scale.tolist() if isinstance(self.scale, Tensor) else self.scale,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scaling:
        """The scaling that :meth:`to_dict` wrote.

        Args:
            data: A mapping with exactly the keys ``shift`` and ``scale``.

        Returns:
            An equal scaling.

        Raises:
            ValueError: If the keys are others, or the values do not make a scaling.

        Example:
            >>> Scaling.from_dict({"shift": 0.0, "scale": 16.0}) == Scaling.divide(16)
            True
        """
        if set(data) != {"shift", "scale"}:
            raise ValueError(f"data must have the keys shift and scale; got {sorted(data)}.")
        return cls(data["shift"], data["scale"])

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Scaling) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self.to_dict()))

    def __str__(self) -> str:
        if isinstance(self.shift, Tensor) or isinstance(self.scale, Tensor):
            part = self.shift if isinstance(self.shift, Tensor) else self.scale
            assert isinstance(part, Tensor)  # noqa: S101 - one of the two is
            return f"x = (raw - shift) / scale for each of {tuple(part.shape)}"
        text = "raw"
        if self.shift != 0.0:
            text = f"raw {'-' if self.shift > 0 else '+'} {abs(self.shift):g}"
        if self.scale != 1.0:
            text = f"({text})" if self.shift != 0.0 else text
            text = f"{text} / {self.scale:g}"
        return f"x = {text}"


def _moments_of_chunks(raw: Any, *, missing: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation, and which features are constant, in two passes."""
    finite = FiniteScan(None, "raw", missing=missing)
    total: Any = 0.0
    squares: Any = 0.0
    count: Any = 0
    largest: Any = -math.inf
    smallest: Any = math.inf
    for numbers, chunk in raw.chunks():
        finite.add(chunk, numbers)
        values = chunk.double()
        total = total + values.nansum(0)
        count = count + (~values.isnan()).sum(0)
        largest = values.nan_to_num(nan=-math.inf).amax(0).clamp(min=largest)
        smallest = values.nan_to_num(nan=math.inf).amin(0).clamp(max=smallest)
    finite.check()
    shift = total / count.clamp(min=1)
    for _, chunk in raw.chunks():
        squares = squares + (chunk.double() - shift).square().nansum(0)
    scale = (squares / count.clamp(min=1)).sqrt().masked_fill(count == 0, 1.0)
    return shift, scale, largest == smallest


def _canonical(part: Any) -> float | Tensor:
    """A float, or a float64 tensor on the CPU that nobody else can change."""
    values = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
    array = np.array(values, dtype=np.float64)
    return torch.from_numpy(array) if array.ndim else float(array)


def _check(part: float | Tensor, name: str, condition: str, *, positive: bool) -> None:
    values = np.atleast_1d(part.numpy() if isinstance(part, Tensor) else np.float64(part))
    good = np.isfinite(values) & ((values > 0) | (not positive))
    if not good.all():
        raise ValueError(f"{name} must be {condition}; got {values[~good][0]:g}.")


def _like(part: float | Tensor, x: Tensor) -> float | Tensor:
    return part.to(x) if isinstance(part, Tensor) else part


def _is_number(part: float | Tensor, number: float) -> bool:
    return not isinstance(part, Tensor) and part == number


def _named(marked: Tensor, columns: tuple[str, ...] | None) -> str:
    """The marked features in the words of their data, at most ten of them."""
    indices: list[list[int]] = marked.nonzero().tolist()
    if marked.ndim == 0:
        return "data"
    if columns is not None:
        names = [repr(columns[index[0]]) for index in indices]
    else:
        names = [str(index[0] if len(index) == 1 else tuple(index)) for index in indices]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"columns {', '.join(names[:10])}{more}"
