from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import linear_vae, small_vae
from pyro import poutine

from pyro_vae import families
from pyro_vae.datasets import linear_gaussian
from pyro_vae.traces import elbo_terms, log_densities


def test_log_weights_at_the_exact_posterior_are_all_the_log_evidence():
    data = linear_gaussian(5, features=6, latent_dim=3, variance=0.2, seed=1)
    log_weights = log_densities(linear_vae(data.truth), data.x, num_samples=4).log_weights
    assert log_weights.shape == (4, 5)
    expected = data.log_evidence.expand(4, 5)
    torch.testing.assert_close(log_weights, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_log_densities_are_those_of_the_parts_at_the_same_draws(family):
    vae, x = small_vae(family=family, variance=0.3), torch.randn(5, 6)
    torch.manual_seed(3)
    densities = log_densities(vae, x, num_samples=4)
    torch.manual_seed(3)
    z = torch.stack([vae.encode(x).rsample() for _ in range(4)])
    torch.testing.assert_close(densities.log_q["z"], vae.encode(x).log_prob(z))
    torch.testing.assert_close(densities.log_p["z"], vae.p_z().log_prob(z))
    torch.testing.assert_close(densities.log_p["x"], vae.p_x_given_z(z).log_prob(x))


def test_kl_per_dimension_adds_up_to_the_closed_form():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    q = vae.encode(x)
    mean, variance = q.mean, q.variance
    expected = 0.5 * (variance + mean.square() - 1 - variance.log())
    terms = elbo_terms(vae, x, num_samples=2)
    torch.testing.assert_close(terms.kl_per_dim, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.kl, expected.sum(-1).expand(2, 5), rtol=0, atol=1e-12)
    assert terms.kl_is_analytic


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_terms_add_up_to_the_elbo(family):
    vae, x = small_vae(family=family), torch.randn(5, 6)
    terms = elbo_terms(vae, x, num_samples=3)
    torch.testing.assert_close(terms.elbo, terms.expected_log_likelihood - terms.kl)


def test_parameter_store_is_not_written_to():
    vae = small_vae(family=families.DiagonalNormal)
    elbo_terms(vae, torch.randn(5, 6), num_samples=1)
    assert list(pyro.get_param_store().keys()) == []


def test_parameter_store_is_read_where_it_knows_the_program():
    def model(x):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(torch.zeros(len(x))))

    x = torch.randn(4)
    programs = SimpleNamespace(model=model, guide=guide)
    pyro.param("shift", torch.tensor(2.0))
    densities = log_densities(programs, x, num_samples=1)
    expected = dist.Normal(2.0, 1.0).log_prob(x).unsqueeze(0)
    torch.testing.assert_close(densities.log_p["x"], expected.detach())


def test_two_latent_sites_have_no_analytic_kl():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        # The exact posterior of the chain: z1 | x, then z2 | z1.
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, (2 / 3) ** 0.5))
            pyro.sample("z2", dist.Normal(z1 / 2, 0.5**0.5))

    x = torch.randn(4)
    programs = SimpleNamespace(model=model, guide=guide)
    terms = elbo_terms(programs, x, num_samples=3)
    assert not terms.kl_is_analytic
    expected = dist.Normal(0.0, 3**0.5).log_prob(x).expand(3, 4)
    torch.testing.assert_close(terms.elbo, expected, rtol=0, atol=1e-12)


def test_plate_scale_does_not_count_and_a_mask_does():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(4, 6)
    mask = torch.tensor([True, False, True, False])
    scaled = SimpleNamespace(
        model=poutine.scale(vae.model, 25.0), guide=poutine.scale(vae.guide, 25.0)
    )
    masked = SimpleNamespace(
        model=poutine.mask(vae.model, mask), guide=poutine.mask(vae.guide, mask)
    )
    weights = []
    for programs in (vae, scaled, masked):
        torch.manual_seed(5)
        weights.append(log_densities(programs, x, num_samples=2).log_weights)
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0] * mask)


def with_site(x, *, plate):
    if plate:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
    else:
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            lambda x: with_site(x, plate=False),
            lambda x: with_site(x, plate=False),
            "site 'z' must lie in the plate 'data' of 4 rows",
        ),
        (
            lambda x: None,
            lambda x: with_site(x, plate=True),
            "guide must sample only sites that the model has",
        ),
    ],
)
def test_log_densities_rejects_programs_that_are_not_per_datum(model, guide, message):
    with pytest.raises(ValueError, match=message):
        log_densities(SimpleNamespace(model=model, guide=guide), torch.zeros(4), num_samples=2)
