"""Mixture priors with a linear decoder: p(x) is a mixture of normals, and so is p(z|x)."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_decoder
from torch import nn

import pyro_vae as pv
from pyro_vae import families, guides, likelihoods, priors
from pyro_vae.datasets import LinearGaussian
from pyro_vae.distributions import CholeskyNormal, DistributionModule

TRUTH = LinearGaussian(
    torch.tensor([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5], [0.0, 1.2]], dtype=torch.float64),
    torch.tensor([0.2, -0.1, 0.0, 0.4], dtype=torch.float64),
    variance=0.3,
)


def linear_guide(scale):
    r"""q(z|x) = N(E[z|x], scale * Cov[z|x]), the moments those under the prior N(0, I)."""
    family = families.FullCovarianceNormal(2)
    inner = TRUTH.weight.mT @ TRUTH.weight + TRUTH.variance * torch.eye(2)
    slope = torch.linalg.solve(inner, TRUTH.weight.mT)
    tril = torch.linalg.cholesky(scale * TRUTH.variance * torch.linalg.inv(inner))
    raw = torch.log(torch.expm1(tril.diagonal() - family.min_scale))
    places = families.normal.fill_triangle(torch.arange(3), 2)
    encoder = nn.Linear(4, family.num_params)
    with torch.no_grad():
        encoder.weight.zero_()[:2] = slope
        encoder.bias[:2] = -slope @ TRUTH.mean
        encoder.bias[2 + places[1, 0]] = tril[1, 0] / tril[1, 1] * 2**0.5
        encoder.bias[2 + places.diagonal()] = raw
    guide = guides.AmortizedGuide(family, encoder)
    expected = TRUTH.posterior(torch.ones(1, 4))
    torch.testing.assert_close(guide(torch.ones(1, 4)).mean, expected.mean)
    torch.testing.assert_close(
        guide(torch.ones(1, 4)).covariance_matrix, scale * expected.covariance_matrix
    )
    return guide


def mixture(family):
    prior = priors.GaussianMixture(2, 3, family=family(2), spread=1.5)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return prior


def vamp(guide):
    prior = priors.VampPrior(guide, 1.5 * torch.randn(3, 4), learn_weights=True)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(3))
    return prior


PRIORS = {
    "isotropic": lambda: mixture(families.IsotropicNormal),
    "diagonal": lambda: mixture(families.DiagonalNormal),
    "low rank": lambda: mixture(partial(families.LowRankNormal, rank=1)),
    "full": lambda: mixture(families.FullCovarianceNormal),
    "vamp": lambda: vamp(linear_guide(1.0)),
    "normal": lambda: priors.Normal(2),
    "fixed": lambda: priors.Fixed(
        torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.tensor([0.3, 0.7])),
            torch.distributions.MultivariateNormal(
                torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.eye(2).expand(2, 2, 2)
            ),
        )
    ),
}


def components(prior):
    """Log weights, means and covariances of a mixture of normals; of a normal, as one of one."""
    p = prior()
    if not hasattr(p, "component_distribution"):
        return torch.zeros(1), p.mean.unsqueeze(0), p.covariance_matrix.unsqueeze(0)
    parts = p.component_distribution
    covariance = getattr(parts, "covariance_matrix", None)
    if covariance is None:
        covariance = parts.variance.diag_embed()
    return p.mixture_distribution.logits.log_softmax(-1), parts.mean, covariance


def log_evidence(prior, x):
    r"""log p(x) = log sum_k w_k N(x; W m_k + mu, W S_k W^T + c I), and its terms."""
    log_weights, mean, covariance = components(prior)
    weight = TRUTH.weight
    loc = mean @ weight.mT + TRUTH.mean
    noise = TRUTH.variance * torch.eye(len(weight))
    parts = dist.MultivariateNormal(loc, weight @ covariance @ weight.mT + noise)
    terms = log_weights + parts.log_prob(x.unsqueeze(-2))
    return terms.logsumexp(-1), terms


def solved(matrix, vector):
    return torch.linalg.solve(matrix, vector.unsqueeze(-1)).squeeze(-1)


class MixturePosterior(DistributionModule):
    """p(z|x) under a mixture prior: each component's posterior, weighted by responsibility."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.event_shape = prior, torch.Size([2])

    def parts(self, x):
        _, mean, covariance = components(self.prior)
        weight, c = TRUTH.weight, TRUTH.variance
        precision = torch.linalg.inv(covariance) + weight.mT @ weight / c
        right = (x - TRUTH.mean) @ weight / c
        right = right.unsqueeze(-2) + solved(covariance, mean)
        loc = solved(precision, right)
        _, terms = log_evidence(self.prior, x)
        return terms, loc, torch.linalg.inv(precision).expand(*loc.shape, 2)

    def forward(self, x):
        terms, loc, covariance = self.parts(x)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=terms), dist.MultivariateNormal(loc, covariance)
        )


class BroadGuide(MixturePosterior):
    """A normal with the posterior mixture's mean and twice its covariance."""

    def forward(self, x):
        terms, loc, covariance = self.parts(x)
        weights = terms.softmax(-1).unsqueeze(-1)
        mean = (weights * loc).sum(-2)
        shift = (loc - mean.unsqueeze(-2)).unsqueeze(-1)
        total = (weights.unsqueeze(-1) * (covariance + shift @ shift.mT)).sum(-3)
        return CholeskyNormal(mean, scale_tril=torch.linalg.cholesky(2 * total))


def vae_of(prior, guide):
    likelihood = likelihoods.Gaussian(
        linear_decoder(TRUTH), event_shape=(4,), variance=TRUTH.variance
    )
    return pv.VAE(prior=prior, likelihood=likelihood, guide=guide)


def assert_evidence(vae, x, expected, num_samples=300):
    """Importance sampling through the whole package, in standard errors by the delta method."""
    log_weights = vae.log_importance_weights(x, num_samples=num_samples)
    weights = (log_weights - log_weights.amax(0)).exp()
    estimate = weights.mean(0).log() + log_weights.amax(0)
    error = weights.std(0) / weights.mean(0) / math.sqrt(num_samples)
    assert ((estimate - expected) / error).abs().max() < MAX_Z
    assert error.max() < 0.25


@pytest.mark.parametrize("name", PRIORS)
def test_importance_weights_are_constant_at_the_exact_posterior(name):
    prior, x = PRIORS[name](), 1.5 * torch.randn(8, 4)
    expected, _ = log_evidence(prior, x)
    vae = vae_of(prior, MixturePosterior(prior))
    log_weights = vae.log_importance_weights(x, num_samples=20)
    torch.testing.assert_close(log_weights, expected.expand(20, 8), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["diagonal", "full", "vamp", "fixed"])
def test_importance_sampling_finds_the_evidence(name):
    prior, x = PRIORS[name](), 1.5 * torch.randn(8, 4)
    expected, _ = log_evidence(prior, x)
    assert_evidence(vae_of(prior, BroadGuide(prior)), x, expected)


def test_importance_sampling_finds_the_evidence_with_the_guide_that_the_prior_is_made_of():
    guide = linear_guide(3.0)
    prior, x = vamp(guide), torch.randn(8, 4)
    expected, _ = log_evidence(prior, x)
    assert_evidence(vae_of(prior, guide), x, expected)


def test_standard_normal_is_where_the_normal_prior_starts():
    x = torch.randn(8, 4)
    expected, _ = log_evidence(priors.Normal(2), x)
    torch.testing.assert_close(expected, TRUTH.log_prob(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        partial(priors.FlowPrior, hidden=(16,)),
        partial(priors.FlowPrior, hidden=(16,), steps=priors.spline_steps),
        partial(priors.GaussianMixture, num_components=3),
    ],
)
def test_prior_learns_what_no_normal_can_be(make):
    truth = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.4, 0.6])),
        dist.Normal(torch.tensor([[-2.0, -1.0], [2.0, 1.0]]), 0.5).to_event(1),
    )
    z = truth.sample((300,))
    best = truth.log_prob(z).mean()
    normal = dist.MultivariateNormal(z.mean(0), z.mT.cov()).log_prob(z).mean()
    prior = make(2)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss = -prior().log_prob(z).mean()
        loss.backward()
        optimizer.step()
    assert best + loss < 0.3 * (best - normal)
