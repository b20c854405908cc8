"""A distribution of x of which some entries were not observed."""

from typing import Any, Self

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution, transform_to

from .expandable import Expandable
from .mean_beta import open_unit_interval

__all__ = ["ObservedEntries", "factorizes"]

INSIDE = (1.0, 0.5, 0.0, -1.0)
"""Numbers of which one lies in the support of most distributions."""


class ObservedEntries(Expandable):
    r"""The margin of p(x) over those entries of x that were observed.

    .. math:: \log p(x_{\text{obs}}) = \sum_{j \text{ observed}} \log p_j(x_j)

    A missing entry of x is NaN. Entries are independent under p, so leaving one out is integrating
    over it, and the density of x with no observed entry is 1. Whatever is written in a missing
    entry's place is a number inside the support, before the density is taken and not after: no NaN
    reaches a value or a gradient. Draws are complete.

    Args:
        p: A distribution under which entries are independent: any ``.to_event()`` of one for each
            entry, as all of :mod:`pyro_vae.likelihoods` return, or one that has
            ``log_prob_of_entries(x)``, the log density of each entry.

    Raises:
        ValueError: If entries are not independent under p.

    Example:
        >>> from pyro.distributions import Normal
        >>> p = ObservedEntries(Normal(torch.zeros(3), 1.0).to_event(1))
        >>> x = torch.tensor([[0.0, 0.0, float("nan")], [float("nan")] * 3])
        >>> p.log_prob(x)  # -log(2 pi); nothing
        tensor([-1.8379,  0.0000])

    References:
        Little and Rubin (2019), Statistical analysis with missing data, section 6.2: the
        likelihood of what is observed, right where entries are missing at random.
    """

    arg_constraints = {}

    def __init__(self, p: Any, *, validate_args: bool | None = None) -> None:
        if not factorizes(p):
            raise ValueError(
                "likelihood must have independent entries for some to be missing; got "
                f"{type(p).__name__}. Return a distribution of each entry with .to_event(), or "
                "give yours a method log_prob_of_entries(x)."
            )
        self.p = p
        super().__init__(p.batch_shape, p.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have a gradient."""
        return bool(self.p.has_rsample)

    @property
    def support(self) -> constraints.Constraint:
        """That of p: of complete x."""
        support: constraints.Constraint = self.p.support
        return support

    @property
    def mean(self) -> Tensor:
        """Mean of complete x, ``batch_shape + event_shape``."""
        mean: Tensor = self.p.mean
        return mean

    @property
    def variance(self) -> Tensor:
        """Variance of each entry of complete x, ``batch_shape + event_shape``."""
        variance: Tensor = self.p.variance
        return variance

    def _expanded(self, batch_shape: torch.Size) -> Self:
        if batch_shape == self.batch_shape:
            return self
        return type(self)(self.p.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of complete x, ``sample_shape + batch_shape + event_shape``."""
        draws: Tensor = self.p.sample(torch.Size(sample_shape))
        return draws

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Reparametrized draws of complete x, where p has them."""
        draws: Tensor = self.p.rsample(torch.Size(sample_shape))
        return draws

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the observed entries in nats, shape ``batch_shape`` (broadcast).

        Args:
            value: x with NaN in missing entries, ``(..., *event_shape)``.
        """
        observed = ~value.isnan()
        entries = _log_prob_of_entries(self.p, value, observed)
        kept = torch.where(observed, entries, 0.0)
        event_dim = len(self.event_shape)
        return kept if event_dim == 0 else kept.sum(list(range(-event_dim, 0)))


def factorizes(p: Any) -> bool:
    """Whether entries of x are known to be independent under p.

    Example:
        >>> from pyro import distributions as dist
        >>> factorizes(dist.Normal(torch.zeros(5, 3), 1.0).to_event(1))
        True
        >>> factorizes(dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))
        False
    """
    return hasattr(p, "log_prob_of_entries") or not _base(p).event_shape


def _base(p: Any) -> Any:
    while isinstance(p, Independent):
        p = p.base_dist
    return p


def _log_prob_of_entries(p: Any, value: Tensor, observed: Tensor) -> Tensor:
    own = getattr(p, "log_prob_of_entries", None)
    base = p if own is not None else _base(p)
    filled = torch.where(observed, value, _inside(base, value))
    entries: Tensor = base.log_prob(filled) if own is None else own(filled)
    return entries


def _inside(base: Any, like: Tensor) -> Tensor:
    """A number inside the support, without a branch on values, which no graph could hold."""
    try:
        support: Any = base.support
    except (AttributeError, NotImplementedError):  # a distribution need not declare its support
        support = constraints.real
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if constraints.is_dependent(support):  # it cannot be asked
        return _drawn(base, like)
    found = _of_support(base, support, like)
    candidates = [like.new_full((), number) for number in reversed(INSIDE)]
    if isinstance(base, TransformedDistribution):
        # Of maps in a row torch declares the last one's codomain alone: all reals for a shifted
        # LogNormal. An image of what is inside is inside.
        image = _inside(base.base_dist, like)
        for transform in base.transforms:
            image = transform(image)
        candidates = [image.detach()]
    for candidate in candidates:
        found = torch.where(support.check(candidate), candidate, found)
    return found


def _of_support(base: Any, support: Any, like: Tensor) -> Tensor:
    """A number inside a support that may depend on parameters, as that of Uniform(5, 6)."""
    for bound in ("lower_bound", "upper_bound") if support.is_discrete else ():
        if hasattr(support, bound):
            return like.new_zeros(()) + getattr(support, bound)
    if support in (constraints.boolean, open_unit_interval):
        return like.new_full((), INSIDE[1])  # one of the numbers is inside: no need to draw
    try:
        found: Tensor = transform_to(support)(like.new_zeros(()))
    except NotImplementedError:  # a user's own constraint
        return _drawn(base, like)
    return found.detach().to(like)


def _drawn(base: Any, like: Tensor) -> Tensor:
    with torch.no_grad():
        draw: Tensor = base.sample()
    return draw.to(like)
