"""Closed-form KL divergences that torch and Pyro lack, registered for the package's own types."""

from typing import Any

from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from .cholesky_normal import CholeskyNormal
from .factor_normal import FactorNormal

__all__: list[str] = []


@register_kl(Independent, LowRankMultivariateNormal)
def _kl_independent_low_rank(q: Any, p: Any) -> Tensor:
    r"""KL from independent normals to a low-rank one, the last pair of normals without one.

    .. math:: \mathrm{KL}(q \,\|\, p) = -\log p(\mu)
              + \tfrac12 \sum_j \sigma_j^2 (\Sigma_p^{-1})_{jj} - H(q)
    """
    if not isinstance(q.base_dist, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    precisions = p.precision_matrix.diagonal(dim1=-2, dim2=-1)
    spread = 0.5 * (q.base_dist.variance * precisions).sum(-1)
    return spread - p.log_prob(q.base_dist.loc) - q.entropy()


@register_kl(CholeskyNormal, Independent)
@register_kl(FactorNormal, Independent)
def _kl_correlated_normal_independent(q: Any, p: Any) -> Tensor:
    r"""KL from a correlated normal to independent coordinates, through q's margins alone.

    .. math:: \mathrm{KL}(q \,\|\, p) = \sum_j \mathrm{KL}(q_j \,\|\, p_j)
              + \Big(\sum_j H(q_j) - H(q)\Big)

    because :math:`\log p` is a sum over coordinates; the last term is q's total correlation. So it
    exists wherever the KL from one normal margin to :math:`p_j` does, as to a normal or a Laplace.
    Without it Pyro's ``TraceMeanField_ELBO`` would fall back to Monte Carlo without a word on the
    way from a diagonal to a full-covariance guide.
    """
    if p.reinterpreted_batch_ndims != 1 or len(p.event_shape) != 1:
        raise NotImplementedError
    margins = Normal(q.loc, q.stddev, validate_args=False)
    total_correlation = margins.entropy().sum(-1) - q.entropy()
    return kl_divergence(margins, p.base_dist).sum(-1) + total_correlation
