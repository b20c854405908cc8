import math

import arviz as az
import numpy as np
import pytest
import torch
from conftest import MAX_Z

from pyro_vae.diagnostics import khat_threshold, pareto_khat, smoothed_log_weights
from pyro_vae.diagnostics.evidence.pareto import untrusted


def gaussian_log_weights(scale, num_samples, num_data):
    """Weights of N(0, 1) under draws from N(0, scale^2): their k is 1 - scale^2."""
    z = torch.randn(num_samples, num_data) * scale
    return -0.5 * z**2 + 0.5 * (z / scale) ** 2 + math.log(scale)


@pytest.mark.parametrize(
    ("scale", "mean", "sd"), [(0.5, 0.67, 0.13), (0.7, 0.49, 0.11), (0.9, 0.23, 0.11)]
)
def test_khat_of_a_gaussian_guide_at_a_gaussian_posterior(scale, mean, sd):
    # Means and standard deviations at S = 2000 over 100 repetitions: known to two digits.
    khat = pareto_khat(gaussian_log_weights(scale, 2000, 100))
    error = math.hypot(sd / 10, sd / 10 + 0.005)
    assert abs(khat.mean() - mean) < MAX_Z * error
    assert abs(khat.std() / sd - 1) < MAX_Z / math.sqrt(200) + 0.05


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.4])
def test_khat_of_an_exact_pareto_tail(shape):
    khat = pareto_khat(-torch.rand(10_000, 50).log() * shape)
    # 300 tail values: the posterior mean is drawn to 1/2 by 10 / 310 of the difference.
    expected = (300 * shape + 5) / 310
    sd = (1 + shape) / math.sqrt(300)
    assert abs(khat.mean() - expected) < MAX_Z * sd / math.sqrt(50) + 0.01


def test_khat_and_smoothed_weights_are_those_of_arviz():
    log_weights = gaussian_log_weights(0.6, 1000, 8) - 300.0
    khat, smoothed = pareto_khat(log_weights), smoothed_log_weights(log_weights)
    for column in range(8):
        theirs, k = az.psislw(log_weights[:, column].numpy())
        assert abs(float(k) - khat[column]) < 1e-10
        mine = smoothed[:, column] - smoothed[:, column].logsumexp(0)
        np.testing.assert_allclose(mine, theirs, atol=1e-10)


def test_khat_of_a_row_does_not_depend_on_the_others():
    log_weights = gaussian_log_weights(0.6, 500, 4)
    others = log_weights.clone()
    others[:, 1:] = 1e3 * torch.randn(500, 3)
    assert pareto_khat(log_weights)[0] == pareto_khat(others)[0] == pareto_khat(others[:, :1])[0]


def test_khat_does_not_depend_on_a_constant():
    log_weights = gaussian_log_weights(0.6, 500, 4)
    torch.testing.assert_close(
        pareto_khat(log_weights - 1e4), pareto_khat(log_weights), rtol=0, atol=1e-9
    )


def test_equal_weights_have_no_tail():
    equal = torch.full((1000, 2), -123.456)
    assert pareto_khat(equal).tolist() == [0.0, 0.0]
    assert torch.equal(smoothed_log_weights(equal), equal)
    noise = equal + 1e-13 * torch.randn(1000, 2)  # rounding
    assert pareto_khat(noise).tolist() == [0.0, 0.0]
    assert pareto_khat((equal + 1e-5 * torch.randn(1000, 2)).float()).tolist() == [0.0, 0.0]
    torch.testing.assert_close(smoothed_log_weights(noise), equal, rtol=0, atol=1e-11)


def test_weights_of_two_values_have_a_light_tail():
    log_weights = torch.where(torch.rand(1000, 3) < 0.01, 2.0, -1.0)
    assert (pareto_khat(log_weights) < 0.5).all()


@pytest.mark.parametrize("giants", [1, 4])
def test_few_giant_weights_above_equal_ones_are_no_good_sign(giants):
    log_weights = torch.zeros(1000, 2)
    log_weights[:giants, 0] = 20.0
    khat = pareto_khat(log_weights)
    assert khat.tolist() == [math.inf, 0.0]
    assert untrusted(khat, 0.7).tolist() == [True, False]
    assert torch.equal(smoothed_log_weights(log_weights), log_weights)


def test_what_is_not_known_is_not_trusted():
    khat = torch.tensor([0.7, 0.71, math.nan, math.inf, -0.3])
    assert untrusted(khat, 0.7).tolist() == [False, True, True, True, False]


def test_impossible_and_undefined_weights():
    log_weights = gaussian_log_weights(0.8, 500, 4)
    log_weights[:, 0] = -math.inf
    log_weights[7, 1] = math.nan
    log_weights[:100, 2] = -math.inf  # draws outside the support
    khat = pareto_khat(log_weights)
    assert khat[:2].isnan().all()
    assert khat[2:].isfinite().all()
    assert smoothed_log_weights(log_weights)[:, 0].isneginf().all()


def test_too_few_draws_have_no_tail_to_fit():
    few = torch.randn(20, 3)
    assert pareto_khat(few).isnan().all()
    assert torch.equal(smoothed_log_weights(few), few)
    assert pareto_khat(torch.randn(25, 3)).isfinite().all()


def test_smoothing_keeps_the_order_and_the_largest_weight():
    log_weights = gaussian_log_weights(0.4, 1000, 5)
    smoothed = smoothed_log_weights(log_weights)
    assert torch.equal(smoothed.argsort(0), log_weights.argsort(0))
    assert (smoothed.max(0).values <= log_weights.max(0).values).all()
    changed = (smoothed != log_weights).sum(0)
    assert (changed <= 95).all()  # the tail; its largest may be held at what it was
    assert (changed >= 90).all()


def test_smoothing_lowers_the_error_of_a_heavy_tail():
    log_weights = gaussian_log_weights(0.55, 500, 2000)  # log of the mean weight is 0
    raw = log_weights.logsumexp(0) - math.log(500)
    smoothed = smoothed_log_weights(log_weights).logsumexp(0) - math.log(500)
    errors = raw.exp().sub(1).square() - smoothed.exp().sub(1).square()
    assert errors.mean() / (errors.std() / math.sqrt(2000)) > MAX_Z / 2


@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [(2, 0.0), (10, 0.0), (100, 0.5), (320, 0.6), (1000, 0.67), (2200, 0.7), (9000, 0.7)],
)
def test_threshold_depends_on_the_number_of_draws(num_samples, expected):
    assert abs(khat_threshold(num_samples) - expected) < 0.005
