"""Distributions that Pyro lacks, or that a training step wants cheaper. Ordinary Pyro ones."""

from . import kl as _kl  # noqa: F401  # registers closed forms with torch
from .cholesky_normal import CholeskyNormal as CholeskyNormal
from .class_number import ClassNumber as ClassNumber
from .continuous_bernoulli import ContinuousBernoulli as ContinuousBernoulli
from .counts import LogMeanNegativeBinomial as LogMeanNegativeBinomial
from .counts import LogMeanPoisson as LogMeanPoisson
from .counts import LogMeanZeroInflatedPoisson as LogMeanZeroInflatedPoisson
from .discretized_logistic import DiscretizedLogistic as DiscretizedLogistic
from .discretized_logistic import LevelGrid as LevelGrid
from .factor_normal import FactorNormal as FactorNormal
from .gray_bernoulli import GrayBernoulli as GrayBernoulli
from .independent_normal import IndependentNormal as IndependentNormal
from .independent_normal import UnitNormal as UnitNormal
from .location import location as location
from .mean_beta import MeanBeta as MeanBeta
from .module import DistributionModule as DistributionModule
from .observed_entries import ObservedEntries as ObservedEntries
from .packed_normal import PackedNormal as PackedNormal
from .row_choice import RowChoice as RowChoice
from .shared_variance_normal import SharedVarianceNormal as SharedVarianceNormal
from .student_t import FixedDfStudentT as FixedDfStudentT

__all__ = [
    "CholeskyNormal",
    "ClassNumber",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DistributionModule",
    "FactorNormal",
    "FixedDfStudentT",
    "GrayBernoulli",
    "IndependentNormal",
    "LevelGrid",
    "LogMeanNegativeBinomial",
    "LogMeanPoisson",
    "LogMeanZeroInflatedPoisson",
    "MeanBeta",
    "ObservedEntries",
    "PackedNormal",
    "RowChoice",
    "SharedVarianceNormal",
    "UnitNormal",
    "location",
]
