"""Priors: a module whose call, without argument, returns p(z).

``affine_steps`` and ``spline_steps`` are what a :class:`FlowPrior` can be made of.
"""

from pyro_vae.autoregressive import affine_steps as affine_steps
from pyro_vae.autoregressive import spline_steps as spline_steps

from .fixed import Fixed as Fixed
from .flow import FlowPrior as FlowPrior
from .heavy_tailed import Laplace as Laplace
from .heavy_tailed import StudentT as StudentT
from .mixture import GaussianMixture as GaussianMixture
from .normal import Normal as Normal
from .normal import StandardNormal as StandardNormal
from .vamp import VampPrior as VampPrior

__all__ = [
    "Fixed",
    "FlowPrior",
    "GaussianMixture",
    "Laplace",
    "Normal",
    "StandardNormal",
    "StudentT",
    "VampPrior",
    "affine_steps",
    "spline_steps",
]
