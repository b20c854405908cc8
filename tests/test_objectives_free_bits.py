"""Free bits against their formula: each latent dimension costs at least so much."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from test_objectives_importance_weighted import Chain, in_plate_of
from torch import nn
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae import families, guides, likelihoods, networks, priors
from pyro_vae.objectives import FreeBits, FreeBits_ELBO, kl_weighted


@pytest.fixture
def x():
    return torch.randn(5, 6)


def spread_out(family):
    """A VAE whose latent dimensions cost very different amounts."""
    vae = small_vae(family=family, variance=0.3)
    with torch.no_grad():
        vae.q_z_given_x.encoder.layers[-1].bias[:3] += torch.tensor([0.0, 0.6, 2.0])
    return vae


def kl_by_hand(q):
    mean, scale = q.base_dist.loc, q.base_dist.scale
    return 0.5 * (scale.square() + mean.square() - 1) - scale.log()


def loss_of(objective, model, guide, *args, seed=1):
    torch.manual_seed(seed)
    return objective.differentiable_loss(model, guide, *args)


def log_likelihood(vae, x, *, num_particles=1):
    torch.manual_seed(1)
    draws = [vae.encode(x).rsample() for _ in range(num_particles)]
    return sum(vae.p_x_given_z(z).log_prob(x) for z in draws).sum() / num_particles


def assert_same(loss, expected, vae):
    """Value and gradient."""
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    params = list(vae.parameters())
    grads = [
        torch.autograd.grad(found, params, materialize_grads=True) for found in (loss, expected)
    ]
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_each_dimension_has_its_floor(x, num_particles):
    vae = spread_out(families.DiagonalNormal)
    kl = kl_by_hand(vae.encode(x))
    # Just below the middle dimension's mean, where some of its rows are below as well.
    floor = 0.98 * kl.mean(0).median().item()
    middle = kl.mean(0).argsort()[1]
    assert kl.mean(0).min() < floor
    assert (kl[:, middle] < floor).any()
    charged = sum(k if k > floor else floor for k in kl.mean(0))
    expected = 5 * charged - log_likelihood(vae, x, num_particles=num_particles)
    objective = FreeBits_ELBO(floor, num_particles=num_particles)
    assert_same(loss_of(objective, vae.model, vae.guide, x), expected, vae)


@pytest.mark.parametrize("floor_per_element", [0.1, 10.0])
def test_correlated_guide_has_one_floor_for_all_its_dimensions(x, floor_per_element):
    vae = spread_out(families.FullCovarianceNormal)
    q = vae.encode(x)
    mean, covariance = q.mean, q.covariance_matrix
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    kl = 0.5 * (trace + mean.square().sum(-1) - 3 - torch.logdet(covariance)).mean()
    assert 3 * 0.1 < kl < 3 * 10.0
    charged = kl if floor_per_element == 0.1 else torch.tensor(30.0)
    expected = 5 * charged - log_likelihood(vae, x)
    assert_same(loss_of(FreeBits_ELBO(floor_per_element), vae.model, vae.guide, x), expected, vae)


@pytest.mark.parametrize("nats", [0.02, 5.0])
def test_draws_stand_in_where_no_kl_is_known(x, nats):
    base = spread_out(families.DiagonalNormal)
    mixture = priors.GaussianMixture(3, 2)
    vae = pv.VAE(prior=mixture, likelihood=base.p_x_given_z, guide=base.q_z_given_x)
    torch.manual_seed(1)
    z = [vae.encode(x).rsample() for _ in range(2)]
    kl = sum((vae.encode(x).log_prob(d) - mixture().log_prob(d)).mean() for d in z) / 2
    charged = kl if nats == 0.02 else torch.tensor(15.0)
    assert 3 * 0.02 < kl < 15
    expected = 5 * charged - log_likelihood(vae, x, num_particles=2)
    loss = loss_of(FreeBits_ELBO(nats, num_particles=2), vae.model, vae.guide, x)
    assert_same(loss, expected, vae)


def test_each_of_several_sites_has_its_floor():
    programs, x = Chain(), 2 + torch.randn(50)
    a, s, b, c, t = programs.coefficients
    torch.manual_seed(1)
    z2 = a * x + s * torch.randn(50)
    z1 = b * z2 + c * x + t * torch.randn(50)
    kl2 = (
        dist.Normal(a * x, s).log_prob(z2) - dist.Normal(programs.shift, 1.0).log_prob(z2)
    ).mean()
    kl1 = (dist.Normal(b * z2 + c * x, t).log_prob(z1) - dist.Normal(z2, 1.0).log_prob(z1)).mean()
    low, high = sorted([kl1.item(), kl2.item()])
    floor = (low + high) / 2
    charged = (kl1 if kl1 > kl2 else kl2) + floor
    expected = 50 * charged - dist.Normal(z1, 1.0).log_prob(x).sum()
    loss = loss_of(FreeBits_ELBO(floor), programs.model, programs.guide, x)
    assert_same(loss, expected, programs)


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_nothing_free_is_the_elbo(x, family):
    vae = spread_out(family)
    expected = loss_of(TraceMeanField_ELBO(), vae.model, vae.guide, x)
    assert_same(loss_of(FreeBits_ELBO(0.0), vae.model, vae.guide, x), expected, vae)


def test_nothing_free_is_the_elbo_of_several_sites():
    programs, x = Chain(exact=True), torch.zeros(1)
    model, guide = programs.model, programs.guide
    torch.manual_seed(54)
    guide_trace = poutine.trace(guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    kls = [
        guide_trace.nodes[name]["log_prob_sum"] - model_trace.nodes[name]["log_prob_sum"]
        for name in ("z1", "z2")
    ]
    assert min(kls) < -0.1  # by chance: an estimate, which must not be cut off at 0
    expected = loss_of(Trace_ELBO(), model, guide, x, seed=54)
    assert_same(loss_of(FreeBits_ELBO(0), model, guide, x, seed=54), expected, programs)


def test_scale_multiplies_all_of_it_and_a_kl_weight_the_kl(x):
    vae = spread_out(families.DiagonalNormal)
    kl = kl_by_hand(vae.encode(x)).mean(0)
    charged = sum(max(k.item(), 0.6) for k in kl)
    expected = 20 * (5 * 0.3 * charged - log_likelihood(vae, x).item())
    weighted = [kl_weighted(program, 0.3) for program in in_plate_of(vae, 100)]
    assert loss_of(FreeBits_ELBO(0.6), *weighted, x).item() == pytest.approx(expected, abs=1e-8)


def test_rows_of_a_larger_scale_count_more_in_the_mean(x):
    vae = spread_out(families.DiagonalNormal)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    scaled = [poutine.scale(program, scale) for program in (vae.model, vae.guide)]
    repeated = x.repeat_interleave(scale.long(), 0)
    kl = kl_by_hand(vae.encode(repeated)).mean(0)
    log_p = loss_of(Trace_ELBO(), *[kl_weighted(p, 0.0) for p in scaled], x).item()
    expected = 15 * sum(max(k.item(), 0.6) for k in kl) + log_p
    assert loss_of(FreeBits_ELBO(0.6), *scaled, x).item() == pytest.approx(expected, abs=1e-9)


class Ignoring(nn.Module):
    def forward(self, z):
        return z.new_zeros(*z.shape[:-1], 6)


def test_dimension_below_its_floor_has_no_gradient(x):
    family = families.DiagonalNormal(3)
    vae = pv.VAE(
        prior=priors.StandardNormal(3),
        likelihood=likelihoods.Gaussian(Ignoring(), event_shape=(6,)),
        guide=guides.AmortizedGuide(family, networks.MLP(6, (), 6)),
    )
    with torch.no_grad():
        vae.q_z_given_x.encoder.layers[-1].bias[:3] = torch.tensor([0.0, 0.0, 4.0])
    kl = kl_by_hand(vae.encode(x)).mean(0)
    floor = (kl[:2].max().item() + kl[2].item()) / 2
    loss = loss_of(FreeBits_ELBO(floor), vae.model, vae.guide, x)
    loss.backward()
    layer = vae.q_z_given_x.encoder.layers[-1]
    below, above = [0, 1, 3, 4], [2, 5]  # means and scales of dimensions 1, 2; and of 3
    assert (layer.weight.grad[below] == 0).all()
    assert (layer.bias.grad[below] == 0).all()
    assert (layer.weight.grad[above].abs() > 1e-3).all()
    assert (layer.bias.grad[above].abs() > 1e-3).all()


def test_svi_takes_the_objective(x):
    vae = spread_out(families.DiagonalNormal)
    expected = loss_of(FreeBits_ELBO(0.6), vae.model, vae.guide, x).item()
    optim = pyro.optim.SGD({"lr": 1e-3})
    svi = pyro.infer.SVI(vae.model, vae.guide, optim, FreeBits(0.6).objective())
    torch.manual_seed(1)
    assert svi.step(x) == pytest.approx(expected, abs=1e-10)
    torch.manual_seed(1)
    assert svi.evaluate_loss(x) < expected


def test_the_wish_says_what_it_is():
    assert repr(FreeBits(0.25)) == "FreeBits(0.25)"
    objective = FreeBits(0.25).objective(num_particles=3)
    assert (objective.nats, objective.num_particles) == (0.25, 3)


@pytest.mark.parametrize("nats", [-0.1, math.nan, math.inf, "few", None])
@pytest.mark.parametrize("kind", [FreeBits, FreeBits_ELBO])
def test_nats_that_are_none_are_refused(kind, nats):
    with pytest.raises(ValueError, match="nats must be finite and not negative; got"):
        kind(nats)


def test_number_of_draws_must_be_one():
    with pytest.raises(ValueError, match="num_particles must be a positive integer; got 0"):
        FreeBits_ELBO(0.1, num_particles=0)


def test_auxiliary_site_has_no_kl(x):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"got \['u'\], which have no KL"):
        FreeBits_ELBO(0.1).loss(model, guide, x)


def test_device_follows_the_data(x):
    vae = spread_out(families.DiagonalNormal)
    with torch.device("meta"):
        loss = FreeBits_ELBO(0.6).differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
    assert loss.device.type == "cpu"
    assert kl_divergence(vae.encode(x), vae.p_z()).min() > 0
