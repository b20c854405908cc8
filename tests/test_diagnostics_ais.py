import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from conftest import MAX_Z
from helpers import linear_vae
from torch import nn

import pyro_vae as pv
from pyro_vae import distributions, families, guides, likelihoods, networks, priors
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics.evidence import ais, hmc
from pyro_vae.diagnostics.evidence.ais import ais_log_evidence
from pyro_vae.diagnostics.evidence.bdmc import bdmc
from pyro_vae.diagnostics.evidence.importance import log_evidence
from pyro_vae.diagnostics.evidence.quadrature import quadrature_log_evidence
from pyro_vae.diagnostics.real_joint import RealJoint
from pyro_vae.plots import evidence_bounds

LIKELIHOODS = {
    "gaussian": lambda f: likelihoods.Gaussian(f, event_shape=(10,), variance=0.3),
    "bernoulli": lambda f: likelihoods.Bernoulli(f, event_shape=(10,)),
    "poisson": lambda f: likelihoods.Poisson(f, event_shape=(10,)),
}


class Broad(distributions.DistributionModule):
    """A guide somewhat wider than the prior, so that importance weights are bounded."""

    def __init__(self, latent_dim):
        super().__init__()
        self.event_shape = torch.Size([latent_dim])

    def forward(self, x):
        zeros = x.new_zeros(len(x), *self.event_shape)
        return dist.Normal(zeros, 1.2).to_event(1)


def nonlinear_vae(name, latent_dim):
    decoder = networks.MLP(latent_dim, (16,), 10, activation=nn.Tanh)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter *= 1.5
    return pv.VAE(
        prior=priors.StandardNormal(latent_dim),
        likelihood=LIKELIHOODS[name](decoder),
        guide=Broad(latent_dim),
    )


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_ais_importance_sampling_and_quadrature_agree_within_their_errors(name, latent_dim):
    vae = nonlinear_vae(name, latent_dim)
    x = vae.sample(6)
    exact = quadrature_log_evidence(vae, x)["log_evidence"]
    annealed = ais_log_evidence(vae, x, num_steps=20, num_chains=32)
    sampled = log_evidence(vae, x, num_samples=5000)
    for estimate in (annealed, sampled):
        # The log of a mean is too low by half its variance.
        off = estimate["log_evidence"] + estimate["mcse"] ** 2 / 2 - exact
        assert (abs(off) < MAX_Z * estimate["mcse"]).all()
    assert annealed["mcse"].max() < 0.5


def test_mcse_is_the_spread_of_repetitions():
    vae = nonlinear_vae("gaussian", 2)
    x = vae.sample(1).expand(60, 10)
    estimate = ais_log_evidence(vae, x, num_steps=30, num_chains=16)
    spread = estimate["log_evidence"].std().item()
    stated = math.sqrt((estimate["mcse"] ** 2).mean().item())
    # The s.d. of 60 normal values has a relative error of 1 / sqrt(120).
    assert abs(spread / stated - 1) < MAX_Z / math.sqrt(120)


def test_mean_weight_is_the_evidence_without_bias():
    """That the transitions leave their densities invariant, and the sum of steps is right."""
    data = linear_gaussian(1, features=5, latent_dim=2, variance=2.0, seed=1)
    vae = linear_vae(data.truth)
    x = data.x.expand(100, 5)
    joint = RealJoint(vae, x)
    sizes = torch.full((6, 100), 0.1)
    weights, _ = ais.annealed(joint, sizes, 200)
    ratios = (weights - data.log_evidence).exp().flatten()
    assert abs(ratios.mean() - 1) < MAX_Z * ratios.std() / math.sqrt(len(ratios))
    assert 0.1 < ratios.std() < 10
    start = data.truth.posterior(x).sample((200,))
    weights = ais.reverse_annealed(joint, sizes, start)
    ratios = (weights + data.log_evidence).exp().flatten()
    assert abs(ratios.mean() - 1) < MAX_Z * ratios.std() / math.sqrt(len(ratios))
    assert 0.1 < ratios.std() < 10


def test_transition_leaves_the_tempered_density_invariant():
    data = linear_gaussian(1, features=5, latent_dim=2, variance=0.5, seed=1)
    joint = RealJoint(linear_vae(data.truth), data.x)
    weight, power = data.truth.weight, 0.3
    precision = torch.eye(2) + power * weight.T @ weight / 0.5
    mean = torch.linalg.solve(precision, power * weight.T @ (data.x[0] - data.truth.mean) / 0.5)
    tempered = dist.MultivariateNormal(mean, precision_matrix=precision)
    draws = tempered.sample((20_000, 1))
    point = hmc.point_at(joint, draws)
    moved, accepted = hmc.transition(joint, point, power, torch.full((1,), 0.35))
    assert 0.5 < accepted.mean() < 0.95
    whitened = (moved.u[:, 0] - mean) @ torch.linalg.cholesky(precision)
    for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        z = (whitened**moment).mean(0).sub(expected) / math.sqrt(variance / len(draws))
        assert z.abs().max() < MAX_Z
    # The chains have moved, and what they carry is that of where they are.
    assert (moved.u != draws).any(-1).double().mean() > 0.5
    again = hmc.point_at(joint, moved.u)
    for carried, fresh in zip(moved, again, strict=True):
        torch.testing.assert_close(carried, fresh)


def test_bdmc_brackets_the_truth_and_closes_with_more_steps():
    data = linear_gaussian(2, features=12, latent_dim=4, variance=0.1, seed=1)
    vae = linear_vae(data.truth)
    gaps = []
    for num_steps in (8, 40):
        bounds = bdmc(vae, 20, num_steps=num_steps, num_chains=8)
        truth = np.asarray(data.truth.log_prob(simulated(vae, 20, 250)))
        below, above = truth - bounds["lower"].to_numpy(), bounds["upper"].to_numpy() - truth
        for side in (below, above):
            assert side.mean() > -MAX_Z * side.std(ddof=1) / math.sqrt(len(side))
        gaps.append(bounds["upper"].mean().item() - bounds["lower"].mean().item())
    assert gaps[0] > 1
    assert 0 < gaps[1] < 0.5 * gaps[0]


def simulated(vae, num_data, rows):
    """The data that ``bdmc`` simulates with seed 0, if they are one piece."""
    from pyro_vae.evaluation import evaluating
    from pyro_vae.traces import simulate

    assert num_data <= rows
    with evaluating(vae, 0, "BDMC", 0, device=torch.device("cpu")):
        return simulate(vae, torch.zeros(num_data, *vae.event_shape)).x


def test_lower_bound_does_not_exceed_the_truth_where_it_is_loose():
    data = linear_gaussian(60, features=12, latent_dim=4, variance=0.05, seed=1)
    estimate = ais_log_evidence(linear_vae(data.truth), data.x, num_steps=5, num_chains=4)
    short = data.log_evidence.numpy() - estimate["log_evidence"].to_numpy()
    assert short.mean() > MAX_Z * short.std(ddof=1) / math.sqrt(len(short))


def test_pilot_finds_the_wanted_acceptance_for_each_datum_and_temperature():
    decoder = nn.Linear(1, 4)
    with torch.no_grad():
        decoder.weight.fill_(1.0)
    vae = pv.VAE(
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Poisson(decoder, event_shape=(4,)),
        guide=guides.AmortizedGuide(families.DiagonalNormal(1), nn.Linear(4, 2)),
    )
    # Counts of 1 and of 200: posterior standard deviations of 0.45 and 0.035.
    x = torch.tensor([[1.0], [200.0]]).expand(2, 4).contiguous()
    joint = RealJoint(vae, x)
    sizes = hmc.pilot_step_sizes(joint, 50, 16)
    assert sizes.shape == (50, 2)
    assert sizes[-1, 0] > 4 * sizes[-1, 1]
    assert sizes[0, 1] > 4 * sizes[-1, 1]
    estimate = ais_log_evidence(vae, x, num_steps=50, num_chains=16)
    assert (abs(estimate["acceptance"] - hmc.TARGET_ACCEPTANCE) < 0.2).all()


def test_positive_latent_is_mapped_to_the_line():
    """Gamma(2.5, 1.3) and Poisson: FORMULAS (f)."""

    class Conjugate:
        event_shape = torch.Size([])

        def model(self, x):
            with pyro.plate("data", len(x)):
                rate = pyro.sample("rate", dist.Gamma(2.5, 1.3))
                pyro.sample("x", dist.Poisson(rate), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("rate", dist.Gamma(2.5 + x, torch.full_like(x, 2.3)))

    estimate = ais_log_evidence(Conjugate(), torch.tensor([3.0]), num_steps=20, num_chains=200)
    z = (estimate["log_evidence"] + 2.0437178870566015) / estimate["mcse"]
    assert abs(z.item()) < MAX_Z
    bounds = bdmc(Conjugate(), 30, num_steps=20)
    assert abs((bounds["upper"] - bounds["lower"]).mean()) < 0.1


def test_what_has_no_real_coordinates_is_refused():
    class Simplex:
        event_shape = torch.Size([3])

        def model(self, x):
            with pyro.plate("data", len(x)):
                share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
                pyro.sample("x", dist.Normal(share, 0.1).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("share", dist.Dirichlet(torch.ones(len(x), 3)))

    with pytest.raises(ValueError, match="'share' must take all real values.*Dirichlet"):
        ais_log_evidence(Simplex(), torch.ones(2, 3))
    with pytest.raises(ValueError, match="num_steps must be a positive integer; got 0"):
        ais_log_evidence(Simplex(), torch.ones(2, 3), num_steps=0)
    with pytest.raises(ValueError, match="num_data must be a positive integer; got -1"):
        bdmc(Simplex(), -1)
    del Simplex.event_shape
    with pytest.raises(TypeError, match="vae must declare event_shape"):
        bdmc(Simplex(), 2)


def test_world_is_left_alone_and_single_precision_works():
    vae = nonlinear_vae("gaussian", 2).float()
    vae.p_z.requires_grad_(False)
    vae.q_z_given_x.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in vae.named_parameters()}
    state = torch.get_rng_state()
    with torch.device("meta"):
        bounds = bdmc(vae, 3, num_steps=10, num_chains=4)
        estimate = ais_log_evidence(
            vae, torch.zeros(3, 10, device="cpu"), num_steps=10, num_chains=4
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert wanted == {name: p.requires_grad for name, p in vae.named_parameters()}
    assert all(p.grad is None for p in vae.parameters())
    assert vae.training
    assert estimate["log_evidence"].dtype == bounds["upper"].dtype == np.float64
    assert estimate.attrs["num_leapfrogs"] == 10
    assert dict(bounds.sizes) == {"simulation": 3}


def test_pictures_show_the_bounds_and_the_differences():
    columns = {"lower": [-3.0, -5.0, -1.0], "upper": [-2.0, -3.0, -1.5]}
    errors = {"lower_mcse": [0.1, 0.2, 0.3], "upper_mcse": [0.1, 0.2, 0.3]}
    bounds = xr.Dataset({k: ("simulation", v) for k, v in (columns | errors).items()})
    axes = evidence_bounds.bdmc_brackets(bounds)
    # Sorted by width, -0.5, 1 and 2: halves of it above and below the midpoint.
    marks = {line.get_marker(): list(line.get_ydata()) for line in axes.lines}
    assert marks["v"] == [-0.25, 0.5, 1.0]
    assert marks["^"] == [0.25, -0.5, -1.0]
    exact = xr.Dataset({"log_evidence": ("obs_id", [-1.0, -2.0])})
    other = xr.Dataset({"log_evidence": ("obs_id", [-1.5, -2.0]), "mcse": ("obs_id", [0.1, 0.2])})
    axes = evidence_bounds.evidence_differences({"a$b": exact, "AIS": other}, reference="a$b")
    assert list(axes.lines[0].get_ydata()) == [-0.5, 0.0]
    axes.figure.draw_without_rendering()
    with pytest.raises(ValueError, match=r"reference must be one of \['AIS'\]; got 'grid'"):
        evidence_bounds.evidence_differences({"AIS": other}, reference="grid")
