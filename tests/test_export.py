import hashlib
import json
import math
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from conftest import MAX_Z
from helpers import linear_decoder, linear_vae, small_vae
from test_own_programs import ExactTwoLayers, simulated
from test_own_programs_mixture import Exact

import pyro_vae as pv
from pyro_vae import baselines, families, guides, likelihoods, networks, priors
from pyro_vae.datasets import Dataset, linear_gaussian
from pyro_vae.export import draws, groups, to_arviz

DIAGONAL, FULL = families.DiagonalNormal, families.FullCovarianceNormal
STATISTICS = ("lp", "log_q", "log_weight")


def linear(num_data=9, **options):
    return linear_gaussian(num_data, features=6, latent_dim=3, seed=1, **options)


def torch_of(variable):
    """Values over (draw, obs_id, ...) of the one chain."""
    return torch.from_numpy(variable.to_numpy()[0].copy())


def z_scores(sample, mean, variance):
    """Of the average over draws."""
    return (sample.mean(0) - mean) / (variance / len(sample)).sqrt()


def variance_z_scores(sample, variance):
    """Of the variance over draws of a normal variable."""
    return (sample.var(0) / variance - 1) / math.sqrt(2 / (len(sample) - 1))


@pytest.fixture(scope="module")
def exported():
    """A float32 VAE, fitted, with all groups there are."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    vae = pv.gaussian_vae(features=4, latent_dim=2, hidden=(8,))
    x = pd.DataFrame(torch.randn(12, 4).numpy(), columns=["a", "b", "c", "d"])
    fit = pv.fit(vae, x, epochs=3, progress=False)
    data = to_arviz(
        vae, x, fit=fit, labels=list("uvw") * 4, predictions=x[:5] + 1, num_samples=200
    )
    return SimpleNamespace(vae=vae, x=x, fit=fit, data=data)


# Densities


@pytest.mark.parametrize("num_samples", [3, 20])  # draw by draw, and together
@pytest.mark.parametrize("rows_at_a_time", [500, 4])
def test_every_log_weight_is_the_log_evidence_at_the_exact_posterior(
    num_samples, rows_at_a_time, monkeypatch
):
    monkeypatch.setattr(draws, "ROWS_AT_A_TIME", rows_at_a_time)
    monkeypatch.setattr(draws, "CHUNK_SIZE", 31)
    data = linear(variance=0.2)
    stats = to_arviz(linear_vae(data.truth), data.x, num_samples=num_samples)["sample_stats"]
    assert stats["log_weight"].dims == ("chain", "draw", "obs_id")
    assert stats["log_weight"].shape == (1, num_samples, 9)
    expected = np.broadcast_to(data.log_evidence, (1, num_samples, 9))
    np.testing.assert_allclose(stats["log_weight"], expected, rtol=0, atol=1e-10)


def test_densities_are_those_of_the_draws_beside_them():
    vae, x = small_vae(family=FULL, variance=0.3), torch.randn(7, 6)
    data = to_arviz(vae, x, num_samples=50)
    z = torch_of(data["posterior"]["z"])
    with torch.no_grad():
        log_q = vae.encode(x).log_prob(z)
        log_likelihood = dist.Normal(vae.decode(z), 0.3**0.5).log_prob(x).sum(-1)
    log_prior = dist.Normal(z.new_zeros(()), 1.0).log_prob(z).sum(-1)
    stats = data["sample_stats"]
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
    close(torch_of(stats["log_q"]), log_q)
    close(torch_of(stats["lp"]), log_prior + log_likelihood)
    close(torch_of(data["log_likelihood"]["x"]), log_likelihood)
    np.testing.assert_array_equal(stats["log_weight"], stats["lp"] - stats["log_q"])


def test_log_densities_of_a_float32_model_are_added_up_in_double(exported):
    stats = exported.data["sample_stats"]
    assert {stats[name].dtype for name in STATISTICS} == {np.dtype("float64")}
    np.testing.assert_array_equal(stats["log_weight"], stats["lp"] - stats["log_q"])
    assert exported.data["posterior"]["z"].dtype == np.float32
    assert exported.data["posterior_predictive"]["x"].dtype == np.float32


# Draws


def test_posterior_has_the_moments_of_the_guide():
    vae, x = small_vae(family=FULL), torch.randn(5, 6)
    q = vae.encode(x)
    mean, covariance = q.mean.detach(), q.covariance_matrix.detach()
    z = torch_of(to_arviz(vae, x, num_samples=4000, num_predictive=0)["posterior"]["z"])
    assert z.shape == (4000, 5, 3)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert z_scores(z, mean, variance).abs().max() < MAX_Z
    assert variance_z_scores(z, variance).abs().max() < MAX_Z
    first, second = ((z - mean) / variance.sqrt())[..., :2].unbind(-1)
    rho = covariance[:, 0, 1] / (variance[:, 0] * variance[:, 1]).sqrt()
    assert rho.abs().max() > 0.2
    product = first * second  # variance 1 + rho^2
    assert z_scores(product, rho, 1 + rho.square()).abs().max() < MAX_Z


@pytest.mark.parametrize("group", ["posterior", "prior"])
def test_every_x_is_drawn_from_the_z_beside_it(group):
    data = linear(4, variance=0.2)
    exported = to_arviz(linear_vae(data.truth), data.x, num_samples=3300, num_predictive=2900)
    z, x = torch_of(exported[group]["z"])[:2900], torch_of(exported[f"{group}_predictive"]["x"])
    assert x.shape == (2900, 4, 6)
    decoder = linear_decoder(data.truth)
    noise = x - decoder(z).detach()
    variance = torch.full((4, 6), 0.2)
    assert z_scores(noise, torch.zeros(4, 6), variance).abs().max() < MAX_Z
    assert variance_z_scores(noise, variance).abs().max() < MAX_Z
    if group == "prior":
        assert z_scores(z, torch.zeros(4, 3), torch.ones(4, 3)).abs().max() < MAX_Z
        assert variance_z_scores(z, torch.ones(4, 3)).abs().max() < MAX_Z
    else:
        posterior = data.truth.posterior(data.x)
        variance = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).expand(4, 3)
        assert z_scores(z, posterior.mean, variance).abs().max() < MAX_Z


def test_draws_from_the_guide_do_not_depend_on_those_of_x(monkeypatch):
    monkeypatch.setattr(draws, "CHUNK_SIZE", 20)  # 4 draws at a time
    vae, x = small_vae(family=DIAGONAL), torch.randn(5, 6)
    without = to_arviz(vae, x, num_samples=30, num_predictive=0, seed=3)
    state = torch.get_rng_state()
    fewer = to_arviz(vae, x, num_samples=30, num_predictive=7, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    other = to_arviz(vae, x, num_samples=30, num_predictive=7, seed=4)
    assert set(without.groups()) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "observed_data",
    }
    assert without["posterior"].identical(fewer["posterior"])
    assert without["log_likelihood"].identical(fewer["log_likelihood"])
    for group in ("posterior_predictive", "prior", "prior_predictive"):
        assert fewer[group].sizes["draw"] == 7
    for group in ("posterior", "posterior_predictive", "prior"):
        assert not fewer[group].equals(other[group])


def test_model_is_evaluated_in_evaluation_mode_and_left_as_it_was():
    vae, x = small_vae(family=DIAGONAL), torch.randn(5, 6)
    vae.q_z_given_x.encoder.layers.append(torch.nn.Dropout(0.9))
    vae.train()
    z = torch_of(to_arviz(vae, x, num_samples=2000, num_predictive=0)["posterior"]["z"])
    assert vae.training
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    q = vae.eval().encode(x)
    assert z_scores(z, q.mean.detach(), q.variance.detach()).abs().max() < MAX_Z


@pytest.mark.parametrize(
    "likelihood",
    [
        likelihoods.Bernoulli,
        likelihoods.Poisson,
        partial(likelihoods.Categorical, num_classes=3),
    ],
)
def test_discrete_data_are_drawn_in_their_support(likelihood):
    vae = pv.make_vae(
        features=4,
        latent_dim=2,
        hidden=(8,),
        likelihood=likelihood,
        prior=priors.StandardNormal,
        family=DIAGONAL,
    )
    x = vae.sample(6)
    data = to_arviz(vae, x, num_samples=300, num_predictive=300)
    drawn = torch_of(data["posterior_predictive"]["x"])
    with torch.no_grad():
        p = vae.p_x_given_z(torch_of(data["posterior"]["z"]))
    assert p.support.check(drawn).all()
    torch.testing.assert_close(
        torch_of(data["log_likelihood"]["x"]), p.log_prob(x), rtol=0, atol=1e-10
    )
    moment = drawn == 1
    rates = torch.stack([(x == 1).double().mean(), moment.double().mean()])
    assert (rates > 0).all()
    if likelihood is likelihoods.Bernoulli:
        score = (drawn - p.mean).sum(0) / p.variance.sum(0).sqrt()
        assert score.abs().max() < MAX_Z


def test_held_out_data_have_draws_of_their_own(exported):
    predictions = exported.data["predictions"]
    held_out = exported.data["predictions_constant_data"]["x"]
    np.testing.assert_array_equal(held_out, (exported.x[:5] + 1).to_numpy())
    assert dict(predictions.sizes) == {
        "chain": 1,
        "draw": 100,
        "obs_id": 5,
        "latent": 2,
        "feature": 4,
    }
    q = exported.vae.encode(exported.x[:5] + 1)
    scores = z_scores(torch_of(predictions["z"]), q.mean.detach(), q.variance.detach())
    assert scores.abs().max() < MAX_Z


# Dimensions, coordinates, attributes


def test_images_have_channels_rows_and_columns():
    shape, family = (1, 8, 8), DIAGONAL(2)
    vae = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(networks.ConvDecoder(2, shape), event_shape=shape),
        guide=guides.AmortizedGuide(family, networks.ConvEncoder(shape, family.num_params)),
    )
    x = torch.randn(3, *shape)
    data = to_arviz(vae, x, num_samples=10)
    assert data["observed_data"]["x"].dims == ("obs_id", "channel", "row", "col")
    np.testing.assert_array_equal(data["observed_data"]["x"], x)
    drawn = data["posterior_predictive"]["x"]
    assert drawn.dims == ("chain", "draw", "obs_id", "channel", "row", "col")
    assert drawn.shape == (1, 10, 3, 1, 8, 8)
    assert data["log_likelihood"]["x"].shape == (1, 10, 3)
    with pytest.raises(ValueError, match="columns must be None unless x is one vector"):
        to_arviz(vae, x, num_samples=2, columns=["a"])


def test_names_of_features_and_latent_dimensions_are_coordinates(exported):
    assert list(exported.data["posterior_predictive"]["feature"].values) == list("abcd")
    vae, x = small_vae(family=DIAGONAL), torch.randn(5, 6)
    named = to_arviz(vae, x, num_samples=2, columns=list("uvwxyz"), latent_names=["p", "q", "r"])
    assert list(named["observed_data"]["feature"].values) == list("uvwxyz")
    assert list(named["posterior"]["latent"].values) == ["p", "q", "r"]
    assert list(named["prior"]["latent"].values) == ["p", "q", "r"]
    plain = to_arviz(vae, x, num_samples=2)
    assert plain["posterior"]["latent"].values.tolist() == [0, 1, 2]


def test_labels_are_constant_data(exported):
    assert list(exported.data["constant_data"]["labels"].values) == list("uvw") * 4
    data = Dataset("two", torch.randn(4, 6), labels=torch.tensor([0, 1, 1, 0]))
    vae = small_vae(family=DIAGONAL)
    own = to_arviz(vae, data, num_samples=2)
    assert own["constant_data"]["labels"].values.tolist() == [0, 1, 1, 0]
    assert "constant_data" not in to_arviz(vae, data.x, num_samples=2).groups()


def test_fit_group_is_the_history(exported):
    group, history = exported.data["fit"], exported.fit.history
    assert group["epoch"].values.tolist() == [1, 2, 3]
    assert set(group.data_vars) == set(history.columns) - {"epoch"}
    for name in group.data_vars:
        np.testing.assert_array_equal(group[name], history[name])
    assert group.attrs["best_epoch"] == exported.fit.best_epoch
    assert (group.attrs["fit_seed"], group.attrs["interrupted"]) == (0, 0)


def test_attributes_say_where_the_numbers_come_from(exported):
    attrs = exported.data.attrs
    assert attrs["inference_library"] == "pyro-ppl"
    assert attrs["inference_library_version"] == pyro.__version__
    assert attrs["creation_library_version"] == pv.__version__
    assert attrs["seed"] == 0
    assert json.loads(attrs["config"])["p_z"] == "StandardNormal(latent_dim=2)"
    observed = exported.data["observed_data"]["x"].to_numpy()
    assert attrs["data_sha256"] == hashlib.sha256(observed.tobytes()).hexdigest()
    config = {"model": {"latent_dim": 2}, "flag": True, "path": Path("a")}
    given = to_arviz(exported.vae, exported.x, num_samples=2, config=config)
    stored = json.loads(given.attrs["config"])
    assert stored == {"model": {"latent_dim": 2}, "flag": True, "path": "a"}


# Programs of a user's own


def test_two_layers_have_dimensions_of_their_own():
    programs = ExactTwoLayers()
    x = simulated(programs, 7)
    data = to_arviz(programs, x, num_samples=20, latent_names={"z1": ["left", "right"]})
    assert data["posterior"]["z1"].dims == ("chain", "draw", "obs_id", "z1_latent")
    assert data["posterior"]["z2"].dims == ("chain", "draw", "obs_id", "z2_latent")
    assert list(data["prior"]["z1_latent"].values) == ["left", "right"]
    assert data["observed_data"]["x"].dims == ("obs_id", "feature")
    expected = np.broadcast_to(programs.log_evidence(x), (1, 20, 7))
    np.testing.assert_allclose(data["sample_stats"]["log_weight"], expected, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"must be a mapping .*\['z2', 'z1'\]"):
        to_arviz(programs, x, num_samples=2, latent_names=["a"])


def test_discrete_site_of_the_guide_is_in_the_posterior():
    programs = Exact()
    x = programs.decoders.simulate(6)
    data = to_arviz(programs, x, num_samples=2000, num_predictive=10)
    y = torch_of(data["posterior"]["y"])
    assert data["posterior"]["y"].dims == ("chain", "draw", "obs_id")
    assert not y.is_floating_point()
    p = programs.decoders.log_joint(x).softmax(-1).detach()
    shares = torch.nn.functional.one_hot(y, 3).double().mean(0)
    errors = (p * (1 - p) / 2000).sqrt() + 1e-6
    assert ((shares - p) / errors).abs().max() < MAX_Z


class TwoSides:
    """x = +-3 + z / 10 + noise; the side y is summed out."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample(
                "y", dist.Bernoulli(x.new_tensor(0.5)), infer={"enumerate": "parallel"}
            )
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            mean = (6.0 * y - 3.0).unsqueeze(-1) + 0.1 * z
            pyro.sample("x", dist.Normal(mean, 0.2).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))


def test_site_that_is_summed_out_is_drawn_given_x_in_predictions_of_x():
    x = torch.tensor([[3.0], [-3.0]])
    data = to_arviz(TwoSides(), x, num_samples=60)
    drawn = torch_of(data["posterior_predictive"]["x"])
    assert drawn.shape == (60, 2, 1)
    assert torch.equal(drawn.sign(), x.sign().expand(60, 2, 1))
    assert drawn.std(0).min() > 0.1
    assert set(data["posterior"].data_vars) == {"z"}
    sides = torch_of(data["prior"]["y"])
    assert (abs(sides.mean() - 0.5) * math.sqrt(4 * 120)) < MAX_Z
    assert torch.equal(torch_of(data["prior_predictive"]["x"])[..., 0] > 0, sides == 1)
    z = torch_of(data["posterior"]["z"])[..., 0]
    total = torch.distributions.Normal(x.sign()[:, 0] * 3 + 0.1 * z, 0.2).log_prob(x[:, 0])
    log_likelihood = torch_of(data["log_likelihood"]["x"])
    torch.testing.assert_close(log_likelihood, total + math.log(0.5), rtol=0, atol=1e-10)


def test_plate_inside_the_data_is_a_dimension():
    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", 3, dim=-3):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.01), obs=x.mT.unsqueeze(1))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", 3, dim=-3):
            mean = (x.mT.unsqueeze(1) / 2).unsqueeze(-1).expand(3, 1, len(x), 2)
            pyro.sample("z", dist.Normal(mean, 1e-3).to_event(1))

    x = torch.randn(4, 3)
    data = to_arviz(SimpleNamespace(model=model, guide=guide), x, num_samples=9)
    z, drawn = data["posterior"]["z"], data["posterior_predictive"]["x"]
    assert z.dims == ("chain", "draw", "obs_id", "pixels", "latent")
    assert drawn.dims == ("chain", "draw", "obs_id", "pixels")
    np.testing.assert_array_equal(data["observed_data"]["x"], x)
    np.testing.assert_allclose(z.sum("latent"), np.broadcast_to(x, (1, 9, 4, 3)), atol=0.01)
    np.testing.assert_allclose(drawn, np.broadcast_to(x, (1, 9, 4, 3)), atol=0.1)
    assert data["log_likelihood"]["x"].shape == (1, 9, 4)


def named_programs(*names):
    """A latent vector under each name."""

    def sample(x):
        for name in names:
            pyro.sample(name, dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            sample(x)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            sample(x)
            pyro.sample("net.x/y", dist.Normal(x.new_zeros(3), 1.0).to_event(1), obs=x)

    return SimpleNamespace(model=model, guide=guide)


def test_names_that_netcdf_or_arviz_cannot_take_are_changed(tmp_path):
    programs = named_programs("a/b", "a.b", "draw", "net_x_y_latent")
    data = to_arviz(programs, torch.randn(3, 3), num_samples=2)
    variables = ["a_b", "a_b_", "draw_", "net_x_y_latent"]
    assert sorted(data["posterior"].data_vars) == sorted(variables)
    assert list(data["observed_data"].data_vars) == ["net_x_y"]
    assert json.loads(data.attrs["site_names"]) == {
        "a_b": "a/b",
        "a_b_": "a.b",
        "draw_": "draw",
        "net_x_y": "net.x/y",
    }
    data.to_netcdf(tmp_path / "names.nc")
    back = az.from_netcdf(tmp_path / "names.nc")
    assert back["posterior"].identical(data["posterior"])


def test_site_may_be_called_as_a_dimension():
    data = to_arviz(named_programs("latent"), torch.randn(3, 3), num_samples=2)
    assert data["posterior"]["latent"].dims == ("chain", "draw", "obs_id", "latent_")


def test_guide_with_parameters_for_each_datum_is_served(monkeypatch):
    monkeypatch.setattr(draws, "ROWS_AT_A_TIME", 4)
    vae = small_vae(family=DIAGONAL).with_guide(guides.PerDatumGuide(DIAGONAL(3), 9))
    with torch.no_grad():
        for parameter in vae.q_z_given_x.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(9, 6)
    z = torch_of(to_arviz(vae, x, num_samples=500)["posterior"]["z"])
    q = vae.encode(x)
    assert z_scores(z, q.mean.detach(), q.variance.detach()).abs().max() < MAX_Z


# ArviZ


def test_netcdf_file_has_equal_contents(exported, tmp_path):
    exported.data.to_netcdf(tmp_path / "fit.nc")
    back = az.from_netcdf(tmp_path / "fit.nc")
    assert set(back.groups()) == set(exported.data.groups())
    assert len(back.groups()) == 11
    for group in back.groups():
        assert back[group].identical(exported.data[group]), group
    assert back.attrs == exported.data.attrs


def test_summary_has_the_moments_of_the_guide(exported):
    table = az.summary(exported.data, var_names=["z"], kind="stats", round_to="none")
    z = exported.data["posterior"]["z"].to_numpy()[0].reshape(200, -1)
    assert len(table) == 12 * 2
    np.testing.assert_allclose(table["mean"], z.mean(0), atol=1e-6)


@pytest.mark.filterwarnings("ignore::matplotlib.MatplotlibDeprecationWarning")
def test_arviz_draws_its_pictures(exported):
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    some = {"var_names": ["z"], "coords": {"obs_id": [0], "latent": [0, 1]}}
    with mpl.rc_context({"backend": "agg"}):
        assert az.plot_trace(exported.data, compact=False, **some).shape == (2, 2)
        assert np.size(az.plot_posterior(exported.data, **some)) == 2
        coords = {"feature": ["a", "c"]}
        axes = az.plot_ppc(exported.data, coords=coords, flatten=["obs_id"], num_pp_samples=20)
        assert np.size(axes) == 2
        assert np.size(az.plot_ppc(exported.data, group="prior", num_pp_samples=20)) == 1
        plt.close("all")


def test_loo_of_the_conditional_likelihood_is_the_log_evidence_where_it_is_stable():
    # Given the parameters the data are independent: p(x_i | x_-i) = p(x_i) = 1 / E_q[1 / p(x|z)].
    # The noise is so large that a datum says little of its z, and the weights have a variance.
    data = linear(30, variance=100.0)
    exported = to_arviz(linear_vae(data.truth), data.x, num_samples=4000, num_predictive=0)
    loo = az.loo(exported, pointwise=True)
    assert (loo.n_data_points, loo.n_samples) == (30, 4000)
    assert loo.pareto_k.max() < 0.5
    weights = np.exp(-exported["log_likelihood"]["x"].to_numpy()[0])
    errors = weights.std(0) / weights.mean(0) / math.sqrt(4000)
    scores = (loo.loo_i.to_numpy() - data.log_evidence.numpy()) / errors
    assert abs(scores).max() < MAX_Z


def test_newer_arviz_gets_a_data_tree(exported, monkeypatch):
    monkeypatch.setattr(az, "__version__", "1.3.0")
    vae, x = exported.vae, exported.x
    tree = to_arviz(vae, x, fit=exported.fit, labels=list("uvw") * 4, num_samples=200)
    assert isinstance(tree, xr.DataTree)
    assert tree.attrs == exported.data.attrs
    assert set(tree.children) | {"predictions", "predictions_constant_data"} == set(
        exported.data.groups()
    )
    for name, group in tree.children.items():
        assert group.to_dataset().identical(exported.data[name]), name


WITHOUT_TORCH = """
import importlib.util, sys, types
sys.modules["torch"] = sys.modules["pyro"] = None
sys.modules["arviz"] = types.SimpleNamespace(__version__="1.3.0")
spec = importlib.util.spec_from_file_location("groups", sys.argv[1])
module = sys.modules["groups"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import numpy as np
from pyro_vae.arviz_container import container
group = module.Group({"mu": (("chain", "draw"), np.zeros((1, 3)))}, attrs={"flag": True})
made = container({"posterior": group.dataset()}, attrs=module.netcdf_attrs({"seed": 1}))
print(made["posterior"].sizes["draw"], made["posterior"].attrs, made.attrs)
"""


def test_container_needs_neither_torch_nor_pyro():
    command = [sys.executable, "-c", WITHOUT_TORCH, groups.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 {'flag': 1, 'seed': 1} {'seed': 1}\n"


# Limits


def test_one_array_is_kept_for_each_variable_and_no_second_copy():
    vae = small_vae(family=DIAGONAL, features=40).to(torch.float32)
    x = torch.randn(60, 40, dtype=torch.float32)
    to_arviz(vae, x[:2], num_samples=10)  # imports
    tracemalloc.start()  # which sees numpy's arrays
    data = to_arviz(vae, x, num_samples=400, num_predictive=400)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(data[group].nbytes for group in data.groups())
    assert kept > 400 * 60 * (2 * 40 * 4 + 2 * 3 * 4 + 4 * 8)
    assert peak < 1.1 * kept + 1e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_made_on_the_default_device(dtype):
    vae = small_vae(family=FULL).to(dtype)
    x = torch.randn(9, 6, dtype=dtype)
    here = to_arviz(vae, x, num_samples=10, predictions=x)
    with torch.device("meta"):
        there = to_arviz(vae, x, num_samples=10, predictions=x)
    for group in here.groups():
        assert here[group].identical(there[group])


@pytest.mark.parametrize(
    "make",
    [
        lambda: baselines.autoencoder(features=6, latent_dim=2),
        lambda: baselines.PCA(2).fit(torch.randn(20, 6)),
        lambda: "vae",
    ],
)
def test_what_has_no_posterior_is_refused(make):
    with pytest.raises(TypeError, match="vae must have a posterior"):
        to_arviz(make(), torch.randn(5, 6))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be a positive integer; got 0"),
        ({"num_predictive": -1}, ValueError, "num_predictive must be a positive integer"),
        ({"num_predictive": 11}, ValueError, "num_predictive must be at most num_samples, 10"),
        (
            {"num_predictive": 0, "predictions": torch.zeros(2, 6)},
            ValueError,
            "num_predictive must be positive where predictions are given",
        ),
        ({"labels": [1, 2]}, ValueError, r"one for each of the 5 rows of x; got shape \(2,\)"),
        ({"columns": ["a"]}, ValueError, "columns must be 6 distinct names"),
        ({"columns": ["a"] * 6}, ValueError, "columns must be 6 distinct names"),
        ({"columns": "abcdef"}, ValueError, "columns must be 6 distinct names"),
        ({"latent_names": ["a"]}, ValueError, "latent_names must be 3 distinct names"),
        ({"latent_names": {"y": ["a"]}}, ValueError, r"sites among \['z'\]; got y"),
        ({"fit": pd.DataFrame()}, TypeError, "fit must be what pyro_vae.fit returned"),
        ({"predictions": torch.zeros(2, 5)}, ValueError, "predictions must"),
    ],
)
def test_wrong_argument_is_named(options, error, message):
    vae, x = small_vae(family=DIAGONAL), torch.randn(5, 6)
    with pytest.raises(error, match=message):
        to_arviz(vae, x, **{"num_samples": 10, **options})
