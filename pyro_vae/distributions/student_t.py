"""Student's t with a fixed number of degrees of freedom."""

import math
from typing import Any, Self

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import _standard_normal

from .expandable import Expandable

__all__ = ["FixedDfStudentT"]


class FixedDfStudentT(Expandable):
    r"""Student's t with a fixed number :math:`\nu` of degrees of freedom.

    .. math:: \log p(x) = -\tfrac{\nu + 1}{2} \log\Big(1 + \frac{(x - \mu)^2}{\nu s^2}\Big)
              - \log s - \tfrac12 \log(\nu\pi) - \log\frac{\Gamma(\nu / 2)}{\Gamma((\nu + 1) / 2)}

    The log gamma functions are taken once, in double precision; ``dist.StudentT`` takes them for
    every element and in the type of x.

    Args:
        df: :math:`\nu > 0`.
        loc: :math:`\mu`, shape ``batch_shape``.
        scale: s > 0; broadcasts to ``batch_shape``.

    Example:
        >>> p = FixedDfStudentT(1.0, torch.zeros(2), torch.tensor(1.0))  # Cauchy
        >>> p.log_prob(torch.tensor([0.0, 1.0]))  # -log pi; -log(2 pi)
        tensor([-1.1447, -1.8379])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(
        self, df: float, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None
    ) -> None:
        shape = torch.broadcast_shapes(loc.shape, scale.shape)
        self.df = float(df)
        if not self.df > 0:
            raise ValueError(f"df must be positive; got {df}.")
        self.loc, self.scale = loc.expand(shape), scale
        super().__init__(shape, validate_args=validate_args)

    def _expanded(self, batch_shape: torch.Size) -> Self:
        return type(self)(self.df, self.loc.expand(batch_shape), self.scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The location, shape ``batch_shape``; NaN where there is no mean, at df <= 1."""
        return self.loc if self.df > 1 else torch.full_like(self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        """Variance, shape ``batch_shape``; infinite at df <= 2, NaN at df <= 1."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf if self.df > 1 else math.nan
        return (factor * self.scale.square()).expand(self.batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws, ``sample_shape + batch_shape``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        gamma = torch._standard_gamma(torch.full_like(noise, self.df / 2))
        gamma = gamma.clamp_min(torch.finfo(gamma.dtype).tiny)
        return self.loc + self.scale * noise * (self.df / 2 / gamma).sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``batch_shape`` (broadcast)."""
        if self._validate_args:
            self._validate_sample(value)
        nu = self.df
        standardized = (value - self.loc) / self.scale
        return (
            -0.5 * (nu + 1) * (standardized.square() / nu).log1p()
            - self.scale.log()
            - _constant(nu)
        )


def _constant(nu: float) -> float:
    """Log of the density's normalizing constant at scale 1."""
    if nu < 100:
        return math.lgamma(nu / 2) - math.lgamma((nu + 1) / 2) + 0.5 * math.log(nu * math.pi)
    # The difference of the log gamma functions loses digits as nu grows; its asymptotic series in
    # 2 / nu does not. It tends to the constant of the normal distribution.
    a = 2 / nu
    series = a / 8 - a**3 / 192 + a**5 / 640 - 17 * a**7 / 14336
    return 0.5 * math.log(2 * math.pi) + series
