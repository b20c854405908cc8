"""Likelihoods: a module whose call maps z to p(x|z)."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.distributions import DistributionModule, SharedVarianceNormal

__all__ = ["Gaussian"]


class Gaussian(DistributionModule):
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
            ``event_shape`` with one for each.
        learn_variance: Whether c is a parameter (starting at ``variance``) or fixed. An array
            ``variance`` makes one parameter for each feature.
        variance_floor: Smallest value a learned c can take. The density has no bound at c = 0,
            which a constant feature would otherwise reach.

    Raises:
        ValueError: If ``variance`` is not positive and finite, not above the floor where it is
            learned, or of another shape.

    Example:
        >>> p = Gaussian(nn.Identity(), event_shape=(2,), variance=0.25)(torch.zeros(5, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([5]), torch.Size([2]))
        >>> round(p.log_prob(torch.zeros(5, 2))[0].item(), 4)  # -log(2 pi c), n = 2
        -0.4516
    """

    log_excess: nn.Parameter
    fixed_variance: float | Tensor

    def __init__(
        self,
        decoder: nn.Module,
        event_shape: Sequence[int],
        *,
        variance: float | Tensor | np.ndarray | Sequence[float] = 1.0,
        learn_variance: bool = False,
        variance_floor: float = 1e-6,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.event_shape = _event_shape(event_shape)
        self.learn_variance = learn_variance
        self.variance_floor = float(variance_floor)
        if not self.variance_floor >= 0:
            raise ValueError(f"variance_floor must not be negative; got {variance_floor}.")
        c = _as_variance(variance, self.event_shape)
        if learn_variance:
            if not bool((c > self.variance_floor).all()):
                raise ValueError(
                    f"variance must be above variance_floor = {self.variance_floor} where it is "
                    f"learned; got {variance}."
                )
            # c = floor + exp(log_excess): a step of the optimizer is a relative change of c.
            start = (c - self.variance_floor).log()
            self.log_excess = nn.Parameter(start.to(torch.get_default_dtype()))
        elif c.dim() == 0:
            # A number is a setting, not a weight: kept in full precision whatever dtype runs.
            self.fixed_variance = float(c)
        else:
            self.register_buffer("fixed_variance", c.to(torch.get_default_dtype()))

    @property
    def variance(self) -> Tensor:
        """Value of c in squared units of x, without gradient: shape ``()`` or ``event_shape``."""
        if self.learn_variance:
            return self._learned_variance().detach()
        if isinstance(self.fixed_variance, Tensor):
            return self.fixed_variance
        return torch.tensor(self.fixed_variance, dtype=torch.float64, device="cpu")

    def forward(self, z: Tensor) -> SharedVarianceNormal:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        variance = self._learned_variance() if self.learn_variance else self.fixed_variance
        return SharedVarianceNormal(self.decoder(z), variance, event_dim=len(self.event_shape))

    def _learned_variance(self) -> Tensor:
        return self.variance_floor + self.log_excess.exp()

    def check_data(self, x: Tensor, columns: Sequence[str] | None = None) -> None:
        """Warn where the data leave a learned variance without a maximum.

        Args:
            x: Data, ``(N, *event_shape)``.
            columns: Names of the features, where they have any.

        Warns:
            UserWarning: If each feature has a variance of its own to learn and some feature is
                constant: its variance falls to the floor and its density grows as far.
        """
        if not self.learn_variance or self.log_excess.dim() == 0 or len(x) < 2:
            return
        rows = x.reshape(len(x), -1)
        constant = (rows.amax(0) == rows.amin(0)).nonzero().flatten().tolist()
        if constant:
            names = [str(columns[j]) if columns else str(j) for j in constant]
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            warnings.warn(
                f"{len(names)} feature(s) are constant ({shown}): their learned variance falls to "
                f"variance_floor = {self.variance_floor}, and the ELBO grows without meaning. "
                "Drop them, or learn one variance for all features.",
                UserWarning,
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        kind = "learned" if self.learn_variance else "fixed"
        c = self.variance
        shown = f"{c.item():.4g}" if c.dim() == 0 else f"per feature {tuple(c.shape)}"
        return f"event_shape={tuple(self.event_shape)}, variance={shown} ({kind})"


def _event_shape(shape: Sequence[int]) -> torch.Size:
    if isinstance(shape, int):
        raise ValueError(f"event_shape must be a tuple; got {shape}. Write ({shape},).")
    if any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in shape):
        raise ValueError(f"event_shape must hold positive integers; got {tuple(shape)}.")
    return torch.Size(shape)


def _as_variance(variance: Any, event_shape: torch.Size) -> Tensor:
    c = torch.as_tensor(variance, dtype=torch.float64, device="cpu").detach()
    if c.dim() > 0 and c.shape != event_shape:
        raise ValueError(
            f"variance must be a number or have the event shape {tuple(event_shape)}; got shape "
            f"{tuple(c.shape)}."
        )
    if not bool((c > 0).all()) or not bool(c.isfinite().all()):
        raise ValueError(f"variance must be positive and finite; got {variance}.")
    return c
