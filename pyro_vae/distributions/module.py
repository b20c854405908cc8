"""A module whose call builds a distribution."""

import torch
from torch import nn

__all__ = ["DistributionModule"]


class DistributionModule(nn.Module):
    """A module whose call builds a distribution.

    The package's own priors, likelihoods and guides derive from it, but nothing asks for it: any
    ``nn.Module`` that declares ``event_shape`` and returns a distribution serves as well.

    Attributes:
        event_shape: Event shape of the distribution, known before any forward pass, so that parts
            are checked against each other when a VAE is put together.
    """

    event_shape: torch.Size
