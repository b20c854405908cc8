import copy
import functools
import logging
import math
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from test_diagnostics_calibration import correlated
from test_diagnostics_elbo import BestDiagonal
from test_own_programs import ExactTwoLayers, conditional
from torch import nn

from pyro_vae import distributions, families, guides
from pyro_vae.arviz_container import chain_statistics, container, group
from pyro_vae.diagnostics.real_joint import RealJoint
from pyro_vae.diagnostics.reference import nuts
from pyro_vae.diagnostics.reference.nuts import posterior_nuts
from pyro_vae.diagnostics.reference.potential import potential_energy
from pyro_vae.diagnostics.reference.summary import guide_draws, reference_summary

FEW = {"num_chains": 2, "num_samples": 5, "num_warmup": 5}


@functools.cache
def linear():
    """A linear Gaussian model, one datum, and its posterior by NUTS."""
    truth = correlated(0.8)
    x = torch.tensor([[0.4, -0.7]])
    data = SimpleNamespace(
        truth=truth, x=x, posterior=truth.posterior(x), log_evidence=truth.log_prob(x)
    )
    vae = linear_vae(truth)
    return data, vae, posterior_nuts(vae, x, num_chains=3, num_samples=150, num_warmup=60)


def z_of(reference):
    return group(reference, "posterior")["z"]


def test_moments_are_those_of_the_exact_posterior():
    data, _, reference = linear()
    statistics = chain_statistics(z_of(reference))
    exact = data.posterior.mean[0], data.posterior.stddev[0]
    for name, truth in zip(("mean", "sd"), exact, strict=True):
        z = (statistics[name][0] - truth.numpy()) / statistics[f"{name}_mcse"][0]
        assert abs(z).max() < MAX_Z
        assert (statistics[f"{name}_mcse"] < 0.15 * data.posterior.stddev[0].numpy()).all()
    assert (statistics["r_hat"] < 1.05).all()
    covariance = np.cov(z_of(reference).stack(s=("chain", "draw"))[0])
    correlation = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    exact_covariance = data.posterior.covariance_matrix[0]
    expected = float(exact_covariance[0, 1] / exact_covariance.diagonal().prod().sqrt())
    ess = float(statistics["ess_bulk"].min())
    z = (math.atanh(correlation) - math.atanh(expected)) * math.sqrt(ess)
    assert abs(z) < MAX_Z


def test_log_density_of_the_draws_is_log_evidence_plus_log_posterior():
    data, _, reference = linear()
    z = torch.from_numpy(z_of(reference).to_numpy()[:, :, 0])
    expected = data.log_evidence[0] + torch.distributions.MultivariateNormal(
        data.posterior.mean[0], data.posterior.covariance_matrix[0]
    ).log_prob(z)
    stats = group(reference, "sample_stats")
    np.testing.assert_allclose(stats["lp"][:, :, 0], expected, atol=1e-10)
    assert stats["diverging"].dtype == bool
    assert not stats["diverging"].any()
    assert (stats["n_steps"] >= 1).all()
    rates = stats["acceptance_rate"]
    assert float(rates.min()) >= -1e-9
    assert float(rates.max()) <= 1 + 1e-9
    assert 0.6 < float(rates.mean()) < 0.97  # the step size is adapted to 0.8
    assert len(np.unique(stats["step_size"])) == 3  # one for each chain


class Square:
    """z ~ N(0, 1), x ~ N(z^2, 1/4): a posterior of two modes; the guide knows one."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), x.new_ones(1)).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.abs().sqrt(), 0.3).to_event(1))


def test_two_modes_have_the_moments_of_a_grid():
    x = torch.tensor([[0.8]])
    reference = posterior_nuts(Square(), x, num_chains=3, num_samples=150, num_warmup=40)
    grid = np.linspace(-6, 6, 4001)
    density = np.exp(-(grid**2) / 2 - (0.8 - grid**2) ** 2 / (2 * 0.25))
    density /= density.sum()
    draws = z_of(reference)
    for power in (1, 2, 4):
        statistics = chain_statistics(draws**power)
        z = (statistics["mean"] - (density * grid**power).sum()) / statistics["mean_mcse"]
        assert abs(float(z[0, 0])) < MAX_Z
    summary = reference_summary(reference, Square(), x)
    assert float(summary["pareto_khat"][0]) > 0.7  # q has no draw near the other mode
    assert float(summary["sd_ratio"][0, 0]) < 0.5
    assert float(summary["mean_z_score"][0, 0]) > MAX_Z


def test_summary_of_the_exact_guide_finds_no_difference():
    data, vae, reference = linear()
    summary = reference_summary(reference, vae, data.x)
    assert abs(summary["mean_z_score"]).max() < MAX_Z
    assert (abs(summary["mean_shift"]) < MAX_Z * summary["mean_shift_mcse"]).all()
    assert (abs(summary["sd_ratio"] - 1) < MAX_Z * summary["sd_ratio_mcse"]).all()
    assert (summary["sd_ratio_mcse"] < 0.15).all()
    assert float(summary["pareto_khat"][0]) < 0.3
    assert int(summary["divergences"][0]) == 0
    np.testing.assert_allclose(summary["r_hat"], chain_statistics(z_of(reference))["r_hat"])


def test_summary_of_the_mean_field_guide_has_the_ratio_of_theory():
    data, vae, reference = linear()
    other = vae.with_guide(BestDiagonal(data.truth))
    summary = reference_summary(reference, other, data.x)
    covariance = data.posterior.covariance_matrix[0]
    t = covariance.diagonal() * covariance.inverse().diagonal()
    assert t.max() > 2.7
    z = (summary["sd_ratio"][0] - t.rsqrt().numpy()) / summary["sd_ratio_mcse"][0]
    assert abs(z).max() < MAX_Z


def test_errors_of_the_guides_moments_are_those_of_repetitions():
    data, vae, reference = linear()
    found = [reference_summary(reference, vae, data.x, num_samples=200, seed=s) for s in range(20)]
    for name in ("q_mean", "q_sd"):
        spread = np.std([f[name].to_numpy() for f in found], axis=0, ddof=1)
        told = np.mean([f[f"{name}_mcse"].to_numpy() for f in found], axis=0)
        assert (abs(spread / told - 1) < MAX_Z / math.sqrt(2 * 19)).all()


class PositiveRate:
    """z ~ Gamma(2, 1), x ~ Poisson(z): p(z|x) is Gamma(2 + x, 2)."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            prior = dist.Gamma(x.new_full((1,), 2.0), x.new_ones(1)).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Poisson(z).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Gamma(2 + x, x.new_full((1,), 2.0)).to_event(1))


def test_a_positive_latent_is_sampled_on_the_line_and_mapped_back():
    x = torch.tensor([[3.0]])
    reference = posterior_nuts(PositiveRate(), x, num_chains=2, num_samples=120, num_warmup=40)
    assert float(z_of(reference).min()) > 0
    statistics = chain_statistics(z_of(reference))
    for name, truth in (("mean", 2.5), ("sd", math.sqrt(5 / 4))):
        z = (statistics[name] - truth) / statistics[f"{name}_mcse"]
        assert abs(float(z[0, 0])) < MAX_Z
    z = z_of(reference).to_numpy()[..., 0, 0]
    lp = dist.Gamma(2.0, 1.0).log_prob(torch.from_numpy(z)) + dist.Poisson(
        torch.from_numpy(z)
    ).log_prob(torch.tensor(3.0))
    np.testing.assert_allclose(group(reference, "sample_stats")["lp"][..., 0], lp, atol=1e-10)


def test_programs_with_two_levels_have_both_side_by_side():
    programs, x = ExactTwoLayers(), torch.tensor([[0.5, -0.3, 1.0, 0.2]])
    reference = posterior_nuts(programs, x, num_chains=2, num_samples=80, num_warmup=40)
    gain, constant, rest = conditional(*programs.joint(), [0, 1, 2], [3, 4, 5, 6])
    statistics = chain_statistics(z_of(reference))
    exact = (x @ gain.mT + constant)[0], rest.diagonal().sqrt()
    for name, truth in zip(("mean", "sd"), exact, strict=True):
        z = (statistics[name][0] - truth.numpy()) / statistics[f"{name}_mcse"][0]
        assert abs(z).max() < MAX_Z


def test_rows_are_independent_of_each_other_and_repeatable():
    vae, x = small_vae(family=families.DiagonalNormal, variance=0.3), torch.randn(2, 6)
    both = posterior_nuts(vae, x, **FEW)
    first = posterior_nuts(vae, x[:1], **{**FEW, "num_chains": 1})
    other = posterior_nuts(vae, x[:1], **FEW, seed=1)
    np.testing.assert_array_equal(z_of(both)[:1, :, :1], z_of(first))
    assert not np.array_equal(z_of(both)[:, :, :1], z_of(other))
    assert not np.array_equal(z_of(both)[0], z_of(both)[1])
    assert dict(z_of(both).sizes) == {"chain": 2, "draw": 5, "obs_id": 2, "latent": 3}


def test_a_float32_module_runs_in_double_and_stays_as_it_was():
    vae = small_vae(family=families.DiagonalNormal, variance=0.3).float().train()
    next(vae.parameters()).requires_grad_(False)
    x = torch.randn(1, 6, dtype=torch.float32)
    before = copy.deepcopy(vae.state_dict())
    wants = [p.requires_grad for p in vae.parameters()]
    random, logger = torch.get_rng_state(), logging.getLogger("pyro.infer.mcmc")
    handlers, store = list(logger.handlers), dict(pyro.get_param_store().items())
    reference = posterior_nuts(vae, x, **FEW)
    assert reference.attrs["dtype"] == "float64"
    assert torch.equal(torch.get_rng_state(), random)
    assert logger.handlers == handlers
    assert dict(pyro.get_param_store().items()) == store
    assert vae.training
    assert [p.requires_grad for p in vae.parameters()] == wants
    assert all(p.grad is None and p.dtype == torch.float32 for p in vae.parameters())
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name])
    double = posterior_nuts(copy.deepcopy(vae).double(), x.double(), **FEW)
    np.testing.assert_allclose(z_of(reference), z_of(double), rtol=0, atol=1e-12)


class OwnModule(nn.Module):
    """A user's module, whose parameters Pyro's store knows by their plain name."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 4), nn.Linear(4, 2)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def test_parameters_in_the_store_are_read_in_double_and_not_written():
    own, x = OwnModule().float(), torch.randn(1, 4, dtype=torch.float32)
    fresh = posterior_nuts(own, x, **FEW)
    own.model(x)
    own.guide(x)
    names = set(pyro.get_param_store().keys())
    assert "decoder$$$weight" in names
    stored = posterior_nuts(own, x, **FEW)
    np.testing.assert_allclose(z_of(stored), z_of(fresh), rtol=0, atol=1e-12)
    assert set(pyro.get_param_store().keys()) == names
    assert all(p.dtype == torch.float32 for p in own.parameters())
    assert {v.dtype for v in pyro.get_param_store().values()} == {torch.float32}


def test_nothing_is_made_on_the_default_device():
    vae, x = small_vae(family=families.FullCovarianceNormal).float(), torch.randn(1, 6)
    with torch.device("meta"):
        reference = posterior_nuts(vae, x, **FEW)
        summary = reference_summary(reference, vae, x, num_samples=50)
        draws = guide_draws(vae, x, num_samples=7)
    assert np.isfinite(z_of(reference)).all()
    assert np.isfinite(summary["sd_ratio"]).all()
    assert draws.shape == (7, 1, 3)


def test_per_datum_guide_starts_at_its_own_row():
    guide = guides.PerDatumGuide(families.DiagonalNormal(3), 2)
    vae = small_vae(family=families.DiagonalNormal).with_guide(guide)
    x = torch.randn(2, 6)
    reference = posterior_nuts(vae, x, **FEW)
    assert z_of(reference).sizes["obs_id"] == 2
    with pytest.raises(ValueError, match="x must be the 2 rows that PerDatumGuide has"):
        posterior_nuts(vae, x[:1], **FEW)


class Apart(distributions.DistributionModule):
    """A guide far from the posterior, and so narrow that its chains begin at one place."""

    def __init__(self, latent_dim):
        super().__init__()
        self.event_shape = torch.Size([latent_dim])

    def forward(self, x):
        return dist.Normal(x.new_full((len(x), *self.event_shape), 50.0), 0.1).to_event(1)


def test_chains_that_disagree_are_said_aloud(caplog):
    vae = linear_vae(linear()[0].truth, guide=Apart(2))
    with caplog.at_level(logging.WARNING):
        posterior_nuts(vae, linear()[0].x, num_chains=2, num_samples=5, num_warmup=1)
    assert "r-hat is above 1.01 for 1 of 1 data" in caplog.text
    assert "their chains disagree" in caplog.text


def test_chains_that_nearly_agree_are_not_said_to_disagree(caplog, monkeypatch):
    def nearly(draws):
        return xr.Dataset({"r_hat": (("obs_id", "latent"), [[1.0, 1.02]])})

    monkeypatch.setattr(nuts, "chain_statistics", nearly)
    with caplog.at_level(logging.WARNING):
        posterior_nuts(linear()[1], linear()[0].x, **FEW)
    assert "up to 1.020: more draws would tell" in caplog.text
    assert "disagree" not in caplog.text


@pytest.mark.parametrize(
    ("num_chains", "num_samples", "known"), [(2, 3, False), (1, 3, False), (1, 40, True)]
)
def test_too_few_draws_have_no_errors_and_arviz_says_nothing(
    num_chains, num_samples, known, capfd, caplog
):
    data, vae, reference = linear()
    some = {
        name: group(reference, name).isel(chain=slice(num_chains), draw=slice(num_samples))
        for name in ("posterior", "sample_stats")
    }
    found = reference_summary(container(some, attrs={}), vae, data.x, num_samples=50)
    assert "Shape validation" not in capfd.readouterr().err + caplog.text
    assert np.isnan(found["r_hat"]).all()
    draws = some["posterior"]["z"]
    np.testing.assert_allclose(found["nuts_mean"], draws.mean(("chain", "draw")))
    np.testing.assert_allclose(found["nuts_sd"], draws.std(("chain", "draw"), ddof=1))
    for name in ("nuts_mean_mcse", "nuts_sd_mcse", "mean_z_score", "ess_bulk"):
        assert np.isfinite(found[name]).all() == known, name


def test_divergences_are_counted_and_said_aloud(caplog):
    class Funnel:
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(3), x.new_ones(3)).to_event(1))
                scale = (6 * z[..., :1]).exp()
                pyro.sample(
                    "x", dist.Normal(z[..., 1:].sum(-1, keepdim=True), scale).to_event(1), obs=x
                )

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.new_zeros(3), x.new_ones(3)).to_event(1))

    x = torch.zeros(1, 1)
    with caplog.at_level(logging.WARNING):
        reference = posterior_nuts(
            Funnel(), x, num_chains=2, num_samples=60, num_warmup=20, target_accept=0.3
        )
    count = int(group(reference, "sample_stats")["diverging"].sum())
    assert count > 0
    assert f"{count} of 120 transitions diverged" in caplog.text
    assert int(reference_summary(reference, Funnel(), x)["divergences"][0]) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 0}, "num_chains must be a positive integer; got 0"),
        ({"num_samples": -1}, "num_samples must be a positive integer"),
        ({"num_warmup": 0}, "num_warmup must be a positive integer"),
        ({"target_accept": 1.0}, "target_accept must be between 0 and 1; got 1.0"),
    ],
)
def test_numbers_that_do_not_fit_raise(options, message):
    with pytest.raises(ValueError, match=message):
        posterior_nuts(small_vae(family=families.DiagonalNormal), torch.zeros(1, 6), **options)


def test_a_reference_of_other_data_is_refused():
    data, vae, reference = linear()
    with pytest.raises(ValueError, match="reference must be of the same data and latent sites"):
        reference_summary(reference, vae, data.x.expand(2, 2))
    with pytest.raises(ValueError, match="reference must be an ArviZ container"):
        reference_summary({}, vae, data.x)


class Branching:
    """A decoder that turns at 0: what is run at one point is not what is run at another."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            mean = z if z.sum() > 0 else -3 * z
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))


@pytest.mark.parametrize(
    ("make", "features"), [(Branching, 2), (PositiveRate, 1), (Square, 1), (ExactTwoLayers, 4)]
)
def test_recorded_energy_is_that_of_the_programs_with_its_gradient(make, features):
    joint = RealJoint(make(), torch.ones(1, features))
    points = torch.randn(4, joint.num_dims)
    energy = potential_energy(joint, points)
    for u in [*points, *torch.randn(4, joint.num_dims)]:
        u = u.requires_grad_()
        value = -sum(joint(u.reshape(1, 1, -1))).sum()
        (gradient,) = torch.autograd.grad(value, u)
        found = energy(u)
        (found_gradient,) = torch.autograd.grad(2 * found, u)
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found_gradient, 2 * gradient, rtol=1e-12, atol=1e-12)


def test_what_is_recorded_runs_without_the_programs():
    _, vae, _ = linear()
    joint = RealJoint(vae, linear()[0].x)
    energy = potential_energy(joint, torch.randn(2, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RealJoint, "__call__", None)
        assert energy(torch.zeros(2)).isfinite()


def test_a_discrete_latent_site_raises():
    class Discrete:
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Bernoulli(x.new_full((), 0.5)))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Bernoulli(x.new_full((), 0.5)))

    with pytest.raises(ValueError, match="latent site 'z' must be continuous"):
        posterior_nuts(Discrete(), torch.zeros(1), **FEW)


def test_the_container_goes_through_arviz():
    import arviz

    _, _, reference = linear()
    table = arviz.summary(reference, var_names=["z"])
    assert len(table) == 2
    statistics = chain_statistics(z_of(reference))
    np.testing.assert_allclose(table["r_hat"], statistics["r_hat"].to_numpy()[0], atol=0.006)
