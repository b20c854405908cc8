import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae
from torch import nn

import pyro_vae as pv
from pyro_vae import distributions, families, guides, likelihoods, networks, priors
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics.evidence import grid_search, quadrature, warped_joint
from pyro_vae.diagnostics.evidence.importance_check import least_log_mean
from pyro_vae.diagnostics.evidence.lattice import Lattice
from pyro_vae.diagnostics.evidence.quadrature import quadrature_log_evidence
from pyro_vae.diagnostics.evidence.warped_joint import WarpedJoint


def vae_of(decoder, *, latent_dim, features, prior=None, likelihood=None, variance=1.0):
    family = families.DiagonalNormal(latent_dim)
    return pv.VAE(
        prior=prior or priors.StandardNormal(latent_dim),
        likelihood=likelihood
        or likelihoods.Gaussian(decoder, event_shape=(features,), variance=variance),
        guide=guides.AmortizedGuide(
            family, networks.MLP(features, (8,), family.num_params, activation=nn.Tanh)
        ),
    )


def network(latent_dim, features, *, activation=nn.Tanh, gain=1.5):
    net = networks.MLP(latent_dim, (32,), features, activation=activation)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= gain
    return net


def log_joint(vae, x, z):
    """Log p(x, z) at points ``(P, K)`` from the parts themselves."""
    with torch.no_grad():
        return vae.p_z().log_prob(z) + vae.p_x_given_z(z).log_prob(x)


def brute_force(vae, x, *, center, sd, points):
    """Log p(x) by the midpoint rule on a box of 12 posterior standard deviations each side."""
    edges = torch.linspace(-12, 12, points + 1)
    mid = (edges[:-1] + edges[1:]) / 2
    axes = [center[j] + sd[j] * mid for j in range(len(center))]
    z = torch.cartesian_prod(*axes).reshape(-1, len(center))
    cell = math.log((24 / points) ** len(center) * float(np.prod(sd)))
    return float(log_joint(vae, x, z).logsumexp(0)) + cell


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("variance", [0.2, 2e-4])
def test_linear_gaussian_evidence_and_posterior_are_the_closed_form(latent_dim, variance):
    data = linear_gaussian(12, features=6, latent_dim=latent_dim, variance=variance, seed=1)
    evidence = quadrature_log_evidence(linear_vae(data.truth), data.x)
    posterior = data.truth.posterior(data.x)
    np.testing.assert_allclose(evidence["log_evidence"], data.log_evidence, atol=1e-6)
    np.testing.assert_allclose(evidence["posterior_mean"], posterior.mean, atol=1e-6)
    np.testing.assert_allclose(evidence["posterior_sd"], posterior.variance.sqrt(), rtol=1e-5)
    assert (evidence["error"] <= 1e-5).all()
    assert evidence["posterior_sd"].min() < (0.3 if variance > 0.1 else 0.01)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_narrow_posterior_of_a_tanh_decoder_is_that_of_a_brute_force_grid(latent_dim):
    vae = vae_of(network(latent_dim, 64), latent_dim=latent_dim, features=64, variance=5e-4)
    x = vae.sample(3)
    evidence = quadrature_log_evidence(vae, x)
    assert evidence["posterior_sd"].min() < 0.01
    mean, sd = evidence["posterior_mean"].to_numpy(), evidence["posterior_sd"].to_numpy()
    for row in range(len(x)):
        fine = brute_force(
            vae, x[row], center=mean[row], sd=sd[row], points=2000 if latent_dim == 1 else 200
        )
        assert abs(fine - evidence["log_evidence"][row].item()) < 1e-5


class Square(nn.Module):
    """f(z) = z^2 in each of 20 features."""

    def forward(self, z):
        return z.square().sum(-1, keepdim=True) * torch.ones(20)


def test_both_modes_of_a_symmetric_posterior_count():
    vae = vae_of(Square(), latent_dim=1, features=20, variance=0.01)
    z = torch.tensor([[2.0], [0.7], [0.05], [-3.0]])
    x = z.square() + 0.1 * torch.randn(4, 20)
    evidence = quadrature_log_evidence(vae, x)
    grid = torch.linspace(-8, 8, 400_001).unsqueeze(1)
    for row in range(4):
        fine = log_joint(vae, x[row], grid).logsumexp(0) + math.log(16 / 400_000)
        assert abs(float(fine) - evidence["log_evidence"][row].item()) < 1e-6
    np.testing.assert_allclose(evidence["posterior_mean"], 0, atol=1e-5)
    # Hundreds of standard deviations apart: nothing connects the modes.
    assert evidence["posterior_sd"][3] == pytest.approx(3, rel=0.02)


def test_two_narrow_modes_are_found_by_the_slopes_around_them_alone(monkeypatch):
    """The first grid's best point of one mode is thousands of nats below that of the other."""
    monkeypatch.setattr(grid_search, "CLIMBING_STEPS", 0)
    vae = vae_of(Square(), latent_dim=1, features=20, variance=1e-6)
    vae = vae.with_guide(Fixed(1, 6.0, 0.1))
    z = torch.tensor([[0.4], [1.1], [2.2]])
    x = z.square() + 1e-3 * torch.randn(3, 20)
    evidence = quadrature_log_evidence(vae, x)
    np.testing.assert_allclose(evidence["posterior_mean"], 0, atol=1e-5)
    for row in range(3):
        mode = x[row].mean().sqrt()
        half = brute_force(vae, x[row], center=[mode], sd=[1e-3], points=20_000)
        assert abs(half + math.log(2) - evidence["log_evidence"][row].item()) < 1e-6


class Fixed(distributions.DistributionModule):
    """A guide that puts z in the same place for whatever x."""

    def __init__(self, latent_dim, loc, scale):
        super().__init__()
        self.event_shape = torch.Size([latent_dim])
        self.loc, self.scale = loc, scale

    def forward(self, x):
        loc = x.new_full((len(x), *self.event_shape), self.loc)
        return dist.Normal(loc, self.scale).to_event(1)


class Bump(distributions.DistributionModule):
    """p(x=1|z): e^-9 times 1 plus a bump that has the same integral under the prior."""

    event_shape = torch.Size([1])

    def __init__(self, place, width):
        super().__init__()
        self.bump = dist.Normal(place, width)
        self.log_prior = dist.Normal(0.0, 1.0).log_prob(torch.tensor(place))

    def forward(self, z):
        odds = self.bump.log_prob(z[..., 0]) - self.log_prior
        log_p = torch.logaddexp(torch.zeros(()), odds) - 9
        return dist.Bernoulli(probs=log_p.exp().unsqueeze(-1)).to_event(1)


@pytest.mark.parametrize("width", [0.003, 0.0005])
def test_unlike_peaks_are_all_found(width):
    """Half of the mass lies in a peak up to 60 times narrower than the first grid's spacing."""
    vae = vae_of(None, latent_dim=1, features=1, likelihood=Bump(1.2345, width))
    vae = vae.with_guide(Fixed(1, 1.2345, 0.001))  # it knows one of the two
    evidence = quadrature_log_evidence(vae, torch.ones(1, 1))
    grid = torch.linspace(-9, 9, 1_000_001).unsqueeze(1)
    fine = log_joint(vae, torch.ones(1), grid).logsumexp(0) + math.log(18e-6)
    assert float(fine) == pytest.approx(math.log(2) - 9, abs=1e-3)
    assert evidence["log_evidence"].item() == pytest.approx(float(fine), abs=1e-6)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_narrow_posterior_is_found_by_the_slopes_around_it_alone(latent_dim, monkeypatch):
    monkeypatch.setattr(grid_search, "CLIMBING_STEPS", 0)
    data = linear_gaussian(6, features=6, latent_dim=latent_dim, variance=1e-5, seed=1)
    vae = linear_vae(data.truth, guide=Fixed(latent_dim, 6.0, 0.1))
    evidence = quadrature_log_evidence(vae, data.x)
    np.testing.assert_allclose(evidence["log_evidence"], data.log_evidence, atol=1e-6)
    assert evidence["posterior_sd"].max() < 0.005


def test_mixture_prior_with_a_linear_decoder_is_the_closed_form():
    decoder = nn.Linear(2, 5)
    prior = priors.GaussianMixture(2, 3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += torch.randn_like(parameter)
        decoder.weight *= 3
    vae = vae_of(decoder, latent_dim=2, features=5, prior=prior, variance=0.01)
    x = vae.sample(8)
    p_z = prior()
    with torch.no_grad():
        parts = p_z.component_distribution
        scale_tril = getattr(parts, "scale_tril", None)
        if scale_tril is None:
            scale_tril = parts.variance.sqrt().diag_embed()
        root = decoder.weight @ scale_tril
        covariance = root @ root.mT + 0.01 * torch.eye(5)
        components = torch.distributions.MultivariateNormal(decoder(parts.mean), covariance)
        exact = torch.distributions.MixtureSameFamily(
            p_z.mixture_distribution, components
        ).log_prob(x)
    evidence = quadrature_log_evidence(vae, x)
    np.testing.assert_allclose(evidence["log_evidence"], exact, atol=1e-6)


class Mixture(distributions.DistributionModule):
    """Normal components in one dimension."""

    event_shape = torch.Size([1])

    def __init__(self, loc, scale, weights=None):
        super().__init__()
        self.loc, self.scale = loc, torch.as_tensor(scale).expand_as(loc)
        self.weights = torch.ones_like(loc) if weights is None else weights

    def forward(self):
        parts = dist.Normal(self.loc.unsqueeze(-1), self.scale.unsqueeze(-1)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(self.weights), parts)


def of_mixture(prior, x, *, variance):
    """Quadrature and closed form with z observed directly."""
    vae = vae_of(nn.Identity(), latent_dim=1, features=1, prior=prior, variance=variance)
    parts = dist.Normal(prior.loc, torch.sqrt(prior.scale**2 + variance))
    exact = dist.MixtureSameFamily(dist.Categorical(prior.weights), parts).log_prob(x[:, 0])
    return quadrature_log_evidence(vae, x), exact


@pytest.mark.parametrize(
    ("num_components", "variance"), [(10, 1.0), (100, 1.0), (500, 1.0), (100, 1e-3)]
)
def test_narrow_components_of_a_mixture_prior_are_all_found(num_components, variance):
    prior = Mixture(torch.randn(num_components), 0.002)
    evidence, exact = of_mixture(prior, torch.tensor([[0.3], [-1.0]]), variance=variance)
    np.testing.assert_allclose(evidence["log_evidence"], exact, atol=1e-6)


def test_rare_component_far_out_is_found():
    prior = Mixture(
        torch.tensor([0.0, 40.0]), torch.tensor([1.0, 0.01]), torch.tensor([0.99999, 1e-5])
    )
    evidence, exact = of_mixture(prior, torch.tensor([[40.0], [0.0], [20.0]]), variance=1.0)
    np.testing.assert_allclose(evidence["log_evidence"], exact, atol=1e-6)


class Wave(nn.Module):
    """sin(frequency z) with noise 0.02, and z with noise 3, in units of the noise."""

    def __init__(self, frequency):
        super().__init__()
        self.frequency = frequency

    def forward(self, z):
        return torch.cat([torch.sin(self.frequency * z) / 0.02, z / 3], -1)


def test_all_of_many_narrow_peaks_are_found():
    vae = vae_of(Wave(60), latent_dim=1, features=2)
    x = vae.sample(4)
    evidence = quadrature_log_evidence(vae, x)
    grid = torch.linspace(-9, 9, 400_001).unsqueeze(1)
    for row in range(4):
        fine = log_joint(vae, x[row], grid).logsumexp(0) + math.log(18 / 400_000)
        assert abs(float(fine) - evidence["log_evidence"][row].item()) < 1e-6


def blinded(monkeypatch, log_ratio):
    """Keep a smooth part of the density from the grid."""
    call = WarpedJoint.__call__

    def blind(self, owner, w):
        return call(self, owner, w) - log_ratio(self.unwarped(owner, w))

    monkeypatch.setattr(WarpedJoint, "__call__", blind)


def test_integral_below_what_draws_of_the_prior_allow_is_refused(monkeypatch):
    prior = Mixture(torch.tensor([0.5, 0.0]), torch.tensor([0.003, 1.0]))
    vae = vae_of(nn.Identity(), latent_dim=1, features=1, prior=prior)
    vae = vae.with_guide(Fixed(1, 6.0, 0.1))
    broad = dist.Normal(0.0, 2.0**0.5).log_prob(torch.tensor(1.0)).item() - math.log(2)
    blinded(
        monkeypatch,
        lambda z: prior().log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + math.log(2),
    )
    with pytest.raises(
        ValueError, match=rf"{broad:.6g} nats on the grid for row 0 .* draws of the prior"
    ):
        quadrature_log_evidence(vae, torch.ones(2, 1))


def test_integral_below_what_draws_of_the_guide_allow_is_refused(monkeypatch):
    """It sees the bump alone, of mass e^-9; the grid has e^-10."""
    bump = Bump(0.5, 0.003)
    vae = vae_of(None, latent_dim=1, features=1, likelihood=bump)
    vae = vae.with_guide(Fixed(1, 0.5, 0.004))
    monkeypatch.setattr(warped_joint, "NUM_PRIOR_DRAWS", 16)  # too few for the prior to tell
    blinded(monkeypatch, lambda z: bump(z).log_prob(torch.ones(1)) + 10)
    with pytest.raises(ValueError, match=r"nats on the grid for row 0 .* draws of the guide"):
        quadrature_log_evidence(vae, torch.ones(2, 1))


def test_lower_bound_of_importance_weights_holds_and_is_near():
    log_weights = 0.3 * torch.randn(4096, 1000) - 0.3**2 / 2  # the expectation is 1
    least = least_log_mean(log_weights)
    assert least.max() < 0
    assert least.min() > -0.2
    rare = torch.full((512, 1), -1000.0)
    rare[7] = 300.0
    assert 200 < least_log_mean(rare) < 300 - math.log(1e8)


def test_window_follows_a_prior_far_from_zero():
    prior = priors.Normal(1)
    with torch.no_grad():
        prior.params.copy_(torch.tensor([5000.0, math.log(math.expm1(30.0))]))
    p_z = prior()
    vae = vae_of(nn.Identity(), latent_dim=1, features=1, prior=prior, variance=4.0)
    x = p_z.mean.detach() + torch.tensor([[0.0], [-90.0], [20.0]])
    sd = torch.sqrt(p_z.variance.detach() + 4)
    exact = dist.Normal(p_z.mean.detach(), sd).log_prob(x).squeeze(1)
    evidence = quadrature_log_evidence(vae, x)
    np.testing.assert_allclose(evidence["log_evidence"], exact, atol=1e-6)


def test_heavy_tails_of_a_student_t_prior_are_not_cut():
    """With z nearly unobserved the evidence is all of the prior's mass."""
    decoder = nn.Linear(1, 1)
    with torch.no_grad():
        decoder.weight.zero_()
        decoder.bias.zero_()
    for df in (1.0, 4.0):
        prior = priors.StudentT(1, df=df)
        vae = vae_of(decoder, latent_dim=1, features=1, prior=prior)
        evidence = quadrature_log_evidence(vae, torch.zeros(1, 1), tolerance=1e-8)
        assert abs(evidence["log_evidence"].item() + 0.5 * math.log(2 * math.pi)) < 1e-8


def test_conjugate_positive_latent_is_the_closed_form():
    """Gamma(2.5, 1.3) and Poisson: FORMULAS (f)."""

    class Conjugate:
        def model(self, x):
            with pyro.plate("data", len(x)):
                rate = pyro.sample("rate", dist.Gamma(2.5, 1.3))
                pyro.sample("x", dist.Poisson(rate), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("rate", dist.Gamma(2.5 + x, torch.full_like(x, 2.3)))

    evidence = quadrature_log_evidence(Conjugate(), torch.tensor([3.0, 40.0]))
    assert abs(evidence["log_evidence"][0].item() + 2.0437178870566015) < 1e-6
    np.testing.assert_allclose(evidence["posterior_mean"][:, 0], [5.5 / 2.3, 42.5 / 2.3])


def test_two_scalar_sites_are_two_coordinates():
    class TwoLevels:
        def model(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(1.0, 2.0))
                b = pyro.sample("b", dist.Normal(a, 0.1))
                pyro.sample("x", dist.Normal(b, 0.3), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("a", dist.Normal(x, 1.0))
                pyro.sample("b", dist.Normal(x, 1.0))

    x = torch.tensor([0.0, 2.0, 9.0])
    evidence = quadrature_log_evidence(TwoLevels(), x)
    exact = dist.Normal(1.0, math.sqrt(4 + 0.01 + 0.09)).log_prob(x)
    np.testing.assert_allclose(evidence["log_evidence"], exact, atol=1e-6)


LIKELIHOODS = {
    "gaussian": lambda f: likelihoods.Gaussian(f, event_shape=(12,), variance=0.3),
    "bernoulli": lambda f: likelihoods.Bernoulli(f, event_shape=(12,)),
    "poisson": lambda f: likelihoods.Poisson(f, event_shape=(12,)),
}


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_importance_sampling_agrees_within_its_error(name, latent_dim):
    likelihood = LIKELIHOODS[name](network(latent_dim, 12))
    vae = vae_of(None, latent_dim=latent_dim, features=12, likelihood=likelihood)
    x = vae.sample(4)
    evidence = quadrature_log_evidence(vae, x)
    with torch.no_grad():
        # Draws from the prior: the weights are bounded.
        z = torch.randn(40_000, latent_dim)
        weights = torch.stack([vae.p_x_given_z(z).log_prob(row).exp() for row in x])
    error = weights.std(1) / math.sqrt(len(z))
    z_score = (weights.mean(1) - torch.tensor(evidence["log_evidence"].to_numpy()).exp()) / error
    assert z_score.abs().max() < MAX_Z


def test_kinks_are_seen_to_converge_slowly_and_are_still_right():
    vae = vae_of(network(1, 20, activation=nn.ReLU), latent_dim=1, features=20, variance=0.05)
    x = vae.sample(10)
    loose, tight = (quadrature_log_evidence(vae, x, tolerance=t) for t in (1e-3, 1e-8))
    off = abs(loose["log_evidence"] - tight["log_evidence"])
    # The estimate knows nothing of where the kinks are: it may be short, and seldom.
    assert (off < loose["error"]).mean() > 0.9
    assert off.max() < 1e-3
    assert loose["error"].max() < 1e-3
    assert tight["num_points"].min() > 4 * loose["num_points"].max()


def test_what_cannot_be_accurate_is_refused_by_name():
    vae = vae_of(network(2, 20, activation=nn.ReLU), latent_dim=2, features=20, variance=0.05)
    x = vae.sample(1)
    with pytest.raises(
        ValueError, match=r"10000 points for row \d of x.*estimated error of .* nats"
    ) as refusal:
        quadrature_log_evidence(vae, x, max_points=10_000)
    tolerance = float(re.search(r"Raise tolerance to (\S+),", str(refusal.value)).group(1))
    quadrature_log_evidence(vae, x, tolerance=tolerance, max_points=10_000)


def test_arguments_that_do_not_fit_raise():
    vae = vae_of(nn.Linear(3, 4), latent_dim=3, features=4)
    with pytest.raises(ValueError, match="one or two latent coordinates for a grid; got 3"):
        quadrature_log_evidence(vae, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="tolerance must be positive; got 0"):
        quadrature_log_evidence(vae, torch.zeros(2, 4), tolerance=0)


def test_bounds_that_depend_on_another_site_are_refused():
    class Nested:
        def model(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Gamma(2.0, 1.0))
                b = pyro.sample("b", dist.Uniform(0.0, a))
                pyro.sample("x", dist.Normal(b, 0.3), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Gamma(2.0, torch.ones_like(x)))
                pyro.sample("b", dist.Uniform(0.0, a))

    with pytest.raises(ValueError, match="'b' must take all real values, or values above"):
        quadrature_log_evidence(Nested(), torch.zeros(1))


def test_result_depends_on_neither_pieces_nor_seed_and_the_world_is_left_alone(monkeypatch):
    vae = vae_of(network(1, 6), latent_dim=1, features=6, variance=0.1)
    x = vae.sample(7)
    state = torch.get_rng_state()
    whole = quadrature_log_evidence(vae, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())
    monkeypatch.setattr(quadrature, "ROWS_AT_A_TIME", 2)
    pieces = quadrature_log_evidence(vae, x, chunk_size=50, seed=1)
    np.testing.assert_allclose(whole["log_evidence"], pieces["log_evidence"], atol=2e-6)


def test_single_precision_is_right_to_its_rounding():
    data = linear_gaussian(6, features=6, latent_dim=1, variance=0.01, seed=1)
    evidence = quadrature_log_evidence(linear_vae(data.truth).float(), data.x.float())
    np.testing.assert_allclose(evidence["log_evidence"], data.log_evidence, atol=3e-4)


def test_data_and_model_decide_the_device():
    vae = vae_of(network(2, 6), latent_dim=2, features=6, variance=0.1)
    x = vae.sample(2)
    with torch.device("meta"):
        elsewhere = quadrature_log_evidence(vae, x)
    np.testing.assert_array_equal(
        elsewhere["log_evidence"], quadrature_log_evidence(vae, x)["log_evidence"]
    )


def test_lattice_of_two_data_keeps_them_apart():
    lattice = Lattice(2, torch.device("cpu"))
    codes = lattice.codes(torch.tensor([0, 1]), torch.tensor([[-5, 7], [-5, 8]]))
    owner, index = lattice.coordinates(lattice.halved(codes))
    assert owner.tolist() == [0] * 9 + [1] * 9
    assert index[:9].tolist() == [[i, j] for i in (-11, -10, -9) for j in (13, 14, 15)]
    assert index[9:].tolist() == [[i, j] for i in (-11, -10, -9) for j in (15, 16, 17)]


def test_relu_decoder_of_two_coordinates_is_not_refused_and_right_to_its_error():
    torch.manual_seed(0)
    vae = pv.gaussian_vae(features=5, latent_dim=2, hidden=(8,))
    x = torch.randn(1, 5)
    coarse = quadrature_log_evidence(vae, x)
    fine = quadrature_log_evidence(vae, x, max_points=1_000_000)
    difference = abs(float(coarse["log_evidence"][0] - fine["log_evidence"][0]))
    assert float(coarse["error"][0]) < 1e-4
    assert difference < float(coarse["error"][0] + fine["error"][0])
    assert float(fine["error"][0]) < float(coarse["error"][0])
