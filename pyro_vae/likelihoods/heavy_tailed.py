"""Likelihoods with heavier tails than the Gaussian: outliers move them less."""

from collections.abc import Sequence

from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.arguments import finite_number
from pyro_vae.distributions import FixedDfStudentT

from .positive_parameter import PositiveValue, ScaleLikelihood

__all__ = ["Laplace", "StudentT"]


class Laplace(ScaleLikelihood):
    r"""Laplace likelihood with median f(z) and scale s for each feature, independently.

    .. math:: \log p(x \mid z) = -\sum_{j=1}^n \Big(\frac{|x_j - f_j(z)|}{s} + \log 2s\Big)

    The absolute error takes the place of the squared one; the variance is :math:`2 s^2`.

    Args:
        decoder: Network f, ``(..., k)`` to ``(..., *event_shape)``.
        event_shape: Shape of one x.
        scale: s, in units of x: a number, an array of shape ``event_shape``, or a network of z
            whose output, through softplus, is added to ``scale_floor``.
        learn_scale: Whether s is a parameter (starting at ``scale``) or fixed. A network is
            learned in any case.
        scale_floor: Smallest value that a learned s can take.

    Raises:
        ValueError: If ``scale`` is not positive and finite, not above the floor where it is
            learned, or of another shape.

    Example:
        >>> import torch
        >>> p = Laplace(nn.Identity(), event_shape=(2,), scale=0.5)(torch.zeros(5, 2))
        >>> p.log_prob(torch.ones(5, 2))[0].item()  # -2 (1 / s + log 2 s)
        -4.0
    """

    _is_unbounded = True

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        loc = self.outputs(z)
        scale = self._positive_tensor(z, loc)
        return dist.Laplace(loc, scale).to_event(len(self.event_shape))


class StudentT(ScaleLikelihood):
    r"""Student's t likelihood with center f(z), scale s and :math:`\nu` degrees of freedom.

    .. math:: \log p(x \mid z) = \sum_{j=1}^n \bigg( \log \frac{\Gamma(\frac{\nu + 1}{2})}
              {\Gamma(\frac\nu2) \sqrt{\nu\pi}\, s} - \frac{\nu + 1}{2}
              \log\Big(1 + \frac{(x_j - f_j(z))^2}{\nu s^2}\Big)\bigg)

    An outlier costs the logarithm of its distance only. The variance is
    :math:`s^2 \nu / (\nu - 2)`, infinite for :math:`\nu \le 2`.

    Args:
        decoder: Network f, ``(..., k)`` to ``(..., *event_shape)``.
        event_shape: Shape of one x.
        df: :math:`\nu > 1`, fixed, so that there is a mean.
        scale: s, in units of x, in any of :class:`Laplace`'s forms.
        learn_scale: Whether s is learned.
        scale_floor: Smallest value that a learned s can take.

    Raises:
        ValueError: If ``df`` is not above 1, or ``scale`` is none.

    Example:
        >>> import torch
        >>> p = StudentT(nn.Identity(), event_shape=(2,), df=3.0)(torch.zeros(5, 2))
        >>> round(p.log_prob(torch.zeros(5, 2))[0].item(), 4)  # 2 log(2 / (pi sqrt 3))
        -2.0018
    """

    _is_unbounded = True

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: Sequence[int],
        *,
        df: float = 4.0,
        scale: PositiveValue = 1.0,
        learn_scale: bool = False,
        scale_floor: float = 1e-3,
    ) -> None:
        super().__init__(
            decoder, event_shape, scale=scale, learn_scale=learn_scale, scale_floor=scale_floor
        )
        self.df = finite_number(df, "df", "above 1 and finite, so that there is a mean", above=1)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        loc = self.outputs(z)
        scale = self._positive_tensor(z, loc)
        return FixedDfStudentT(self.df, loc, scale).to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{super().extra_repr()}, df={self.df:g}"
