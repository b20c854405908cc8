import logging
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import small_vae
from matplotlib.figure import Figure
from torch import nn

import pyro_vae as pv
from pyro_vae import distributions, families, guides, likelihoods, priors
from pyro_vae.diagnostics.aggregate import decomposition as aggregate
from pyro_vae.diagnostics.aggregate.aggregate_margins import aggregate_margins
from pyro_vae.diagnostics.aggregate.decomposition import aggregate_kl
from pyro_vae.diagnostics.aggregate.margins import margins
from pyro_vae.plots import aggregate as pictures

FAMILIES = {
    "isotropic": families.IsotropicNormal,
    "diagonal": families.DiagonalNormal,
    "full": families.FullCovarianceNormal,
    "low rank": lambda k: families.LowRankNormal(k, 1),
    "flow": families.Flow,
}


class Programs:
    """A user's own pair: q(z|x) is what ``encode`` makes of x, and p(z) what ``prior`` says."""

    def __init__(self, encode, prior=None):
        self.encode, self.prior = encode, prior

    def model(self, x):
        k = self.encode(x).event_shape[0]
        prior = dist.Normal(x.new_zeros(k), 1.0).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior if self.prior is None else self.prior(x))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))


def shrunk(x):
    return dist.Normal(0.9 * x, math.sqrt(0.19)).to_event(1)


def z_score(parts, name, expected):
    return abs(float(parts[name]) - expected) / float(parts[f"{name}_mcse"])


def test_mutual_information_of_a_population_is_the_closed_form():
    x = torch.randn(10_000, 5)
    parts = aggregate_kl(Programs(shrunk), x, num_samples=1000)
    expected = -2.5 * math.log(1 - 0.9**2)  # 4.15
    assert abs(float(parts["mutual_information"]) - expected) < 0.25
    assert abs(float(parts["total_correlation"])) < 0.06
    assert abs(float(parts["dimension_kl_sum"])) < 0.02


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_add_up_to_the_kl_of_the_same_draws(kind, dtype):
    vae = small_vae(family=FAMILIES[kind]).to(dtype)
    parts = aggregate_kl(vae, torch.randn(40, 6, dtype=dtype), num_samples=100)
    kl, information = parts["kl"], parts["mutual_information"]
    assert abs(float(information + parts["marginal_kl"] - kl)) < 1e-12
    assert parts.attrs["margins_known"] == (kind != "flow") == ("dimension_kl" in parts)
    if kind != "flow":
        total = parts["total_correlation"] + parts["dimension_kl"].sum()
        assert abs(float(information + total - kl)) < 1e-12
        assert parts["dimension_kl"].dims == ("latent",)


def test_kl_is_the_mean_of_the_analytic_one():
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(50, 6)
    parts = aggregate_kl(vae, x, num_samples=4000)
    terms = pv.diagnostics.elbo_terms(vae, x)
    assert z_score(parts, "kl", float(terms["kl"].mean())) < MAX_Z


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_all_parts_are_zero_at_total_collapse(family):
    made = family(3)
    encoder = nn.Linear(6, made.num_params)
    nn.init.zeros_(encoder.weight)
    nn.init.zeros_(encoder.bias)
    guide = guides.AmortizedGuide(made, encoder)
    with torch.no_grad():  # the family's parameters of N(0, I)
        encoder.bias.copy_(priors.starts.unit_scale(made, torch.zeros(3)))
    likelihood = likelihoods.Gaussian(nn.Linear(3, 6), event_shape=(6,))
    vae = pv.VAE(prior=priors.StandardNormal(3), likelihood=likelihood, guide=guide)
    parts = aggregate_kl(vae, torch.randn(200, 6), num_samples=100)
    for name in parts.data_vars:
        np.testing.assert_allclose(parts[name], 0.0, atol=1e-11)


def test_kl_of_the_aggregate_agrees_with_a_grid_in_one_dimension():
    x = torch.tensor([[-1.5], [-1.2], [0.3], [2.0], [2.1]])
    scale = torch.tensor([[0.2], [0.5], [0.1], [0.3], [0.7]])

    def encode(x):
        return dist.Normal(0.8 * x, scale).to_event(1)

    parts = aggregate_kl(Programs(encode), x, num_samples=20_000)
    z = torch.linspace(-9, 9, 20_001)
    of_each = dist.Normal(0.8 * x, scale).log_prob(z)
    aggregate_density = of_each.logsumexp(0) - math.log(5)
    prior = dist.Normal(0.0, 1.0).log_prob(z)
    kl = torch.trapezoid(of_each.exp() * (of_each - prior), z, dim=1).mean()
    marginal = torch.trapezoid(aggregate_density.exp() * (aggregate_density - prior), z)
    assert 0.3 < marginal < kl - 0.5
    assert z_score(parts, "marginal_kl", marginal.item()) < MAX_Z
    assert z_score(parts, "mutual_information", (kl - marginal).item()) < MAX_Z
    assert z_score(parts, "dimension_kl_sum", marginal.item()) < MAX_Z
    assert abs(float(parts["total_correlation"])) < 1e-12  # one dimension has none


def test_mutual_information_is_log_n_where_posteriors_do_not_overlap():
    def encode(x):
        return dist.Normal(1000 * x, 0.01).to_event(1)

    parts = aggregate_kl(Programs(encode), torch.arange(8.0).unsqueeze(1), num_samples=20)
    assert abs(float(parts["mutual_information"]) - math.log(8)) < 1e-12
    assert abs(parts.attrs["log_num_data"] - math.log(8)) < 1e-12


def test_information_near_log_n_is_told(caplog):
    x = torch.randn(60, 5)
    with caplog.at_level(logging.WARNING):
        aggregate_kl(Programs(lambda x: dist.Normal(x, 0.01).to_event(1)), x, num_samples=60)
    assert "cannot exceed log N = 4.09" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        aggregate_kl(Programs(lambda x: dist.Normal(0.1 * x, 1.0).to_event(1)), x, num_samples=60)
    assert not caplog.text


def test_total_correlation_of_a_correlated_aggregate_is_the_closed_form():
    # One datum: the aggregate is q(z|x) itself, so nothing is learned of n.
    covariance = torch.tensor([[1.0, 0.8], [0.8, 2.0]])

    def encode(x):
        loc = x.new_zeros(len(x), 2)
        return dist.MultivariateNormal(loc, covariance)

    parts = aggregate_kl(Programs(encode), torch.zeros(1, 1), num_samples=20_000)
    expected = 0.5 * (math.log(2.0) - math.log(2.0 - 0.64))
    assert abs(float(parts["mutual_information"])) < 1e-12
    assert z_score(parts, "total_correlation", expected) < MAX_Z
    second = 0.5 * (2.0 - 1 - math.log(2.0))
    row = parts.isel(latent=1)
    assert abs(float(row["dimension_kl"]) - second) < MAX_Z * float(row["dimension_kl_mcse"])
    assert abs(float(parts["dimension_kl"][0])) < 1e-12


@pytest.mark.parametrize(
    ("prior", "knows", "is_product"),
    [
        (lambda: priors.Laplace(3), True, True),
        (lambda: priors.StudentT(3, df=1.5), True, True),
        (lambda: priors.Normal(3), True, False),
        (lambda: priors.GaussianMixture(3, 4), True, False),
        (lambda: priors.GaussianMixture(3, 4, family=FAMILIES["full"](3)), True, False),
        (lambda: priors.FlowPrior(3), False, False),
    ],
)
def test_parts_add_up_with_any_prior(prior, knows, is_product):
    vae = small_vae(family=families.DiagonalNormal).with_prior(prior())
    parts = aggregate_kl(vae, torch.randn(40, 6), num_samples=100)
    rest = float(parts["marginal_kl"])
    assert abs(float(parts["mutual_information"]) + rest - float(parts["kl"])) < 1e-12
    assert parts.attrs["margins_known"] == knows
    assert ("prior_dependence" in parts) == (knows and not is_product)
    if knows:
        total = parts["total_correlation"] + parts["dimension_kl"].sum()
        dependence = float(parts["prior_dependence"]) if not is_product else 0.0
        assert abs(float(total) + dependence - rest) < 1e-12


def test_prior_dependence_is_that_of_a_correlated_prior():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.0]])

    def prior(x):
        return dist.MultivariateNormal(x.new_zeros(2), covariance)

    def encode(x):
        return prior(x).expand([len(x)])

    parts = aggregate_kl(Programs(encode, prior), torch.zeros(3, 1), num_samples=5000)
    expected = -0.5 * math.log(1 / (1 - 0.36))  # the total correlation once more, less
    assert abs(float(parts["kl"])) < 1e-12
    assert z_score(parts, "prior_dependence", expected) < MAX_Z
    assert z_score(parts, "total_correlation", -expected) < MAX_Z


def test_margins_of_a_mixture_are_those_of_a_grid():
    torch.manual_seed(1)
    mixture = priors.GaussianMixture(2, 3, family=families.FullCovarianceNormal(2))()
    other = torch.linspace(-12, 12, 4001)
    for first in (-1.0, 0.4):
        z = torch.stack([torch.full_like(other, first), other], 1)
        expected = torch.trapezoid(mixture.log_prob(z).exp(), other).log()
        found = margins(mixture).log_prob(torch.tensor([first, 0.0]))[0]
        assert abs(found - expected) < 1e-9


def test_errors_are_those_of_repetitions():
    x = torch.randn(400, 2)
    runs = [aggregate_kl(Programs(shrunk), x, num_samples=50, seed=seed) for seed in range(100)]
    for name in ("mutual_information", "total_correlation", "marginal_kl", "kl"):
        values = [float(parts[name]) for parts in runs]
        error = math.sqrt(np.mean([float(parts[f"{name}_mcse"]) ** 2 for parts in runs]))
        # 50 of 400 rows without replacement make the error a little too large; heavy tails noisy.
        assert 0.7 < np.std(values) / error < 1.3


def test_draws_are_spread_evenly_over_the_data():
    seen = []

    def encode(x):
        return dist.Normal(x, 1e-3).to_event(1)

    class Watched(dist.Normal):
        def log_prob(self, value):
            seen.append(value)
            return super().log_prob(value)

    def prior(x):
        return Watched(x.new_zeros(1), 10.0).to_event(1)

    x = 100 * torch.arange(7.0).unsqueeze(1)
    draws = aggregate._draws(Programs(encode, prior), x, range(17), 0)
    counts = (draws.z / 100).round().flatten().long().bincount(minlength=7)
    assert counts.sum() == 17
    assert set(counts.tolist()) == {2, 3}
    few = aggregate._draws(Programs(encode, prior), x, range(4), 0)
    assert (few.z / 100).round().flatten().unique().numel() == 4


def test_result_does_not_depend_on_blocks_and_the_random_state_is_left_alone(monkeypatch):
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(30, 6)
    state = torch.get_rng_state()
    whole = aggregate_kl(vae, x, num_samples=45)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(aggregate, "BLOCK", 1000)
    blocks = aggregate_kl(vae, x, num_samples=45)
    for name in whole.data_vars:
        np.testing.assert_allclose(blocks[name], whole[name], atol=1e-12)
    monkeypatch.setattr(aggregate, "ROWS_AT_A_TIME", 7)  # other noise, the same sums
    pieces = aggregate_kl(vae, x, num_samples=600)
    more = aggregate_kl(vae, x, num_samples=600, seed=1)
    difference = float(pieces["marginal_kl"] - more["marginal_kl"])
    error = math.hypot(*(float(parts["marginal_kl_mcse"]) for parts in (pieces, more)))
    assert abs(difference) < MAX_Z * error


def test_guide_with_parameters_for_each_datum_is_taken_row_by_row(monkeypatch):
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(20, 6)
    other = vae.with_guide(guides.PerDatumGuide.from_amortized(vae.q_z_given_x, x))
    monkeypatch.setattr(aggregate, "ROWS_AT_A_TIME", 6)
    one, two = (aggregate_kl(v, x, num_samples=50) for v in (vae, other))
    np.testing.assert_allclose(one["marginal_kl"], two["marginal_kl"], atol=1e-9)


def test_default_device_is_not_used():
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(9, 6)
    with torch.device("meta"):
        parts, densities = aggregate_kl(vae, x, num_samples=20), aggregate_margins(vae, x)
    assert float(parts["kl"]) == float(aggregate_kl(vae, x, num_samples=20)["kl"])
    assert float(densities["overlap"].max()) <= 1.0


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        (Programs(lambda x: dist.Delta(x).to_event(1)), "guide must have a density"),
        (
            Programs(shrunk, lambda x: dist.Normal(x, 1.0).to_event(1)),
            "prior must be the same for all data",
        ),
    ],
)
def test_programs_without_an_aggregate_raise(programs, message):
    with pytest.raises(ValueError, match=message):
        aggregate_kl(programs, torch.randn(5, 2), num_samples=10)


def test_two_latent_sites_have_no_aggregate():
    class Two(Programs):
        def model(self, x):
            super().model(x)
            with pyro.plate("more", len(x), dim=-1):
                pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

        def guide(self, x):
            super().guide(x)
            with pyro.plate("more", len(x), dim=-1):
                pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="one latent site"):
        aggregate_kl(Two(shrunk), torch.randn(5, 2), num_samples=10)


@pytest.mark.parametrize("num_samples", [0, 1.5, True])
def test_number_of_draws_must_be_a_positive_integer(num_samples):
    with pytest.raises(ValueError, match="num_samples must be a positive integer"):
        aggregate_kl(Programs(shrunk), torch.zeros(3, 2), num_samples=num_samples)


def test_one_draw_has_no_error_to_tell():
    parts = aggregate_kl(Programs(shrunk), torch.randn(3, 2), num_samples=1)
    assert math.isnan(float(parts["kl_mcse"]))
    assert math.isfinite(float(parts["kl"]))


def test_densities_of_margins_integrate_to_one_and_overlap_is_the_closed_form():
    # The aggregate is N(0, 1) and N(2, 1); two normals d apart overlap by 2 Phi(-d / 2).
    def encode(x):
        return dist.Normal(torch.tensor([0.0, 2.0]).expand(len(x), 2), 1.0).to_event(1)

    densities = aggregate_margins(Programs(encode), torch.zeros(4, 1))
    for name in ("aggregate_density", "prior_density"):
        mass = np.trapezoid(densities[name], densities["z"], axis=1)
        np.testing.assert_allclose(mass, 1.0, atol=1e-5)
    expected = 2 * dist.Normal(0.0, 1.0).cdf(torch.tensor(-1.0)).item()
    np.testing.assert_allclose(densities["overlap"], [1.0, expected], atol=1e-4)


def test_density_of_a_margin_is_the_average_over_all_data(monkeypatch):
    monkeypatch.setattr("pyro_vae.diagnostics.aggregate.aggregate_margins.ROWS_AT_A_TIME", 7)
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(30, 6)
    densities = aggregate_margins(vae, x, num_points=20)
    q = vae.encode(x)
    z = torch.from_numpy(densities["z"].to_numpy())[1].unsqueeze(1)
    expected = dist.Normal(q.mean[:, 1], q.variance[:, 1].sqrt()).log_prob(z).exp().mean(1)
    np.testing.assert_allclose(densities["aggregate_density"][1], expected.detach(), atol=1e-12)


def test_margins_of_a_flow_raise():
    with pytest.raises(ValueError, match=r"margins of q\(z\|x\) must be known"):
        aggregate_margins(small_vae(family=families.Flow), torch.randn(5, 6))
    vae = small_vae(family=families.DiagonalNormal).with_prior(priors.FlowPrior(3))
    with pytest.raises(ValueError, match=r"margins of p\(z\) must be known"):
        aggregate_margins(vae, torch.randn(5, 6))


def test_picture_of_the_parts_ends_at_the_mean_kl():
    vae = small_vae(family=families.DiagonalNormal)
    parts = aggregate_kl(vae, torch.randn(30, 6), num_samples=50)
    axes = pictures.kl_parts(parts, ax=Figure().subplots())
    bars = axes.patches
    assert len(bars) == 4
    last = bars[-1].get_x() + bars[-1].get_width()
    assert abs(last - float(parts["kl"])) < 1e-12
    axes.figure.canvas.draw()
    without = parts.drop_vars([n for n in parts.data_vars if "correlation" in n])
    assert len(pictures.kl_parts(without).patches) >= 3


def test_picture_of_margins_shows_those_with_the_least_overlap():
    def encode(x):
        loc = torch.arange(14.0).flip(0).expand(len(x), 14) / 10
        return distributions.CholeskyNormal(loc, scale_tril=torch.eye(14).expand(len(x), 14, 14))

    panels = pictures.aggregate_margins(aggregate_margins(Programs(encode), torch.zeros(2, 1)))
    assert len(panels) == 12
    assert panels[0].get_title().startswith("$z_{1}$")
    assert "12 of 14" in panels[0].figure.get_suptitle()
