"""Priors: a module whose call, without argument, returns p(z)."""

from .normal import StandardNormal as StandardNormal

__all__ = ["StandardNormal"]
