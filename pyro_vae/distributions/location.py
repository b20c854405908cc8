"""One point that stands for a distribution."""

from typing import Any

from torch import Tensor
from torch.distributions import TransformedDistribution

__all__ = ["location"]


def location(distribution: Any) -> Tensor:
    """The mean, or where there is none in closed form, the image of the base's mean.

    A flow has no mean in closed form. The image of its base's mean is where it puts the center of
    its draws: the mean itself if the flow is affine, else a point near it.

    Args:
        distribution: A distribution with a mean, or a transformed one whose base has one.

    Returns:
        Shape ``batch_shape + event_shape``.

    Example:
        >>> import torch
        >>> from pyro.distributions import Normal
        >>> location(Normal(torch.tensor([1.0, 2.0]), 1.0))
        tensor([1., 2.])
    """
    if isinstance(distribution, TransformedDistribution):
        point = location(distribution.base_dist)
        for transform in distribution.transforms:
            point = transform(point)
        return point
    mean: Tensor = distribution.mean
    return mean
