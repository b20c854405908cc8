"""The importance-weighted bound against its formula, at common noise and in expectation."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import nn

from pyro_vae import families
from pyro_vae.datasets import LinearGaussian, linear_gaussian
from pyro_vae.distributions import DistributionModule
from pyro_vae.objectives import ImportanceWeighted_ELBO, kl_weighted

GRADIENTS = ["plain", "sticking_the_landing", "doubly_reparametrized"]
FAMILIES = [
    families.IsotropicNormal,
    families.DiagonalNormal,
    partial(families.LowRankNormal, rank=2),
    families.FullCovarianceNormal,
    partial(families.Flow, hidden=(5,), context_dim=2),
]


def log_weights(vae, x, *, num_particles, seed, beta=1.0):
    """By the parts' own densities, ``(K, N)``, at the draws that the seed gives."""
    torch.manual_seed(seed)
    z = torch.stack([vae.encode(x).rsample() for _ in range(num_particles)])
    log_q = torch.stack([vae.encode(x).log_prob(draw) for draw in z])
    log_p = torch.stack([vae.p_x_given_z(draw).log_prob(x) for draw in z])
    return log_p - beta * (log_q - vae.p_z().log_prob(z))


def log_mean(log_weights):
    return log_weights.exp().mean(0).log()


def seeded_loss(objective, model, guide, *args, seed=1):
    torch.manual_seed(seed)
    return objective.loss(model, guide, *args)


def per_datum_bounds(objective, vae, x):
    """The bound of each datum: the derivative of the loss in the scale of its row."""
    scale = torch.ones(len(x), requires_grad=True)
    loss = objective.differentiable_loss(
        poutine.scale(vae.model, scale), poutine.scale(vae.guide, scale), x
    )
    return -torch.autograd.grad(loss, scale)[0]


class Chain(nn.Module):
    """z2 -> z1 -> x, with p(x) = N(0, 3), and a guide q(z2 | x) q(z1 | z2, x)."""

    def __init__(self, *, exact=False):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.0))
        # p(z2 | x) = N(x/3, 2/3) and p(z1 | z2, x) = N((z2 + x)/2, 1/2).
        off = 0.0 if exact else 1.0
        self.coefficients = nn.Parameter(
            torch.tensor([1 / 3, (2 / 3) ** 0.5, 1 / 2, 1 / 2, 0.5**0.5])
            + off * torch.tensor([0.2, 0.1, 0.3, -0.2, 0.2])
        )

    def model(self, x):
        pyro.module("chain", self)
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(self.shift, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(self, x):
        pyro.module("chain", self)
        a, s, b, c, t = self.coefficients
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(a * x, s))
            pyro.sample("z1", dist.Normal(b * z2 + c * x, t))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_formula_at_the_draws(family, gradient):
    vae, x = small_vae(family=family, variance=0.3), torch.randn(5, 6)
    expected = -log_mean(log_weights(vae, x, num_particles=4, seed=1)).sum().item()
    objective = ImportanceWeighted_ELBO(4, gradient=gradient)
    for loss in (objective.loss, objective.differentiable_loss, objective.loss_and_grads):
        torch.manual_seed(1)
        found = torch.as_tensor(loss(vae.model, vae.guide, x)).item()
        assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_loss_of_two_latent_sites_is_the_formula_at_the_draws(gradient):
    programs, x = Chain(), torch.randn(5)
    a, s, b, c, t = programs.coefficients.detach()
    torch.manual_seed(1)
    noise = torch.stack([torch.randn(5) for _ in range(8)])
    noise = noise.reshape(4, 2, 5)  # z2 is drawn before z1
    z2 = a * x + s * noise[:, 0]
    z1 = b * z2 + c * x + t * noise[:, 1]
    log_w = (
        dist.Normal(0.0, 1.0).log_prob(z2)
        + dist.Normal(z2, 1.0).log_prob(z1)
        + dist.Normal(z1, 1.0).log_prob(x)
        - dist.Normal(a * x, s).log_prob(z2)
        - dist.Normal(b * z2 + c * x, t).log_prob(z1)
    )
    objective = ImportanceWeighted_ELBO(4, gradient=gradient)
    torch.manual_seed(1)
    loss = objective.differentiable_loss(programs.model, programs.guide, x)
    assert loss.item() == pytest.approx(-log_mean(log_w).sum().item(), abs=1e-10)


def in_plate_of(vae, full):
    """The programs with x as a sub-sample of ``full`` rows."""

    def model(x):
        with pyro.plate("data", full, subsample=torch.arange(len(x)), dim=-1):
            z = pyro.sample("z", vae.p_z())
            pyro.sample("x", vae.p_x_given_z(z), obs=x)

    def guide(x):
        with pyro.plate("data", full, subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("z", vae.q_z_given_x(x))

    return model, guide


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("factor", [0.25, 20.0])
def test_scale_of_the_plate_multiplies_the_bound_of_each_datum(factor, gradient):
    vae, x = small_vae(family=families.DiagonalNormal, variance=0.3), torch.randn(5, 6)
    weights = log_weights(vae, x, num_particles=4, seed=1)
    expected = -factor * log_mean(weights).sum().item()
    objective = ImportanceWeighted_ELBO(4, gradient=gradient)
    scaled = [poutine.scale(program, factor) for program in (vae.model, vae.guide)]
    assert seeded_loss(objective, *scaled, x) == pytest.approx(expected, abs=1e-9)
    if factor > 1:
        sub_sampled = in_plate_of(vae, int(factor) * len(x))
        assert seeded_loss(objective, *sub_sampled, x) == pytest.approx(expected, abs=1e-9)
    # Pyro's takes the mean of powers of weights, which is larger for powers above 1.
    renyi = RenyiELBO(alpha=0, num_particles=4)
    assert seeded_loss(renyi, vae.model, vae.guide, x) == pytest.approx(expected / factor)
    of_powers = -log_mean(factor * weights).sum().item()
    assert seeded_loss(renyi, *scaled, x) == pytest.approx(of_powers, abs=1e-9)
    assert (of_powers - expected) * (1 - factor) > 0.3


def test_scale_may_differ_from_row_to_row():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    torch.manual_seed(1)
    found = per_datum_bounds(ImportanceWeighted_ELBO(3), vae, x)
    expected = log_mean(log_weights(vae, x, num_particles=3, seed=1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_draws_of_a_sub_sampled_plate_are_of_the_same_rows():
    data, rows, log_ws = torch.randn(50), [], []

    def model():
        with pyro.plate("data", 50, subsample_size=5, dim=-1) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])
        log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(data[index])
        rows.append(index)
        log_ws.append(log_p - dist.Normal(0.3 * data[index], 0.8).log_prob(z))

    def guide():
        with pyro.plate("data", 50, subsample_size=5, dim=-1) as index:
            pyro.sample("z", dist.Normal(0.3 * data[index], 0.8))

    loss = ImportanceWeighted_ELBO(4).loss(model, guide)
    assert all(torch.equal(index, rows[0]) for index in rows)
    assert loss == pytest.approx(-10 * log_mean(torch.stack(log_ws)).sum().item(), abs=1e-9)
    ImportanceWeighted_ELBO(1).loss(model, guide)
    assert not torch.equal(rows[-1], rows[0])  # drawn anew for the next loss


def test_mask_leaves_rows_out():
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(4, 6)
    mask = torch.tensor([True, False, True, False])
    bounds = log_mean(log_weights(vae, x, num_particles=3, seed=1))
    masked = [poutine.mask(program, mask) for program in (vae.model, vae.guide)]
    loss = seeded_loss(ImportanceWeighted_ELBO(3), *masked, x)
    assert loss == pytest.approx(-bounds[mask].sum().item(), abs=1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_kl_weight_is_inside_and_the_plate_scale_outside(beta, gradient):
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(5, 6)
    weights = log_weights(vae, x, num_particles=4, seed=1, beta=beta)
    expected = -20 * log_mean(weights).sum().item()
    objective = ImportanceWeighted_ELBO(4, gradient=gradient)
    model, guide = in_plate_of(vae, 100)
    weighted = [kl_weighted(program, beta) for program in (model, guide)]
    torch.manual_seed(1)
    loss = objective.differentiable_loss(*weighted, x)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    twice = [kl_weighted(kl_weighted(program, beta / 2), 2.0) for program in (model, guide)]
    assert seeded_loss(objective, *twice, x) == pytest.approx(expected, abs=1e-9)


def test_one_draw_is_the_elbo():
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(5, 6)
    torch.manual_seed(1)
    elbo = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    torch.manual_seed(1)
    found = ImportanceWeighted_ELBO(num_particles=1).differentiable_loss(vae.model, vae.guide, x)
    assert found.item() == pytest.approx(elbo.item(), abs=1e-10)
    params = list(vae.parameters())
    grads = [torch.autograd.grad(loss, params) for loss in (found, elbo)]
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("num_particles", [1, 2, 7])
def test_bound_at_the_exact_posterior_is_the_log_evidence(num_particles, gradient):
    data = linear_gaussian(5, features=4, latent_dim=2, variance=0.2, seed=1)
    objective = ImportanceWeighted_ELBO(num_particles, gradient=gradient)
    vae = linear_vae(data.truth)
    loss = objective.differentiable_loss(vae.model, vae.guide, data.x)
    assert loss.item() == pytest.approx(-data.log_evidence.sum().item(), abs=1e-9)
    chain, x = Chain(exact=True), torch.randn(5)
    loss = objective.differentiable_loss(chain.model, chain.guide, x)
    log_evidence = dist.Normal(0.0, 3**0.5).log_prob(x).sum()
    assert loss.item() == pytest.approx(-log_evidence.item(), abs=1e-9)


class BestDiagonal(DistributionModule):
    """The best diagonal guide of a linear Gaussian model: variances c / M_jj."""

    def __init__(self, truth):
        super().__init__()
        self.truth, self.event_shape = truth, torch.Size([truth.latent_dim])
        gram = truth.weight.T @ truth.weight + truth.variance * torch.eye(truth.latent_dim)
        self.scale = (truth.variance / gram.diagonal()).sqrt()

    def forward(self, x):
        return dist.Normal(self.truth.posterior(x).mean, self.scale).to_event(1)


# M = [[2, 0.6], [0.6, 2]] has correlation 0.3 and determinant 3.64.
CORRELATED = LinearGaussian(
    torch.tensor([[1.0, 0.6], [0.0, 0.8], [0.0, 0.0]], dtype=torch.float64),
    torch.zeros(3, dtype=torch.float64),
    variance=1.0,
)


def test_bound_rises_from_the_elbo_to_the_log_evidence():
    vae = linear_vae(CORRELATED, guide=BestDiagonal(CORRELATED))
    x = torch.tensor([[0.5, -1.0, 2.0]]).expand(20_000, 3)
    log_evidence = CORRELATED.log_prob(x[:1]).item()
    bounds = {}
    for num_particles in (1, 2, 4, 16):
        torch.manual_seed(1)  # the first draws are the same: nested samples
        bounds[num_particles] = per_datum_bounds(ImportanceWeighted_ELBO(num_particles), vae, x)

    def z_score(values):
        return values.mean().item() / (values.std().item() / len(values) ** 0.5)

    assert abs(z_score(bounds[1] - log_evidence + CORRELATED.best_diagonal_gap())) < MAX_Z
    for few, more in ((1, 2), (2, 4), (4, 16)):
        assert z_score(bounds[more] - bounds[few]) > MAX_Z
    assert z_score(log_evidence - bounds[16]) > MAX_Z


def test_bias_at_many_draws_is_chi_square_over_twice_their_number():
    vae = linear_vae(CORRELATED, guide=BestDiagonal(CORRELATED))
    x = torch.tensor([[0.5, -1.0, 2.0]]).expand(4000, 3)
    ratio = per_datum_bounds(ImportanceWeighted_ELBO(128), vae, x) - CORRELATED.log_prob(x)
    # E[mean w] = p(x) exactly, so that is a control variate.
    bias = (ratio.exp() - 1 - ratio).mean().item()
    chi_square = (1 - 0.3**2) / math.sqrt(1 - 4 * 0.3**2) - 1
    assert bias == pytest.approx(chi_square / (2 * 128), rel=0.1)


def test_svi_steps_by_the_gradient_of_the_formula():
    vae, x = small_vae(family=families.FullCovarianceNormal, variance=0.3), torch.randn(5, 6)
    expected = -log_mean(log_weights(vae, x, num_particles=10, seed=1)).sum()
    params = list(vae.parameters())
    wanted = [
        p.detach() - 1e-3 * g
        for p, g in zip(params, torch.autograd.grad(expected, params), strict=True)
    ]
    optim = pyro.optim.SGD({"lr": 1e-3})
    svi = SVI(vae.model, vae.guide, optim, ImportanceWeighted_ELBO(10))
    torch.manual_seed(1)
    assert svi.step(x) == pytest.approx(expected.item(), abs=1e-10)
    for got, stepped in zip(params, wanted, strict=True):
        torch.testing.assert_close(got.detach(), stepped, rtol=0, atol=1e-10)
    torch.manual_seed(1)
    after = svi.evaluate_loss(x)
    assert after == pytest.approx(
        -log_mean(log_weights(vae, x, num_particles=10, seed=1)).sum().item(), abs=1e-10
    )
    assert after < expected.item()


class Program(nn.Module):
    def __init__(self, vae, name):
        super().__init__()
        self.vae, self.name = vae, name

    def forward(self, x):
        return getattr(self.vae, self.name)(x)


def test_objective_makes_a_torch_module_of_two_programs():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    module = ImportanceWeighted_ELBO(3)(Program(vae, "model"), Program(vae, "guide"))
    torch.manual_seed(1)
    loss = module(x)
    expected = -log_mean(log_weights(vae, x, num_particles=3, seed=1)).sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    loss.backward()
    assert all((p.grad != 0).any() for p in vae.parameters())


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_dtype_are_those_of_the_data(gradient, dtype):
    vae = small_vae(family=families.FullCovarianceNormal).to(dtype)
    x = torch.randn(5, 6, dtype=dtype)
    objective = ImportanceWeighted_ELBO(3, gradient=gradient)
    with torch.device("meta"):
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
    assert (loss.device.type, loss.dtype) == ("cpu", dtype)
    assert math.isfinite(loss.item())


def test_loss_takes_no_graph():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    made = []

    def guide(x):
        made.append(vae.guide(x))

    ImportanceWeighted_ELBO(3, gradient="dreg").loss(vae.model, guide, x)
    assert len(made) == 3  # one run a draw
    assert not any(z.requires_grad for z in made)


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_flow_without_inverse_has_the_plain_gradient_alone(gradient):
    flow, x = dist.transforms.planar(2), torch.randn(4, 2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        base = dist.Normal(x, 1.0).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    ImportanceWeighted_ELBO(2).loss_and_grads(model, guide, x)
    with pytest.raises(ValueError, match="gradient must be 'plain' for a guide that knows"):
        ImportanceWeighted_ELBO(2, gradient=gradient).loss_and_grads(model, guide, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "num_particles must be a positive integer; got 0"),
        ({"num_particles": 2.0}, r"num_particles must be a positive integer; got 2\.0"),
        ({"gradient": "drge"}, "gradient must be 'plain', .*got 'drge'. Did you mean 'dreg'?"),
        (
            {"gradient": "doubly_reparameterized"},
            "got 'doubly_reparameterized'. Did you mean 'doubly_reparametrized'?",
        ),
        ({"gradient": None}, "gradient must be 'plain', .*got None"),
    ],
)
def test_objective_refuses_what_it_does_not_know(options, message):
    with pytest.raises(ValueError, match=message):
        ImportanceWeighted_ELBO(**{"num_particles": 2, **options})


def test_short_names_are_names():
    assert ImportanceWeighted_ELBO(2, gradient="stl").gradient == "sticking_the_landing"
    assert ImportanceWeighted_ELBO(2, gradient="dreg").gradient == "doubly_reparametrized"


def normal(name="z"):
    return lambda: pyro.sample(name, dist.Normal(0.0, 1.0))


def coin(infer=None):
    return lambda: pyro.sample("z", dist.Bernoulli(0.5), infer=infer)


def in_plate(*sites):
    def program(x):
        with pyro.plate("data", len(x), dim=-1):
            for site in sites:
                site()

    return program


def observed():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4))


def nothing(x):
    pass


def everywhere(x):
    normal()()


def outside(x):
    normal()()
    in_plate(observed)(x)


SUMMED_OUT = coin(infer={"enumerate": "parallel"})


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            in_plate(coin(), observed),
            in_plate(coin()),
            "site 'z' must be reparametrized .*got Bernoulli. .*TraceEnum_ELBO",
        ),
        (in_plate(SUMMED_OUT, observed), nothing, r"got none for \['z'\]. .*TraceEnum_ELBO"),
        (
            in_plate(normal(), observed),
            nothing,
            "guide must sample every latent site of the model",
        ),
        (
            in_plate(normal(), observed),
            in_plate(normal(), normal("y")),
            "guide must sample only sites that the model has",
        ),
        (outside, everywhere, "site 'z' must lie in the plate 'data'"),
        (everywhere, everywhere, "model must have its sites in the plate"),
        (
            kl_weighted(in_plate(normal(), observed), 0.5),
            in_plate(normal()),
            "same scale; got guide's 'z': 1.0, model's 'z': 0.5, model's 'x': 1.0",
        ),
        (
            in_plate(normal(), observed),
            kl_weighted(in_plate(normal()), 0.0),
            "must give all sites the same scale",
        ),
        (
            in_plate(normal(), observed),
            poutine.scale(in_plate(normal()), 2.0),
            "must give all sites the same scale",
        ),
        (
            in_plate(poutine.scale(normal(), 2.0), observed),
            poutine.scale(in_plate(normal()), 2.0),
            "must give all sites the same scale",
        ),
    ],
)
def test_programs_that_have_no_such_bound_are_refused(model, guide, message):
    with pytest.raises(ValueError, match=message):
        ImportanceWeighted_ELBO(2).loss(model, guide, torch.randn(4))
