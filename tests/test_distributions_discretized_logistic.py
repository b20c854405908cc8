import mpmath
import pytest
import torch
from conftest import MAX_Z
from mpmath import mpf

from pyro_vae.distributions import DiscretizedLogistic, LevelGrid


@mpmath.workdps(4000)
def exact(loc, scale, levels, j):
    """Log probability of a level: the difference of two logistic functions, to 4000 digits."""
    loc, scale = mpf(loc), mpf(scale)

    def cdf(edge):
        return 1 / (1 + mpmath.exp(-((edge - loc) / scale)))

    # Rational edges: level j has its bin between (j - 1/2) and (j + 1/2) steps.
    steps = levels - 1
    upper = 1 if j == steps else cdf((mpf(j) + mpf(1) / 2) / steps)
    lower = 0 if j == 0 else cdf((mpf(j) - mpf(1) / 2) / steps)
    return float(mpmath.log(upper - lower))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loc", [-3.0, 0.125, 0.5, 2.0])
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**-6, 0.25, 64.0])
def test_log_probability_is_exact_in_the_tails(dtype, loc, scale):
    levels = torch.tensor([0, 1, 31, 32, 128, 254, 255])
    x = (levels / 255).to(dtype)
    p = DiscretizedLogistic(
        torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype), levels=256
    )
    expected = torch.tensor([exact(loc, scale, 256, j) for j in levels.tolist()])
    error = (p.log_prob(x).double() - expected).abs()
    # x and h are rounded: that costs their error divided by the scale.
    eps = torch.finfo(dtype).eps
    assert (error / (1 + expected.abs() + 1 / scale)).max() < 4 * eps


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_masses_sum_to_one_and_have_the_mean_and_variance(levels):
    loc = torch.tensor([-5.0, -0.1, 0.0, 0.31, 0.5, 1.0, 1.2, 50.0]).unsqueeze(-1)
    scale = torch.tensor([1e-4, 1e-2, 0.2, 30.0])
    p = DiscretizedLogistic(loc, scale, levels=levels)
    x = (torch.arange(levels) / (levels - 1)).reshape(-1, 1, 1)
    mass = p.log_prob(x).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(8, 4), rtol=0, atol=1e-12)
    mean = (mass * x).sum(0)
    torch.testing.assert_close(mean, p.mean, rtol=0, atol=1e-12)
    variance = (mass * (x - mean).square()).sum(0)
    torch.testing.assert_close(variance, p.variance, rtol=1e-9, atol=1e-13)
    narrow = DiscretizedLogistic(loc.float(), scale.float(), levels=levels)
    torch.testing.assert_close(narrow.mean.double(), mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(narrow.variance.double(), variance, rtol=1e-4, atol=1e-6)


def test_draws_fall_on_the_levels_with_their_masses():
    p = DiscretizedLogistic(torch.tensor([-0.1, 0.4, 2.0]), torch.tensor(0.2), levels=5)
    draws = p.sample((40_000,))
    x = torch.arange(5).reshape(-1, 1, 1) / 4
    assert (draws == x).any(0).all()
    mass, shares = p.log_prob(x).exp().squeeze(1), (draws == x).double().mean(1)
    z = (shares - mass) / (mass * (1 - mass) / 40_000).sqrt()
    assert z[mass > 1e-3].abs().max() < MAX_Z


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24])
def test_uniform_numbers_at_the_ends_make_levels(u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, u, **options))
    p = DiscretizedLogistic(torch.zeros(3, dtype=torch.float32), torch.tensor(0.1), levels=256)
    p.log_prob(p.sample())  # validated


def test_two_levels_are_a_bernoulli():
    loc, scale = torch.linspace(-1, 2, 5), torch.tensor(0.3)
    p = DiscretizedLogistic(loc, scale, levels=2)
    torch.testing.assert_close(p.mean, ((loc - 0.5) / scale).sigmoid(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_grid_takes_levels_rounded_in_float32_and_nothing_else(levels):
    grid, steps = LevelGrid(levels), levels - 1
    j = torch.arange(levels)
    assert grid.check(j.float() / steps).all()
    assert grid.check((j / steps).double()).all()
    assert grid.check((j * (1 / steps)).float()).all()
    assert not grid.check((j[:-1] + 0.05).double() / steps).any()
    assert not grid.check(torch.tensor([-1 / steps, 1 + 1 / steps, torch.nan])).any()


def test_values_off_the_grid_and_parameters_that_are_none_are_rejected():
    p = DiscretizedLogistic(torch.zeros(2), torch.tensor(0.1), levels=256)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor(0.5))
    with pytest.raises(ValueError, match="scale"):
        DiscretizedLogistic(torch.zeros(2), torch.tensor(0.0), levels=256)
    with pytest.raises(ValueError, match="levels must be at least 2; got 1"):
        DiscretizedLogistic(torch.zeros(2), torch.tensor(0.1), levels=1)
