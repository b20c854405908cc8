import math

import numpy as np
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from test_diagnostics_elbo import BestDiagonal
from test_traces_runs import TwoLevel

import pyro_vae as pv
from pyro_vae import datasets, families, guides, likelihoods, networks, priors
from pyro_vae.baselines import LinearAutoencoder
from pyro_vae.comparison import compare


@pytest.fixture
def linear():
    data = datasets.linear_gaussian(200, features=6, latent_dim=3, variance=0.2, seed=1)
    return data, {
        "exact": linear_vae(data.truth),
        "diagonal": linear_vae(data.truth, guide=BestDiagonal(data.truth)),
    }


def test_differences_are_paired_and_have_the_closed_form(linear):
    data, models = linear
    table = compare(models, data.x, num_samples=400, gap_rows=0)
    gap = float(data.truth.best_diagonal_gap())
    row = table.loc["diagonal"]
    assert abs(row["elbo_difference"] + gap) < MAX_Z * row["elbo_difference_se"]
    # The gap is the same for all x, so that the Monte Carlo error is all there is: pairing has
    # taken out the spread of log p(x), which is most of the error of either value.
    assert row["elbo_difference_se"] < 0.2 * row["elbo_se"]
    assert abs(row["elbo_difference_se"] / row["elbo_mcse"] - 1) < MAX_Z / math.sqrt(400) + 0.05
    assert table.loc["exact", ["elbo_difference", "elbo_difference_se"]].tolist() == [0, 0]
    assert abs(table.loc["exact", "elbo"] - float(data.log_evidence.mean())) < 1e-9
    assert table.loc["exact", "inference_gap"] < 1e-9
    assert table["khat_share_above"].tolist()[0] == 0


def test_reference_can_be_chosen(linear):
    data, models = linear
    first = compare(models, data.x, num_samples=50, gap_rows=0)
    other = compare(models, data.x, num_samples=50, gap_rows=0, reference="diagonal")
    np.testing.assert_allclose(
        other.loc["exact", "elbo_difference"], -first.loc["diagonal", "elbo_difference"]
    )
    with pytest.raises(ValueError, match="reference must be one of the models.*got 'best'"):
        compare(models, data.x, reference="best")


def test_gaps_are_divided_over_the_first_rows():
    x = datasets.linear_gaussian(60, features=6, latent_dim=3, variance=0.2, seed=1).x
    vae = small_vae(family=families.DiagonalNormal, variance=0.5)
    table = compare({"a": vae}, x, num_samples=200, gap_rows=20)
    gaps = pv.diagnostics.inference_gaps(vae, x[:20])
    assert table.loc["a", "amortization_gap"] == float(gaps["amortization_gap"].mean())
    parts = table.loc["a", ["approximation_gap", "amortization_gap"]].sum()
    assert abs(table.loc["a", "inference_gap_of_rows"] - parts) < 1e-12
    spread = float(gaps["approximation_gap"].std(ddof=1)) / math.sqrt(20)
    assert abs(table.loc["a", "approximation_gap_se"] - spread) < 1e-12


def test_parameters_units_and_seconds_are_counted():
    x = torch.randn(30, 6)
    vae = small_vae(family=families.DiagonalNormal)
    fit = pv.fit(vae, x, epochs=1, progress=False)
    table = compare({"fit": fit, "vae": vae}, x, num_samples=50, gap_rows=0)
    assert table["parameters"].tolist() == [sum(p.numel() for p in vae.parameters())] * 2
    assert table["seconds"].tolist()[0] == fit.seconds
    assert math.isnan(table["seconds"].tolist()[1])
    active = pv.diagnostics.active_units(vae, x)["active"]
    assert table["active_units"].tolist() == [int(active.sum())] * 2


def test_two_levels_of_a_user_s_own_have_no_common_list_of_units():
    table = compare({"own": TwoLevel()}, torch.randn(20), num_samples=50, gap_rows=0)
    assert math.isnan(table.loc["own", "active_units"])
    assert table.attrs["measure"] == "density"


def test_per_datum_guide_is_compared_with_an_amortized_one():
    x = torch.randn(12, 6)
    vae = small_vae(family=families.DiagonalNormal, variance=0.5)
    own = guides.PerDatumGuide.from_amortized(vae.q_z_given_x, x)
    table = compare({"amortized": vae, "own": vae.with_guide(own)}, x, num_samples=50, gap_rows=5)
    assert abs(table.loc["own", "elbo_difference"]) < 1e-9
    assert table.loc["own", "amortization_gap"] == pytest.approx(
        table.loc["amortized", "amortization_gap"], abs=1e-6
    )


def image_model(likelihood):
    return pv.make_vae(features=6, latent_dim=2, hidden=(8,), likelihood=likelihood)


def test_same_data_read_twice_are_accepted_and_others_refused():
    data = datasets.Dataset("a", torch.rand(20, 6))
    vae = small_vae(family=families.DiagonalNormal)
    models = {"a": vae, "b": small_vae(family=families.FullCovarianceNormal).float()}
    again = datasets.Dataset("again", data.x.clone())
    table = compare(models, {"a": data, "b": again}, num_samples=20, gap_rows=0)
    assert table.attrs["num_data"] == 20
    other = datasets.Dataset("other", data.x.flip(0))
    with pytest.raises(ValueError, match="same data; got .* for 'a' and .* for 'b'"):
        compare(models, {"a": data, "b": other})
    scaled = datasets.Dataset("a", data.x, scaling=datasets.Scaling.divide(255.0))
    with pytest.raises(ValueError, match="same units; got 'a' with x = raw and 'b' with x = raw"):
        compare(models, {"a": data, "b": scaled})
    with pytest.raises(ValueError, match="for each of the models"):
        compare(models, {"a": data})


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            {"a": likelihoods.Gaussian, "b": likelihoods.Bernoulli},
            "'a': density, 'b': probability",
        ),
        (
            {"a": likelihoods.Poisson, "b": likelihoods.Gaussian},
            "'a': probability, 'b': density",
        ),
    ],
)
def test_density_and_probability_are_not_compared(models, message):
    x = (torch.rand(20, 6) > 0.5).double()
    with pytest.raises(ValueError, match=message):
        compare({name: image_model(kind) for name, kind in models.items()}, x)


def test_gray_values_under_a_bernoulli_are_compared_with_their_like_alone():
    x = torch.rand(20, 6)
    models = {"a": image_model(likelihoods.Bernoulli), "b": image_model(likelihoods.Bernoulli)}
    table = compare(models, x, num_samples=20, gap_rows=0)
    assert table.attrs["measure"] == "no density"
    models["b"] = image_model(likelihoods.ContinuousBernoulli)
    with pytest.raises(ValueError, match="'a': no density, 'b': density"):
        compare(models, x)


def test_models_that_differ_in_the_guide_alone_are_named():
    vae = small_vae(family=families.DiagonalNormal)
    full = vae.with_guide(vae.q_z_given_x.with_family(families.FullCovarianceNormal(3)))
    models = {"a": vae, "full": full, "other": small_vae(family=families.DiagonalNormal)}
    table = compare(models, torch.randn(20, 6), num_samples=30, gap_rows=0)
    assert table.attrs["same_model"] == ["a", "full"]


def test_models_must_be_a_mapping():
    vae = small_vae(family=families.DiagonalNormal)
    with pytest.raises(TypeError, match="models must map names to models; got list"):
        compare([vae, vae], torch.randn(9, 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare({"ae": LinearAutoencoder(6, 2)}, torch.randn(9, 6)), "latent site"),
        (lambda: compare({}, torch.randn(9, 6)), "at least one model"),
        (
            lambda: compare(
                {"a": small_vae(family=families.DiagonalNormal)}, torch.randn(9, 6), gap_rows=-1
            ),
            "gap_rows must be 0 or a positive integer; got -1",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_convolutions_and_an_mlp_are_compared_on_the_same_pixels():
    x = torch.rand(20, 1, 4, 4)
    shape = (1, 4, 4)
    encoder = networks.ConvEncoder(shape, 4, channels=(2,))
    decoder = networks.ConvDecoder(2, shape, channels=(2,))
    conv = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(decoder, event_shape=shape),
        guide=guides.AmortizedGuide(families.DiagonalNormal(2), encoder),
    )
    mlp = pv.gaussian_vae(features=16, latent_dim=2, hidden=(8,))
    data = {"conv": x, "mlp": x.flatten(1)}
    table = compare({"conv": conv, "mlp": mlp}, data, num_samples=20, gap_rows=0)
    assert table.index.tolist() == ["conv", "mlp"]
