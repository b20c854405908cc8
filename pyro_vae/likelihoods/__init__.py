"""Likelihoods: a module whose call maps z to p(x|z)."""

from .gaussian import Gaussian as Gaussian

__all__ = ["Gaussian"]
