"""The names by which the command line and configuration files call the kinds of parts.

Only names and numbers, so that ``--help`` does not wait for torch; ``commands.model_choice`` knows
what they stand for.
"""

from collections.abc import Mapping

from pyro_vae.arguments import did_you_mean

__all__ = ["FAMILIES", "LIKELIHOODS", "OBJECTIVES", "PRIORS", "parse_kind", "written"]

Kinds = Mapping[str, float | None]
"""Name of each kind to the default of its one number, None for a kind without a number."""

PRIORS: Kinds = {
    "standard": None,
    "normal": None,
    "mixture": 10,
    "vamp": 50,
    "flow": 2,
    "spline": 2,
    "student": 4.0,
    "laplace": None,
}
"""Numbers: components, pseudo-inputs, steps, degrees of freedom."""

LIKELIHOODS: Kinds = {
    "gaussian": None,
    "laplace": None,
    "student": 4.0,
    "lognormal": None,
    "bernoulli": None,
    "continuous_bernoulli": None,
    "beta": None,
    "categorical": 2,
    "poisson": None,
    "negative_binomial": None,
    "zero_inflated_poisson": None,
    "discretized_logistic": 256,
}
"""Numbers: degrees of freedom, classes, levels."""

FAMILIES: Kinds = {
    "isotropic": None,
    "diagonal": None,
    "lowrank": 2,
    "full": None,
    "flow": 2,
    "spline": 2,
}
"""Numbers: rank, steps."""

OBJECTIVES: Kinds = {
    "trace": None,
    "mean_field": None,
    "graph": None,
    "renyi": 0.5,
    "iwae": 10,
    "stl": 10,
    "dreg": 10,
}
"""Numbers: order alpha, particles."""


SYNONYMS = {
    "elbo": "trace",
    "full_covariance": "full",
    "gaussian": "normal",
    "iaf": "flow",
    "low_rank": "lowrank",
    "normal": "gaussian",
    "standard_normal": "standard",
    "student_t": "student",
    "t": "student",
    "vampprior": "vamp",
}
"""Other names of some kinds, which are offered and not taken."""


def parse_kind(text: str, kinds: Kinds) -> tuple[str, float | None]:
    """A name, and its number where the kind has one: ``mixture:10``, or ``mixture`` alone.

    Args:
        text: What the user wrote; hyphens may stand for underscores.
        kinds: The names to choose from.

    Returns:
        Name and number; the number is an int where its default is one.

    Raises:
        ValueError: If there is no such name, with the nearest one, or the number is not usable.

    Example:
        >>> parse_kind("mixture:5", PRIORS), parse_kind("student", PRIORS)
        (('mixture', 5), ('student', 4.0))
        >>> parse_kind("mixtrue", PRIORS)
        Traceback (most recent call last):
        ValueError: must be one of standard, normal, mixture:10, vamp:50, flow:2, spline:2,
        student:4.0, laplace; got 'mixtrue'. Did you mean 'mixture'?
    """
    name, colon, number = text.replace("-", "_").partition(":")
    if name not in kinds:
        meant = SYNONYMS.get(name, name)
        hint = did_you_mean(meant if meant in kinds else name, kinds)
        raise ValueError(f"must be one of {written(kinds)}; got {text!r}.{hint}")
    default = kinds[name]
    if not colon:
        return name, default
    if default is None:
        raise ValueError(f"must be {name!r} without a number; got {text!r}.")
    try:
        value = type(default)(number)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        noun = "integer" if isinstance(default, int) else "number"
        raise ValueError(f"must have a positive {noun} after {name}:; got {text!r}.")
    return name, value


def written(kinds: Kinds) -> str:
    """The names as a user writes them, each with the default of its number.

    Example:
        >>> written({"diagonal": None, "lowrank": 2})
        'diagonal, lowrank:2'
    """
    return ", ".join(name if n is None else f"{name}:{n}" for name, n in kinds.items())
