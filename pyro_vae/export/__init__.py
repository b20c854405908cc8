"""A fit as an ArviZ container: draws, densities and data under the names that ArviZ knows."""

from .inference_data import to_arviz as to_arviz

__all__ = ["to_arviz"]
