"""Every prior with every likelihood and every family: a few steps improve what is reported."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import MAX_Z
from pyro.infer import RenyiELBO, TraceGraph_ELBO

import pyro_vae as pv
from pyro_vae import families, likelihoods, priors
from pyro_vae.diagnostics import elbo_summary, elbo_terms

FEATURES, LATENT = 5, 2

PRIORS = {
    priors.StandardNormal: priors.StandardNormal,
    priors.Normal: priors.Normal,
    priors.GaussianMixture: partial(priors.GaussianMixture, num_components=3),
    priors.VampPrior: None,  # made from the guide
    priors.FlowPrior: partial(priors.FlowPrior, hidden=(8,)),
    priors.StudentT: priors.StudentT,
    priors.Laplace: priors.Laplace,
    priors.Fixed: lambda k: priors.Fixed(
        torch.distributions.MultivariateNormal(torch.zeros(k), 0.5 * torch.eye(k) + 0.5)
    ),
}
LIKELIHOODS = {
    likelihoods.Gaussian: partial(likelihoods.Gaussian, learn_variance=True),
    likelihoods.LogNormal: partial(likelihoods.LogNormal, learn_variance=True),
    likelihoods.Laplace: partial(likelihoods.Laplace, learn_scale=True),
    likelihoods.StudentT: partial(likelihoods.StudentT, learn_scale=True),
    likelihoods.Bernoulli: likelihoods.Bernoulli,
    likelihoods.ContinuousBernoulli: likelihoods.ContinuousBernoulli,
    likelihoods.Beta: likelihoods.Beta,
    likelihoods.Categorical: partial(likelihoods.Categorical, num_classes=4),
    likelihoods.Poisson: likelihoods.Poisson,
    likelihoods.NegativeBinomial: likelihoods.NegativeBinomial,
    likelihoods.ZeroInflatedPoisson: likelihoods.ZeroInflatedPoisson,
    likelihoods.DiscretizedLogistic: partial(likelihoods.DiscretizedLogistic, levels=16),
}
FAMILIES = {
    "isotropic": families.IsotropicNormal,
    "diagonal": families.DiagonalNormal,
    "low rank": partial(families.LowRankNormal, rank=1),
    "full": families.FullCovarianceNormal,
    "affine flow": partial(families.Flow, hidden=(8,), context_dim=2),
    "spline flow": partial(families.Flow, hidden=(8,), context_dim=2, steps=families.spline_steps),
}


def data_for(likelihood):
    """Some rows in the likelihood's support, with one direction of variation to find."""
    t = 1 + np.linspace(-3, 3, 400)[:, None] * np.linspace(0.5, 1.5, FEATURES)
    noise = np.random.default_rng(0).normal(size=t.shape)
    unit = 1 / (1 + np.exp(-(t + 0.3 * noise)))
    if likelihood in {likelihoods.Gaussian, likelihoods.Laplace, likelihoods.StudentT}:
        return t + 0.3 * noise
    if likelihood in {likelihoods.Beta, likelihoods.ContinuousBernoulli}:
        return unit
    if likelihood is likelihoods.LogNormal:
        return np.exp(0.3 * t + 0.3 * noise)
    if likelihood is likelihoods.Bernoulli:
        return (unit > 0.5).astype(float)
    if likelihood is likelihoods.Categorical:
        return np.floor(3.999 * unit)
    if likelihood is likelihoods.DiscretizedLogistic:
        return np.round(15 * unit) / 15
    return np.floor(8 * unit)  # counts, zeros among them


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("objective", [TraceGraph_ELBO(), RenyiELBO(num_particles=2)])
def test_objectives_take_a_prior_that_cannot_be_reparametrized(objective, likelihood):
    x = torch.from_numpy(data_for(likelihood))[:40]
    vae = pv.make_vae(
        features=FEATURES,
        latent_dim=LATENT,
        hidden=(16,),
        likelihood=LIKELIHOODS[likelihood],
        prior=PRIORS[priors.GaussianMixture],
    )
    fit = pv.fit(vae, x, epochs=1, elbo=objective, progress=False)
    assert fit.num_skipped == 0
    assert np.isfinite(fit.history["loss"].iloc[0])


def test_grid_has_every_part():
    def classes(module, table):
        names = {getattr(module, n) for n in module.__all__}
        return {c for c in names if isinstance(c, type)} - set(table)

    assert classes(priors, PRIORS) == set()
    assert classes(likelihoods, LIKELIHOODS) == {likelihoods.Likelihood}
    flows = {families.Flow}
    plain = {kind for kind in FAMILIES.values() if isinstance(kind, type)}
    partials = {kind.func for kind in FAMILIES.values() if isinstance(kind, partial)}
    assert classes(families, plain | partials | flows) == {families.Family}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("prior", PRIORS, ids=lambda c: c.__name__)
def test_a_few_epochs_improve_the_elbo_without_a_warning(prior, likelihood, family):
    x = torch.from_numpy(data_for(likelihood))
    vae = pv.make_vae(
        features=FEATURES,
        latent_dim=LATENT,
        hidden=(16,),
        likelihood=LIKELIHOODS[likelihood],
        prior=PRIORS[prior] or priors.StandardNormal,
        family=FAMILIES[family],
    )
    if prior is priors.VampPrior:
        guide = vae.q_z_given_x
        vae = vae.with_prior(priors.VampPrior.from_data(guide, x, num_components=3))
    before = elbo_summary(elbo_terms(vae, x, num_samples=2)).loc["elbo"]
    pv.fit(vae, x, epochs=1, batch_size=20, learning_rate=0.03, progress=False)
    after = elbo_summary(elbo_terms(vae, x, num_samples=2)).loc["elbo"]
    error = math.hypot(before["mcse"], after["mcse"])
    assert after["mean"] - before["mean"] > MAX_Z * error
    assert vae.sample(3).shape == vae.reconstruct(x[:3]).shape == (3, FEATURES)
    vae.prepare(vae.sample(50))  # draws lie in the likelihood's own support
