"""Figures that take minutes, or the real Fashion-MNIST: ``pytest -m slow``."""

import os

import pytest
import torch

import pyro_vae as pv
from pyro_vae import baselines, datasets, families
from pyro_vae.diagnostics import elbo_summary, elbo_terms

pytestmark = pytest.mark.slow
needs_images = pytest.mark.skipif(
    "PYRO_VAE_DATA" not in os.environ, reason="PYRO_VAE_DATA names no folder of image sets"
)


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_linear_vae_on_digits_is_probabilistic_pca(family):
    torch.set_default_dtype(torch.float32)
    x = datasets.digits().x
    best = 8.907637  # FORMULAS (a): the exact maximum, k = 5
    vae = pv.gaussian_vae(features=64, latent_dim=5, hidden=(), family=family)
    pv.fit(vae, x, epochs=1600, batch_size=512, learning_rate=0.03, progress=False)
    row = elbo_summary(elbo_terms(vae, x, num_samples=200)).loc["elbo"]
    assert best - 0.02 < row["mean"] < best + 3 * row["mcse"]
    assert abs(vae.p_x_given_z.variance.item() / 0.03619681 - 1) < 0.01


@needs_images
def test_probabilistic_pca_on_fashion_mnist_has_the_known_likelihood():
    train, held_out = (datasets.fashion_mnist(train=part) for part in (True, False))
    pca = baselines.PCA(20).fit(train.x)
    assert abs(pca.log_prob(train.x).mean().item() - 396.7614) < 5e-4
    assert abs(pca.log_prob(held_out.x).mean().item() - 396.6993) < 5e-4


@needs_images
def test_vae_beats_probabilistic_pca_on_fashion_mnist_within_ten_epochs():
    torch.set_default_dtype(torch.float32)
    train, held_out = (datasets.fashion_mnist(train=part) for part in (True, False))
    vae = pv.gaussian_vae(features=784, latent_dim=20, hidden=(400,))
    pv.fit(vae, train, epochs=10, progress=False)
    row = elbo_summary(elbo_terms(vae, held_out, num_samples=4)).loc["elbo"]
    assert row["mean"] > 396.6993 + 100 + 5 * row["se"]


@needs_images
def test_linear_autoencoder_on_fashion_mnist_is_pca():
    torch.set_default_dtype(torch.float32)
    train, held_out = (datasets.fashion_mnist(train=part) for part in (True, False))
    ae = baselines.LinearAutoencoder(784, 5).fit(train, epochs=15, learning_rate=0.02)
    errors = [
        (model.reconstruct(held_out.x) - held_out.x).square().mean()
        for model in (ae, baselines.PCA(5).fit(train.x))
    ]
    assert abs(errors[0] / errors[1] - 1) < 0.01
