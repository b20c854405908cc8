import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae

from pyro_vae import baselines, distributions, families, guides
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics.criticism import replication
from pyro_vae.diagnostics.criticism.predictive import (
    posterior_predictive_check,
    prior_predictive_check,
)
from pyro_vae.plots.criticism import predictive_check

TRUTH = linear_gaussian(
    5, features=4, latent_dim=2, variance=0.2, seed=3, dtype=torch.float64
).truth


def simulated(num_data, seed):
    return TRUTH.simulate(num_data, seed=seed)[0]


class FastPosterior(distributions.DistributionModule):
    """p(z|x), with all that does not depend on x computed once."""

    def __init__(self):
        super().__init__()
        posterior = TRUTH.posterior(TRUTH.mean[None])
        self.event_shape = torch.Size([2])
        self.gain = TRUTH.weight @ posterior.covariance_matrix[0] / TRUTH.variance
        self.scale_tril = posterior.scale_tril[0]

    def forward(self, x):
        return distributions.CholeskyNormal(
            (x - TRUTH.mean) @ self.gain, scale_tril=self.scale_tril.expand(len(x), 2, 2)
        )


def right_vae():
    return linear_vae(TRUTH, guide=FastPosterior())


def mean_of_first(x):
    return x[:, 0].mean()


def of_each(num_sets, size, statistic):
    """The statistic of each of many data sets that x holds one after another."""
    return {
        f"{name} {i}": lambda x, i=i, t=t: t(x[i * size : (i + 1) * size])
        for name, t in statistic.items()
        for i in range(num_sets)
    }


def test_prior_p_values_are_uniform_where_the_model_is_right():
    statistics = of_each(400, 10, {"mean": mean_of_first, "sd": torch.std, "max": torch.max})
    check = prior_predictive_check(right_vae(), simulated(4000, 5), statistics, num_samples=19)
    p = check["p_value"].to_numpy().reshape(3, 400)
    # (r + 1) / 20 is uniform on 1/20, ..., 1.
    sd = math.sqrt((1 - 1 / 400) / 12)
    assert (abs(p.mean(1) - 0.525) < MAX_Z * sd / 20).all()
    small = (check["p_value_two_sided"].to_numpy().reshape(3, 400) <= 0.2).mean(1)
    for shares, expected in (((p <= 0.1).mean(1), 0.1), (small, 0.2)):
        assert (abs(shares - expected) < MAX_Z * math.sqrt(expected * (1 - expected) / 400)).all()


def test_prior_p_value_and_its_error_are_those_of_theory():
    vae, x = right_vae(), torch.zeros(50, 4)
    variance = TRUTH.weight[0].square().sum() + TRUTH.variance
    x[:, 0] = TRUTH.mean[0] + (variance / 50).sqrt()  # one standard error above the mean
    expected = 0.5 * math.erfc(1 / math.sqrt(2))
    check = prior_predictive_check(vae, x, {"mean": mean_of_first}, num_samples=1000)
    error = check["p_value_mcse"].item()
    assert abs(check["p_value"].item() - expected) < MAX_Z * error
    assert abs(error / math.sqrt(expected * (1 - expected) / 1000) - 1) < 0.1
    assert abs(check["p_value_two_sided"].item() - 2 * expected) < 2 * MAX_Z * error
    assert abs(check["observed"].item() - x[0, 0].item()) < 1e-12
    low = prior_predictive_check(vae, -x, {"mean": lambda x: -mean_of_first(x)}, num_samples=5)
    assert low["replicated"].shape == (1, 5)


def test_posterior_replications_have_the_moments_of_the_exact_posterior():
    vae, x = right_vae(), simulated(3, 1)
    posterior = TRUTH.posterior(x)
    mean = posterior.mean @ TRUTH.weight.T + TRUTH.mean
    covariance = TRUTH.weight @ posterior.covariance_matrix @ TRUTH.weight.T
    variance = covariance.diagonal(dim1=-2, dim2=-1) + TRUTH.variance
    at = {f"{i},{j}": lambda x, i=i, j=j: x[i, j] for i in range(3) for j in range(4)}
    check = posterior_predictive_check(vae, x, at, num_samples=300)
    drawn = torch.from_numpy(check["replicated"].to_numpy()).reshape(3, 4, 300)
    assert ((drawn.mean(-1) - mean).abs() < MAX_Z * (variance / 300).sqrt()).all()
    ratio = drawn.var(-1) / variance
    assert ((ratio - 1).abs() < MAX_Z * math.sqrt(2 / 299)).all()


def test_posterior_p_values_are_conservative_by_the_amount_of_theory():
    # T is the mean of a feature. Given x the replicated T is normal about gain (x - mu), so that
    # p = Phi(sqrt(shift / spread) a) with a standard normal over data sets.
    vae = right_vae()
    w, c, gain = TRUTH.weight, TRUTH.variance, vae.q_z_given_x.gain @ TRUTH.weight.T
    feature = gain.diagonal().argmax().item()
    residual = (torch.eye(4) - gain)[:, feature]
    shift = residual @ (w @ w.T + c * torch.eye(4)) @ residual
    spread = c * (1 + gain[feature, feature])
    a = torch.linspace(-8, 8, 4001)
    weight = (-a.square() / 2).exp() / math.sqrt(2 * math.pi) * (a[1] - a[0])
    phi = torch.special.ndtr(a * (shift / spread).sqrt())
    variance = (weight * (phi - 0.5).square()).sum()
    noise = (weight * phi * (1 - phi)).sum() / 20
    expected = (variance + noise).sqrt().item() * 20 / 21
    assert expected < 0.2 < math.sqrt(1 / 12)
    statistics = of_each(400, 10, {"mean": lambda x: x[:, feature].mean()})
    check = posterior_predictive_check(vae, simulated(4000, 5), statistics, num_samples=20)
    # The standard deviation of 400 values with tails no heavier than a normal's.
    assert abs(check["p_value"].std().item() / expected - 1) < MAX_Z / math.sqrt(800)


class Chain:
    """A user's own program: z2 -> z1 -> x, with a guide that knows both exactly."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(len(x)), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1[:, None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(2 * x[:, 0] / 3, math.sqrt(2 / 3)))
            pyro.sample("z2", dist.Normal(z1 / 2, math.sqrt(0.5)))


def test_own_program_with_two_sites_is_replicated_from_prior_and_guide():
    x = torch.full((400, 1), 3.0)
    store = pyro.get_param_store()
    prior = prior_predictive_check(Chain(), x, {"mean": torch.mean}, num_samples=100)
    posterior = posterior_predictive_check(Chain(), x, {"mean": torch.mean}, num_samples=100)
    # x_rep ~ N(0, 3) and N(2, 2/3 + 1), means of 400.
    for check, mean, variance in ((prior, 0.0, 3.0), (posterior, 2.0, 5 / 3)):
        error = math.sqrt(variance / 400)
        drawn = check["replicated"].to_numpy()[0]
        assert abs(drawn.mean() - mean) < MAX_Z * error / 10
        assert abs(drawn.std(ddof=1) / error - 1) < MAX_Z / math.sqrt(200)
        assert check["p_value"].item() == pytest.approx(1 / 101)
    assert len(list(store)) == 0


def test_ties_count_on_both_sides():
    x = torch.zeros(5, 4)
    check = prior_predictive_check(right_vae(), x, {"one": lambda x: 1}, num_samples=9)
    assert check["p_value"].item() == 1.0
    assert check["p_value_two_sided"].item() == 1.0
    assert check["p_value_mcse"].item() > 0.05


def test_pieces_make_whole_data_sets_and_the_random_state_is_left_alone(monkeypatch):
    monkeypatch.setattr(replication, "ROWS_AT_A_TIME", 3)
    seen = []
    state = torch.get_rng_state()
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(8, 6)
    state = torch.get_rng_state()
    for check in (prior_predictive_check, posterior_predictive_check):
        check(vae, x, {"n": lambda x: float(seen.append(x.shape) or len(x))}, num_samples=2)
    assert seen == [(8, 6)] * 6
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training


def test_guide_with_parameters_for_each_datum_is_served():
    vae = small_vae(family=families.DiagonalNormal)
    vae = vae.with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), num_data=8))
    check = posterior_predictive_check(vae, torch.zeros(8, 6), {"sd": torch.std}, num_samples=3)
    assert check.sizes["simulation"] == 3
    with pytest.raises(ValueError, match="x must be the 8 rows"):
        posterior_predictive_check(vae, torch.zeros(7, 6), {"sd": torch.std})


def test_every_tensor_follows_the_data():
    vae, x = right_vae(), simulated(5, 1)
    with torch.device("meta"):
        for check in (prior_predictive_check, posterior_predictive_check):
            assert check(vae, x, {"sd": torch.std}, num_samples=3)["p_value"].item() > 0


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({}, "statistics must name at least one function; got none."),
        ({"rows": lambda x: x.sum(1)}, r"statistics\['rows'\] must return one number .* \(5,\)"),
        ({"nan": lambda x: math.nan}, r"statistics\['nan'\] must return a number .* got NaN"),
    ],
)
def test_statistic_without_one_number_raises(statistics, message):
    with pytest.raises(ValueError, match=message):
        prior_predictive_check(right_vae(), torch.zeros(5, 4), statistics)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (torch.mean, "statistics must be a mapping from names to functions; got <built-in"),
        (None, "statistics must be a mapping from names to functions; got None"),
        ({"mean": 3}, r"statistics\['mean'\] must be a function; got 3."),
    ],
)
def test_statistics_that_are_no_functions_with_names_raise(statistics, message):
    for check in (prior_predictive_check, posterior_predictive_check):
        with pytest.raises(TypeError, match=message):
            check(right_vae(), torch.zeros(5, 4), statistics)


def test_autoencoder_has_no_predictive_distribution():
    ae = baselines.autoencoder(features=4, latent_dim=2)
    for check in (prior_predictive_check, posterior_predictive_check):
        with pytest.raises(TypeError, match="latent site.*Autoencoder.*encodes to a point"):
            check(ae, torch.zeros(5, 4), {"mean": torch.mean})


def test_summed_out_site_is_refused_for_the_posterior_alone():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample(
                "y", dist.Bernoulli(x.new_full((len(x),), 0.5)), infer={"enumerate": "parallel"}
            )
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    programs, x = SimpleNamespace(model=model, guide=guide), torch.zeros(300, 1)
    check = prior_predictive_check(programs, x, {"mean": torch.mean}, num_samples=30)
    error = math.sqrt(2.25 / 300 / 30)
    assert abs(check["replicated"].mean().item() - 0.5) < MAX_Z * error
    with pytest.raises(ValueError, match=r"guide must have every latent site .* \['y'\]"):
        posterior_predictive_check(programs, x, {"mean": torch.mean})


def test_model_with_no_observed_site_of_that_shape_raises():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x0", dist.Normal(z, 1.0), obs=x[:, 0])
            pyro.sample("x1", dist.Normal(z, 1.0), obs=x[:, 1])

    programs = SimpleNamespace(model=model, guide=None)
    with pytest.raises(ValueError, match=r"one observed site of the shape of x, \(5, 2\)"):
        prior_predictive_check(programs, torch.zeros(5, 2), {"mean": torch.mean})


def test_picture_has_the_observed_line_and_every_replication():
    statistics = {"cost in $": torch.mean, "count": lambda x: (x > 0).sum(), "one": lambda x: 1}
    x = simulated(20, 1)
    check = prior_predictive_check(right_vae(), x, statistics, num_samples=30)
    panels = predictive_check(check)
    assert [axes.get_xlabel() for axes in panels] == [r"cost in \$", "count", "one"]
    for axes, observed in zip(panels, check["observed"].values, strict=True):
        assert axes.get_lines()[0].get_xdata() == [observed, observed]
        assert sum(bar.get_height() for bar in axes.patches) == 30
    panels[0].get_figure().canvas.draw()
