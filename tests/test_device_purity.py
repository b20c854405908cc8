"""With no GPU at hand: the default device is "meta", data and modules are on the CPU.

Any tensor made without saying where would land on "meta" and stop the computation.
"""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import small_vae

import pyro_vae as pv
from pyro_vae import (
    baselines,
    datasets,
    diagnostics,
    families,
    guides,
    likelihoods,
    networks,
    priors,
)
from pyro_vae.distributions import location
from pyro_vae.objectives import FreeBits_ELBO, ImportanceWeighted_ELBO

LIKELIHOODS = [
    likelihoods.LogNormal,
    likelihoods.Laplace,
    likelihoods.StudentT,
    likelihoods.Bernoulli,
    likelihoods.ContinuousBernoulli,
    likelihoods.Beta,
    likelihoods.Poisson,
    likelihoods.NegativeBinomial,
    likelihoods.ZeroInflatedPoisson,
    likelihoods.DiscretizedLogistic,
    partial(likelihoods.Categorical, num_classes=3),
]


def conv_vae():
    shape = (1, 8, 8)
    family = families.DiagonalNormal(2)
    return pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(
            networks.ConvDecoder(2, shape), event_shape=shape, learn_variance=True
        ),
        guide=guides.AmortizedGuide(family, networks.ConvEncoder(shape, family.num_params)),
    )


def vae_of(*, prior=None, likelihood=None, family=families.DiagonalNormal):
    """A small VAE with one part swapped."""
    return pv.make_vae(
        features=4,
        latent_dim=2,
        hidden=(8,),
        likelihood=likelihood or likelihoods.Gaussian,
        prior=prior or priors.StandardNormal,
        family=family,
    )


def vamp_vae():
    vae = vae_of()
    return vae.with_prior(priors.VampPrior(vae.q_z_given_x, torch.zeros(3, 4)))


def per_datum_vae():
    return vae_of().with_guide(guides.PerDatumGuide(families.FullCovarianceNormal(2), 9))


MAKERS = {
    "diagonal": lambda: small_vae(family=families.DiagonalNormal),
    "full": lambda: small_vae(family=families.FullCovarianceNormal),
    "learned variance": lambda: small_vae(family=families.DiagonalNormal, learn_variance=True),
    "variance per feature": lambda: small_vae(
        family=families.DiagonalNormal, variance=np.ones(6), learn_variance=True
    ),
    "fixed per feature": lambda: small_vae(family=families.DiagonalNormal, variance=np.ones(6)),
    "convolutions": conv_vae,
    "isotropic": lambda: vae_of(family=families.IsotropicNormal),
    "low rank": lambda: vae_of(family=partial(families.LowRankNormal, rank=1)),
    "affine flow": lambda: vae_of(family=families.Flow),
    "spline flow": lambda: vae_of(family=partial(families.Flow, steps=families.spline_steps)),
    "learned normal": lambda: vae_of(prior=priors.Normal),
    "mixture": lambda: vae_of(prior=partial(priors.GaussianMixture, num_components=3)),
    "flow prior": lambda: vae_of(prior=priors.FlowPrior),
    "Student's t prior": lambda: vae_of(prior=priors.StudentT),
    "Laplace prior": lambda: vae_of(prior=priors.Laplace),
    "VampPrior": vamp_vae,
    "per datum": per_datum_vae,
    "variance of z": lambda: vae_of(
        likelihood=partial(likelihoods.Gaussian, variance=networks.MLP(2, (3,), 4))
    ),
    **{getattr(k, "__name__", "Categorical"): partial(vae_of, likelihood=k) for k in LIKELIHOODS},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_made_on_the_default_device(name, dtype):
    vae = MAKERS[name]().to(dtype)
    likelihood = type(vae.p_x_given_z)
    x = torch.randn(9, *vae.event_shape, dtype=dtype)
    if likelihood is not likelihoods.Gaussian:  # draws lie in the support
        x = vae.sample(9)
    per_datum = isinstance(vae.q_z_given_x, guides.PerDatumGuide)
    held_out = {} if per_datum else {"validation": x, "patience": 2}
    with torch.device("meta"):
        fit = pv.fit(vae, x, epochs=2, batch_size=4, progress=False, **held_out)
        terms = diagnostics.elbo_terms(vae, x, num_samples=3)
        weights = vae.log_importance_weights(x, num_samples=3)
        made = [weights, vae.sample(2), vae.reconstruct(x), vae.encode(x).rsample()]
        made += [location(vae.encode(x.numpy())), *vae.parameters(), *vae.buffers()]
        again = pv.VAE(prior=vae.p_z, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    assert all(tensor.device.type == "cpu" for tensor in made)
    assert {tensor.dtype for tensor in made[:4]} == {dtype}
    assert again.device.type == "cpu"
    assert np.isfinite(terms["elbo"]).all()
    assert np.isfinite(fit.history["elbo" if per_datum else "validation_elbo"]).all()


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeighted_ELBO(3),
        ImportanceWeighted_ELBO(3, gradient="sticking_the_landing"),
        ImportanceWeighted_ELBO(3, gradient="doubly_reparametrized"),
        FreeBits_ELBO(0.1),
    ],
)
def test_objectives_make_nothing_on_the_default_device(objective):
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(9, 6)
    with torch.device("meta"):
        fit = pv.fit(vae, x, epochs=1, elbo=objective, train="guide", progress=False)
    assert np.isfinite(fit.history["elbo"]).all()
    assert all(p.device.type == "cpu" for p in vae.parameters())


def test_fixed_prior_makes_nothing_on_the_default_device():
    fixed = priors.Fixed(torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)))
    vae = small_vae(family=families.DiagonalNormal).with_prior(fixed).to(torch.float32)
    with torch.device("meta"):
        fit = pv.fit(vae, torch.randn(9, 6, device="cpu"), epochs=1, progress=False)
        assert vae.sample(3).dtype == torch.float32
    assert np.isfinite(fit.history["elbo"]).all()


def test_baselines_make_nothing_on_the_default_device():
    x = torch.randn(20, 6)
    ae = baselines.LinearAutoencoder(6, 2)
    with torch.device("meta"):
        ae.fit(x, epochs=2)
        pca = baselines.PCA(2).fit(x)
        made = [ae.reconstruct(x), pca.reconstruct(x), pca.log_prob(x), pca.components]
        made += [datasets.digits().x, datasets.linear_gaussian(5, features=3).x]
    assert all(tensor.device.type == "cpu" for tensor in made)
