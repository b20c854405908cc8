"""One of two distributions for each row."""

from typing import Any, Self

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence, register_kl

from .expandable import Expandable
from .location import location

__all__ = ["RowChoice", "chosen_rows", "rows_of_q"]


def chosen_rows(q: Any, p: Any, is_q: Tensor) -> Any:
    """One distribution in some rows of a batch and another in the others.

    Where both have independent coordinates, so has what is returned, and the KL of each coordinate
    is known where that of q and of p are.

    Args:
        q: A distribution with batch shape ``(N,)`` or ``()``.
        p: Another of the same event shape, which is drawn from without a gradient.
        is_q: Which rows are q's, ``(N,)``.

    Example:
        >>> from pyro.distributions import Normal
        >>> q = Normal(torch.ones(3, 1), 0.1).to_event(1)
        >>> p = Normal(torch.zeros(1), 1.0).to_event(1)
        >>> chosen_rows(q, p, torch.tensor([True, False, True])).mean.flatten()
        tensor([1., 0., 1.])
    """
    both = (q, p)
    if all(
        isinstance(d, Independent)
        and d.reinterpreted_batch_ndims == 1
        and not d.base_dist.event_shape
        for d in both
    ):
        choice: Any = RowChoice(q.base_dist, p.base_dist, is_q.unsqueeze(-1))
        return choice.to_event(1)
    return RowChoice(*both, is_q)


def rows_of_q(d: Any) -> Tensor | None:
    """In which rows a distribution is q's, shape ``batch_shape``; None if it is no choice.

    Example:
        >>> from pyro.distributions import Normal
        >>> q = Normal(torch.ones(2, 3), 0.1).to_event(1)
        >>> p = Normal(torch.zeros(3), 1.0).to_event(1)
        >>> rows_of_q(chosen_rows(q, p, torch.tensor([True, False])))
        tensor([ True, False])
        >>> rows_of_q(q) is None
        True
    """
    if isinstance(d, Independent):
        rows = rows_of_q(d.base_dist)
        if rows is None or d.reinterpreted_batch_ndims == 0:
            return rows
        return rows.flatten(-d.reinterpreted_batch_ndims).all(-1)
    return d.is_q if isinstance(d, RowChoice) else None


class RowChoice(Expandable):
    """One of two distributions for each row: q, and p for rows without data.

    Args:
        q: A distribution.
        p: Another of the same event shape. Draws from it have no gradient.
        is_q: Where the first is meant, of a shape that broadcasts with the batch shapes.

    Example:
        >>> from pyro.distributions import Normal
        >>> is_q = torch.tensor([True, False])
        >>> d = RowChoice(Normal(torch.ones(2), 0.1), Normal(0.0, 1.0), is_q)
        >>> d.mean, d.variance
        (tensor([1., 0.]), tensor([0.0100, 1.0000]))
    """

    arg_constraints = {}

    def __init__(self, q: Any, p: Any, is_q: Tensor, *, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape, is_q.shape)
        self.q, self.p = q.expand(shape), p.expand(shape)
        self.is_q = is_q.expand(shape)
        self._draw: tuple[Tensor, int, Tensor] | None = None
        super().__init__(shape, q.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws from q have a gradient."""
        return bool(self.q.has_rsample)

    @property
    def support(self) -> constraints.Constraint:
        """That of q."""
        support: constraints.Constraint = self.q.support
        return support

    @property
    def mean(self) -> Tensor:
        """Mean, or for a flow the image of its base's, ``batch_shape + event_shape``."""
        return self._of_values(location(self.q), location(self.p))

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, ``batch_shape + event_shape``."""
        return self._of_values(self.q.variance, self.p.variance)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``batch_shape``, where both have one in closed form."""
        return torch.where(self.is_q, self.q.entropy(), self.p.entropy())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, ``sample_shape + batch_shape + event_shape``."""
        with torch.no_grad():
            return self._drawn(self.q.sample(torch.Size(sample_shape)), sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws that have a gradient where they are q's."""
        return self._drawn(self.q.rsample(torch.Size(sample_shape)), sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``batch_shape`` (broadcast)."""
        of_q = self.q.log_prob(self._for_q(value))
        return torch.where(self.is_q, of_q, self.p.log_prob(value))

    def _expanded(self, batch_shape: torch.Size) -> Self:
        if batch_shape == self.batch_shape:
            return self
        return type(self)(self.q, self.p, self.is_q.expand(batch_shape), validate_args=False)

    def _drawn(self, of_q: Tensor, sample_shape: Any) -> Tensor:
        draw = self._of_values(of_q, self.p.sample(torch.Size(sample_shape)).detach())
        self._draw = None if draw.is_inference() else (draw, draw._version, of_q)
        return draw

    def _for_q(self, value: Tensor) -> Tensor:
        """The value with a harmless one where it is p's: far from q's center a density overflows.

        Of a draw of this distribution q gets its own, whose density it may know without inverting
        anything.
        """
        if self._draw is not None:
            draw, version, of_q = self._draw
            if value is draw and value._version == version:
                return of_q
        try:
            center = location(self.q).detach()
        except (AttributeError, NotImplementedError):
            return value
        return self._of_values(value, center)

    def _of_values(self, of_q: Tensor, of_p: Tensor) -> Tensor:
        is_q = self.is_q.reshape(self.is_q.shape + (1,) * len(self.event_shape))
        return torch.where(is_q, of_q, of_p)


@register_kl(RowChoice, Distribution)
def _kl_row_choice(d: RowChoice, p: Any) -> Tensor:
    """Row by row that of q or of p; none where either has none."""
    return torch.where(d.is_q, kl_divergence(d.q, p), kl_divergence(d.p, p))
