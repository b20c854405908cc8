"""A weight on the KL term: a number, or a schedule over training."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.arguments import finite_number
from pyro_vae.capture import is_capturing

__all__ = ["KLWeight", "check_kl_weight", "kl_weighted"]

BELOW_ZERO = math.nextafter(0.0, -1.0)


class KLWeight:
    r"""The factor :math:`\beta` of the KL, which a schedule may change as training goes on.

    Args:
        weight: A number :math:`\beta \ge 0`, or a schedule that maps progress through training,
            0 to 1, to such a number: :func:`kl_warmup`, :func:`kl_cycle` or any function.

    Attributes:
        value: The current :math:`\beta`; that at progress 0 until :meth:`at` is called.

    Raises:
        ValueError: If the number, or what the schedule says, is negative or not finite.

    Example:
        >>> weight = KLWeight(lambda progress: min(1.0, 2 * progress))
        >>> weight.value
        0.0
        >>> weight.at(0.25)
        >>> weight.value
        0.5
    """

    def __init__(self, weight: float | Callable[[float], float]) -> None:
        self._weight = weight
        self.value = 1.0
        self._tensor = torch.ones((), dtype=torch.float64, device="cpu")
        self.at(0.0)

    @property
    def is_one(self) -> bool:
        """Whether it is the number 1 and no schedule, so that the objective is Pyro's own."""
        return not callable(self._weight) and self.value == 1

    @property
    def factor(self) -> float | Tensor:
        """The current value; as the tensor that holds it where a graph is to read it anew."""
        return self._tensor if callable(self._weight) and is_capturing() else self.value

    def at(self, progress: float) -> None:
        """Set ``value`` to what it is at ``progress``, 0 to 1, of training."""
        if callable(self._weight):
            value, where = self._weight(progress), f" at progress {progress:g}"
        else:
            value, where = self._weight, ""
        try:
            self.value = finite_number(value, "kl_weight", "", above=BELOW_ZERO)
        except ValueError:
            raise ValueError(
                f"kl_weight must be finite and not negative; got {value!r}{where}."
            ) from None
        self._tensor.fill_(self.value)

    def __repr__(self) -> str:
        return f"KLWeight({self._weight!r})"


def kl_weighted(
    program: Callable[..., Any], weight: float | Callable[[float], float] | KLWeight
) -> Callable[..., Any]:
    r"""A program whose latent sites count ``weight`` times in Pyro's objectives.

    Wrap the model and the guide alike: the objective is then

    .. math:: \mathbb E_q \log p(x \mid z) - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z)).

    Only :math:`\beta = 1` makes it a bound on log p(x). With one wrapped alone it is neither.
    ``pyro.poutine.scale`` around the latent site does so too for a positive weight; it refuses 0.
    A site that ``TraceEnum_ELBO`` sums out in the model stands inside a logarithm with the
    observed ones, and Pyro raises for any weight but 1; one that the guide enumerates is weighted
    as the formula says.

    Args:
        program: A model or a guide.
        weight: :math:`\beta \ge 0`; or a :class:`KLWeight`, whose value is read at each run.

    Raises:
        ValueError: If ``weight`` is negative or not finite.

    Example:
        >>> import pyro, torch
        >>> def program():
        ...     return pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        >>> trace = pyro.poutine.trace(kl_weighted(program, 0.5)).get_trace()
        >>> trace.nodes["z"]["scale"]
        0.5
    """
    weight = weight if isinstance(weight, KLWeight) else KLWeight(weight)
    return program if weight.is_one else _LatentScale(weight)(program)


def check_kl_weight(objective: ELBO, weight: float | Callable[[float], float] | KLWeight) -> None:
    """Make sure that an objective can weigh the KL as :func:`kl_weighted` asks.

    Args:
        objective: The objective of ``pyro.infer.SVI``.
        weight: Weight of the latent sites.

    Raises:
        ValueError: If ``objective`` is a ``TraceEnum_ELBO`` and ``weight`` not the number 1, or if
            ``weight`` is negative or not finite.

    Example:
        >>> check_kl_weight(TraceEnum_ELBO(max_plate_nesting=1), 0.5)
        Traceback (most recent call last):
            ...
        ValueError: kl_weight must be 1 with TraceEnum_ELBO; got 0.5. A discrete site that is
        summed out stands inside a logarithm, where its KL is no term of its own.
    """
    weight = weight if isinstance(weight, KLWeight) else KLWeight(weight)
    if isinstance(objective, TraceEnum_ELBO) and not weight.is_one:
        raise ValueError(
            f"kl_weight must be 1 with {type(objective).__name__}; got {weight._weight!r}. A "
            "discrete site that is summed out stands inside a logarithm, where its KL is no term "
            "of its own."
        )


class _LatentScale(Messenger):
    def __init__(self, weight: KLWeight) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            return
        value = self.weight.factor
        msg["scale"] = msg["scale"] * value
        # For objectives that keep it apart from a plate's scale; 0 could not be divided out.
        infer = msg["infer"]
        msg["infer"] = {**infer, "kl_weight": infer.get("kl_weight", 1.0) * value}
