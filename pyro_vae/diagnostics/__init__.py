"""Diagnostics: what the ELBO is made of, how good it is, and why.

Each returns an ``xarray.Dataset`` with named dimensions.
"""

from pyro_vae.diagnostics.aggregate.active_units import active_units as active_units
from pyro_vae.diagnostics.aggregate.aggregate_margins import aggregate_margins as aggregate_margins
from pyro_vae.diagnostics.aggregate.collapse import collapse_report as collapse_report
from pyro_vae.diagnostics.aggregate.decomposition import aggregate_kl as aggregate_kl
from pyro_vae.diagnostics.aggregate.linear_theory import linear_theory as linear_theory
from pyro_vae.diagnostics.calibration.simulation_based import sbc as sbc
from pyro_vae.diagnostics.calibration.uniformity import critical_log_gamma as critical_log_gamma
from pyro_vae.diagnostics.calibration.uniformity import gamma_p_value as gamma_p_value
from pyro_vae.diagnostics.calibration.uniformity import log_gamma as log_gamma
from pyro_vae.diagnostics.convergence.course import restarts as restarts
from pyro_vae.diagnostics.convergence.course import trend as trend
from pyro_vae.diagnostics.convergence.gradients import (
    gradient_signal_to_noise as gradient_signal_to_noise,
)
from pyro_vae.diagnostics.criticism.pit import pit as pit
from pyro_vae.diagnostics.criticism.pit import posterior_pit as posterior_pit
from pyro_vae.diagnostics.criticism.predictive import (
    posterior_predictive_check as posterior_predictive_check,
)
from pyro_vae.diagnostics.criticism.predictive import (
    prior_predictive_check as prior_predictive_check,
)
from pyro_vae.diagnostics.elbo import BitsPerDim as BitsPerDim
from pyro_vae.diagnostics.elbo import bits_per_dim as bits_per_dim
from pyro_vae.diagnostics.elbo import elbo_summary as elbo_summary
from pyro_vae.diagnostics.elbo import elbo_terms as elbo_terms
from pyro_vae.diagnostics.evidence.ais import ais_log_evidence as ais_log_evidence
from pyro_vae.diagnostics.evidence.bdmc import bdmc as bdmc
from pyro_vae.diagnostics.evidence.importance import evidence_summary as evidence_summary
from pyro_vae.diagnostics.evidence.importance import importance_estimates as importance_estimates
from pyro_vae.diagnostics.evidence.importance import log_evidence as log_evidence
from pyro_vae.diagnostics.evidence.pareto import khat_threshold as khat_threshold
from pyro_vae.diagnostics.evidence.pareto import pareto_khat as pareto_khat
from pyro_vae.diagnostics.evidence.pareto import smoothed_log_weights as smoothed_log_weights
from pyro_vae.diagnostics.evidence.quadrature import (
    quadrature_log_evidence as quadrature_log_evidence,
)
from pyro_vae.diagnostics.gaps.inference_gaps import gap_summary as gap_summary
from pyro_vae.diagnostics.gaps.inference_gaps import inference_gaps as inference_gaps
from pyro_vae.diagnostics.latent_space.regularity import regularity as regularity
from pyro_vae.diagnostics.latent_space.regularity import regularity_summary as regularity_summary
from pyro_vae.diagnostics.reference.nuts import posterior_nuts as posterior_nuts
from pyro_vae.diagnostics.reference.summary import guide_draws as guide_draws
from pyro_vae.diagnostics.reference.summary import reference_summary as reference_summary

__all__ = [
    "BitsPerDim",
    "active_units",
    "aggregate_kl",
    "aggregate_margins",
    "ais_log_evidence",
    "bdmc",
    "bits_per_dim",
    "collapse_report",
    "critical_log_gamma",
    "elbo_summary",
    "elbo_terms",
    "evidence_summary",
    "gamma_p_value",
    "gap_summary",
    "gradient_signal_to_noise",
    "guide_draws",
    "importance_estimates",
    "inference_gaps",
    "khat_threshold",
    "linear_theory",
    "log_evidence",
    "log_gamma",
    "pareto_khat",
    "pit",
    "posterior_nuts",
    "posterior_pit",
    "posterior_predictive_check",
    "prior_predictive_check",
    "quadrature_log_evidence",
    "reference_summary",
    "regularity",
    "regularity_summary",
    "restarts",
    "sbc",
    "smoothed_log_weights",
    "trend",
]
