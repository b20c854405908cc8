"""The prior that is a mixture of learned components."""

import torch
from pyro import distributions as dist
from torch import nn

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.distributions import DistributionModule
from pyro_vae.families import DiagonalNormal, Family

from .starts import unit_scale

__all__ = ["GaussianMixture"]


class GaussianMixture(DistributionModule):
    r"""Mixture of normals, :math:`p(z) = \sum_{j=1}^K w_j\, \mathcal N(z; m_j, S_j)`, all learned.

    What :math:`S_j` may be is the family's matter: ``DiagonalNormal`` unless given,
    ``FullCovarianceNormal``, ``LowRankNormal`` or ``IsotropicNormal``. The family's ``min_scale``
    keeps a component from shrinking onto a point, where the density would have no bound.

    There is no closed form for the KL from a guide: it is estimated from draws.

    Args:
        latent_dim: Dimension k of z.
        num_components: Number K of components.
        family: Family of the components, with this ``latent_dim``.
        spread: Standard deviation of the random numbers at which the means start. Equal components
            would stay equal for ever. Scales start at 1, weights at 1 / K.

    Attributes:
        logits: Logarithms of the weights up to a constant, ``(K,)``.
        params: The family's parameters of each component, ``(K, family.num_params)``.

    Raises:
        ValueError: If a number is not positive, or the family is of another dimension or does not
            allow scale 1.
        TypeError: If ``family`` is no family.

    Example:
        >>> p = GaussianMixture(2, 10)()
        >>> p.batch_shape, p.event_shape, p.component_distribution.batch_shape
        (torch.Size([]), torch.Size([2]), torch.Size([10]))
        >>> set(p.mixture_distribution.probs.tolist()) == {torch.tensor(0.1).item()}
        True

    References:
        Jiang, Zheng, Tan, Tang and Zhou (2017), Variational deep embedding, section 3.1.
        https://arxiv.org/abs/1611.05148
    """

    def __init__(
        self,
        latent_dim: int,
        num_components: int,
        *,
        family: Family | None = None,
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size([positive_integer(latent_dim, "latent_dim")])
        self.num_components = positive_integer(num_components, "num_components")
        spread = finite_number(spread, "spread", "positive and finite", above=0)
        self.family = DiagonalNormal(latent_dim) if family is None else family
        declared = getattr(self.family, "event_shape", self.event_shape)
        if declared != self.event_shape:
            raise ValueError(
                f"family must have latent_dim = {latent_dim}, the prior's; got event shape "
                f"{tuple(declared)}."
            )
        loc = spread * torch.randn(self.num_components, *self.event_shape)
        self.params = nn.Parameter(unit_scale(self.family, loc))
        self.logits = nn.Parameter(torch.zeros(self.num_components))

    def forward(self) -> dist.MixtureSameFamily:
        """Distribution with batch shape ``()`` and event shape ``(k,)``."""
        weights = dist.Categorical(logits=self.logits)
        return dist.MixtureSameFamily(weights, self.family(self.params))

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"latent_dim={self.event_shape[0]}, num_components={self.num_components}"
