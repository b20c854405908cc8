import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z

from pyro_vae.distributions import ContinuousBernoulli

mpmath.mp.dps = 60

# Both sides of every seam: l = 0, where the series ends (1), where torch's own class does (0.004
# in size) and where its lambda saturates (16).
LOGITS = (0.0, 1e-8, 1e-4, 4.1e-3, 0.019, 0.021, 0.5, 0.9999, 1.0001, 5.0, 16.0, 30.0, 300.0, 1e4)
LOGITS = tuple(-size for size in LOGITS[:0:-1]) + LOGITS


def exact(logit, x):
    """Log density, its first two derivatives in the logit, mean and variance, to 60 digits."""
    logit, x = mpmath.mpf(logit), mpmath.mpf(x)
    if logit == 0:
        return 0.0, float(x - mpmath.mpf(1) / 2), -1 / 12, 0.5, 1 / 12
    t = logit / 2
    mean = (1 + mpmath.coth(t) - 1 / t) / 2
    variance = (1 / t**2 - 1 / mpmath.sinh(t) ** 2) / 4
    log_p = (x - mpmath.mpf(1) / 2) * logit - mpmath.log(mpmath.sinh(t) / t)
    return tuple(float(value) for value in (log_p, x - mean, -variance, mean, variance))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0.0, 0.25, 1.0])
def test_density_and_derivatives_are_exact_at_every_logit(dtype, x):
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    p, value = ContinuousBernoulli(logits), torch.tensor(x, dtype=dtype)
    log_p = p.log_prob(value)
    (slope,) = torch.autograd.grad(log_p.sum(), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), logits)
    got = torch.stack([log_p, slope, curvature, p.mean, p.variance]).detach().double()
    expected = torch.tensor([exact(logit, x) for logit in logits.tolist()]).T
    # Of 1 + |value|, but for mean and variance of the value itself.
    tolerance = 40 * torch.finfo(dtype).eps
    error = (got - expected).abs()
    assert (error[:3] / (1 + expected[:3].abs())).max() < tolerance
    assert (error[3:] / expected[3:]).max() < tolerance


def test_density_is_that_of_torch_where_torch_is_exact():
    logits = torch.tensor([-5.0, -2.0, -0.5, 0.5, 2.0, 5.0])
    x = torch.rand(7, 6)
    expected = dist.ContinuousBernoulli(logits=logits)
    p = ContinuousBernoulli(logits)
    torch.testing.assert_close(p.log_prob(x), expected.log_prob(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(p.entropy(), expected.entropy(), rtol=0, atol=1e-12)
    torch.testing.assert_close(p.icdf(x), expected.icdf(x), rtol=0, atol=1e-12)


def test_entropy_is_minus_the_mean_log_density():
    p = ContinuousBernoulli(torch.tensor([-3.0, 0.0, 1e-3, 8.0]))
    x = torch.linspace(0, 1, 20_001).unsqueeze(-1)
    log_p = p.log_prob(x)
    expected = -torch.trapezoid(log_p * log_p.exp(), dx=1 / 20_000, dim=0)
    torch.testing.assert_close(p.entropy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_and_their_derivative_solve_the_equation_of_the_cdf(dtype):
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    tolerance = 100 * torch.finfo(dtype).eps
    for u in (2.0**-20, 0.125, 0.5, 0.9375):
        x = ContinuousBernoulli(logits).icdf(torch.tensor(u, dtype=dtype))
        (slope,) = torch.autograd.grad(x.sum(), logits)
        rows = zip(logits.tolist(), x.tolist(), slope.tolist(), strict=True)
        for logit, got, got_slope in rows:
            expected, expected_slope = exact_quantile(logit, u)
            assert abs(got - expected) < tolerance
            # At the seam of the series the slope loses a factor 1 / 0.02.
            assert abs(got_slope - expected_slope) < tolerance * 30


def exact_quantile(logit, u):
    """The quantile and its derivative in the logit."""
    logit, u = mpmath.mpf(logit), mpmath.mpf(u)
    if logit == 0:
        return u, u * (1 - u) / 2

    def quantile(logit):
        return mpmath.log1p(u * mpmath.expm1(logit)) / logit

    return quantile(logit), mpmath.diff(quantile, logit, h=mpmath.mpf(10) ** -20)


@pytest.mark.parametrize("logit", [-30.0, -1.0, 0.0, 0.01, 3.0, 1e4])
def test_draws_have_the_moments_and_their_slope_has_the_variance_as_mean(logit):
    logits = torch.full((40_000,), logit, requires_grad=True)
    x = ContinuousBernoulli(logits).rsample()
    assert ((x >= 0) & (x <= 1)).all()
    (slope,) = torch.autograd.grad(x.sum(), logits)
    _, _, _, mean, variance = exact(logit, 0)
    x = x.detach()
    # d E x / d logit = Var x, in an exponential family.
    for value, expected in ((x, mean), ((x - mean) ** 2, variance), (slope, variance)):
        assert abs((value.mean() - expected) / (value.std() / 200)) < MAX_Z


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_uniform_number_leaves_draw_and_gradient_finite(dtype, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape, **options))
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    x = ContinuousBernoulli(logits).rsample()
    x.sum().backward()
    assert ((x >= 0) & (x <= 1)).all()
    assert logits.grad.isfinite().all()


def test_quantiles_reach_from_zero_to_one():
    p = ContinuousBernoulli(torch.tensor(LOGITS))
    for u in (0.0, 1.0):
        expected = torch.full((len(LOGITS),), u)
        torch.testing.assert_close(p.icdf(torch.tensor(u)), expected, rtol=0, atol=1e-14)


def test_values_outside_are_rejected():
    p = ContinuousBernoulli(torch.zeros(2))
    for x in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="support"):
            p.log_prob(torch.tensor(x))
    with pytest.raises(ValueError, match="logits"):
        ContinuousBernoulli(torch.tensor(math.nan))
