"""The Gaussian likelihood, and its log: the log-normal."""

from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions import SharedVarianceNormal

from .data_checks import as_written
from .positive_parameter import VarianceLikelihood

__all__ = ["Gaussian", "LogNormal"]


class Gaussian(VarianceLikelihood):
    r"""Gaussian likelihood :math:`p(x \mid z) = \mathcal N(x; f(z), c I)`.

    .. math:: \log p(x \mid z) = -C\,\|x - f(z)\|^2 - \tfrac n2 \log(2\pi c),
              \qquad C = \frac{1}{2c}

    The variance c and the constant C are one knob. A squared-error loss that is averaged over the
    n features and weighted by C has variance n / (2C), not 1 / (2C). Multiplying the KL by
    :math:`\beta` at variance :math:`c_0` has the optima of the ELBO at variance :math:`\beta c_0`.
    ELBOs at different c are comparable because the constant is kept; losses without it are not.

    Args:
        decoder: Network f, ``(..., k)`` to ``(..., *event_shape)``.
        event_shape: Shape of one x.
        variance: c, in squared units of x: one number for all features, or an array of shape
            ``event_shape`` with one for each. Or a network of z, as
            ``networks.MLP(k, hidden, n)``: c is then ``variance_floor`` plus softplus of its
            output, which is one number for each z or one for each feature.
        learn_variance: Whether c is a parameter (starting at ``variance``) or fixed. An array
            ``variance`` makes one parameter for each feature. A network is learned in any case.
        variance_floor: Smallest value that a learned c can take. The density has no bound at
            c = 0, which a constant feature would otherwise reach.

    Raises:
        ValueError: If ``variance`` is not positive and finite, not above the floor where it is
            learned, or of another shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> p = Gaussian(nn.Identity(), event_shape=(2,), variance=0.25)(torch.zeros(5, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([5]), torch.Size([2]))
        >>> round(p.log_prob(torch.zeros(5, 2))[0].item(), 4)  # -log(2 pi c), n = 2
        -0.4516
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        loc, variance, event_dim = self.outputs(z), self._positive(z), len(self.event_shape)
        if self.depends_on_z and isinstance(variance, Tensor):
            return dist.Normal(loc, variance.sqrt()).to_event(event_dim)
        return SharedVarianceNormal(loc, variance, event_dim=event_dim)


class LogNormal(VarianceLikelihood):
    r"""Log-normal likelihood: :math:`\log x` is :math:`\mathcal N(f(z), c I)`.

    .. math:: \log p(x \mid z) = \log \mathcal N(\log x; f(z), cI) - \sum_j \log x_j, \qquad
              \mathbb E(x \mid z) = e^{f(z) + c/2}

    This is a density in x: a :class:`Gaussian` fitted to :math:`\log x` has the same optima, and
    an ELBO that is larger by :math:`\sum_j \log x_j`.

    Args:
        decoder: Network f, ``(..., k)`` to ``(..., *event_shape)``: the log of x's median.
        event_shape: Shape of one x.
        variance: c, the variance of :math:`\log x`, in any of :class:`Gaussian`'s forms.
        learn_variance: Whether c is learned.
        variance_floor: Smallest value that a learned c can take.

    Raises:
        ValueError: If ``variance`` is none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> p = LogNormal(nn.Identity(), event_shape=(2,), variance=0.25)(torch.zeros(5, 2))
        >>> round(p.log_prob(torch.ones(5, 2))[0].item(), 4)  # -log(2 pi c), n = 2
        -0.4516
        >>> round(p.mean[0, 0].item(), 4)  # exp(c / 2)
        1.1331
    """

    support = constraints.positive
    support_in_words = "be positive"

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        loc = self.outputs(z)
        scale = self._positive_tensor(z, loc).sqrt()
        return dist.LogNormal(loc, scale).to_event(len(self.event_shape))

    def _mend(self, x: Tensor, name: str) -> str:
        moved = name if x.min() == 0 else f"{name} + {as_written(-x.min())}"
        return (
            f"Shift {name} ({moved} + a, with some a > 0), or use likelihoods.Gaussian for real "
            "numbers."
        )
