import math

import mpmath
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from conftest import MAX_Z
from mpmath import mpf

from pyro_vae.distributions import (
    LogMeanNegativeBinomial,
    LogMeanPoisson,
    LogMeanZeroInflatedPoisson,
    MeanBeta,
)
from pyro_vae.distributions.saddle_point import stirling_remainder

mpmath.mp.dps = 50


def log_factorial(x):
    return mpmath.loggamma(x + 1)


def poisson(log_mean, x):
    return x * log_mean - mpmath.exp(log_mean) - log_factorial(x)


def negative_binomial(log_mean, r, x):
    mean = mpmath.exp(log_mean)
    choose = mpmath.loggamma(x + r) - mpmath.loggamma(r) - log_factorial(x)
    return choose + r * mpmath.log(r / (r + mean)) + x * mpmath.log(mean / (r + mean))


def exactly(function, *arguments):
    """A function of exact numbers at tensors that broadcast, rounded once."""
    tensors = torch.broadcast_tensors(*arguments)
    rows = zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)
    values = [float(function(*map(mpf, row))) for row in rows]
    return torch.tensor(values, dtype=torch.float64).reshape(tensors[0].shape)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 2e-15)])
def test_stirling_remainder_is_what_the_formula_lacks(dtype, tolerance):
    y = torch.tensor([1e-6, 0.3, 1.0, 9.99, 10.0, 10.01, 1e3, 1e9], dtype=dtype)
    expected = exactly(
        lambda y: (
            mpmath.loggamma(y) - (y - 0.5) * mpmath.log(y) + y - mpmath.log(2 * mpmath.pi) / 2
        ),
        y,
    )
    error = (stirling_remainder(y).double() - expected).abs()
    assert (error / (1 + expected.abs())).max() < tolerance * 10


# One count below, at and above each mean, and none.
MEANS = torch.tensor([1e-3, 0.5, 9.0, 1e3, 1e6])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
def test_poisson_is_exact_at_large_counts_too(dtype, tolerance):
    log_mean = MEANS.log().to(dtype).unsqueeze(-1)
    spread = torch.tensor([-2.0, 0.0, 3.0])
    x = (MEANS.unsqueeze(-1) + spread * MEANS.sqrt().unsqueeze(-1)).clamp_min(0).round()
    x = torch.cat([x, torch.tensor([0.0, 40.0]).expand(5, 2)], -1).to(dtype)
    got = LogMeanPoisson(log_mean).log_prob(x).double()
    expected = exactly(poisson, log_mean, x)
    # The given log mean is itself rounded: to first order that costs |x - mean| times its error.
    scale = 1 + expected.abs() + (x - log_mean.exp()).double().abs() * 15
    assert ((got - expected).abs() / scale).max() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("concentration", [1e-3, 0.7, 30.0, 1e6, 1e12])
def test_negative_binomial_is_exact_at_large_counts_and_concentrations(
    dtype, tolerance, concentration
):
    log_mean, r = MEANS.log().to(dtype).unsqueeze(-1), torch.tensor(concentration, dtype=dtype)
    x = torch.tensor([0.0, 1.0, 9.0, 950.0, 1e3, 1e6], dtype=dtype)
    got = LogMeanNegativeBinomial(log_mean, r).log_prob(x).double()
    expected = exactly(negative_binomial, log_mean, r, x)
    mean = log_mean.exp()
    slope = (r * (x - mean) / (r + mean)).double().abs()
    assert ((got - expected).abs() / (1 + expected.abs() + 15 * slope)).max() < tolerance


def test_negative_binomial_tends_to_poisson():
    log_mean, x = torch.randn(50) + 2, torch.arange(50.0)
    expected = LogMeanPoisson(log_mean).log_prob(x)
    near = LogMeanNegativeBinomial(log_mean, torch.tensor(1e14)).log_prob(x)
    torch.testing.assert_close(near, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("concentration", [1e-2, 0.7, 30.0])
def test_negative_binomial_has_the_slopes_of_torchs(concentration):
    x = torch.arange(40.0)
    slopes = []
    for make in (
        LogMeanNegativeBinomial,
        lambda log_mean, r: dist.NegativeBinomial(r, logits=log_mean - r.log()),
    ):
        log_mean = torch.linspace(-2, 4, 40).requires_grad_()
        r = torch.tensor(concentration, requires_grad=True)
        make(log_mean, r).log_prob(x).sum().backward()
        slopes.append((log_mean.grad, r.grad))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=1e-10)


def test_zero_inflation_replaces_counts():
    gate, log_mean = torch.linspace(-40, 40, 9).unsqueeze(-1), torch.tensor([-3.0, 0.0, 4.0])
    p = LogMeanZeroInflatedPoisson(gate, log_mean)
    for x in (0.0, 1.0, 30.0):
        expected = exactly(
            lambda g, m, x=x: mpmath.log(
                (x == 0) / (1 + mpmath.exp(-g)) + mpmath.exp(poisson(m, x)) / (1 + mpmath.exp(g))
            ),
            gate,
            log_mean,
        )
        torch.testing.assert_close(p.log_prob(torch.tensor(x)), expected, rtol=1e-13, atol=1e-15)
    # Pyro's own cannot do this: its mean leaves both of its parameters behind.
    assert p.mean.shape == p.expand((2, 9, 3)).mean.shape[1:]


def beta(logit, phi, x):
    m = 1 / (1 + mpmath.exp(-logit))
    a, b = m * phi, (1 - m) * phi
    constant = mpmath.loggamma(phi) - mpmath.loggamma(a) - mpmath.loggamma(b)
    return constant + (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log(1 - x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("concentration", [1e-2, 1.0, 20.0, 1e4])
def test_beta_is_exact_at_large_concentrations_too(dtype, tolerance, concentration):
    logit = torch.tensor([-15.0, -1.0, 0.0, 3.0, 15.0], dtype=dtype).unsqueeze(-1)
    phi = torch.tensor(concentration, dtype=dtype)
    m = logit.sigmoid().clamp(1e-6, 1 - 1e-6)
    sd = (m * (1 - m) / (1 + phi)).sqrt()
    x = (m + sd * torch.tensor([-2.0, 0.0, 0.5], dtype=dtype)).clamp(1e-20, 1 - 1e-6)
    got = MeanBeta(logit, phi).log_prob(x).double()
    expected = exactly(beta, logit, phi, x)
    slope = (phi * (x - logit.sigmoid())).double().abs()
    log_x = x.log().double().abs()
    assert ((got - expected).abs() / (1 + expected.abs() + log_x + 20 * slope)).max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_draws_have_the_moments_at_tiny_concentrations_too(dtype):
    logit, phi = torch.tensor([-2.0, 0.0, 1.0], dtype=dtype), torch.tensor(1e-3, dtype=dtype)
    p = MeanBeta(logit, phi)
    x = p.sample((40_000,))
    p.log_prob(x)  # in the open support, with validation on
    for value, expected in ((x, p.mean), ((x - p.mean).square(), p.variance)):
        assert ((value.mean(0) - expected) / (value.std(0) / 200)).abs().max() < MAX_Z


def test_beta_draws_have_the_slope_of_the_mean():
    logit = torch.full((40_000,), 0.3, requires_grad=True)
    MeanBeta(logit, torch.tensor(3.0)).rsample().sum().backward()
    m = 1 / (1 + math.exp(-0.3))
    assert abs((logit.grad.mean() - m * (1 - m)) / (logit.grad.std() / 200)) < MAX_Z


@pytest.mark.parametrize("concentration", [1e-3, 5.0, 1e8])
def test_negative_binomial_draws_have_the_moments(concentration):
    p = LogMeanNegativeBinomial(torch.tensor(1.5).expand(40_000), torch.tensor(concentration))
    x = p.sample()
    if concentration == 1e-3:  # nearly always zero: compare that probability
        expected = scipy.stats.nbinom.pmf(0, 1e-3, 1e-3 / (1e-3 + math.exp(1.5)))
        value = (x == 0).double()
        assert abs((value.mean() - expected) / (value.std() / 200)) < MAX_Z
        return
    for value, expected in ((x, p.mean[0]), ((x - p.mean).square(), p.variance[0])):
        assert abs((value.mean() - expected) / (value.std() / 200)) < MAX_Z
