r"""The one place that turns two Pyro programs into log densities, one for each datum and draw.

ELBO, importance weights and every diagnostic are reductions of what is computed here, from the
traces of ``model`` and ``guide``, so a program that a user wrote by hand is served as well as a
:class:`pyro_vae.VAE`.
"""

from .densities import CHUNK_SIZE as CHUNK_SIZE
from .densities import LogDensities as LogDensities
from .densities import log_densities as log_densities
from .densities import log_densities_by_draws as log_densities_by_draws
from .densities import log_weights as log_weights
from .joint import JointDensity as JointDensity
from .kl import analytic_kl as analytic_kl
from .latent import LatentSite as LatentSite
from .latent import latent_site as latent_site
from .parameters import num_parameters as num_parameters
from .runs import Programs as Programs
from .runs import Runs as Runs
from .simulation import Simulation as Simulation
from .simulation import simulate as simulate
from .sites import site_log_probs as site_log_probs
from .terms import ElboTerms as ElboTerms
from .terms import elbo_terms as elbo_terms
from .terms import elbo_terms_by_draws as elbo_terms_by_draws

__all__ = [
    "CHUNK_SIZE",
    "ElboTerms",
    "JointDensity",
    "LatentSite",
    "LogDensities",
    "Programs",
    "Runs",
    "Simulation",
    "analytic_kl",
    "elbo_terms",
    "elbo_terms_by_draws",
    "latent_site",
    "log_densities",
    "log_densities_by_draws",
    "log_weights",
    "num_parameters",
    "simulate",
    "site_log_probs",
]
