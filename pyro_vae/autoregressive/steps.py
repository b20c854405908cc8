"""The steps of a flow: autoregressive transforms of Pyro, each of which starts as the identity."""

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pyro.distributions import TransformModule
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor, nn

from pyro_vae.arguments import finite_number, positive_integer

from .networks import MaskedNetwork, PointwiseNetwork
from .transforms import Affine, Spline

__all__ = ["AffineStep", "FlowStep", "SplineStep", "affine_steps", "spline_steps"]


class FlowStep(ConditionalTransformModule, abc.ABC):
    r"""One invertible step :math:`y = T(x; h)` of a flow, at a context h or without one.

    Coordinates are taken in an order of their own: :math:`y_i` is a monotone function of
    :math:`x_i` whose parameters come from a masked network of h and the coordinates before it. So
    the Jacobian is triangular; :math:`T` and its determinant cost one pass, the inverse k passes.

    The module holds the weights and nothing else. What a distribution needs is made anew by
    :meth:`condition`: a Pyro transform that remembers the pair that it transformed last, which
    would be stale in the next training step. Every step starts as the identity.

    Args:
        latent_dim: Dimension k.
        hidden: Widths of the network's hidden layers, each at least ``latent_dim``: with fewer
            units some coordinates could not be told apart.
        param_dims: Number of parameters of each kind that one coordinate's function has.
        skip_connections: Whether the parameters have a linear part besides a bounded one.
        context_dim: Length of h; 0 for none.
        order: The coordinates from first to last; by default as they are numbered.

    Raises:
        ValueError: If a size is not positive, ``hidden`` is too narrow, or ``order`` is no
            permutation.
    """

    domain = torch.distributions.constraints.real_vector
    codomain = torch.distributions.constraints.real_vector
    bijective = True

    def __init__(
        self,
        latent_dim: int,
        *,
        hidden: Sequence[int],
        param_dims: Sequence[int],
        skip_connections: bool,
        context_dim: int,
        order: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.latent_dim = positive_integer(latent_dim, "latent_dim")
        self.context_dim = positive_integer(context_dim, "context_dim") if context_dim else 0
        self.order = list(range(self.latent_dim)) if order is None else [int(i) for i in order]
        if sorted(self.order) != list(range(self.latent_dim)):
            raise ValueError(
                f"order must be a permutation of 0 to {self.latent_dim - 1}; got {order}."
            )
        widths = _widths(hidden, self.latent_dim)
        self.network: MaskedNetwork | PointwiseNetwork
        if self.latent_dim == 1:
            self.network = PointwiseNetwork(self.context_dim, widths, param_dims)
        else:
            self.network = MaskedNetwork(
                self.order, self.context_dim, widths, param_dims, skip_connections=skip_connections
            )

    @abc.abstractmethod
    def condition(self, context: Tensor | None = None) -> TransformModule:
        """The transform at a context, ``(..., context_dim)``, or without one."""

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"latent_dim={self.latent_dim}, context_dim={self.context_dim}"

    def _parameters_at(self, context: Tensor | None) -> Callable[[Tensor], Any]:
        """The network as a function of x alone."""
        length = 0 if context is None else context.shape[-1]
        if length != self.context_dim:
            raise ValueError(
                f"context must have {self.context_dim} numbers in its last dimension; got "
                f"{length}. A step without a context has context_dim=0."
            )
        return partial(self.network, context=context)


class AffineStep(FlowStep):
    r"""Affine autoregressive step, :math:`y_i = m_i + e^{s_i} x_i` (see :class:`FlowStep`).

    :math:`m_i` and :math:`s_i` are functions of the earlier coordinates and the context, each the
    sum of a linear and a bounded one. The log scale is kept within :math:`|s_i| < 5` by
    :math:`5 \tanh(r / 5)`; every triangular affine map with such scales is in reach.

    Args:
        latent_dim: Dimension k.
        hidden: Widths of the network's hidden layers, each at least ``latent_dim``.
        context_dim: Length of the context; 0 for none.
        order: The coordinates from first to last; by default as they are numbered.

    Raises:
        ValueError: As :class:`FlowStep`.

    Example:
        >>> step = AffineStep(2, hidden=(8,))
        >>> x = torch.tensor([3.0, -1.0])
        >>> torch.equal(step.condition()(x), x)
        True

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved variational
        inference with inverse autoregressive flow, section 3. https://arxiv.org/abs/1606.04934
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        hidden: Sequence[int],
        context_dim: int = 0,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            latent_dim,
            hidden=hidden,
            param_dims=(1, 1),
            skip_connections=True,
            context_dim=context_dim,
            order=order,
        )

    def condition(self, context: Tensor | None = None) -> TransformModule:
        """The transform at a context, ``(..., context_dim)``, or without one."""
        return Affine(self._parameters_at(context), self.order)


class SplineStep(FlowStep):
    r"""Spline autoregressive step: :math:`y_i` is a monotone rational spline of :math:`x_i`.

    Widths and heights of the bins and slopes at the knots are functions of the earlier coordinates
    and the context (see :class:`FlowStep`). The spline maps :math:`[-B, B]` onto itself and is the
    identity outside it, with slope 1 where they meet. So it reshapes what lies in the box, and
    moves nothing into it or out of it.

    Args:
        latent_dim: Dimension k.
        hidden: Widths of the network's hidden layers, each at least ``latent_dim``.
        context_dim: Length of the context; 0 for none.
        count_bins: Number of bins.
        bound: B.
        order: The coordinates from first to last; by default as they are numbered.

    Raises:
        ValueError: As :class:`FlowStep`, or if there are fewer than 2 bins or ``bound`` is not
            positive.

    Example:
        >>> step = SplineStep(2, hidden=(8,))
        >>> x = torch.tensor([3.0, -1.0])
        >>> torch.allclose(step.condition()(x), x, atol=1e-5)
        True

    References:
        Durkan, Bekasov, Murray and Papamakarios (2019), Neural spline flows, section 3.
        https://arxiv.org/abs/1906.04032
        Dolatabadi, Erfani and Leckie (2020), Invertible generative modeling using linear rational
        splines, section 3. https://arxiv.org/abs/2001.05168
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        hidden: Sequence[int],
        context_dim: int = 0,
        count_bins: int = 8,
        bound: float = 5.0,
        order: Sequence[int] | None = None,
    ) -> None:
        bins = positive_integer(count_bins, "count_bins")
        if bins < 2:
            raise ValueError(f"count_bins must be at least 2; got {count_bins}.")
        bound = finite_number(bound, "bound", "positive and finite", above=0)
        super().__init__(
            latent_dim,
            hidden=hidden,
            param_dims=(bins, bins, bins - 1, bins),  # widths, heights, slopes, places in a bin
            skip_connections=False,  # the splines would grow ever steeper away from the center
            context_dim=context_dim,
            order=order,
        )
        self.count_bins, self.bound = bins, bound

    def condition(self, context: Tensor | None = None) -> TransformModule:
        """The transform at a context, ``(..., context_dim)``, or without one."""
        return Spline(
            self.latent_dim,
            self._parameters_at(context),
            count_bins=self.count_bins,
            bound=self.bound,
        )


def affine_steps(
    latent_dim: int, *, num_steps: int, hidden: Sequence[int], context_dim: int = 0
) -> nn.ModuleList:
    """Affine autoregressive steps, the second in the reverse order of the first, and so on.

    Args:
        latent_dim: Dimension k.
        num_steps: Number of steps.
        hidden: Widths of each network's hidden layers, each at least ``latent_dim``.
        context_dim: Length of the context; 0 for none.

    Returns:
        Modules :class:`AffineStep`, each the identity at first.

    Raises:
        ValueError: If a size is not positive, or ``hidden`` is too narrow.

    Example:
        >>> [step.order for step in affine_steps(3, num_steps=2, hidden=(8,))]
        [[0, 1, 2], [2, 1, 0]]
    """
    return nn.ModuleList(
        AffineStep(latent_dim, hidden=hidden, context_dim=context_dim, order=order)
        for order in _alternating(latent_dim, num_steps)
    )


def spline_steps(
    latent_dim: int,
    *,
    num_steps: int,
    hidden: Sequence[int],
    context_dim: int = 0,
    count_bins: int = 8,
    bound: float = 5.0,
) -> nn.ModuleList:
    """Spline autoregressive steps, the second in the reverse order of the first, and so on.

    Args:
        latent_dim: Dimension k.
        num_steps: Number of steps.
        hidden: Widths of each network's hidden layers, each at least ``latent_dim``.
        context_dim: Length of the context; 0 for none.
        count_bins: Number of bins of each spline.
        bound: The splines act on [-bound, bound].

    Returns:
        Modules :class:`SplineStep`, each the identity at first.

    Raises:
        ValueError: If a size is not positive, ``hidden`` is too narrow, or there are fewer than 2
            bins.

    Example:
        >>> steps = spline_steps(3, num_steps=2, hidden=(8,), count_bins=4)
        >>> [(step.order, step.count_bins) for step in steps]
        [([0, 1, 2], 4), ([2, 1, 0], 4)]
    """
    return nn.ModuleList(
        SplineStep(
            latent_dim,
            hidden=hidden,
            context_dim=context_dim,
            count_bins=count_bins,
            bound=bound,
            order=order,
        )
        for order in _alternating(latent_dim, num_steps)
    )


def _alternating(latent_dim: int, num_steps: int) -> list[list[int]]:
    forward = list(range(positive_integer(latent_dim, "latent_dim")))
    num_steps = positive_integer(num_steps, "num_steps")
    return [forward[:: -1 if i % 2 else 1] for i in range(num_steps)]


def _widths(hidden: Sequence[int], latent_dim: int) -> list[int]:
    if isinstance(hidden, int):
        raise ValueError(f"hidden must be a sequence of widths; got {hidden}. Write ({hidden},).")
    widths = [positive_integer(width, "hidden") for width in hidden]
    if not widths or min(widths) < latent_dim:
        raise ValueError(
            f"hidden must hold widths of at least latent_dim = {latent_dim}; got "
            f"{tuple(widths)}. A narrower masked network cannot tell the coordinates apart: "
            f"write hidden=({max(64, latent_dim)},)."
        )
    return widths
