"""Families of q(z): unconstrained parameters to a distribution.

A family says what is built, not where its parameters come from: ``guides.AmortizedGuide`` takes
them from an encoder, ``guides.PerDatumGuide`` holds them for each datum. The families share one
signature, so that swapping the diagonal for the full covariance is one argument.
"""

from pyro_vae.autoregressive import affine_steps as affine_steps
from pyro_vae.autoregressive import spline_steps as spline_steps

from .family import Family as Family
from .flow import Flow as Flow
from .normal import DiagonalNormal as DiagonalNormal
from .normal import FullCovarianceNormal as FullCovarianceNormal
from .normal import IsotropicNormal as IsotropicNormal
from .normal import LowRankNormal as LowRankNormal

__all__ = [
    "DiagonalNormal",
    "Family",
    "Flow",
    "FullCovarianceNormal",
    "IsotropicNormal",
    "LowRankNormal",
    "affine_steps",
    "spline_steps",
]
