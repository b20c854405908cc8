"""Every objective through fit: the maximum in closed form; and what a family leaves to chance."""

from functools import partial

import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae import datasets, families, guides, likelihoods, networks, priors
from pyro_vae.objectives import FreeBits, ImportanceWeighted_ELBO, kl_cycle, kl_warmup

QUIET = {"progress": False}
X = datasets.linear_gaussian(
    100, features=3, latent_dim=1, variance=0.3, seed=3, dtype=torch.float64
).x
X = X - X.mean(0)
MAXIMUM = datasets.LinearGaussian.maximum_likelihood(X, 1).log_prob(X).mean().item()

OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO(),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
    "TraceGraph_ELBO": TraceGraph_ELBO(),
    "RenyiELBO": RenyiELBO(alpha=0.5, num_particles=2),
    "plain": ImportanceWeighted_ELBO(2),
    "sticking_the_landing": ImportanceWeighted_ELBO(2, gradient="sticking_the_landing"),
    "doubly_reparametrized": ImportanceWeighted_ELBO(2, gradient="doubly_reparametrized"),
}
WEIGHTS = {
    "warmup": kl_warmup(0.3),
    "cycle": kl_cycle(2),
    "free bits": FreeBits(0.01),
}


def fitted(**options):
    vae = pv.gaussian_vae(
        features=3, latent_dim=1, hidden=(), variance=0.5, family=families.FullCovarianceNormal
    )
    settings = {"epochs": 30, "batch_size": 20, "learning_rate": 0.1, **QUIET, **options}
    return vae, pv.fit(vae, X, **settings)


def check_maximum(vae):
    """The ELBO is within 0.05 nats of the highest log likelihood that there is."""
    log_weights = vae.log_importance_weights(X, num_samples=100)
    elbo = log_weights.mean().item()
    standard_error = log_weights.mean(1).std().item() / 10
    assert MAXIMUM - 0.05 < elbo < MAXIMUM + 5 * standard_error


@pytest.mark.parametrize("name", OBJECTIVES)
def test_fit_reaches_the_maximum_by_every_objective(name):
    vae, _ = fitted(elbo=OBJECTIVES[name])
    check_maximum(vae)


@pytest.mark.parametrize("name", WEIGHTS)
def test_fit_reaches_the_maximum_by_every_schedule_that_ends_at_one(name):
    vae, fit = fitted(kl_weight=WEIGHTS[name])
    check_maximum(vae)
    assert fit.history["elbo"].iloc[-1] > MAXIMUM - 0.2


def test_warmup_starts_without_the_kl():
    _, free = fitted(kl_weight=kl_warmup(1.0), epochs=10)
    _, held = fitted(epochs=10)
    # The mean KL first grows far beyond what the ELBO pays for.
    assert free.history["kl"].max() > 2 * held.history["kl"].max()


def test_free_bits_keep_a_unit_alive():
    # The noise is larger than any variance of the data: the ELBO's maximum does without z.
    x = torch.randn(100, 3) * torch.tensor([1.5, 1.0, 1.0])
    kls = {}
    for nats in (0.0, 0.5):
        vae = pv.gaussian_vae(
            features=3, latent_dim=1, hidden=(), variance=4.0, learn_variance=False
        )
        weight = FreeBits(nats)
        pv.fit(vae, x, epochs=30, batch_size=25, learning_rate=0.1, kl_weight=weight, **QUIET)
        q = vae.encode(x)
        kls[nats] = (0.5 * (q.variance + q.mean.square() - 1 - q.variance.log())).mean().item()
    assert kls[0.0] < 0.01
    assert 0.4 < kls[0.5] < 0.6


def test_fit_refuses_a_weight_that_an_objective_cannot_take():
    with pytest.raises(ValueError, match=r"kl_weight must be 1 with TraceEnum_ELBO; got 0\.5"):
        fitted(elbo=TraceEnum_ELBO(max_plate_nesting=1), kl_weight=0.5)


class Ignoring(nn.Module):
    """A decoder that does not look at z."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.linspace(-1, 1, 6))

    def forward(self, z):
        return self.mean.expand(*z.shape[:-1], 6)


FAMILIES = {
    "isotropic": families.IsotropicNormal,
    "diagonal": families.DiagonalNormal,
    "low rank": partial(families.LowRankNormal, rank=2),
    "full": families.FullCovarianceNormal,
}


@pytest.mark.parametrize("prior", [priors.StandardNormal, priors.Normal])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_to_chance_where_the_decoder_ignores_z(family, prior):
    made = FAMILIES[family](3)
    p_z = prior(3)
    with torch.no_grad():  # away from the standard normal, where it can be
        for param in p_z.parameters():
            param += 0.3 * torch.randn(param.shape)
    vae = pv.VAE(
        prior=p_z,
        likelihood=likelihoods.Gaussian(Ignoring(), event_shape=(6,)),
        guide=guides.AmortizedGuide(made, networks.MLP(6, (8,), made.num_params)),
    )
    x = torch.randn(64, 6)
    spreads = {}
    for objective in (TraceMeanField_ELBO(), Trace_ELBO()):
        losses = torch.tensor([objective.loss(vae.model, vae.guide, x) for _ in range(10)])
        spreads[type(objective)] = losses.std().item()
    assert spreads[TraceMeanField_ELBO] < 1e-10
    assert spreads[Trace_ELBO] > 1e-2
