"""Distributions that Pyro lacks, or that a training step wants cheaper. Ordinary Pyro ones."""

from . import kl as _kl  # noqa: F401  # registers closed forms with torch
from .cholesky_normal import CholeskyNormal as CholeskyNormal
from .factor_normal import FactorNormal as FactorNormal
from .module import DistributionModule as DistributionModule
from .shared_variance_normal import SharedVarianceNormal as SharedVarianceNormal

__all__ = ["CholeskyNormal", "DistributionModule", "FactorNormal", "SharedVarianceNormal"]
