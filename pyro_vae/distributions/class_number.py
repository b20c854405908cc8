"""The categorical distribution over class numbers that are floating-point numbers."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["ClassNumber"]


class ClassNumber(dist.Categorical):
    r"""Categorical distribution over the class numbers 0, ..., K - 1 in the type of its logits.

    Data are cast to the type of a module's weights, so draws and the mode come in that type too,
    unlike those of ``dist.Categorical``. ``mean`` and ``variance`` are those of the class number,
    :math:`\sum_c c\,p_c`, which says something only where the classes are ordered.

    Args:
        logits: Unnormalized log probabilities, ``batch_shape + (K,)``.

    Example:
        >>> p = ClassNumber(logits=torch.tensor([0.1, 0.2, 0.7]).log())
        >>> p.mean, p.mode
        (tensor(1.6000), tensor(2.))
    """

    @property
    def mean(self) -> Tensor:
        """Mean class number, shape ``batch_shape``."""
        return (self.probs * self._numbers()).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of the class number, shape ``batch_shape``."""
        return (self.probs * (self._numbers() - self.mean.unsqueeze(-1)).square()).sum(-1)

    @property
    def mode(self) -> Tensor:
        """Most probable class number, shape ``batch_shape``."""
        return self.logits.argmax(-1).to(self.logits.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``sample_shape + batch_shape``."""
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)

    def _numbers(self) -> Tensor:
        logits = self.logits
        return torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
