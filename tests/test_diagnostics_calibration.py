import math
from statistics import NormalDist

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from test_diagnostics_elbo import BestDiagonal
from test_own_programs import ExactTwoLayers

import pyro_vae as pv
from pyro_vae import distributions, families, guides, likelihoods, priors
from pyro_vae.datasets import LinearGaussian, linear_gaussian
from pyro_vae.diagnostics.calibration import simulation_based as calibration
from pyro_vae.diagnostics.calibration import uniformity
from pyro_vae.diagnostics.calibration.simulation_based import interval_shares, sbc
from pyro_vae.diagnostics.calibration.uniformity import critical_log_gamma

PHI = NormalDist()


def correlated(correlation=0.8, *, variance=0.1):
    """A linear Gaussian model in two dimensions whose posterior has this correlation."""
    precision = torch.tensor([[1.0, -correlation], [-correlation, 1.0]])
    weight = torch.linalg.cholesky(precision - variance * torch.eye(2)).mT
    return LinearGaussian(weight, torch.zeros(2), variance)


class PriorAsGuide(distributions.DistributionModule):
    """N(0, I), whatever x is."""

    def __init__(self, latent_dim):
        super().__init__()
        self.event_shape = torch.Size([latent_dim])

    def forward(self, x):
        return dist.Normal(x.new_zeros(len(x), *self.event_shape), 1.0).to_event(1)


def coverage_in_theory(level, t):
    """Of the central interval of a normal q whose variance is 1/t of the posterior's."""
    half = PHI.inv_cdf((1 + level) / 2)
    return 2 * PHI.cdf(half / math.sqrt(t)) - 1


def coverage_with_draws(level, t, num_draws, num_points=20_001):
    """The same where the interval is made of the ranks among so many draws, by quadrature."""
    shares = interval_shares(num_draws, np.array([level]))[:, 0]
    w = np.linspace(-8, 8, num_points)
    u = np.array([PHI.cdf(math.sqrt(t) * value) for value in w]).clip(1e-300, 1 - 1e-16)
    ranks = np.arange(num_draws + 1)
    log_ways = np.array(
        [
            math.lgamma(num_draws + 1) - math.lgamma(r + 1) - math.lgamma(num_draws - r + 1)
            for r in ranks
        ]
    )
    inside = sum(
        share * np.exp(ways + r * np.log(u) + (num_draws - r) * np.log1p(-u))
        for share, ways, r in zip(shares, log_ways, ranks, strict=True)
        if share > 0
    )
    density = np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)
    return float((inside * density).sum() * (w[1] - w[0]))


def test_exact_guide_passes():
    data = linear_gaussian(5, features=6, latent_dim=3, variance=0.2, seed=1)
    found = sbc(linear_vae(data.truth), 1000, 99, seed=3)
    assert found.attrs["verdict"] == "calibrated"
    assert (found["p_value"] > 0.01).all()
    assert found["p_value_log_joint"] > 0.01
    z = (found["coverage"] - found["level"]) / found["coverage_se_if_calibrated"]
    assert abs(z).max() < MAX_Z
    np.testing.assert_allclose(
        found["coverage_se_if_calibrated"], [math.sqrt(a * (1 - a) / 1000) for a in found.level]
    )


def test_mean_field_guide_fails_with_the_coverage_of_theory():
    truth = correlated(0.8)
    assert abs(coverage_in_theory(0.9, 1 / 0.36) - 0.6763) < 5e-5
    found = sbc(linear_vae(truth, guide=BestDiagonal(truth)), 3000, 99)
    assert found.attrs["verdict"] == "not calibrated"
    assert (found["log_gamma"] < found["critical_log_gamma_of_all"].min()).all()
    for level in found.level.to_numpy():
        expected = coverage_with_draws(level, 1 / 0.36, 99)
        assert abs(expected - coverage_in_theory(level, 1 / 0.36)) < 0.013
        z = (found["coverage"].sel(level=level) - expected) / found["coverage_mcse"].sel(
            level=level
        )
        assert abs(z).max() < MAX_Z
    # Fewer simulations and more draws, which take the ranks to the interval itself.
    fine = sbc(linear_vae(truth, guide=BestDiagonal(truth)), 1000, 499, levels=(0.9,))
    assert (abs(fine["coverage"] - 0.6763) < MAX_Z * fine["coverage_mcse"]).all()


def test_guide_that_is_the_prior_fails_on_the_rank_of_the_joint_density_alone():
    data = linear_gaussian(5, features=6, latent_dim=3, variance=0.2, seed=1)
    found = sbc(linear_vae(data.truth, guide=PriorAsGuide(3)), 1000, 99)
    assert (found["p_value"] > 0.01).all()
    z = (found["coverage"] - found["level"]) / found["coverage_se_if_calibrated"]
    assert abs(z).max() < MAX_Z
    assert found["log_gamma_log_joint"] < -100
    assert found["rank_log_joint"].mean() > 90  # the truth is nearly always the most probable
    assert found.attrs["verdict"] == "not calibrated"


def test_wide_guide_covers_too_much():
    truth = correlated(0.0)

    class Wide(distributions.DistributionModule):
        event_shape = torch.Size([2])

        def forward(self, x):
            posterior = truth.posterior(x)
            return dist.MultivariateNormal(posterior.loc, scale_tril=2 * posterior.scale_tril)

    found = sbc(linear_vae(truth, guide=Wide()), 1000, 99)
    for level in (0.5, 0.8):
        z = (found["coverage"].sel(level=level) - coverage_with_draws(level, 1 / 4, 99)) / found[
            "coverage_mcse"
        ].sel(level=level)
        assert abs(z).max() < MAX_Z
    assert found.attrs["verdict"] == "not calibrated"


class Flat:
    """z uniform, x uniform whatever z is: p(x, z) is constant, and the prior is the posterior."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(x.new_zeros(2), x.new_ones(2)).to_event(1))
            pyro.sample("x", dist.Uniform(x.new_zeros(3), x.new_ones(3)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(x.new_zeros(2), x.new_ones(2)).to_event(1))


def test_ties_are_broken_at_random():
    found = sbc(Flat(), 1000, 19, like=torch.full((1, 3), 0.5))
    assert found["p_value_log_joint"] > 0.01
    assert set(found["rank_log_joint"].to_numpy()) == set(range(20))
    assert found.attrs["verdict"] == "calibrated"


@pytest.mark.parametrize("upwards", [False, True])
def test_programs_with_two_levels_pass_with_their_posterior(upwards):
    found = sbc(ExactTwoLayers(upwards=upwards), 400, 99, like=torch.zeros(3, 4))
    assert found.sizes["latent"] == 3
    assert found.attrs["verdict"] == "calibrated"
    assert found["p_value_log_joint"] > 0.01


def test_programs_with_two_levels_fail_with_a_wrong_level():
    class Shifted(ExactTwoLayers):
        def guide(self, x):
            super().guide(x + 0.5)

    found = sbc(Shifted(), 400, 99, like=torch.zeros(1, 4))
    assert found.attrs["verdict"] == "not calibrated"


def test_shares_of_an_interval_average_to_its_level():
    levels = np.array([0.01, 0.5, 0.87, 0.95, 0.999])
    for num_draws in (1, 2, 7, 99):
        shares = interval_shares(num_draws, levels)
        np.testing.assert_allclose(shares.mean(0), levels, atol=1e-14)
        np.testing.assert_allclose(shares, shares[::-1], atol=1e-12)
    shares = interval_shares(99, np.array([0.9]))[:, 0]
    np.testing.assert_allclose(shares, [0] * 5 + [1] * 90 + [0] * 5, atol=1e-12)


def test_bonferroni_holds_the_smallest_of_all_tests_against_its_own_value():
    found = sbc(small_vae(family=families.DiagonalNormal), 200, 9)
    assert found.attrs["num_tests"] == 4
    assert (found["critical_log_gamma_of_all"] < found["critical_log_gamma"]).all()
    single = critical_log_gamma(200, 9, 0.01 / 4)
    assert float(found["critical_log_gamma_of_all"].sel(significance=0.01)) == single
    smallest = min(float(found["log_gamma"].min()), float(found["log_gamma_log_joint"]))
    assert (found.attrs["verdict"] == "not calibrated") == (smallest < single)


def test_a_share_of_none_or_all_has_an_error():
    truth = correlated(0.0)
    found = sbc(linear_vae(truth), 20, 99, levels=(0.0001, 0.9999))
    # Of a uniform share after 0 of 20 hits, or 20: that of Beta(1, 21).
    exact = math.sqrt(21 / 22**2 / 23)
    np.testing.assert_allclose(found["coverage_mcse"], exact, rtol=0.01)


def test_critical_value_of_the_verdict_is_not_sought_again_for_the_band(monkeypatch):
    monkeypatch.setattr(uniformity, "critical_log_gamma", None)
    found = sbc(vae(), 20, 9)
    monkeypatch.undo()
    low, high = uniformity.ecdf_band(20, 9, 0.01 / 4)
    np.testing.assert_array_equal(found["band_low"], low)
    np.testing.assert_array_equal(found["band_high"], high)


def test_simulations_have_noise_of_their_own_and_leave_the_world_alone(monkeypatch):
    monkeypatch.setattr(calibration, "ROWS_AT_A_TIME", 4)
    vae = small_vae(family=families.DiagonalNormal, variance=0.3).train()
    before, store = torch.get_rng_state(), dict(pyro.get_param_store().items())
    found = sbc(vae, 10, 200)
    assert torch.equal(torch.get_rng_state(), before)
    assert dict(pyro.get_param_store().items()) == store
    assert vae.training
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())
    assert len(np.unique(found["ranks"], axis=0)) == 10
    torch.manual_seed(5)
    assert found.identical(sbc(vae, 10, 200))
    assert not found.equals(sbc(vae, 10, 200, seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_made_on_the_default_device(dtype):
    vae = small_vae(family=families.FullCovarianceNormal).to(dtype)
    with torch.device("meta"):
        found = sbc(vae, 20, 9)
    assert found["ranks"].max() <= 9


def test_zero_need_not_be_in_the_support():
    vae = pv.make_vae(features=4, latent_dim=2, hidden=(8,), likelihood=likelihoods.Beta)
    assert sbc(vae, 20, 9).sizes["simulation"] == 20


def per_datum_vae():
    guide = guides.PerDatumGuide(families.DiagonalNormal(3), 5)
    return small_vae(family=families.DiagonalNormal).with_guide(guide)


def vae():
    return small_vae(family=families.DiagonalNormal)


@pytest.mark.parametrize(
    ("make", "args", "options", "message"),
    [
        (vae, (0, 9), {}, "num_simulations must be a positive integer; got 0"),
        (vae, (9, 2.5), {}, "num_draws must be a positive integer; got 2.5"),
        (vae, (9, 9), {"levels": (0.5, 1.0)}, "levels must be between 0 and 1; got 1.0"),
        (vae, (9, 9), {"levels": ()}, "levels must have at least one probability; got none"),
        (vae, (9, 9), {"levels": (-0.5,)}, "levels must be between 0 and 1; got -0.5"),
        (Flat, (9, 9), {}, "like must be given for programs that do not declare"),
        (per_datum_vae, (9, 9), {}, "vae must have an amortized guide"),
    ],
)
def test_arguments_that_do_not_fit_raise(make, args, options, message):
    with pytest.raises(ValueError, match=message):
        sbc(make(), *args, **options)


def test_mixture_prior_with_its_own_posterior_passes():
    """p(z) of two components and an x that says nothing: q = p(z) is right, in every test."""
    prior = priors.GaussianMixture(1, num_components=2)

    class Blind(torch.nn.Module):
        def forward(self, z):
            return z.new_zeros(*z.shape[:-1], 2)

    class Same(distributions.DistributionModule):
        event_shape = torch.Size([1])

        def forward(self, x):
            return prior().expand(torch.Size([len(x)]))

    model = pv.VAE(
        prior=prior, likelihood=likelihoods.Gaussian(Blind(), event_shape=(2,)), guide=Same()
    )
    found = sbc(model, 400, 99)
    assert found.attrs["verdict"] == "calibrated"
