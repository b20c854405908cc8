r"""The one place that turns two Pyro programs into log densities, one for each datum and draw.

ELBO, importance weights and every diagnostic are reductions of what is computed here, from the
traces of ``model`` and ``guide``, so a program that a user wrote by hand is served as well as a
:class:`pyro_vae.VAE`.
"""

from .densities import LogDensities as LogDensities
from .densities import Programs as Programs
from .densities import log_densities as log_densities
from .kl import analytic_kl as analytic_kl
from .sites import site_log_probs as site_log_probs
from .terms import ElboTerms as ElboTerms
from .terms import elbo_terms as elbo_terms

__all__ = [
    "ElboTerms",
    "LogDensities",
    "Programs",
    "analytic_kl",
    "elbo_terms",
    "log_densities",
    "site_log_probs",
]
