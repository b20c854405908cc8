"""The weight on the KL: -(E_q log p(x|z) - beta KL), against the formula with common noise."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.nn import functional

from pyro_vae import families, gaussian_vae
from pyro_vae.objectives import kl_weighted

WEIGHTS = [0.0, 0.1, 1.0, 3.0]
ELBOS = [Trace_ELBO, TraceMeanField_ELBO]


@pytest.fixture(params=[families.DiagonalNormal, families.FullCovarianceNormal])
def vae(request):
    made = gaussian_vae(
        features=5, latent_dim=3, hidden=(7,), variance=0.5, learn_variance=False,
        family=request.param,
    )  # fmt: skip
    with torch.no_grad():  # away from q = p, so that every term differs
        made.q_z_given_x.encoder.layers[-1].bias.copy_(torch.linspace(-1, 1.5, made_params(made)))
    return made


def made_params(vae):
    return vae.q_z_given_x.family.num_params


@pytest.fixture
def x():
    return 2 * torch.randn(6, 5)


def terms(vae, x, *, seed):
    """Sums over data of the log densities at one draw, and of the exact KL, by hand."""
    k, n, c = 3, 5, 0.5
    params = vae.q_z_given_x.encoder(x)
    mu = params[:, :k]
    if isinstance(vae.q_z_given_x.family, families.DiagonalNormal):
        tril = torch.diag_embed(1e-4 + functional.softplus(params[:, k:]))
    else:
        tril = vae.q_z_given_x(x).scale_tril
    torch.manual_seed(seed)
    noise = torch.randn(len(x), k)
    z = mu + (tril @ noise[..., None])[..., 0]
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum()
    residual = (x - vae.decode(z)).square().sum()
    covariance = tril @ tril.mT
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum()
    return {
        "log_likelihood": -residual / (2 * c) - len(x) * n / 2 * math.log(2 * math.pi * c),
        "log_prior": -z.square().sum() / 2 - z.numel() / 2 * math.log(2 * math.pi),
        "log_q": -noise.square().sum() / 2 - log_det - z.numel() / 2 * math.log(2 * math.pi),
        "kl": 0.5 * (trace + mu.square().sum() - mu.numel()) - log_det,
    }


def loss_of(elbo, model, guide, x, *, seed):
    torch.manual_seed(seed)
    return elbo().differentiable_loss(model, guide, x)


def expected_loss(elbo, vae, x, *, weight, seed):
    by_hand = terms(vae, x, seed=seed)
    kl = by_hand["kl"] if elbo is TraceMeanField_ELBO else by_hand["log_q"] - by_hand["log_prior"]
    return -(by_hand["log_likelihood"] - weight * kl)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("elbo", ELBOS)
def test_kl_weighted_loss_is_its_formula(vae, x, elbo, weight):
    loss = loss_of(elbo, kl_weighted(vae.model, weight), kl_weighted(vae.guide, weight), x, seed=1)
    expected = expected_loss(elbo, vae, x, weight=weight, seed=1)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    if weight != 1:
        assert abs(loss.item() - expected_loss(elbo, vae, x, weight=1, seed=1).item()) > 0.1


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("elbo", ELBOS)
def test_kl_weighted_gradient_is_that_of_its_formula(vae, x, elbo, weight):
    loss = loss_of(elbo, kl_weighted(vae.model, weight), kl_weighted(vae.guide, weight), x, seed=1)
    expected = expected_loss(elbo, vae, x, weight=weight, seed=1)
    params = list(vae.parameters())
    for got, wanted in zip(
        torch.autograd.grad(loss, params), torch.autograd.grad(expected, params), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_kl_weighted_programs_run_in_svi(vae, x):
    svi = SVI(
        kl_weighted(vae.model, 0.1),
        kl_weighted(vae.guide, 0.1),
        pyro.optim.SGD({"lr": 0.0}),
        Trace_ELBO(),
    )
    torch.manual_seed(1)
    expected = expected_loss(Trace_ELBO, vae, x, weight=0.1, seed=1).item()
    torch.manual_seed(1)
    assert svi.step(x) == pytest.approx(expected, abs=1e-10)


def test_kl_weight_multiplies_a_scale_that_is_already_there(vae, x):
    model, guide = (poutine.scale(kl_weighted(p, 0.1), 0.25) for p in (vae.model, vae.guide))
    inside = loss_of(Trace_ELBO, model, guide, x, seed=1).item()
    model, guide = (kl_weighted(poutine.scale(p, 0.25), 0.1) for p in (vae.model, vae.guide))
    outside = loss_of(Trace_ELBO, model, guide, x, seed=1).item()
    expected = 0.25 * expected_loss(Trace_ELBO, vae, x, weight=0.1, seed=1).item()
    assert (inside, outside) == pytest.approx((expected, expected), abs=1e-10)


def test_wrapping_the_model_alone_weighs_the_prior_and_not_the_kl(vae, x):
    loss = loss_of(Trace_ELBO, kl_weighted(vae.model, 0.1), vae.guide, x, seed=1).item()
    t = terms(vae, x, seed=1)
    expected = -(t["log_likelihood"] + 0.1 * t["log_prior"] - t["log_q"]).item()
    assert loss == pytest.approx(expected, abs=1e-10)
    assert abs(loss - expected_loss(Trace_ELBO, vae, x, weight=0.1, seed=1).item()) > 0.1


def test_wrapping_the_guide_alone_weighs_the_entropy_and_not_the_kl(vae, x):
    loss = loss_of(Trace_ELBO, vae.model, kl_weighted(vae.guide, 0.1), x, seed=1).item()
    t = terms(vae, x, seed=1)
    expected = -(t["log_likelihood"] + t["log_prior"] - 0.1 * t["log_q"]).item()
    assert loss == pytest.approx(expected, abs=1e-10)
    assert abs(loss - expected_loss(Trace_ELBO, vae, x, weight=0.1, seed=1).item()) > 0.1


def test_weight_of_one_returns_the_program_itself(vae):
    program = vae.model
    assert kl_weighted(program, 1.0) is program


def test_kl_weighted_programs_return_what_the_programs_return(vae, x):
    torch.manual_seed(1)
    z = vae.guide(x)
    torch.manual_seed(1)
    assert torch.equal(kl_weighted(vae.guide, 0.3)(x), z)
    assert torch.equal(kl_weighted(vae.model, 0.3)(x), x)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_kl_weight_that_is_no_weight_raises(vae, weight):
    with pytest.raises(
        ValueError, match=f"kl_weight must be finite and not negative; got {weight}"
    ):
        kl_weighted(vae.model, weight)
