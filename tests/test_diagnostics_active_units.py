import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import ExactPosterior, linear_vae, small_vae
from torch import nn

import pyro_vae as pv
from pyro_vae import datasets, families, guides, likelihoods, priors
from pyro_vae.datasets import LinearGaussian
from pyro_vae.diagnostics.aggregate.active_units import active_units
from pyro_vae.diagnostics.aggregate.collapse import collapse_report
from pyro_vae.diagnostics.aggregate.linear_theory import linear_theory
from pyro_vae.plots import aggregate as pictures


@pytest.fixture(scope="module")
def digits():
    x = datasets.digits().x.double()
    return x.reshape(len(x), -1)


def best_linear(x, latent_dim, variance, *, rotation=None):
    """The linear model of largest likelihood with this variance."""
    centered = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centered.mT @ centered / len(x))
    values, vectors = values.flip(0)[:latent_dim], vectors.flip(1)[:, :latent_dim]
    weight = vectors * (values - variance).clamp(min=0).sqrt()
    weight = weight if rotation is None else weight @ rotation
    return LinearGaussian(weight, x.mean(0), variance)


def rotation_of(k):
    return torch.linalg.qr(torch.randn(k, k)).Q


@pytest.mark.parametrize("k", [2, 5, 10])
def test_maximum_likelihood_vae_has_the_variances_and_rate_of_the_theory(digits, k):
    truth = LinearGaussian.maximum_likelihood(digits, k)
    vae = linear_vae(truth)
    theory = linear_theory(digits, k, variance=truth.variance)
    units = active_units(vae, digits)
    expected = 1 - truth.variance / theory.eigenvalues[:k]
    np.testing.assert_allclose(units["variance"], expected, atol=1e-10)
    assert units["active"].all()
    assert units.attrs["num_active"] == k
    report = collapse_report(vae, digits)
    rate = {2: None, 5: 6.481393, 10: 12.796141}[k]
    np.testing.assert_allclose(report["kl"], report["linear_kl"], atol=1e-10)
    if rate is not None:
        assert abs(float(report["kl"].sum()) - rate) < 1e-5
    assert (report["kl_mcse"] == 0).all()
    assert abs(float(report["elbo"] - report["linear_elbo"])) < 1e-9
    assert abs(float(report["elbo"]) - truth.log_prob(digits).mean().item()) < 1e-9
    assert report.attrs["verdict"] == "as expected"


@pytest.mark.parametrize(
    ("big_c", "active", "loss", "kl"),
    [
        (0.5, 0, 2.346638, 0.0),
        (5, 12, 16.532234, 5.479385),
        (10, 18, 25.510622, 10.647300),
        (50, 20, 61.440819, 26.637585),
    ],
)
def test_theory_of_digits_is_that_of_reverse_water_filling(digits, big_c, active, loss, kl):
    c = 1 / (2 * big_c)
    theory = linear_theory(digits, 20, variance=c)
    assert theory.num_active() == theory.num_active(0.01) == active
    assert abs(-theory.elbo - 32 * math.log(2 * math.pi * c) - loss) < 1e-5
    assert abs(theory.kl.sum().item() - kl) < 1e-5


@pytest.mark.parametrize("big_c", [0.5, 5])
def test_right_collapse_is_called_what_theory_says(digits, big_c):
    c = 1 / (2 * big_c)
    report = collapse_report(linear_vae(best_linear(digits, 20, c)), digits)
    expected = {0.5: 0, 5: 12}[big_c]
    assert report.attrs["num_active"] == report.attrs["num_expected"] == expected
    assert report.attrs["verdict"] == "as expected"
    assert f"{expected} of 20" in report.attrs["advice"]
    assert "as theory says for a linear VAE" in report.attrs["advice"]
    assert abs(float(report["elbo"] - report["linear_elbo"])) < 1e-9


def test_directions_do_not_depend_on_a_rotation_of_the_units(digits):
    rotated = linear_vae(best_linear(digits, 20, 0.1, rotation=rotation_of(20)))
    report = collapse_report(rotated, digits)
    assert report.attrs["num_active"] == 20  # every unit is a mixture
    assert report.attrs["num_active_directions"] == 12
    np.testing.assert_allclose(report["direction_variance"], report["linear_variance"], atol=1e-10)
    assert report.attrs["verdict"] == "as expected"
    assert "in 20 units" in report.attrs["advice"]


def test_directions_are_measured_in_units_of_the_prior(digits):
    truth = best_linear(digits, 4, 0.1)
    root = torch.tril(torch.randn(4, 4), -1) + torch.diag(torch.tensor([2.0, 0.5, 3.0, 1.0]))
    vae = linear_vae(truth)

    class Moved(ExactPosterior):
        def forward(self, x):
            q = super().forward(x)
            return dist.MultivariateNormal(q.loc @ root.mT, scale_tril=root @ q.scale_tril)

    class Wide(nn.Module):
        event_shape = torch.Size([4])

        def forward(self):
            return dist.MultivariateNormal(torch.zeros(4), scale_tril=root)

    decoder = nn.Linear(4, 64)
    with torch.no_grad():
        decoder.weight.copy_(truth.weight @ torch.linalg.inv(root))
        decoder.bias.copy_(truth.mean)
    moved = pv.VAE(
        prior=Wide(),
        likelihood=likelihoods.Gaussian(decoder, event_shape=(64,), variance=0.1),
        guide=Moved(truth),
    )
    one, two = collapse_report(vae, digits), collapse_report(moved, digits)
    np.testing.assert_allclose(two["direction_variance"], one["direction_variance"], atol=1e-9)
    np.testing.assert_allclose(two["elbo"], one["elbo"], atol=1e-9)


def test_collapsed_vae_is_told_apart_from_a_right_collapse(digits):
    # The model of 3 directions in a VAE that could have had 12.
    best = best_linear(digits, 20, 0.1)
    weight = best.weight.clone()
    weight[:, 3:] = 0
    report = collapse_report(linear_vae(LinearGaussian(weight, best.mean, 0.1)), digits)
    assert report.attrs["verdict"] == "collapse"
    assert report.attrs["num_active"] == 3
    assert report.attrs["num_expected"] == 12
    assert float(report["elbo"]) < float(report["linear_elbo"])
    assert "posterior collapse" in report.attrs["advice"]
    assert "kl_warmup" in report.attrs["advice"]


def test_nonlinear_decoder_that_needs_fewer_directions_has_not_collapsed():
    # x lies near a parabola: one latent unit says all, a line does not.
    t = torch.randn(2000, 1)
    c = 0.01
    x = torch.cat([t, t.square()], 1) + math.sqrt(c) * torch.randn(2000, 2)

    class Parabola(nn.Module):
        def forward(self, z):
            return torch.cat([z[..., :1], z[..., :1].square()], -1)

    class Guide(nn.Module):
        event_shape = torch.Size([2])

        def forward(self, x):
            curvature = 1 + (1 + 4 * x[:, :1].square()) / c
            scale = torch.cat([curvature.rsqrt(), torch.ones_like(curvature)], 1)
            return dist.Normal(torch.cat([x[:, :1], torch.zeros(len(x), 1)], 1), scale).to_event(1)

    likelihood = likelihoods.Gaussian(Parabola(), event_shape=(2,), variance=c)
    # The guide's mean should use x_2 too, so that the ELBO is above the linear one.
    vae = pv.VAE(prior=priors.StandardNormal(2), likelihood=likelihood, guide=Guide())
    report = collapse_report(vae, x)
    assert report.attrs["num_active_directions"] == 1
    assert report.attrs["num_expected"] == 2
    is_lower = float(report["elbo"]) < float(report["linear_elbo"])
    assert report.attrs["verdict"] == ("collapse" if is_lower else "fewer needed")
    assert not is_lower


def test_more_directions_than_the_theory_are_told(digits):
    truth = best_linear(digits, 5, 0.01)
    likelihood = likelihoods.Gaussian(nn.Linear(5, 64), event_shape=(64,), variance=1.0)
    vae = pv.VAE(
        prior=priors.StandardNormal(5), likelihood=likelihood, guide=ExactPosterior(truth)
    )
    report = collapse_report(vae, digits)
    assert report.attrs["verdict"] == "more"
    assert "cost more than they bring" in report.attrs["advice"]


@pytest.mark.parametrize(
    ("likelihood", "reason"),
    [
        (likelihoods.Bernoulli, "Bernoulli, not Gaussian"),
        (partial(likelihoods.Gaussian, variance=torch.ones(6)), "several variances"),
    ],
)
def test_without_one_variance_there_is_no_theory(likelihood, reason):
    family = families.DiagonalNormal(3)
    guide = guides.AmortizedGuide(family, nn.Linear(6, family.num_params))
    vae = pv.VAE(
        prior=priors.StandardNormal(3),
        likelihood=likelihood(nn.Linear(3, 6), event_shape=(6,)),
        guide=guide,
    )
    report = collapse_report(vae, torch.randint(0, 2, (30, 6)).double())
    assert report.attrs["verdict"] == "no theory"
    assert reason in report.attrs["advice"]
    assert report.attrs["num_expected"] == -1
    assert "eigenvalue" not in report
    assert {"kl", "variance", "active"} <= set(report.data_vars)


def test_prior_that_is_not_normal_has_no_theory():
    vae = small_vae(family=families.DiagonalNormal).with_prior(priors.Laplace(3))
    report = collapse_report(vae, torch.randn(30, 6))
    assert report.attrs["verdict"] == "no theory"
    assert "prior is not normal" in report.attrs["advice"]
    terms = pv.diagnostics.elbo_terms(vae, torch.randn(1, 6))  # its KL is analytic
    assert terms.attrs["kl_is_analytic"] == 1
    assert (report["kl_mcse"] == 0).all()


def test_own_programs_say_their_variance():
    class Programs:
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5).to_event(1))

    x = torch.randn(50, 2)
    assert "pass variance=c" in collapse_report(Programs(), x).attrs["advice"]
    report = collapse_report(Programs(), x, variance=0.25)
    assert report.attrs["variance_c"] == 0.25
    assert report.attrs["num_expected"] == 2
    expected = 0.64 * x.var(0, correction=0)
    np.testing.assert_allclose(active_units(Programs(), x)["variance"], expected, atol=1e-12)


def test_kl_of_units_without_a_closed_form_is_estimated():
    vae = small_vae(family=families.DiagonalNormal).with_prior(priors.StudentT(3, df=3.0))
    x = torch.randn(30, 6)
    report = collapse_report(vae, x, num_samples=400)
    q = vae.encode(x).base_dist
    z = torch.linspace(-15, 15, 6001)[:, None, None]
    log_q, log_p = q.log_prob(z), dist.StudentT(3.0).log_prob(z)
    kl = torch.trapezoid(log_q.exp() * (log_q - log_p), z, dim=0).mean(0)
    z_scores = (report["kl"] - kl.detach().numpy()) / report["kl_mcse"]
    assert abs(z_scores).max() < MAX_Z


def test_noise_of_estimated_means_does_not_count_as_variance():
    vae = small_vae(family=families.Flow)
    vae.q_z_given_x.encoder.requires_grad_(False)  # noqa: FBT003
    x = torch.randn(400, 6)
    family = vae.q_z_given_x.family
    # A new flow is the diagonal normal, whose means are known.
    mean = vae.q_z_given_x.encoder(x)[:, :3]
    exact = mean.var(0, correction=0).numpy()
    runs = [active_units(vae, x, num_samples=3, seed=seed) for seed in range(40)]
    values = np.stack([run["variance"].to_numpy() for run in runs])
    error = values.std(0, ddof=1) / math.sqrt(40)
    assert runs[0].attrs["mean_is_analytic"] == 0
    assert abs((values.mean(0) - exact) / error).max() < MAX_Z
    # Without the correction it would be larger by the draws' variance over 3.
    assert (np.log(2) ** 2 / 3 > 5 * error).all()
    assert family.num_params == 22


def test_analytic_means_have_no_noise(digits):
    report = collapse_report(linear_vae(best_linear(digits, 4, 0.1)), digits)
    assert report.attrs["direction_noise"] == 0.0


def test_standard_error_of_the_variance_is_that_of_new_data():
    truth = LinearGaussian(torch.tensor([[2.0], [0.0]]), torch.zeros(2), 1.0)
    vae = linear_vae(truth)
    values, errors = [], []
    for seed in range(150):
        x, _ = truth.simulate(200, seed=seed)
        units = active_units(vae, x)
        values.append(float(units["variance"][0]))
        errors.append(float(units["variance_se"][0]))
    expected = 4 / 5  # Var of m is 1 - c / lambda
    bias = expected / 200  # divisor N
    error = np.std(values, ddof=1)
    assert abs(np.mean(values) + bias - expected) < MAX_Z * error / math.sqrt(150)
    assert abs(np.mean(errors) / error - 1) < 0.25


def test_threshold_splits_active_from_inactive():
    truth = LinearGaussian(torch.tensor([[2.0, 0.0], [0.0, 0.1]]), torch.zeros(2), 1.0)
    x, _ = truth.simulate(2000, seed=0)
    vae = linear_vae(truth)
    variance = active_units(vae, x)["variance"].to_numpy()
    assert active_units(vae, x, threshold=1e-9)["active"].all()
    flags = active_units(vae, x, threshold=float(variance.mean()))["active"]
    assert flags.values.tolist() == [True, False]


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, "a"])
def test_threshold_must_be_positive(threshold):
    vae, x = small_vae(family=families.DiagonalNormal), torch.zeros(3, 6)
    for diagnostic in (active_units, collapse_report):
        with pytest.raises(ValueError, match="threshold must be positive"):
            diagnostic(vae, x, threshold=threshold)


def test_theory_has_all_eigenvalues_of_few_data_in_many_dimensions():
    x = torch.randn(5, 40)
    theory = linear_theory(x, 3, variance=0.5)
    expected = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)
    assert theory.eigenvalues.shape == (40,)
    np.testing.assert_allclose(theory.eigenvalues, expected, atol=1e-10)


def test_default_device_and_random_state_are_left_alone():
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(9, 6)
    state = torch.get_rng_state()
    with torch.device("meta"):
        report, units = collapse_report(vae, x), active_units(vae, x)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(report["variance"], units["variance"])
    assert float(report["elbo"]) == float(collapse_report(vae, x)["elbo"])


def test_float32_gives_the_same_report(digits):
    vae = linear_vae(best_linear(digits, 5, 0.1))
    double = collapse_report(vae, digits)
    single = collapse_report(vae.to(torch.float32), digits.float())
    np.testing.assert_allclose(single["variance"], double["variance"], rtol=1e-4)
    np.testing.assert_allclose(single["kl"], double["kl"], rtol=1e-4)


def test_pictures_show_the_units_in_descending_order(digits):
    report = collapse_report(linear_vae(best_linear(digits, 6, 0.3)), digits)
    for picture in (pictures.unit_kl, pictures.unit_variances, pictures.eigenvalues):
        picture(report).figure.canvas.draw()
    axes = pictures.unit_kl(report)
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, np.sort(report["kl"])[::-1])
    assert f"active ({report.attrs['num_active']})" in [
        text.get_text() for text in axes.get_legend().get_texts()
    ]
    flow = collapse_report(small_vae(family=families.Flow), torch.randn(9, 6), num_samples=4)
    with pytest.raises(ValueError, match="report must hold the KL of single units"):
        pictures.unit_kl(flow)
    with pytest.raises(ValueError, match="report must hold the linear theory"):
        pictures.eigenvalues(report.drop_vars("eigenvalue"))
