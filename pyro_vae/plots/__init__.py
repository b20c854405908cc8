"""Pictures of a fit, of a latent space and of what the diagnostics found.

What is drawn from a fit or from data, ``history``, ``latent``, ``plane``, ``reconstructions`` and
``samples``, is a :class:`matplotlib.figure.Figure`. What is drawn from a diagnostic is
:class:`matplotlib.axes.Axes`, of a new figure unless ``ax=`` is given; or, with several panels, a
list of them. Nothing goes through pyplot, so no global state of matplotlib is read or changed but
its style (``rcParams``), and nothing is shown.
"""

from .aggregate import aggregate_margins, eigenvalues, kl_parts, unit_kl, unit_variances
from .calibration import coverage, rank_ecdf
from .comparisons import comparison
from .convergence import elbo_trend, gradient_signal, restart_differences
from .criticism import pit_differences, predictive_check
from .evidence import khat
from .evidence_bounds import bdmc_brackets, evidence_differences
from .gaps import gap_bars, gaps_per_datum
from .latents import latent
from .learning import history
from .ledgers import ledger
from .observed import reconstructions, samples
from .planes import plane
from .png import save
from .reference import posterior_pairs
from .regularity import prior_draws, regularities, speeds

__all__ = [
    "aggregate_margins",
    "bdmc_brackets",
    "comparison",
    "coverage",
    "eigenvalues",
    "elbo_trend",
    "evidence_differences",
    "gap_bars",
    "gaps_per_datum",
    "gradient_signal",
    "history",
    "khat",
    "kl_parts",
    "latent",
    "ledger",
    "pit_differences",
    "plane",
    "posterior_pairs",
    "predictive_check",
    "prior_draws",
    "rank_ecdf",
    "reconstructions",
    "regularities",
    "restart_differences",
    "samples",
    "save",
    "speeds",
    "unit_kl",
    "unit_variances",
]
