"""What every family of q(z) has in common."""

import abc

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.bounds import positive
from pyro_vae.distributions import DistributionModule

__all__ = ["Family"]


class Family(DistributionModule, abc.ABC):
    r"""Unconstrained parameters, ``(..., num_params)``, to a distribution over z.

    A scale is :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(\rho) -
    \operatorname{softplus}(\rho - \sigma_{\max} + \sigma_{\min})`: softplus with a floor, which
    keeps the density bounded, and with a ceiling far above any sensible value.

    Args:
        latent_dim: Dimension k of z.
        min_scale: :math:`\sigma_{\min} > 0`.
        max_scale: :math:`\sigma_{\max} > \sigma_{\min}`.

    Attributes:
        event_shape: Shape of one z.
        num_params: Length of the parameter vector, hence of the encoder's output.
    """

    num_params: int

    def __init__(self, latent_dim: int, *, min_scale: float, max_scale: float) -> None:
        super().__init__()
        self.event_shape = torch.Size([positive_integer(latent_dim, "latent_dim")])
        self.min_scale = finite_number(min_scale, "min_scale", "positive", above=0)
        self.max_scale = finite_number(
            max_scale, "max_scale", f"finite and above min_scale = {min_scale}", above=min_scale
        )

    @abc.abstractmethod
    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``params.shape[:-1]``."""

    def start_params(self) -> Tensor:
        """Where parameters start that no encoder gives, ``(num_params,)``, on the CPU.

        Zeros, for a normal family mean 0 and a scale of log 2, unless the family knows better.
        """
        return torch.zeros(self.num_params, device="cpu")

    def embedding(self, other: "Family") -> tuple[Tensor, Tensor]:
        r"""How this family's parameters say what a smaller family's say.

        Args:
            other: The smaller family.

        Returns:
            Matrix M, ``(num_params, other.num_params)``, and vector b, ``(num_params,)``, such
            that ``self(M p + b)`` is the distribution ``other(p)`` for every p. On the CPU.

        Raises:
            ValueError: If this family does not contain the other, or not in this form.
        """
        is_same = type(self) is type(other) and self.num_params == other.num_params
        if is_same and self._has_scales_of(other) and not list(self.parameters()):
            none = torch.zeros(self.num_params, device="cpu")
            return torch.eye(self.num_params, device="cpu"), none
        raise ValueError(
            f"family must contain {type(other).__name__} with the same latent_dim, min_scale and "
            f"max_scale; got {self}. Start it from an encoder of its own."
        )

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"latent_dim={self.event_shape[0]}, num_params={self.num_params}"

    def _scale(self, raw: Tensor) -> Tensor:
        return positive(raw, self.min_scale, self.max_scale)

    def _check_params(self, params: Tensor) -> None:
        if params.dim() == 0 or params.shape[-1] != self.num_params:
            raise ValueError(
                f"params must have {self.num_params} in their last dimension; got shape "
                f"{tuple(params.shape)}. Give the encoder family.num_params outputs."
            )

    def _has_scales_of(self, other: "Family") -> bool:
        names = ("event_shape", "min_scale", "max_scale")
        return all(getattr(self, name) == getattr(other, name) for name in names)
