"""The three gradients of the importance-weighted bound: draw by draw, in mean, in variance."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from test_objectives_importance_weighted import CORRELATED, Chain
from torch import nn

from pyro_vae import families, guides
from pyro_vae.distributions import CholeskyNormal, DistributionModule, FactorNormal
from pyro_vae.objectives import ImportanceWeighted_ELBO, kl_weighted

FAMILIES = [
    families.DiagonalNormal,
    families.FullCovarianceNormal,
    partial(families.LowRankNormal, rank=2),
    partial(families.Flow, hidden=(5,), context_dim=2),
]


def gradient(objective, programs, x, *, seed):
    """Gradient of minus the loss, by parameter's name; 0 where there is none."""
    torch.manual_seed(seed)
    loss = objective.differentiable_loss(programs.model, programs.guide, x)
    params = dict(programs.named_parameters())
    grads = torch.autograd.grad(-loss, list(params.values()), materialize_grads=True)
    return dict(zip(params, grads, strict=True))


def by_hand(vae, x, *, num_particles, seed, power):
    """Sum of w^power (d log w / dz)(dz / dphi) and of w d log w / dtheta, w normalized."""
    torch.manual_seed(seed)
    draws, paths, log_ws, sources = [], [], [], []
    for _ in range(num_particles):
        q = vae.encode(x)
        z = q.rsample()
        value = z.detach().requires_grad_()
        with torch.no_grad():
            frozen = vae.encode(x)
        log_p = vae.p_z().log_prob(value) + vae.p_x_given_z(value).log_prob(x)
        log_w = log_p - frozen.log_prob(value)
        paths.append(torch.autograd.grad(log_w.sum(), value, retain_graph=True)[0])
        draws.append(z)
        log_ws.append(log_w.detach())
        sources.append(log_p)
    weights = torch.stack(log_ws).softmax(0)
    surrogate = sum(
        (w.pow(power).unsqueeze(-1) * path * z).sum()
        for w, path, z in zip(weights, paths, draws, strict=True)
    )
    phi = dict(vae.q_z_given_x.named_parameters())
    in_phi = torch.autograd.grad(surrogate, list(phi.values()), materialize_grads=True)
    theta = dict(vae.p_x_given_z.named_parameters())
    in_theta = torch.autograd.grad((weights * torch.stack(sources)).sum(), list(theta.values()))
    found = {f"q_z_given_x.{name}": g for name, g in zip(phi, in_phi, strict=True)}
    return found | {f"p_x_given_z.{name}": g for name, g in zip(theta, in_theta, strict=True)}


@pytest.mark.parametrize(("name", "power"), [("stl", 1), ("dreg", 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_its_formula_at_the_draws(family, name, power):
    vae, x = small_vae(family=family, variance=0.3, learn_variance=True), torch.randn(5, 6)
    found = gradient(ImportanceWeighted_ELBO(4, gradient=name), vae, x, seed=1)
    expected = by_hand(vae, x, num_particles=4, seed=1, power=power)
    assert found.keys() == expected.keys()
    for key in found:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_gradient_is_the_total_derivative_of_the_formula(family):
    vae, x = small_vae(family=family, variance=0.3, learn_variance=True), torch.randn(5, 6)
    found = gradient(ImportanceWeighted_ELBO(4), vae, x, seed=1)
    torch.manual_seed(1)
    log_ws = []
    for _ in range(4):
        q = vae.encode(x)
        z = q.rsample()
        log_p = vae.p_z().log_prob(z) + vae.p_x_given_z(z).log_prob(x)
        log_ws.append(log_p - vae.encode(x).log_prob(z))  # another q: by the ordinary route
    bound = torch.stack(log_ws).exp().mean(0).log().sum()
    expected = torch.autograd.grad(bound, list(vae.parameters()))
    for key, got, wanted in zip(found, found.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9, msg=key)


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])


def largest_z_score(differences):
    spread = differences.std(0) / len(differences) ** 0.5
    return (differences.mean(0) / spread.clamp(min=1e-12)).abs().max().item()


def differences(name, programs, x, *, num_particles, repeats):
    """Of a gradient from the plain one at the same draws, ``(repeats, parameters)``."""
    objectives = (
        ImportanceWeighted_ELBO(num_particles, gradient=name),
        ImportanceWeighted_ELBO(num_particles),
    )
    found = []
    for seed in range(repeats):
        other, plain = (flat(gradient(o, programs, x, seed=seed)) for o in objectives)
        found.append(other - plain)
    return torch.stack(found)


def tiny_vae(family):
    return small_vae(family=family, features=3, latent_dim=2, variance=0.5, learn_variance=True)


class Weighted:
    """Programs with a KL weight."""

    def __init__(self, programs, weight):
        self.model, self.guide = (kl_weighted(p, weight) for p in (programs.model, programs.guide))
        self.named_parameters = programs.named_parameters


@pytest.mark.parametrize(
    ("name", "num_particles"), [("stl", 1), ("dreg", 1), ("dreg", 2), ("dreg", 6)]
)
@pytest.mark.parametrize("kind", ["vae", "chain", "weighted"])
def test_gradient_has_the_mean_of_the_plain_one(kind, name, num_particles):
    if kind == "chain":
        programs, x = Chain(), torch.randn(1).expand(300)
    else:
        programs = tiny_vae(families.FullCovarianceNormal)
        x = torch.randn(1, 3).expand(300, 3)
    if kind == "weighted":
        programs = Weighted(programs, 0.4)
    found = differences(name, programs, x, num_particles=num_particles, repeats=40)
    assert found.abs().max() > 1e-3  # another estimator
    assert largest_z_score(found) < MAX_Z


@pytest.mark.parametrize("kind", ["vae", "chain"])
def test_sticking_the_landing_is_biased_beyond_one_draw(kind):
    # As its docstring says; and the test above would see such a bias.
    if kind == "chain":
        programs, x = Chain(), torch.randn(1).expand(300)
    else:
        programs = tiny_vae(families.FullCovarianceNormal)
        x = torch.randn(1, 3).expand(300, 3)
    found = differences("stl", programs, x, num_particles=6, repeats=40)
    assert largest_z_score(found) > 2 * MAX_Z


class Affine(DistributionModule):
    """A guide N(A x + b, S), S as ``make`` has it, that starts where it is exact."""

    def __init__(self, truth, make, start):
        super().__init__()
        self.event_shape, self.make = torch.Size([truth.latent_dim]), make
        origin, basis = torch.zeros(1, truth.num_features), torch.eye(truth.num_features)
        shift = truth.posterior(origin).mean[0]
        self.matrix = nn.Parameter(truth.posterior(basis).mean - shift)
        self.shift = nn.Parameter(shift)
        covariance = truth.posterior(origin).covariance_matrix[0]
        self.scales = nn.ParameterList(start(covariance))

    def forward(self, x):
        return self.make(x @ self.matrix + self.shift, *self.scales)


EXACT = {
    "diagonal": (
        CORRELATED.maximum_likelihood(CORRELATED.simulate(100, seed=1)[0], 2),
        lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        lambda covariance: [covariance.diagonal().sqrt()],
    ),
    "full": (
        CORRELATED,
        lambda loc, tril: CholeskyNormal(loc, scale_tril=tril.tril()),
        lambda covariance: [torch.linalg.cholesky(covariance)],
    ),
    "low rank": (
        CORRELATED,
        FactorNormal,
        lambda covariance: [
            torch.linalg.cholesky(covariance - 0.1 * torch.eye(2)),
            torch.full((2,), 0.1),
        ],
    ),
}


def exact_programs(kind):
    if kind == "chain":
        return Chain(exact=True), torch.randn(5), "coefficients"
    truth, make, start = EXACT[kind]
    return linear_vae(truth, guide=Affine(truth, make, start)), torch.randn(5, 3), "q_z_given_x"


@pytest.mark.parametrize("num_particles", [1, 5])
@pytest.mark.parametrize("name", ["stl", "dreg"])
@pytest.mark.parametrize("kind", [*EXACT, "chain"])
def test_gradient_in_the_guide_vanishes_at_the_exact_posterior(kind, name, num_particles):
    programs, x, part = exact_programs(kind)
    found = gradient(ImportanceWeighted_ELBO(num_particles, gradient=name), programs, x, seed=1)
    plain = gradient(ImportanceWeighted_ELBO(num_particles), programs, x, seed=1)
    in_guide = [key for key in found if key.startswith(part)]
    assert in_guide
    for key in in_guide:
        assert found[key].abs().max() < 1e-10
        assert plain[key].abs().max() > 1e-2  # which has mean 0 alone
    for key in found.keys() - set(in_guide):  # the model's is the gradient of the log evidence
        torch.testing.assert_close(found[key], plain[key], rtol=1e-9, atol=1e-9)


def test_signal_in_the_guide_is_lost_by_the_plain_gradient_alone():
    family, encoder = families.DiagonalNormal(2), nn.Linear(3, 4)
    gram = CORRELATED.weight.T @ CORRELATED.weight + CORRELATED.variance * torch.eye(2)
    scale = 1.1 * (CORRELATED.variance / gram.diagonal()).sqrt()
    with torch.no_grad():  # near the best diagonal guide
        encoder.weight.zero_()
        encoder.weight[:2] = torch.linalg.solve(gram, CORRELATED.weight.T)
        encoder.bias.copy_(torch.cat([torch.full((2,), 0.1), torch.expm1(scale).log()]))
    vae = linear_vae(CORRELATED, guide=guides.AmortizedGuide(family, encoder))
    x = torch.tensor([[0.5, -1.0, 2.0]]).expand(400, 3)

    def draws(name, num_particles):
        objective = ImportanceWeighted_ELBO(num_particles, gradient=name)
        found = [gradient(objective, vae, x, seed=seed) for seed in range(10)]
        return torch.stack(
            [
                torch.cat(
                    [g["q_z_given_x.encoder.weight"].flatten(), g["q_z_given_x.encoder.bias"]]
                )
                for g in found
            ]
        )

    def signal_to_noise(draws):
        return (draws.mean(0).norm() / draws.var(0).sum().sqrt()).item()

    plain, doubly = ({k: draws(name, k) for k in (1, 50)} for name in ("plain", "dreg"))
    assert doubly[50].var(0).sum() < 0.01 * plain[50].var(0).sum()
    assert signal_to_noise(plain[50]) < signal_to_noise(plain[1]) / 4
    assert signal_to_noise(doubly[50]) > 2 * signal_to_noise(doubly[1])


class Shared(nn.Module):
    """A model and a guide that share their mean, as a VampPrior shares an encoder."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        pyro.module("shared", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        pyro.module("shared", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.mean + 0.3 * x, 1.0))


def test_shared_parameter_gets_the_contributions_of_model_and_guide():
    programs, x = Shared(), torch.full((2000,), 1.5)
    found = differences("dreg", programs, x, num_particles=4, repeats=40)
    assert found.abs().max() > 1e-3
    assert largest_z_score(found) < MAX_Z


@pytest.mark.parametrize("name", ["plain", "stl", "dreg"])
def test_guide_that_is_held_fixed_leaves_the_gradient_of_the_model(name):
    vae, x = small_vae(family=families.FullCovarianceNormal, variance=0.3), torch.randn(5, 6)
    free = gradient(ImportanceWeighted_ELBO(3), vae, x, seed=1)
    vae.q_z_given_x.requires_grad_(False).eval()  # or Pyro warns
    torch.manual_seed(1)
    objective = ImportanceWeighted_ELBO(3, gradient=name)
    objective.loss_and_grads(vae.model, vae.guide, x)
    for key, param in vae.named_parameters():
        if key.startswith("q_z_given_x"):
            assert param.grad is None
        else:
            torch.testing.assert_close(-param.grad, free[key], rtol=1e-9, atol=1e-9)
