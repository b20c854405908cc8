"""The likelihood of gray levels as what they are: levels on a grid."""

from collections.abc import Sequence

from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.distributions import DiscretizedLogistic as DiscretizedLogisticDistribution
from pyro_vae.distributions import LevelGrid

from .data_checks import rescaled
from .positive_parameter import PositiveValue, ScaleLikelihood

__all__ = ["DiscretizedLogistic"]


class DiscretizedLogistic(ScaleLikelihood):
    r"""Probabilities of the levels :math:`x = j / (L - 1)`, masses of a logistic in their bins.

    .. math:: P(x_j \mid z) = \sigma\Big(\frac{x_j + h - f_j(z)}{s}\Big)
              - \sigma\Big(\frac{x_j - h - f_j(z)}{s}\Big), \qquad h = \frac1{2 (L - 1)}

    The bins of 0 and 1 reach to infinity. As x is discrete, :math:`\log p(x|z) \le 0`: no scale
    falls without bound, and the ELBO divided by :math:`-n \log 2` is in bits per dimension, to be
    compared with any other model of the same levels.

    Args:
        decoder: Network f, ``(..., k)`` to the locations, ``(..., *event_shape)``, in units of x.
        event_shape: Shape of one x.
        levels: Number L of levels, from 2 to 65536; 256 for 8-bit images divided by 255.
        scale: s, in units of x: a number, an array of shape ``event_shape``, or a network of z
            whose output, through softplus, is added to ``scale_floor``.
        learn_scale: Whether s is a parameter (starting at ``scale``) or fixed. A network is
            learned in any case.
        scale_floor: Smallest value that a learned s can take.

    Raises:
        ValueError: If ``levels`` is out of range, or ``scale`` is none.

    Example:
        >>> import torch
        >>> p = DiscretizedLogistic(nn.Identity(), (1,), levels=2, scale=0.5)(torch.zeros(5, 1))
        >>> p.log_prob(torch.zeros(5, 1))[0].exp().item()  # sigma(h / s), h = s = 1 / 2
        0.7310585975646973

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        section 5.2. https://arxiv.org/abs/1606.04934

        Salimans et al. (2017), PixelCNN++, section 2.1. https://arxiv.org/abs/1701.05517
    """

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: Sequence[int],
        *,
        levels: int = 256,
        scale: PositiveValue = 0.1,
        learn_scale: bool = True,
        scale_floor: float = 1e-4,
    ) -> None:
        super().__init__(
            decoder, event_shape, scale=scale, learn_scale=learn_scale, scale_floor=scale_floor
        )
        self.levels = positive_integer(levels, "levels")
        if not 2 <= self.levels <= 65536:
            raise ValueError(f"levels must be between 2 and 65536; got {levels}.")
        self.support = LevelGrid(self.levels)
        between = {2: "", 3: "0.5, "}.get(self.levels, f"1/{self.levels - 1}, ..., ")
        self.support_in_words = f"lie on the grid 0, {between}1"

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        loc = self.outputs(z)
        scale = self._positive_tensor(z, loc)
        p = DiscretizedLogisticDistribution(loc, scale, levels=self.levels)
        return p.to_event(len(self.event_shape))

    def _mend(self, x: Tensor, name: str) -> str:
        steps, high, is_whole = self.levels - 1, int(x.max()), bool((x == x.round()).all())
        if x.min() < 0 or (x.max() > 1 and not is_whole):
            return (
                f"Rescale {name} ({rescaled(x, name)}) and round it to the grid, or use "
                "likelihoods.Gaussian for real numbers."
            )
        if high > 1:
            mend = f"Rescale {name} ({name} / {steps})"
            if high > steps:
                mend = f"Use levels={high + 1} and {name} / {high}"
            return f"{mend}, or use likelihoods.NegativeBinomial for counts."
        levels = _num_levels(x)
        mend = f"Round {name} (({name} * {steps}).round() / {steps})"
        if levels is not None:
            mend = f"Use levels={levels}"
        return f"{mend}, or likelihoods.ContinuousBernoulli for any numbers in [0, 1]."

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{super().extra_repr()}, levels={self.levels}"


def _num_levels(x: Tensor) -> int | None:
    """The number of levels of the coarsest grid on which x lies, if it lies on any."""
    gaps = x.unique().diff()
    if not len(gaps) or 1 / gaps.min() > 65535:
        return None
    levels = round(1 / gaps.min().item()) + 1
    return levels if bool(LevelGrid(levels).check(x).all()) else None
