"""Likelihoods: a module whose call maps z to p(x|z).

Each says which data it is meant for (``support``) and how many numbers it takes from its decoder
for each feature of x (``outputs_per_feature``).
"""

from .binary import Bernoulli as Bernoulli
from .categorical import Categorical as Categorical
from .counts import NegativeBinomial as NegativeBinomial
from .counts import Poisson as Poisson
from .counts import ZeroInflatedPoisson as ZeroInflatedPoisson
from .discretized_logistic import DiscretizedLogistic as DiscretizedLogistic
from .gaussian import Gaussian as Gaussian
from .gaussian import LogNormal as LogNormal
from .heavy_tailed import Laplace as Laplace
from .heavy_tailed import StudentT as StudentT
from .likelihood import Likelihood as Likelihood
from .likelihood import outputs_per_feature as outputs_per_feature
from .unit_interval import Beta as Beta
from .unit_interval import ContinuousBernoulli as ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflatedPoisson",
    "outputs_per_feature",
]
