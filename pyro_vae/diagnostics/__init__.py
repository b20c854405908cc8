"""Diagnostics: what the ELBO is made of.

Each returns an ``xarray.Dataset`` with named dimensions.
"""

from pyro_vae.diagnostics.elbo import elbo_summary as elbo_summary
from pyro_vae.diagnostics.elbo import elbo_terms as elbo_terms

__all__ = ["elbo_summary", "elbo_terms"]
