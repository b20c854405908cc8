"""What every likelihood has in common."""

import abc
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.distributions import DistributionModule

from .data_checks import outside

__all__ = ["Likelihood", "as_event_shape", "outputs_per_feature"]


class Likelihood(DistributionModule, abc.ABC):
    """A module that maps z, ``(..., k)``, to p(x|z) through a decoder.

    A class of one's own needs ``forward``, which calls :meth:`outputs`; ``support`` and its
    ``support_in_words`` if x is not any real number; and ``outputs_per_feature`` if it takes more
    than one number for each feature from the decoder.

    Args:
        decoder: Network from ``(..., k)`` to ``num_outputs`` numbers for each z.
        event_shape: Shape of one x.

    Attributes:
        outputs_per_feature: Numbers m that each feature of x takes from the decoder. They are read
            as ``(m, *event_shape)``: all of the first parameter, then all of the second. So
            ``MLP(k, hidden, (2, n))``, an MLP with 2 n outputs, and a ConvDecoder with 2 C
            channels all serve where m is 2.
        support: What each value of x must be.
        support_in_words: The same after "x must".

    Example:
        >>> class Cauchy(Likelihood):
        ...     outputs_per_feature = 2
        ...
        ...     def forward(self, z):
        ...         event_dim = len(self.event_shape)
        ...         loc, log_scale = self.outputs(z).unbind(-1 - event_dim)
        ...         return dist.Cauchy(loc, log_scale.exp()).to_event(event_dim)
        >>> likelihood = Cauchy(nn.Linear(3, 4), event_shape=(2,))
        >>> likelihood.num_outputs, likelihood(torch.zeros(5, 3)).event_shape
        (4, torch.Size([2]))
    """

    outputs_per_feature: int = 1
    support: constraints.Constraint = constraints.real
    support_in_words: str = "hold real numbers"
    _is_whole: bool = False

    def __init__(self, decoder: nn.Module, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.event_shape = as_event_shape(event_shape)

    @property
    def num_outputs(self) -> int:
        """How many numbers the decoder must return for each z."""
        return self.outputs_per_feature * self.event_shape.numel()

    @abc.abstractmethod
    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Distribution with batch shape ``z.shape[:-1]`` and this event shape."""

    def check_support(
        self, x: Tensor, *, columns: Sequence[str] | None = None, name: str = "x"
    ) -> None:
        """Refuse data to which this likelihood gives no density.

        Args:
            x: Data, ``(N, *event_shape)``, with NaN where missing.
            columns: Names of the features, where they have any.
            name: What to call the data.

        Raises:
            ValueError: If an observed value lies outside the support; how many, where the first
                is, the range of x, and what to do.
        """
        inside = self.support.check(x) | x.isnan()
        if bool(inside.all()):
            return
        found = outside(x, inside, columns, whole=self._is_whole)
        raise ValueError(
            f"{name} must {self.support_in_words}, the support of {type(self).__name__}; {found}. "
            f"{self._mend(x[~x.isnan()], name)}"
        )

    def check_data(self, x: Tensor, columns: Sequence[str] | None = None) -> None:
        """Warn of data inside the support that this likelihood cannot describe; by default none.

        Args:
            x: Data, ``(N, *event_shape)``.
            columns: Names of the features, where they have any.
        """

    def center(self, p: dist.TorchDistribution) -> Tensor:
        """The point that stands for p(x|z) in pictures and reconstructions: its mean.

        Args:
            p: What this module returned.
        """
        mean: Tensor = p.mean
        return mean

    def _mend(self, x: Tensor, name: str) -> str:
        """What to do about data outside the support; x holds their observed values, flattened."""
        return f"Correct {name}, or use another likelihood."

    @classmethod
    def _outputs_with(cls, options: Mapping[str, Any]) -> int:
        """``outputs_per_feature`` of what is constructed with these options."""
        return cls.outputs_per_feature

    def outputs(self, z: Tensor) -> Tensor:
        """What the decoder says at z.

        Returns:
            Shape ``(..., *event_shape)`` if a feature takes one number, else
            ``(..., outputs_per_feature, *event_shape)``.

        Raises:
            ValueError: If the decoder returns another number of outputs.
        """
        y: Tensor = self.decoder(z)
        # Of a tensor that traces where it came from (TraceGraph_ELBO) a shape is a tuple.
        given, batch, shape = torch.Size(y.shape), torch.Size(z.shape[:-1]), self.event_shape
        if self.outputs_per_feature > 1:
            shape = torch.Size((self.outputs_per_feature, *shape))
        if given == batch + shape:
            return y
        split = len(batch)
        if given[:split] != batch or given[split:].numel() != shape.numel():
            raise ValueError(self._misfit(given, batch))
        return y.reshape(batch + shape)

    def _misfit(self, given: torch.Size, batch: torch.Size) -> str:
        n, m = self.event_shape.numel(), self.outputs_per_feature
        if given[: len(batch)] != batch:
            got = f"shape {tuple(given)} for z with batch shape {tuple(batch)}"
        else:
            got = f"{given[len(batch) :].numel()} (shape {tuple(given)})"
        each = f", {m} for each of the {n} features of x" if m > 1 else ""
        return (
            f"decoder must return {self.num_outputs} numbers for each z{each}; got {got}. Give it "
            f"that many outputs, as networks.MLP(k, hidden, {self.num_outputs}) has."
        )

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"event_shape={tuple(self.event_shape)}"


def outputs_per_feature(likelihood: Any) -> int:
    """How many decoder outputs a kind of likelihood needs for each feature of x.

    A builder needs to know before there is a decoder, hence before there is a likelihood.

    Args:
        likelihood: A class, or a ``functools.partial`` of one where it has options.

    Raises:
        TypeError: If it is neither.
        ValueError: If an option is missing on which the number depends.

    Example:
        >>> from functools import partial
        >>> from pyro_vae import likelihoods
        >>> outputs_per_feature(likelihoods.Beta)
        2
        >>> outputs_per_feature(partial(likelihoods.Categorical, num_classes=5))
        5
    """
    kind, options = likelihood, {}
    if isinstance(likelihood, functools.partial):
        kind, options = likelihood.func, likelihood.keywords
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(
            "likelihood must be a class such as likelihoods.Gaussian, or a functools.partial of "
            f"one; got {likelihood!r}."
        )
    if issubclass(kind, Likelihood):
        return kind._outputs_with(options)
    return int(getattr(kind, "outputs_per_feature", 1))


def as_event_shape(shape: Sequence[int]) -> torch.Size:
    """A shape of positive integers as a torch.Size.

    Raises:
        ValueError: If it is none.

    Example:
        >>> as_event_shape((2, 3))
        torch.Size([2, 3])
    """
    if isinstance(shape, int):
        raise ValueError(f"event_shape must be a tuple; got {shape}. Write ({shape},).")
    if any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in shape):
        raise ValueError(f"event_shape must hold positive integers; got {tuple(shape)}.")
    return torch.Size(shape)
