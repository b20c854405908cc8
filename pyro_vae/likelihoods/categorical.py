"""The likelihood of unordered classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.distributions import ClassNumber

from .data_checks import as_written
from .likelihood import Likelihood

__all__ = ["Categorical"]


class Categorical(Likelihood):
    r"""Categorical likelihood: each feature is one of K classes.

    .. math:: P(x_j = c \mid z) = \frac{e^{f_{cj}(z)}}{\sum_{c'} e^{f_{c'j}(z)}},
              \qquad c = 0, \dots, K - 1

    x holds class numbers, as floating-point numbers like all data. The point that stands for
    p(x|z) is the most probable class; ``mean`` is the mean class number.

    Args:
        decoder: Network f, ``(..., k)`` to the logits, ``(..., K, *event_shape)``.
        event_shape: Shape of one x.
        num_classes: Number K of classes, at least 2, the same for all features. Where a feature
            has fewer, the others become improbable in training.

    Raises:
        ValueError: If ``num_classes`` is not an integer above 1.

    Example:
        >>> import torch
        >>> likelihood = Categorical(nn.Linear(3, 10), event_shape=(2,), num_classes=5)
        >>> p = likelihood(torch.zeros(7, 3))
        >>> p.event_shape, likelihood.center(p).shape
        (torch.Size([2]), torch.Size([7, 2]))
    """

    _is_whole = True

    def __init__(
        self, decoder: nn.Module, event_shape: Sequence[int], *, num_classes: int
    ) -> None:
        super().__init__(decoder, event_shape)
        self.num_classes = self.outputs_per_feature = _as_num_classes(num_classes)
        self.support = constraints.integer_interval(0, self.num_classes - 1)
        first = "0, 1, ..." if self.num_classes > 2 else "0"
        self.support_in_words = f"hold class numbers {first}, {self.num_classes - 1}"

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""
        event_dim = len(self.event_shape)
        logits = self.outputs(z).movedim(-1 - event_dim, -1)
        return ClassNumber(logits=logits).to_event(event_dim)

    def center(self, p: dist.TorchDistribution) -> Tensor:
        """The most probable class of each feature.

        Args:
            p: What this module returned.
        """
        mode: Tensor = p.mode
        return mode

    def _mend(self, x: Tensor, name: str) -> str:
        numbered = f"Number the classes of {name} from 0 (pandas.factorize)"
        if x.min() >= 0 and bool((x == x.round()).all()):
            return f"{numbered}, or use num_classes={as_written(x.max() + 1)}."
        return f"{numbered}, or use likelihoods.Gaussian for real numbers."

    @classmethod
    def _outputs_with(cls, options: Mapping[str, Any]) -> int:
        if "num_classes" not in options:
            raise ValueError(
                "num_classes must be given for Categorical to have a number of outputs; got the "
                "class alone. Write functools.partial(likelihoods.Categorical, num_classes=5)."
            )
        return _as_num_classes(options["num_classes"])

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{super().extra_repr()}, num_classes={self.num_classes}"


def _as_num_classes(value: Any) -> int:
    number = positive_integer(value, "num_classes")
    if number < 2:
        raise ValueError(f"num_classes must be at least 2; got {value}.")
    return number
