import pytest
import torch
from conftest import MAX_Z
from torch.distributions import kl_divergence
from torch.nn import functional

from pyro_vae import families, priors
from pyro_vae.distributions import cholesky_normal, factor_normal
from pyro_vae.families.normal import fill_triangle

def low_rank(latent_dim, **options):
    return families.LowRankNormal(latent_dim, min(2, latent_dim), **options)


NORMALS = {
    families.IsotropicNormal: families.IsotropicNormal,
    families.DiagonalNormal: families.DiagonalNormal,
    families.LowRankNormal: low_rank,
    families.FullCovarianceNormal: families.FullCovarianceNormal,
}
FAMILIES = list(NORMALS.values())


def test_every_family_is_under_test():
    public = {getattr(families, name) for name in families.__all__} - {families.Family}
    assert public == set(NORMALS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_log_q_is_the_change_of_variables_of_its_own_draw(family, latent_dim, monkeypatch):
    made = family(latent_dim)
    params = torch.randn(made.num_params)

    def draw(noise):
        for module in (torch.distributions.normal, cholesky_normal, factor_normal):
            monkeypatch.setattr(module, "_standard_normal", lambda *args, **kwargs: noise)
        q = made(params)
        return q, q.rsample()

    noise = torch.randn(latent_dim)
    q, z = draw(noise)
    jacobian = torch.autograd.functional.jacobian(lambda noise: draw(noise)[1], noise)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum()
    expected = base - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(q.log_prob(z), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
def test_family_has_the_batch_shape_of_its_parameters(family, batch):
    made = family(3)
    q = made(torch.randn(*batch, made.num_params))
    assert q.batch_shape == batch
    assert q.event_shape == made.event_shape == (3,)


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_have_the_moments_of_the_distribution(family):
    made = family(3)
    q = made(torch.randn(made.num_params))
    draws = q.rsample((40_000,))
    covariance = getattr(q, "covariance_matrix", q.variance.diag() if q.variance.dim() else None)
    centered = draws - q.mean
    mean_error = centered.mean(0) / (covariance.diagonal() / len(draws)).sqrt()
    assert mean_error.abs().max() < MAX_Z
    products = centered.unsqueeze(-1) * centered.unsqueeze(-2)
    error = (products.mean(0) - covariance) / (products.std(0) / len(draws) ** 0.5)
    assert error.abs().max() < MAX_Z


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_to_the_standard_normal_is_the_average_log_ratio(family):
    made, prior = family(3), priors.StandardNormal(3)()
    q = made(torch.randn(made.num_params))
    z = q.rsample((40_000,))
    ratio = q.log_prob(z) - prior.log_prob(z)
    error = (ratio.mean() - kl_divergence(q, prior)) / (ratio.std() / 200)
    assert abs(error) < MAX_Z


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family):
    made = family(4)
    params = torch.randn(5, made.num_params, requires_grad=True)
    q = made(params)
    (q.rsample().pow(3).sum() + q.log_prob(torch.ones(4)).sum()).backward()
    assert (params.grad != 0).all()


def test_full_covariance_uses_each_parameter_for_one_entry_of_the_factor():
    for size in range(1, 8):
        values = torch.arange(1.0, size * (size + 1) / 2 + 1)
        triangle = fill_triangle(values, size)
        below = triangle[torch.ones(size, size, dtype=torch.bool).tril()]
        assert sorted(below.tolist()) == values.tolist()


def test_full_covariance_factor_is_positive_whatever_the_parameters_are():
    made = families.FullCovarianceNormal(3, min_scale=1e-3)
    q = made(torch.randn(100, made.num_params) * 50)
    diagonal = q.scale_tril.diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() >= 1e-3
    assert (q.scale_tril.triu(1) == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_is_floored_softplus(family):
    made = family(1, min_scale=0.01)
    if isinstance(made, families.LowRankNormal):
        pytest.skip("its variance has two parts: test_low_rank_has_the_covariance_of_its_formula")
    q = made(torch.tensor([0.5, -1.2]))
    expected = 0.01 + functional.softplus(torch.tensor([-1.2]))
    torch.testing.assert_close(q.stddev if hasattr(q, "stddev") else q.base_dist.scale, expected)
    torch.testing.assert_close(q.mean, torch.tensor([0.5]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(0), "latent_dim must be a positive integer; got 0"),
        (lambda f: f(-1), "latent_dim must be a positive integer; got -1"),
        (lambda f: f(2.0), r"latent_dim must be a positive integer; got 2\.0"),
        (lambda f: f(True), "latent_dim must be a positive integer; got True"),
        (lambda f: f(2, min_scale=0.0), r"min_scale must be positive; got 0\.0"),
        (lambda f: f(2)(torch.zeros(5, 99)), r"params must have \d in their last dimension"),
    ],
)
def test_family_rejects_what_does_not_fit(family, call, message):
    with pytest.raises(ValueError, match=message):
        call(family)
