"""What Pyro's objectives lack: for now the weight on the KL term."""

import math
from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_vae.arguments import finite_number

__all__ = ["kl_weighted"]


def kl_weighted(program: Callable[..., Any], weight: float) -> Callable[..., Any]:
    r"""A program whose latent sites count ``weight`` times in Pyro's objectives.

    Wrap the model and the guide alike: the objective is then

    .. math:: \mathbb E_q \log p(x \mid z) - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z)).

    Only :math:`\beta = 1` makes it a bound on log p(x). With one wrapped alone it is neither.
    ``pyro.poutine.scale`` around the latent site does so too for a positive weight; it refuses 0.

    Args:
        program: A model or a guide.
        weight: :math:`\beta \ge 0`.

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
    if finite_number(weight, "kl_weight", "finite and not negative", above=-math.inf) < 0:
        raise ValueError(f"kl_weight must be finite and not negative; got {weight!r}.")
    if weight == 1:
        return program
    return _LatentScale(weight)(program)


class _LatentScale(Messenger):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight
