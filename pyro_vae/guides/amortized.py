"""The amortized guide: one encoder for every x."""

from torch import Tensor, nn

from pyro_vae.families import Family
from pyro_vae.output_layers import with_affine_output

from .guide import FamilyGuide, check_family

__all__ = ["AmortizedGuide"]


class AmortizedGuide(FamilyGuide):
    r"""Amortized guide :math:`q(z \mid x)`: one encoder gives every x its member of a family.

    Mean g(x) and covariance h(x) come out of one shared network, so a Gaussian family makes this
    :math:`q(z \mid x) = \mathcal N(g(x), h(x))`.

    Args:
        family: Unconstrained parameters to a distribution over z.
        encoder: Network from ``(..., *event_shape of x)`` to ``(..., family.num_params)``. For x
            with missing entries see ``networks.WithMask``.

    Raises:
        TypeError: If ``family`` declares no ``event_shape``.

    Example:
        >>> import torch
        >>> from pyro_vae.families import DiagonalNormal
        >>> family = DiagonalNormal(2)
        >>> guide = AmortizedGuide(family, nn.Linear(3, family.num_params))
        >>> guide(torch.zeros(5, 3)).event_shape
        torch.Size([2])
    """

    def __init__(self, family: Family, encoder: nn.Module) -> None:
        super().__init__(family)
        self.encoder = encoder

    @property
    def takes_missing(self) -> bool:
        """Whether the encoder takes x with NaN, as ``networks.WithMask`` does."""
        return bool(getattr(self.encoder, "takes_missing", False))

    def params(self, x: Tensor) -> Tensor:
        """What the encoder says of x, ``(..., num_params)``."""
        params: Tensor = self.encoder(x)
        return params

    def with_family(self, family: Family) -> "AmortizedGuide":
        """A guide in a larger family that starts as this one, with a copy of its encoder.

        A new parameter that the smaller family does not have starts at a constant, and is from
        then on a function of x like the others: of the encoder's last hidden layer where the
        encoder ends in an ``nn.Linear``, else of the smaller family's parameters.

        Args:
            family: A family that contains this guide's, as the full covariance contains the
                diagonal with the same ``min_scale`` and ``max_scale``.

        Raises:
            ValueError: If it does not.

        Example:
            >>> import torch
            >>> from pyro_vae.families import DiagonalNormal, FullCovarianceNormal
            >>> guide = AmortizedGuide(DiagonalNormal(2), nn.Linear(3, 4))
            >>> full, x = guide.with_family(FullCovarianceNormal(2)), torch.ones(1, 3)
            >>> torch.allclose(full(x).variance, guide(x).variance)
            True
        """
        check_family(family)
        matrix, shift = family.embedding(self.family)
        return AmortizedGuide(family, with_affine_output(self.encoder, matrix, shift))
