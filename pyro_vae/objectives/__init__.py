"""What Pyro's objectives lack."""

from .kl_weight import kl_weighted as kl_weighted

__all__ = ["kl_weighted"]
