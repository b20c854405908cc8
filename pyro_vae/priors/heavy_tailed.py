"""Priors with heavier tails than the normal's, coordinate by coordinate."""

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.distributions import DistributionModule, FixedDfStudentT

__all__ = ["Laplace", "StudentT"]


class _Independent(DistributionModule):
    """Independent coordinates around 0 with one scale."""

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, scale: float) -> None:
        super().__init__()
        self.event_shape = torch.Size([positive_integer(latent_dim, "latent_dim")])
        scale = finite_number(scale, "scale", "positive and finite", above=0)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.full(self.event_shape, scale), persistent=False)


class Laplace(_Independent):
    r"""The prior :math:`p(z) = \prod_j \frac{1}{2b} e^{-|z_j| / b}`, of variance :math:`2b^2`.

    The KL from a normal guide has a closed form.

    Args:
        latent_dim: Dimension k of z.
        scale: b.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> round(Laplace(2)().log_prob(torch.zeros(2)).item(), 4)  # -2 log 2
        -1.3863
    """

    def __init__(self, latent_dim: int, *, scale: float = 1.0) -> None:
        super().__init__(latent_dim, scale)

    def forward(self) -> dist.TorchDistribution:
        """Distribution with batch shape ``()`` and event shape ``(k,)``."""
        return dist.Laplace(self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"latent_dim={self.event_shape[0]}, scale={self.scale[0].item():.4g}"


class StudentT(_Independent):
    r"""Student's t for each coordinate, whose tails fall off by a power.

    .. math:: p(z) \propto \prod_j \Big(1 + \frac{z_j^2}{\nu s^2}\Big)^{-(\nu + 1) / 2}

    The coordinates are independent, so this is not the multivariate t, whose contours are spheres.
    The variance is :math:`s^2 \nu / (\nu - 2)`, and infinite for :math:`\nu \le 2`. There is no
    closed form for the KL from a guide: it is estimated from draws.

    Args:
        latent_dim: Dimension k of z.
        df: Degrees of freedom :math:`\nu`.
        scale: s.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> round(StudentT(1, df=1.0)().log_prob(torch.zeros(1)).item(), 4)  # Cauchy: -log pi
        -1.1447
    """

    def __init__(self, latent_dim: int, *, df: float = 4.0, scale: float = 1.0) -> None:
        super().__init__(latent_dim, scale)
        self.df = finite_number(df, "df", "positive and finite", above=0)

    def forward(self) -> dist.TorchDistribution:
        """Distribution with batch shape ``()`` and event shape ``(k,)``."""
        return FixedDfStudentT(self.df, self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        k, scale = self.event_shape[0], self.scale[0].item()
        return f"latent_dim={k}, df={self.df:.4g}, scale={scale:.4g}"
