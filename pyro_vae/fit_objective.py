"""What a fit maximizes: the objective, the weight of the KL in it, and whether it is compiled."""

import warnings
from collections.abc import Callable

from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO

from pyro_vae.capture import NotCapturable
from pyro_vae.objectives import Compiled_ELBO, FreeBits, KLWeight, check_kl_weight
from pyro_vae.objectives.tensor_loss import can_be_tensor

__all__ = ["compiled_objective", "weighted_objective"]


def weighted_objective(
    elbo: ELBO | None, kl_weight: float | Callable[[float], float] | FreeBits
) -> tuple[ELBO, KLWeight]:
    """The objective of SVI, and the weight of the latent sites in it.

    Raises:
        TypeError: If the weight is a class.
        ValueError: If the objective cannot weigh the KL so.

    Example:
        >>> objective, weight = weighted_objective(None, 0.5)
        >>> type(objective).__name__, weight.value
        ('Trace_ELBO', 0.5)
    """
    if isinstance(kl_weight, type):
        raise TypeError(f"kl_weight must be an instance; got the class {kl_weight.__name__}.")
    if isinstance(kl_weight, FreeBits):
        if elbo is not None:
            raise ValueError(
                "kl_weight must be a number or a schedule where elbo is given, since free bits "
                f"are an objective of their own; got {kl_weight} and {type(elbo).__name__}."
            )
        return kl_weight.objective(), KLWeight(1.0)
    objective = Trace_ELBO() if elbo is None else elbo
    weight = KLWeight(kl_weight)
    check_kl_weight(objective, weight)
    return objective, weight


def compiled_objective(objective: ELBO, *, required: bool) -> Compiled_ELBO | None:
    """The objective with the programs compiled, or None where there is no such thing.

    Raises:
        NotCapturable: If there is none and it is required.

    Example:
        >>> compiled_objective(Trace_ELBO(), required=True).graphs.required
        True
    """
    if isinstance(objective, Compiled_ELBO):
        if objective.graphs.required or not required:
            return objective
        return Compiled_ELBO(objective.elbo, required=True, backend=objective.graphs.backend)
    if can_be_tensor(objective):
        return Compiled_ELBO(objective, required=required)
    reason = f"{type(objective).__name__} cannot be traced to one graph"
    if required:
        raise NotCapturable(f"elbo must be one that can be compiled; {reason}. Use Trace_ELBO.")
    warnings.warn(
        f"model and guide are not compiled and run as ordinary Pyro, because {reason}.",
        UserWarning,
        stacklevel=4,
    )
    return None
