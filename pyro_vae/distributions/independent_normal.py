"""Independent normal coordinates, which know the log density of their own draws."""

import math
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import _standard_normal

from .own_draw import OwnDraw

__all__ = ["IndependentNormal", "UnitNormal"]

LOG_2PI = math.log(2 * math.pi)


class IndependentNormal(OwnDraw, dist.Independent):  # type: ignore[override]
    r"""Normal with diagonal covariance that remembers the noise of its draw.

    .. math:: \log q(z) = -\tfrac12 \sum_{j=1}^k \Big(\frac{z_j - \mu_j}{\sigma_j}\Big)^2
              - \sum_j \log \sigma_j - \tfrac k2 \log 2\pi

    ``Normal(loc, scale).to_event(1)`` is the same distribution, and this one is an ``Independent``
    with a ``Normal`` as ``base_dist`` too, so every closed form is found for it. For its own draw
    :math:`z = \mu + \sigma\varepsilon` the fractions are :math:`\varepsilon`: a training step
    takes few operations instead of many on tensors so small that each costs its call alone.

    There the derivative with respect to the parameters is the total one, through :math:`z` as
    well; there is none with respect to :math:`z` itself. Any other value, a draw changed in place,
    or one by ``sample()`` takes the ordinary route.

    Args:
        loc: Mean :math:`\mu`, ``batch_shape + (k,)``.
        scale: :math:`\sigma > 0`, of a shape that broadcasts to that of ``loc``.

    Example:
        >>> q = IndependentNormal(torch.zeros(5, 2), torch.ones(5, 1))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
        >>> round(q.log_prob(torch.zeros(2))[0].item(), 4)  # -log(2 pi)
        -1.8379
    """

    has_rsample: bool = True
    _base: dist.Normal | None = None

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        if loc.dim() == 0:
            raise ValueError("loc must have the dimension of one event; got a number.")
        self.loc = loc
        self.scale = scale if scale.shape == loc.shape else scale.expand(loc.shape)
        self.reinterpreted_batch_ndims = 1
        # Part of a shape is a plain tuple where a tensor traces its origin (TraceGraph_ELBO).
        self._batch_shape = torch.Size(loc.shape[:-1])
        self._event_shape = torch.Size(loc.shape[-1:])
        if validate_args is not None or Distribution._validate_args:
            self._base = dist.Normal(loc, self.scale, validate_args=validate_args)

    @property
    def base_dist(self) -> dist.Normal:
        """The normal of each coordinate; a training step never asks for it."""
        if self._base is None:
            self._base = dist.Normal(self.loc, self.scale)
        return self._base

    @property
    def _validate_args(self) -> bool:
        where = Distribution if self._base is None else self._base
        return bool(where._validate_args)

    @_validate_args.setter
    def _validate_args(self, value: bool) -> None:
        self.base_dist._validate_args = value

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution with a larger batch shape; no memory is copied."""
        shape = torch.Size(batch_shape) + self._event_shape
        if shape == self.loc.shape:
            return self
        new = object.__new__(type(self))
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        new.reinterpreted_batch_ndims = 1
        new._batch_shape, new._event_shape = torch.Size(batch_shape), self._event_shape
        if self._base is not None:
            new._base = self._base.expand(shape)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws, ``sample_shape + batch_shape + (k,)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self._remember(torch.addcmul(self.loc, self.scale, noise), noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, all constants kept, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self.base_dist._validate_sample(value)
        noise = self._noise_behind(value)
        if noise is None:
            noise = (value - self.loc) / self.scale
        constant = -0.5 * self._event_shape[0] * LOG_2PI
        log_volume = self.scale.log().sum(-1)
        return torch.linalg.vecdot(noise, noise).mul(-0.5).add(constant).sub(log_volume)


class UnitNormal(IndependentNormal):
    r"""The normal :math:`\mathcal N(0, I_k)`, whose log density is one squared distance.

    .. math:: \log p(z) = -\tfrac12 \|z\|^2 - \tfrac k2 \log 2\pi

    Args:
        loc: Zeros, ``batch_shape + (k,)``. They are handed over, as the ones are, so that who
            needs the distribution often makes them once.
        scale: Ones, of a shape that broadcasts to that of ``loc``.

    Raises:
        ValueError: If arguments are validated and these are others.

    Example:
        >>> p = UnitNormal(torch.zeros(2), torch.ones(2))
        >>> round(p.log_prob(torch.tensor([1.0, 0.0])).item(), 4)  # -log(2 pi) - 1 / 2
        -2.3379
    """

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(loc, scale, validate_args=validate_args)
        if self._validate_args and not (bool((loc == 0).all()) and bool((scale == 1).all())):
            raise ValueError(
                f"loc must be zeros and scale ones; got {loc} and {scale}. "
                "IndependentNormal takes others."
            )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, all constants kept, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self.base_dist._validate_sample(value)
        constant = -0.5 * self._event_shape[0] * LOG_2PI
        log_prob = torch.linalg.vecdot(value, value).mul(-0.5).add(constant)
        if log_prob.shape == self._batch_shape:
            return log_prob
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self._batch_shape))
