"""What the package's distributions over numbers have in common, and the small ones among them."""

import math

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from conftest import MAX_Z

from pyro_vae import distributions as d

MAKERS = {
    "ContinuousBernoulli": lambda a, b: d.ContinuousBernoulli(a),
    "DiscretizedLogistic": lambda a, b: d.DiscretizedLogistic(a, b, levels=3),
    "FixedDfStudentT": lambda a, b: d.FixedDfStudentT(4.0, a, b),
    "GrayBernoulli": lambda a, b: d.GrayBernoulli(logits=a),
    "LogMeanNegativeBinomial": d.LogMeanNegativeBinomial,
    "LogMeanPoisson": lambda a, b: d.LogMeanPoisson(a),
    "LogMeanZeroInflatedPoisson": lambda a, b: d.LogMeanZeroInflatedPoisson(a, b.log()),
    "MeanBeta": d.MeanBeta,
    "ClassNumber": lambda a, b: d.ClassNumber(logits=torch.stack([a, a.sin(), a.cos()], -1)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_expansion_is_a_repetition(name):
    a, b = torch.randn(5, 3), torch.rand(3) + 0.5
    p = MAKERS[name](a, b)
    assert p.batch_shape == (5, 3)
    wide = p.expand((2, 5, 3))
    x = p.sample()
    assert wide.batch_shape == wide.sample().shape == wide.mean.shape == (2, 5, 3)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x).expand(2, 5, 3))
    torch.testing.assert_close(wide.variance, p.variance.expand(2, 5, 3))
    assert wide._validate_args == p._validate_args
    one = p.to_event(1).expand((4, 5))
    torch.testing.assert_close(one.log_prob(x), p.log_prob(x).sum(-1).expand(4, 5))
    # Asked for its moments and drawn from, it still expands.
    assert p.expand((6, 5, 3)).log_prob(x).shape == (6, 5, 3)


@pytest.mark.parametrize("name", MAKERS)
def test_validation_can_be_switched_off_and_stays_off(name):
    with torch.no_grad():
        p = MAKERS[name](torch.randn(5, 3), torch.rand(3) + 0.5)
    p._validate_args = False
    x = torch.full((5, 3), 0.5) if name != "ClassNumber" else torch.ones(5, 3)
    p.log_prob(x)
    p.expand((2, 5, 3)).log_prob(x)


@pytest.mark.parametrize("df", [1.0, 1.5, 4.0, 99.9, 100.0, 1e6])
def test_student_t_has_the_density_and_moments_of_scipys(df):
    loc, scale = torch.randn(5), torch.rand(5) + 0.5
    x = loc + scale * torch.linspace(-30, 30, 5)
    p = d.FixedDfStudentT(df, loc, scale)
    reference = scipy.stats.t(df, loc.numpy(), scale.numpy())
    expected = torch.from_numpy(reference.logpdf(x.numpy()))
    # scipy itself loses digits at many degrees of freedom; nearer ones hold the series to account.
    rtol = 1e-12 if df < 1e3 else 1e-8
    torch.testing.assert_close(p.log_prob(x), expected, rtol=rtol, atol=0)
    if df > 2:
        torch.testing.assert_close(p.mean, torch.from_numpy(reference.mean()))
        torch.testing.assert_close(p.variance, torch.from_numpy(reference.var()))
    else:
        assert p.variance.isinf().all() if df > 1 else p.mean.isnan().all()


def test_student_t_of_many_degrees_of_freedom_is_normal_in_float32_too():
    x = torch.linspace(-3, 3, 7, dtype=torch.float32)
    p = d.FixedDfStudentT(1e9, torch.zeros_like(x), torch.ones((), dtype=torch.float32))
    expected = dist.Normal(0.0, 1.0).log_prob(x.double())
    torch.testing.assert_close(p.log_prob(x).double(), expected, rtol=0, atol=2e-6)
    q = d.FixedDfStudentT(1e12, torch.zeros(7), torch.tensor(1.0))
    torch.testing.assert_close(q.log_prob(x.double()), expected, rtol=0, atol=1e-10)


def test_student_t_draws_have_its_quantiles():
    x = d.FixedDfStudentT(3.0, torch.full((40_000,), 1.0), torch.tensor(2.0)).rsample()
    for probability in (0.05, 0.5, 0.9):
        quantile = scipy.stats.t.ppf(probability, 3, 1.0, 2.0)
        share = (x <= quantile).double().mean()
        error = math.sqrt(probability * (1 - probability) / 40_000)
        assert abs(share - probability) / error < MAX_Z


def test_student_t_without_degrees_of_freedom_raises():
    with pytest.raises(ValueError, match=r"df must be positive; got 0\.0"):
        d.FixedDfStudentT(0.0, torch.zeros(2), torch.ones(2))


def test_class_numbers_have_the_log_probabilities_of_pyros_classes():
    logits = torch.randn(5, 4)
    p, other = d.ClassNumber(logits=logits), dist.Categorical(logits=logits)
    for number in range(4):
        x = torch.full((5,), float(number))
        torch.testing.assert_close(p.log_prob(x), other.log_prob(x.long()), rtol=0, atol=1e-15)
    assert p.sample((3,)).dtype == p.mode.dtype == torch.float64
    torch.testing.assert_close(p.mode, other.mode.double())
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((5,), 0.5))


def test_gray_bernoulli_is_the_cross_entropy_between():
    logits, x = torch.randn(5), torch.tensor([0.0, 0.3, 0.5, 0.999, 1.0])
    p = d.GrayBernoulli(logits=logits)
    q = logits.sigmoid()
    expected = x * q.log() + (1 - x) * (1 - q).log()
    torch.testing.assert_close(p.log_prob(x), expected, rtol=0, atol=1e-14)
    assert set(p.sample((50,)).unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((5,), 1.2))
