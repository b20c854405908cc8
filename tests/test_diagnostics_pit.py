import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae

from pyro_vae import baselines, families
from pyro_vae.datasets import LinearGaussian, linear_gaussian
from pyro_vae.diagnostics.criticism import replication
from pyro_vae.diagnostics.criticism.pit import pit, posterior_pit
from pyro_vae.plots.criticism import pit_differences

TRUTH = linear_gaussian(
    5, features=4, latent_dim=2, variance=0.2, seed=3, dtype=torch.float64
).truth


def simulated(num_data, seed=1):
    return TRUTH.simulate(num_data, seed=seed)[0]


def marginal_sd(truth):
    return (truth.weight.square().sum(1) + truth.variance).sqrt()


class Independent:
    """A user's own program whose features are independent: z and x given z, each normal."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)).to_event(1))


class Coins(Independent):
    """Discrete features: x is 1 with probability 0.3 in all."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(x), 0.6).to_event(1))
            pyro.sample("x", dist.Bernoulli(z).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("programs", "draw"),
    [
        (Independent(), lambda *shape: torch.randn(*shape) * math.sqrt(2)),
        (Coins(), lambda *shape: (torch.rand(*shape) < 0.3).double()),
    ],
)
def test_p_values_are_uniform_where_the_model_is_right(programs, draw):
    found = pit(programs, draw(60, 800), num_samples=19)
    p = found["p_value"].to_numpy()
    for level in (0.05, 0.2):
        share = (p <= level).mean()
        assert share < level + MAX_Z * math.sqrt(level * (1 - level) / 800)
        assert share > 0.6 * level  # discrete, so not the whole level
    u = found["pit"].to_numpy()
    assert abs(u.mean() - 0.5) < MAX_Z / math.sqrt(12 * u.size)
    assert abs(np.square(u).mean() - 1 / 3) < MAX_Z * math.sqrt((1 / 5 - 1 / 9) / u.size)
    assert found["p_value_adjusted"].min() > 1e-4


def test_cdf_is_the_closed_form_within_its_error():
    x = simulated(40)
    found = pit(linear_vae(TRUTH), x, num_samples=400)
    expected = torch.special.ndtr((x - TRUTH.mean) / marginal_sd(TRUTH)).numpy()
    z = (found["cdf"].to_numpy() - expected) / found["cdf_mcse"].to_numpy()
    central = (expected > 0.02) & (expected < 0.98)  # beyond them the errors are too skew
    assert central.sum() > 100
    assert abs(z[central]).max() < 1.2 * MAX_Z
    assert abs(z[central].std() - 1) < 0.3
    assert found.attrs["cdf_is_averaged"] == 1
    # Averaging over z alone has a smaller error than counting draws of x.
    assert (found["cdf_mcse"].to_numpy() < np.sqrt(expected * (1 - expected) / 400))[central].all()


def test_posterior_cdf_is_the_closed_form_within_its_error():
    x = simulated(40)
    found = posterior_pit(linear_vae(TRUTH), x, num_samples=400)
    posterior = TRUTH.posterior(x)
    w = TRUTH.weight
    variance = (w @ posterior.covariance_matrix @ w.T).diagonal(dim1=-2, dim2=-1) + TRUTH.variance
    expected = torch.special.ndtr((x - posterior.mean @ w.T - TRUTH.mean) / variance.sqrt())
    z = (found["cdf"].to_numpy() - expected.numpy()) / found["cdf_mcse"].to_numpy()
    assert abs(z).max() < 1.2 * MAX_Z
    assert abs(z.std() - 1) < 0.3
    assert "p_value" not in found


def test_posterior_transform_is_too_central_by_the_amount_of_theory():
    found = posterior_pit(linear_vae(TRUTH), simulated(400), num_samples=19)
    w, c = TRUTH.weight, TRUTH.variance
    gain = w @ TRUTH.posterior(TRUTH.mean[None]).covariance_matrix[0] / c @ w.T
    shift = (torch.eye(4) - gain) @ (w @ w.T + c * torch.eye(4)) @ (torch.eye(4) - gain)
    ratio = shift.diagonal() / (c * (1 + gain.diagonal()))
    a = torch.linspace(-8, 8, 4001)[:, None]
    weight = (-a.square() / 2).exp() / math.sqrt(2 * math.pi) * (a[1] - a[0])
    u = torch.special.ndtr(a * ratio.sqrt())  # of the exact transform
    ranks = 19**2 * (u - 0.5).square() + 19 * u * (1 - u) + 1 / 12
    expected = (weight * ranks).sum(0).numpy() / 20**2
    assert (expected < 0.99 / 12).all()
    assert expected.min() < 0.4 / 12
    variance = found["pit"].var("obs_id").to_numpy()
    assert (abs(variance / expected - 1) < MAX_Z * math.sqrt(2 / 400)).all()


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_wrong_variance_is_rejected_with_the_shape_that_theory_gives(factor):
    """c times ``factor`` in the model, for data whose features are nearly all noise."""
    truth = LinearGaussian(0.1 * torch.eye(3, 2), torch.zeros(3), variance=1.0)
    model = LinearGaussian(truth.weight, truth.mean, variance=factor)
    x = truth.simulate(800, seed=1)[0]
    found = pit(linear_vae(model), x, num_samples=99)
    assert (found["log_gamma"] < found.attrs["critical_log_gamma"]).all()
    assert (found["p_value_adjusted"] < 1e-3).all()
    # P(u <= t) = Phi(Phi^-1(t) sd of the model / sd of the data)
    ratio = marginal_sd(model) / marginal_sd(truth)
    for t in (0.05, 0.25, 0.9):
        expected = torch.special.ndtr(torch.special.ndtri(torch.tensor(t)) * ratio).numpy()
        share = (found["pit"].to_numpy() <= t).mean(0)
        assert (abs(share - expected) < MAX_Z * np.sqrt(expected * (1 - expected) / 800)).all()


def test_wrong_probability_of_a_discrete_feature_is_rejected():
    x = (torch.rand(800, 2) < torch.tensor([0.3, 0.5])).double()
    found = pit(Coins(), x, num_samples=99)
    assert found["p_value"][0] > 1e-3
    assert found["p_value"][1] < 1e-6
    assert found.attrs["cdf_is_averaged"] == 0
    # P(X <= 0) = 0.7 and P(X <= 1) = 1
    zero = x.numpy() == 0
    cdf = found["cdf"].to_numpy()
    assert abs(cdf[zero].mean() - 0.7) < MAX_Z * math.sqrt(0.21 / 99 / zero.sum())
    assert (cdf[~zero] == 1).all()


def test_feature_may_be_a_function_of_the_datum():
    truth = LinearGaussian(torch.zeros(4, 1), torch.zeros(4), variance=1.0)
    x = truth.simulate(300, seed=1)[0]
    squares = {"sum of squares": lambda x: x.square().sum(1)}
    found = pit(linear_vae(truth), x, features=squares, num_samples=400)
    expected = torch.special.gammainc(torch.tensor(2.0), x.square().sum(1) / 2).numpy()  # chi2_4
    error = np.sqrt(expected * (1 - expected) / 400)
    z = (found["cdf"].to_numpy()[:, 0] - expected) / error
    assert abs(z.std() - 1) < MAX_Z / math.sqrt(600)
    assert found["p_value"].item() > 1e-3
    assert found["feature"].values.tolist() == ["sum of squares"]


def test_features_are_chosen_by_number_and_by_name():
    vae, x = linear_vae(TRUTH), simulated(6)
    table = pd.DataFrame(x.numpy(), columns=["a", "b", "c", "d"])
    whole = pit(vae, table, num_samples=5)
    assert whole["feature"].values.tolist() == ["a", "b", "c", "d"]
    some = pit(vae, table, features=["d", 1], num_samples=5)
    assert some["feature"].values.tolist() == ["d", "b"]
    for name in ("cdf", "cdf_mcse"):
        np.testing.assert_array_equal(some[name], whole[name].sel(feature=["d", "b"]))
    assert pit(vae, x, features=[2], num_samples=5)["feature"].values.tolist() == [2]


def test_adjusted_p_values_are_those_of_holm():
    x = torch.stack([torch.zeros(20), torch.randn(20) * 0.7, torch.randn(20) * 1.4], 1)
    found = pit(Independent(), x, num_samples=19)
    p = np.sort(found["p_value"].to_numpy())
    expected = np.minimum(1, np.maximum.accumulate(p * [3, 2, 1]))
    np.testing.assert_allclose(np.sort(found["p_value_adjusted"]), expected)
    assert p[0] < 0.01


def test_pieces_cover_all_rows_and_the_random_state_is_left_alone(monkeypatch):
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(8, 6)
    state = torch.get_rng_state()
    monkeypatch.setattr(replication, "ROWS_AT_A_TIME", 3)
    far = torch.where(torch.arange(8)[:, None] % 2 == 0, -1e3, 1e3).expand(8, 6)
    for transform in (pit, posterior_pit):
        found = transform(vae, far, num_samples=4)
        assert (found["rank"].to_numpy() == [[0], [4]] * 4).all()
        same = transform(vae, x, num_samples=4), transform(vae, x, num_samples=4)
        assert same[0].identical(same[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training


def test_every_tensor_follows_the_data():
    vae, x = small_vae(family=families.FullCovarianceNormal).float(), torch.randn(5, 6).float()
    with torch.device("meta"):
        assert (pit(vae, x, num_samples=3)["p_value"] > 0).all()
        assert posterior_pit(vae, x, num_samples=3)["pit"].shape == (5, 6)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([4], "features must be numbers from 0 to 3; got 4."),
        (["a"], "features must be numbers from 0 to 3; got 'a'."),
        ([], "features must have at least one entry; got none."),
        ({}, "features must name at least one function; got none."),
        ({"all": lambda x: x}, r"features\['all'\] must return one number a row, shape \(6,\)"),
    ],
)
def test_feature_that_is_not_there_raises(features, message):
    with pytest.raises(ValueError, match=message):
        pit(linear_vae(TRUTH), simulated(6), features=features)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (3, "features must be a list of numbers or names .*; got 3. For one feature, a list"),
        ("ab", "features must be a list .*; got 'ab'"),
        (torch.mean, "features must be a list .* or a mapping from names to functions; got <"),
        ({"a": 3}, r"features\['a'\] must be a function; got 3."),
    ],
)
def test_features_that_are_no_list_or_functions_raise(features, message):
    for transform in (pit, posterior_pit):
        with pytest.raises(TypeError, match=message):
            transform(linear_vae(TRUTH), simulated(6), features=features)


def test_autoencoder_has_no_distribution_to_transform_by():
    ae = baselines.autoencoder(features=4, latent_dim=2)
    for transform in (pit, posterior_pit):
        with pytest.raises(TypeError, match="latent site.*Autoencoder.*encodes to a point"):
            transform(ae, simulated(6))


def test_picture_leaves_the_band_exactly_where_the_test_rejects():
    x = torch.randn(60, 12) * torch.linspace(1.0, 2.5, 12)
    found = pit(Independent(), x, num_samples=19)
    axes = pit_differences(found)
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 21]
    order = np.argsort(found["log_gamma"].to_numpy(), kind="stable")
    order = [*order[9:], *order[:9]]  # those in gray are drawn first
    grid = found["u"].to_numpy()
    for line, place in zip(lines, order, strict=True):
        share = line.get_ydata()[1:-1] + grid
        expected = (found["pit"].to_numpy()[:, place, None] < grid).mean(0)
        np.testing.assert_allclose(share, expected, atol=1e-12)
        inside = (share > found["ecdf_lower"] - 1e-9) & (share < found["ecdf_upper"] + 1e-9)
        rejected = found["log_gamma"].values[place] < found.attrs["critical_log_gamma"]
        assert bool(inside.all()) == (not rejected)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[0] == "95% simultaneous band of one feature"
    assert legend[-1] == "3 more"
    axes.get_figure().canvas.draw()
    assert "not uniform" in pit_differences(posterior_pit(Independent(), x)).get_title()


def test_scalar_data_are_one_feature():
    from test_traces_runs import TwoLevel

    found = pit(TwoLevel(), torch.randn(40), num_samples=19)
    assert found["pit"].shape == (40, 1)
