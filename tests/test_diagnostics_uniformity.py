import itertools
import math

import numpy as np
import pytest
import torch
from conftest import MAX_Z

from pyro_vae.diagnostics.calibration import uniformity
from pyro_vae.diagnostics.calibration.uniformity import (
    critical_log_gamma,
    critical_log_gammas,
    ecdf_band,
    gamma_p_value,
    grid_ranks,
    log_gamma,
)

# Quantiles of log gamma at L = 99 from 4000 simulations each: S to those of 5 %, 1 % and 0.1 %.
SIMULATED = {
    100: (-5.47, -7.04, -8.96),
    200: (-5.65, -7.41, -9.57),
    500: (-5.64, -7.51, -10.05),
    1000: (-5.95, -7.75, -10.42),
}
LEVELS = (0.05, 0.01, 0.001)


def binomial_cdf(r, total, p):
    return sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(r + 1))


def plain_gamma(ranks, num_draws):
    """The definition, term by term."""
    found = []
    for i in range(1, num_draws + 1):
        below, z = sum(rank < i for rank in ranks), i / (num_draws + 1)
        found.append(binomial_cdf(below, len(ranks), z))
        found.append(1 - (binomial_cdf(below - 1, len(ranks), z) if below else 0.0))
    return 2 * min(found)


def test_log_gamma_is_its_definition_in_each_column():
    ranks = torch.randint(0, 8, (25, 3, 2))
    gamma = log_gamma(ranks, 7).exp()
    assert gamma.shape == (3, 2)
    for i, j in itertools.product(range(3), range(2)):
        assert abs(gamma[i, j] - plain_gamma(ranks[:, i, j].tolist(), 7)) < 1e-12


def test_p_value_is_that_of_complete_enumeration():
    outcomes = torch.tensor(list(itertools.product(range(4), repeat=5))).T  # 4^5 sets of 5 ranks
    gamma = log_gamma(outcomes, 3)
    p = gamma_p_value(gamma[:50], 5, 3)
    for value, found in zip(gamma[:50], p, strict=True):
        assert abs((gamma <= value + 1e-9).double().mean() - found) < 1e-12


@pytest.mark.parametrize("num_simulations", [100, 1000])
def test_p_values_of_uniform_ranks_are_uniform(num_simulations):
    gamma = log_gamma(torch.randint(0, 100, (num_simulations, 3000)), 99)
    p = gamma_p_value(gamma, num_simulations, 99)
    for level in LEVELS:
        share = (p <= level).double().mean().item()
        assert share < level + MAX_Z * math.sqrt(level * (1 - level) / 3000)
    # Discrete: of the levels that cannot be met, the next lower one is.
    assert (p <= 0.05).double().mean() > 0.035
    assert abs(p.mean() - 0.5) < 0.03


@pytest.mark.parametrize("num_simulations", SIMULATED)
def test_critical_values_are_those_of_simulations(num_simulations):
    for level, simulated in zip(LEVELS, SIMULATED[num_simulations], strict=True):
        critical = critical_log_gamma(num_simulations, 99, level)
        # A quantile's error: that of its level over the density, which is about the level.
        error = math.sqrt(level * (1 - level) / 4000) / level
        assert abs(critical - simulated) < MAX_Z * error


def test_rejection_by_critical_value_p_value_and_band_is_the_same():
    ranks = torch.randint(0, 20, (60, 400))
    gamma = log_gamma(ranks, 19)
    below = gamma < critical_log_gamma(60, 19, 0.1)
    assert 10 < below.sum() < 80
    p = torch.cat([gamma_p_value(some, 60, 19) for some in gamma.split(uniformity.KNOTS)])
    assert torch.equal(below, p <= 0.1)
    lower, upper = ecdf_band(60, 19, 0.1)
    shares = torch.stack([(ranks < i).double().mean(0) for i in range(1, 20)], 1)
    outside = ((shares < lower - 1e-12) | (shares > upper + 1e-12)).any(1)
    assert torch.equal(below, outside)


def test_interpolated_p_values_are_near_the_exact_ones():
    gamma = log_gamma(torch.randint(0, 100, (200, 65)), 99)
    many = gamma_p_value(gamma, 200, 99)
    few = torch.cat([gamma_p_value(some, 200, 99) for some in gamma.split(uniformity.KNOTS)])
    np.testing.assert_allclose(many, few, rtol=0.1)


def test_extreme_ranks_keep_a_finite_gamma_and_p_value():
    gamma = log_gamma(torch.zeros(1000, dtype=torch.int64), 99)
    assert abs(gamma - (math.log(2) - 1000 * math.log(100))) < 1e-6
    assert 0 <= gamma_p_value(gamma, 1000, 99) < 1e-200


def test_values_go_to_equal_cells():
    u = torch.rand(1000)
    assert torch.equal(grid_ranks(u, 9), (u * 10).floor().long())


def test_default_device_does_not_matter():
    ranks = torch.randint(0, 20, (60, 2))
    with torch.device("meta"):
        gamma = log_gamma(ranks, 19)
        assert (gamma_p_value(gamma, 60, 19) > 0).all()
        assert ecdf_band(60, 19, 0.1)[0].device.type == "cpu"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: log_gamma(torch.tensor([0, 10]), 9),
            "ranks must lie between 0 and num_draws = 9",
        ),
        (lambda: log_gamma(torch.tensor([0.5]), 9), "ranks must be integers; got fractions"),
        (lambda: log_gamma(torch.zeros(0, 2), 9), r"ranks must have shape .* got \(0, 2\)"),
        (lambda: critical_log_gamma(10, 9, 1.0), "level must be between 0 and 1; got 1.0"),
        (lambda: critical_log_gamma(0, 9, 0.05), "num_simulations must be a positive integer"),
        (lambda: grid_ranks(torch.tensor([1.5]), 9), "u must lie between 0 and 1; got 1.5"),
        (lambda: grid_ranks(torch.tensor([math.nan]), 9), "u must lie between 0 and 1; got nan"),
    ],
)
def test_what_does_not_fit_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def attainable(num_simulations, num_draws):
    """All values of gamma that some point can have, ascending, by sums of binomial terms."""
    found = set()
    for i in range(1, num_draws + 1):
        p = i / (num_draws + 1)
        cdf = [binomial_cdf(r, num_simulations, p) for r in range(num_simulations + 1)]
        found |= {round(2 * c, 12) for c in cdf}
        found |= {round(2 * (1 - c), 12) for c in cdf[:-1]}
    return sorted(found)


@pytest.mark.parametrize(("num_simulations", "num_draws"), [(5, 3), (4, 1), (30, 9), (7, 20)])
def test_critical_value_is_the_largest_attainable_one_within_the_level(num_simulations, num_draws):
    tails = uniformity.BinomialTails(num_simulations, num_draws, -40.0, 1.0)
    for level in (0.3, *LEVELS):
        critical = critical_log_gamma(num_simulations, num_draws, level)
        assert uniformity._probability_outside(tails, critical) <= level
        above = [
            value
            for value in attainable(num_simulations, num_draws)
            if value > math.exp(critical) + 1e-9 and value < min(2 * level, 2.0)
        ]
        # The next one's band leaves out what is attained at the critical value.
        if above:
            assert uniformity._probability_outside(tails, math.log(above[0])) > level


def test_levels_share_few_sums(monkeypatch):
    calls = []
    outside = uniformity._probability_outside

    def counted(tails, log_gamma):
        calls.append(log_gamma)
        return outside(tails, log_gamma)

    monkeypatch.setattr(uniformity, "_probability_outside", counted)
    rates = [a / count for count in (1, 11) for a in LEVELS]
    found = critical_log_gammas(500, 99, rates)
    assert len(calls) < 60  # six bisections of 24 would have 144
    assert len(set(calls)) == len(calls)
    assert found == [critical_log_gamma(500, 99, rate) for rate in rates]
    calls.clear()
    lower, upper = ecdf_band(500, 99, rates[0], critical=found[0])
    assert not calls
    again = ecdf_band(500, 99, rates[0])
    assert torch.equal(lower, again[0])
    assert torch.equal(upper, again[1])


def test_negligible_jumps_may_be_left_out_of_the_sum(monkeypatch):
    tails = uniformity.BinomialTails(800, 199, -40.0, 1.0)
    short = [uniformity._probability_outside(tails, g) for g in (-12.0, -7.0, -2.0)]
    monkeypatch.setattr(uniformity, "LOG_NEGLIGIBLE", -700.0)
    whole = [uniformity._probability_outside(tails, g) for g in (-12.0, -7.0, -2.0)]
    np.testing.assert_allclose(short, whole, atol=1e-14)
