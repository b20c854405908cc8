"""Distributions that take a larger batch shape by their parameters."""

import abc
from typing import Any, Self

import pyro.distributions as dist
import torch

__all__ = ["Expandable"]


class Expandable(dist.TorchDistribution, abc.ABC):
    """A distribution that says how its parameters are expanded; the rest of ``expand`` is here."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution with a larger batch shape; no memory is copied."""
        new = self._expanded(torch.Size(batch_shape))
        new._validate_args = self._validate_args
        return new

    @abc.abstractmethod
    def _expanded(self, batch_shape: torch.Size) -> Self:
        """A new one with expanded parameters, which were checked already."""
