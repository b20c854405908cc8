import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyro_vae.datasets import LinearGaussian, LinearGaussianData, digits, linear_gaussian

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def data():
    return linear_gaussian(40, features=7, latent_dim=3, variance=0.2, seed=11, dtype=DOUBLE)


def dense(model):
    covariance = model.weight @ model.weight.T
    covariance += model.variance * torch.eye(model.num_features, dtype=DOUBLE)
    return MultivariateNormal(model.mean, covariance)


def log_joint(model, x, z):
    prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    noise = Normal(z @ model.weight.T + model.mean, math.sqrt(model.variance))
    return prior + noise.log_prob(x).sum(-1)


def test_log_prob_is_that_of_the_dense_gaussian(data):
    expected = dense(data.truth).log_prob(data.x)
    assert (data.truth.log_prob(data.x) - expected).abs().max() < 1e-10


def test_log_prob_does_not_cancel_at_a_tiny_variance():
    # With W along the axes the coordinates are independent, and each density is exact. Here
    # |r|^2 / c is 1e11: as a difference the result would have an error of 1e-5.
    weight = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]], dtype=DOUBLE)
    model = LinearGaussian(weight, torch.zeros(3, dtype=DOUBLE), 1e-10)
    x = torch.tensor([[3.3, -0.7, 1e-5], [-1.1, 0.2, -2e-5]], dtype=DOUBLE)
    scale = torch.tensor([9 + 1e-10, 0.25 + 1e-10, 1e-10], dtype=DOUBLE).sqrt()
    expected = Normal(0.0, scale).log_prob(x).sum(1)
    assert (model.log_prob(x) - expected).abs().max() < 1e-8


def test_evidence_obeys_bayes_identity_at_any_latent_value(data):
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3)))
    identity = log_joint(data.truth, data.x, z) - data.posterior.log_prob(z)
    assert (identity - data.log_evidence).abs().max() < 1e-10


def elbo(model, x, mean, variances):
    """E_q log p(x | z) - KL(q | p) of a diagonal guide, written out term by term."""
    residual = x - mean @ model.weight.T - model.mean
    spread = (model.weight.square() * variances).sum()
    expected = -0.5 * (residual.square().sum(1) + spread) / model.variance
    expected = expected - 0.5 * model.num_features * math.log(2 * math.pi * model.variance)
    kl = 0.5 * (variances + mean.square() - 1 - variances.log()).sum(1)
    return expected - kl


def test_best_diagonal_gap_is_evidence_less_elbo_and_no_diagonal_guide_does_better(data):
    model, posterior = data.truth, data.posterior
    variances = 1 / posterior.precision_matrix[0].diagonal()
    gap = data.log_evidence - elbo(model, data.x, posterior.mean, variances)
    assert (gap - model.best_diagonal_gap()).abs().max() < 1e-10
    q = MultivariateNormal(posterior.mean, variances.diag())
    assert (kl_divergence(q, posterior) - model.best_diagonal_gap()).abs().max() < 1e-10
    for factor in (0.9, 1.1):
        worse = data.log_evidence - elbo(model, data.x, posterior.mean, factor * variances)
        assert (worse > model.best_diagonal_gap() + 1e-3).all()


def test_best_isotropic_gap_is_evidence_less_elbo(data):
    model, posterior = data.truth, data.posterior
    variance = 3 / posterior.precision_matrix[0].trace()
    gap = data.log_evidence - elbo(model, data.x, posterior.mean, variance.expand(3))
    assert (gap - model.best_isotropic_gap()).abs().max() < 1e-10
    assert model.best_isotropic_gap() > model.best_diagonal_gap() > 0


def test_rotation_keeps_the_evidence_and_moves_the_diagonal_gap(data):
    truth = data.truth
    _, vectors = torch.linalg.eigh(truth.weight.T @ truth.weight)
    rotated = LinearGaussian(truth.weight @ vectors, truth.mean, truth.variance)
    assert (rotated.log_prob(data.x) - data.log_evidence).abs().max() < 1e-10
    assert rotated.best_diagonal_gap() < 1e-12
    assert truth.best_diagonal_gap() > 0.01
    assert abs(rotated.best_isotropic_gap() - truth.best_isotropic_gap()) < 1e-10


@pytest.mark.parametrize(
    ("latent_dim", "variance", "log_likelihood"),
    [
        (2, 0.05411698, 0.005707),
        (5, 0.03619681, 8.907637),
        (10, 0.02275137, 17.451947),
        (20, 0.01127420, 27.277300),
    ],
)
def test_maximum_likelihood_on_digits_has_the_known_values(latent_dim, variance, log_likelihood):
    x = digits(dtype=DOUBLE).x
    model = LinearGaussian.maximum_likelihood(x, latent_dim)
    assert abs(model.variance - variance) < 5e-9
    assert abs(model.log_prob(x).mean().item() - log_likelihood) < 5e-7
    assert model.best_diagonal_gap() < 1e-12
    assert (model.latent_dim, model.num_features) == (latent_dim, 64)


def test_maximum_likelihood_is_a_maximum_with_positive_leading_entries(data):
    model = LinearGaussian.maximum_likelihood(data.x, 3)
    best = model.log_prob(data.x).mean()
    for other in (
        LinearGaussian(1.01 * model.weight, model.mean, model.variance),
        LinearGaussian(model.weight, model.mean + 0.01, model.variance),
        LinearGaussian(model.weight, model.mean, 1.05 * model.variance),
    ):
        assert other.log_prob(data.x).mean() < best
    leading = model.weight.gather(0, model.weight.abs().argmax(0, keepdim=True))
    assert (leading > 0).all()


def test_simulate_has_the_moments_of_the_model(data):
    x, z = data.truth.simulate(20_000, seed=5)
    num = len(x)
    # z-scores at a false-alarm rate below 1e-5 for these 7 + 3 + 49 figures: |z| < 5.5.
    assert (z.mean(0).abs() * math.sqrt(num)).max() < 5.5
    model = dense(data.truth)
    assert ((x.mean(0) - model.mean).abs() / (model.variance / num).sqrt()).max() < 5.5
    covariance = model.covariance_matrix
    error = (covariance.square() + torch.outer(model.variance, model.variance)) / num
    centered = x - model.mean
    assert ((centered.T @ centered / num - covariance).abs() / error.sqrt()).max() < 5.5


def test_simulation_depends_on_its_seed_alone_and_keeps_data_apart_from_parameters():
    before = torch.get_rng_state()
    with torch.device("meta"):
        first, again = (linear_gaussian(30, seed=4, dtype=DOUBLE) for _ in range(2))
        other = linear_gaussian(30, seed=5, dtype=DOUBLE)
        assert first.x.device.type == "cpu"
        assert first.log_evidence.device.type == "cpu"
        assert first.posterior.mean.device.type == "cpu"
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.truth.weight, other.truth.weight)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        assert first.posterior.sample().device.type == "cpu"
    # The default draws: no number of W appears again in z.
    assert not np.isin(first.truth.weight.numpy(), first.z.numpy()).any()
    assert torch.equal(first.truth.simulate(30, seed=4)[0], first.x)


def test_answers_come_in_the_type_of_x_and_are_computed_in_float64(data):
    single = data.to(dtype=torch.float32)
    assert isinstance(single, LinearGaussianData)
    assert single.log_evidence.dtype == single.posterior.mean.dtype == torch.float32
    assert single.z.dtype == single.truth.weight.dtype == torch.float32
    assert (single.log_evidence.double() - data.log_evidence).abs().max() < 1e-3
    # Figures of about 100, rounded once to float32; computed in it they are off by 1e-4.
    wide = linear_gaussian(20, features=64, latent_dim=20, variance=1e-3, dtype=torch.float32)
    exact = wide.to(dtype=DOUBLE).log_evidence
    assert (wide.log_evidence.double() - exact).abs().max() < 2e-5


def test_large_data_are_answered_in_chunks_with_the_same_result(data):
    x, _ = data.truth.simulate(9000, seed=1)
    assert torch.allclose(data.truth.log_prob(x)[-5:], data.truth.log_prob(x[-5:]), atol=1e-10)
    mean = data.truth.posterior(x).mean
    assert mean.shape == (9000, 3)
    assert torch.allclose(mean[5000:5005], data.truth.posterior(x[5000:5005]).mean, atol=1e-10)
    fitted = LinearGaussian.maximum_likelihood(x, 3)
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    assert abs(fitted.variance - values[:4].mean().item()) < 1e-10


ONES = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: LinearGaussian(torch.ones(3), torch.ones(3), 1.0), ValueError, r"got \(3,\)"),
        (
            lambda: LinearGaussian(ONES, torch.ones(2), 1.0),
            ValueError,
            r"mean must have shape \(3,\) for weight of shape \(3, 2\); got \(2,\)",
        ),
        (
            lambda: LinearGaussian(ONES, torch.ones(3), 0.0),
            ValueError,
            "variance must be positive and finite; got 0.0",
        ),
        (
            lambda: LinearGaussian(ONES, torch.ones(3), float("nan")),
            ValueError,
            "variance must be positive",
        ),
        (
            lambda: LinearGaussian(ONES, torch.ones(3), 1.0).log_prob(torch.ones(4, 5)),
            ValueError,
            r"event shape \(3,\); got \(5,\)",
        ),
        (
            lambda: LinearGaussian(ONES, torch.ones(3), 1.0).simulate(0, seed=1),
            ValueError,
            "num_data must be at least 1; got 0",
        ),
        (
            lambda: LinearGaussian.maximum_likelihood(torch.rand(9, 3), 3),
            ValueError,
            "latent_dim must be from 1 to 2, .* got 3",
        ),
        (
            lambda: LinearGaussian.maximum_likelihood(torch.rand(9, 3), 0),
            ValueError,
            "latent_dim must be from 1 to 2, .* got 0",
        ),
        (
            lambda: LinearGaussian.maximum_likelihood(torch.rand(9, 3), 1.0),
            TypeError,
            "latent_dim must be an integer; got 1.0",
        ),
        (
            # Three rows vary in two directions, up to rounding.
            lambda: LinearGaussian.maximum_likelihood(torch.rand(3, 9), 2),
            ValueError,
            "x must vary in more than latent_dim=2 directions",
        ),
        (
            lambda: LinearGaussian.maximum_likelihood(torch.ones(9, 3), 1),
            ValueError,
            "x must vary in more than",
        ),
        (
            lambda: LinearGaussian.maximum_likelihood(torch.rand(3, 9, 2), 2),
            ValueError,
            r"x must be a matrix; got shape \(3, 9, 2\)",
        ),
        (lambda: linear_gaussian(features=0), ValueError, "features must be at least 1; got 0"),
        (lambda: linear_gaussian(variance=-1.0), ValueError, "variance must be positive"),
        (lambda: linear_gaussian(dtype=torch.int64), TypeError, "dtype must be a floating"),
        (
            lambda: LinearGaussianData(
                "d",
                torch.ones(4, 3),
                z=torch.ones(4, 1),
                truth=LinearGaussian(ONES, torch.ones(3), 1.0),
            ),
            ValueError,
            r"z must have shape \(4, 2\); got \(4, 1\)",
        ),
    ],
)
def test_linear_gaussian_raises(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
