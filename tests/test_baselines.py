import math

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

import pyro_vae as pv
from pyro_vae import baselines, datasets


@pytest.fixture(scope="module")
def digits():
    data = datasets.digits(dtype=torch.float64)
    return data.split(held_out=0.2, seed=0)


def test_pca_has_the_exact_likelihood_of_probabilistic_pca():
    # FORMULAS (a): all 1797 digits / 16, in nats per datum.
    x = datasets.digits(dtype=torch.float64).x
    for k, c, mean in ((2, 0.05411698, 0.005707), (5, 0.03619681, 8.907637)):
        pca = baselines.PCA(k).fit(x)
        assert abs(pca.log_prob(x).mean().item() - mean) < 5e-7
        assert abs(float(pca.density.variance) - c) < 5e-9


def test_pca_reconstructs_by_the_projection_onto_the_leading_eigenvectors(digits):
    train, held_out = digits
    pca = baselines.PCA(5).fit(train.x)
    mean = train.x.mean(0)
    _, vectors = np.linalg.eigh(np.cov(train.x.numpy().T))
    top = torch.from_numpy(vectors[:, -5:].copy())
    expected = (held_out.x - mean) @ top @ top.mT + mean
    torch.testing.assert_close(pca.reconstruct(held_out.x), expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(pca.decode(pca.encode(held_out.x)), expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(pca.components @ pca.components.mT, torch.eye(5))


def test_pca_keeps_the_shape_of_images():
    x = torch.rand(30, 1, 4, 4)
    pca = baselines.PCA(3).fit(x)
    assert pca.encode(x).shape == (30, 3)
    assert pca.reconstruct(x).shape == (30, 1, 4, 4)
    assert pca.log_prob(x).shape == (30,)


def largest_angle(a, b):
    """Largest principal angle between two column spaces, in degrees."""
    qa, qb = torch.linalg.qr(a)[0], torch.linalg.qr(b)[0]
    cosine = torch.linalg.svdvals(qa.mT @ qb).min().clamp(max=1)
    return math.degrees(math.acos(cosine))


def test_linear_autoencoder_finds_pcas_subspace_in_another_basis(digits):
    train, held_out = digits
    pca = baselines.PCA(5).fit(train.x)
    ae = baselines.LinearAutoencoder(64, 5).fit(train.x)
    assert largest_angle(ae.weight, pca.components.mT) < 3
    errors = [(m.reconstruct(held_out.x) - held_out.x).square().mean() for m in (ae, pca)]
    assert abs(errors[0] / errors[1] - 1) < 0.01
    # Another basis: the columns of its decoder are neither orthogonal nor ordered.
    unit = nn.functional.normalize(ae.weight, dim=0)
    cosines = (pca.components @ unit).abs()
    assert cosines.amax(0).min() < 0.9


def test_autoencoder_minimizes_the_squared_error():
    x = torch.randn(20, 6)
    ae = baselines.autoencoder(features=6, latent_dim=2, hidden=(8,))
    fit = pv.fit(ae, x, epochs=1, batch_size=20, progress=False)
    error = (ae.reconstruct(x) - x).square().sum(-1).mean().item()
    row = fit.history.iloc[-1]
    assert abs(row["elbo"] - (-error - 3 * math.log(math.pi))) < 1e-10
    assert row["kl"] == 0


def test_deep_autoencoder_beats_pca_on_a_curve():
    t = torch.rand(400) * 3 - 1.5
    x = torch.stack([t, t.square()], dim=1)
    ae = baselines.Autoencoder(
        nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)),
        nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2)),
        event_shape=(2,),
    ).fit(x, epochs=150, learning_rate=0.02)
    assert ae.history is not None
    error = (ae.reconstruct(x) - x).square().mean()
    assert error < 0.05 * (baselines.PCA(1).fit(x).reconstruct(x) - x).square().mean()


def test_two_autoencoders_train_independently():
    x = torch.randn(20, 6)
    first, second = (baselines.LinearAutoencoder(6, 2) for _ in range(2))
    first.fit(x, epochs=1)
    before = first.weight.clone()
    start = second.weight.clone()
    second.fit(x, epochs=1)
    assert torch.equal(first.weight, before)
    assert not torch.equal(second.weight, start)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: baselines.PCA(0), ValueError, "latent_dim must be a positive integer; got 0"),
        (lambda: baselines.PCA(6).fit(torch.randn(9, 6)), ValueError, "latent_dim must be less"),
        (lambda: baselines.PCA(2).encode(torch.randn(9, 6)), NotFittedError, r"Call fit\(x\)"),
        (lambda: baselines.PCA(2).log_prob(torch.randn(9, 6)), NotFittedError, "must be fitted"),
        (
            lambda: baselines.PCA(2).fit(torch.randn(9, 6)).encode(torch.randn(9, 5)),
            ValueError,
            r"\(6,\).*\(5,\)",
        ),
        (lambda: baselines.LinearAutoencoder(6, 0), ValueError, "positive integer; got 0"),
        (
            lambda: baselines.Autoencoder(nn.Linear(6, 2), nn.Linear(2, 5), event_shape=(6,)),
            ValueError,
            r"decoder must return to shape \(2, 6\); got \(2, 5\)",
        ),
        (
            lambda: baselines.LinearAutoencoder(6, 2).encode(torch.zeros(3, 5)),
            ValueError,
            r"\(6,\).*\(5,\)",
        ),
    ],
)
def test_baselines_refuse_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()
