"""Diagnostics: what the ELBO is made of, how good it is, and why.

Each returns an ``xarray.Dataset`` with named dimensions.
"""

from pyro_vae.diagnostics.elbo import BitsPerDim as BitsPerDim
from pyro_vae.diagnostics.elbo import bits_per_dim as bits_per_dim
from pyro_vae.diagnostics.elbo import elbo_summary as elbo_summary
from pyro_vae.diagnostics.elbo import elbo_terms as elbo_terms
from pyro_vae.diagnostics.importance import evidence_summary as evidence_summary
from pyro_vae.diagnostics.importance import importance_estimates as importance_estimates
from pyro_vae.diagnostics.importance import log_evidence as log_evidence
from pyro_vae.diagnostics.pareto import khat_threshold as khat_threshold
from pyro_vae.diagnostics.pareto import pareto_khat as pareto_khat
from pyro_vae.diagnostics.pareto import smoothed_log_weights as smoothed_log_weights

__all__ = [
    "BitsPerDim",
    "bits_per_dim",
    "elbo_summary",
    "elbo_terms",
    "evidence_summary",
    "importance_estimates",
    "khat_threshold",
    "log_evidence",
    "pareto_khat",
    "smoothed_log_weights",
]
