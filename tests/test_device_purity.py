"""With no GPU at hand: the default device is "meta", data and modules are on the CPU.

Any tensor made without saying where would land on "meta" and stop the computation.
"""

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


MAKERS = {
    "diagonal": lambda: small_vae(family=families.DiagonalNormal),
    "full": lambda: small_vae(family=families.FullCovarianceNormal),
    "learned variance": lambda: small_vae(family=families.DiagonalNormal, learn_variance=True),
    "variance per feature": lambda: small_vae(
        family=families.DiagonalNormal, variance=np.ones(6), learn_variance=True
    ),
    "fixed per feature": lambda: small_vae(family=families.DiagonalNormal, variance=np.ones(6)),
    "convolutions": conv_vae,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_made_on_the_default_device(name, dtype):
    vae = MAKERS[name]().to(dtype)
    x = torch.randn(9, *vae.event_shape, dtype=dtype)
    with torch.device("meta"):
        fit = pv.fit(vae, x, validation=x, epochs=2, batch_size=4, patience=2, progress=False)
        terms = diagnostics.elbo_terms(vae, x, num_samples=3)
        weights = vae.log_importance_weights(x, num_samples=3)
        made = [weights, vae.sample(2), vae.reconstruct(x), vae.encode(x).rsample()]
        made += [vae.encode(x.numpy()).mean, vae.p_x_given_z.variance, *vae.parameters()]
        again = pv.VAE(prior=vae.p_z, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    assert all(tensor.device.type == "cpu" for tensor in made)
    assert {tensor.dtype for tensor in made[:4]} == {dtype}
    assert again.device.type == "cpu"
    assert np.isfinite(terms["elbo"]).all()
    assert np.isfinite(fit.history["validation_elbo"]).all()


def test_baselines_make_nothing_on_the_default_device():
    x = torch.randn(20, 6)
    ae = baselines.LinearAutoencoder(6, 2)
    with torch.device("meta"):
        ae.fit(x, epochs=2)
        pca = baselines.PCA(2).fit(x)
        made = [ae.reconstruct(x), pca.reconstruct(x), pca.log_prob(x), pca.components]
        made += [datasets.digits().x, datasets.linear_gaussian(5, features=3).x]
    assert all(tensor.device.type == "cpu" for tensor in made)
