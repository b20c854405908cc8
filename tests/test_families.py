import math

import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from torch.distributions import kl_divergence
from torch.nn import functional

from pyro_vae import families, priors
from pyro_vae.distributions import cholesky_normal, factor_normal, independent_normal
from pyro_vae.families.normal import fill_triangle


def low_rank(latent_dim, **options):
    return families.LowRankNormal(latent_dim, min(2, latent_dim), **options)


NORMALS = {
    families.IsotropicNormal: families.IsotropicNormal,
    families.DiagonalNormal: families.DiagonalNormal,
    families.LowRankNormal: low_rank,
    families.FullCovarianceNormal: families.FullCovarianceNormal,
}


def perturbed(module):
    """The steps of a flow away from the identity at which they start."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return module


def affine_flow(latent_dim, **options):
    return perturbed(families.Flow(latent_dim, hidden=(8,), context_dim=3, **options))


def spline_flow(latent_dim, **options):
    return affine_flow(latent_dim, steps=families.spline_steps, **options)


FLOWS = [affine_flow, spline_flow]
FAMILIES = list(NORMALS.values())
ALL = [*FAMILIES, *FLOWS]


def test_every_family_is_under_test():
    public = {getattr(families, name) for name in families.__all__}
    others = {families.Family, families.affine_steps, families.spline_steps}
    assert public == {*NORMALS, families.Flow, *others}


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_log_q_is_the_change_of_variables_of_its_own_draw(family, latent_dim, monkeypatch):
    made = family(latent_dim)
    params = torch.randn(made.num_params)

    def draw(noise):
        for module in (
            torch.distributions.normal,
            cholesky_normal,
            factor_normal,
            independent_normal,
        ):
            monkeypatch.setattr(module, "_standard_normal", lambda *args, **kwargs: noise)
        q = made(params)
        return q, q.rsample()

    noise = torch.randn(latent_dim)
    q, z = draw(noise)
    jacobian = torch.autograd.functional.jacobian(lambda noise: draw(noise)[1], noise)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum()
    expected = base - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(q.log_prob(z), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ALL)
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


@pytest.mark.parametrize("family", ALL)
def test_gradients_reach_every_parameter(family):
    made = family(4)
    params = torch.randn(5, made.num_params, requires_grad=True)
    q = made(params)
    (q.rsample().pow(3).sum() + q.log_prob(torch.ones(4)).sum()).backward()
    assert (params.grad != 0).all()
    for weight in made.parameters():
        assert (weight.grad != 0).any()


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
def test_scale_is_softplus_between_a_floor_and_a_ceiling(family):
    made = family(1, min_scale=0.01, max_scale=5.0)
    rest = [0.0] * (made.num_params - 2)  # a factor of 0 leaves the diagonal alone
    for raw, expected in (
        (-1.2, 0.01 + math.log1p(math.exp(-1.2)) - math.log1p(math.exp(-1.2 - 4.99))),
        (-1e4, 0.01),
        (1e4, 5.0),
    ):
        q = made(torch.tensor([0.5, raw, *rest]))
        assert abs(q.variance.sqrt().item() - expected) < 1e-12
        assert q.mean.item() == 0.5


def test_ceiling_is_far_from_ordinary_scales():
    q = families.DiagonalNormal(1)(torch.tensor([0.0, 30.0]))
    assert abs(q.stddev.item() - 30.0001) < 1e-12


def test_low_rank_has_the_covariance_of_its_formula():
    made = families.LowRankNormal(4, 2, min_scale=0.01)
    params = torch.randn(5, made.num_params)
    q = made(params)
    scale = 0.01 + functional.softplus(params[:, 4:8])
    factor = scale.unsqueeze(-1) * params[:, 8:].reshape(5, 4, 2)
    expected = factor @ factor.mT + scale.square().diag_embed()
    torch.testing.assert_close(q.covariance_matrix, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(q.mean, params[:, :4])


def test_isotropic_has_one_variance():
    params = torch.randn(5, 4)
    q = families.IsotropicNormal(3, min_scale=0.01)(params)
    scale = 0.01 + functional.softplus(params[:, 3:])
    torch.testing.assert_close(q.variance, scale.square().expand(5, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_is_the_closed_form(family):
    made = family(3)
    q = made(torch.randn(5, made.num_params))
    covariance = getattr(q, "covariance_matrix", q.variance.diag_embed())
    expected = 1.5 * (1 + math.log(2 * math.pi)) + 0.5 * torch.logdet(covariance)
    torch.testing.assert_close(q.entropy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", FLOWS)
@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_flow_inverts_and_knows_the_density_of_any_value(family, latent_dim):
    made = family(latent_dim)
    params = torch.randn(6, made.num_params)
    q = made(params)
    z = q.rsample()
    expected = q.log_prob(z)
    torch.testing.assert_close(made(params).log_prob(z.clone()), expected, rtol=0, atol=1e-9)
    noise = z.clone()
    for transform in reversed(made(params).transforms):
        noise = transform.inv(noise)
    again = noise.clone()
    for transform in made(params).transforms:
        again = transform(again)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FLOWS)
def test_density_of_a_flow_integrates_to_one_and_its_draws_follow_it(family):
    made = family(2)
    q = made(torch.randn(made.num_params))
    axis = torch.linspace(-12, 12, 481)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = q.log_prob(grid).exp() * 0.05**2
        assert abs(mass.sum() - 1) < 2e-3  # splines have kinks in their slope
        z = q.sample((40_000,))
    mean = (mass.unsqueeze(-1) * grid).sum(0)
    error = (z.mean(0) - mean) / (z.std(0) / 200)
    assert error.abs().max() < MAX_Z


@pytest.mark.parametrize("family", FLOWS)
def test_members_of_a_flow_form_a_mixture_over_the_same_values(family):
    made = family(2)
    params, z = torch.randn(3, made.num_params), torch.randn(7, 2)
    q = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), made(params))
    each = torch.stack([made(params[j].expand(7, -1)).log_prob(z) for j in range(3)])
    expected = (each + torch.tensor([[0.2], [0.3], [0.5]]).log()).logsumexp(0)
    torch.testing.assert_close(q.log_prob(z), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_family_follows_type_and_device_of_its_parameters(family, dtype):
    made = family(3).to(dtype)
    params = torch.randn(5, made.num_params, dtype=dtype)
    with torch.device("meta"):
        q = made(params)
        z = q.rsample((2,))
        log_q = q.log_prob(z), q.log_prob(z.clone())
    assert all(t.dtype == dtype and t.device.type == "cpu" for t in (z, *log_q))


@pytest.mark.parametrize("family", ALL)
def test_start_is_a_place_that_a_gradient_leaves(family):
    made = family(3)
    start = made.start_params().requires_grad_()
    assert start.shape == (made.num_params,)
    target = dist.MultivariateNormal(torch.ones(3), torch.eye(3) * 0.3 + 0.5)
    torch.manual_seed(1)
    q = made(start)
    z = q.rsample((4000,))
    (q.log_prob(z) - target.log_prob(z)).mean().backward()
    assert (start.grad != 0).all()


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(0), "latent_dim must be a positive integer; got 0"),
        (lambda f: f(-1), "latent_dim must be a positive integer; got -1"),
        (lambda f: f(2.0), r"latent_dim must be a positive integer; got 2\.0"),
        (lambda f: f(True), "latent_dim must be a positive integer; got True"),
        (lambda f: f(2, min_scale=0.0), r"min_scale must be positive; got 0\.0"),
        (
            lambda f: f(2, max_scale=1e-5),
            r"max_scale must be finite and above min_scale = 0\.0001",
        ),
        (lambda f: f(2)(torch.zeros(5, 99)), r"params must have \d in their last dimension"),
    ],
)
def test_family_rejects_what_does_not_fit(family, call, message):
    with pytest.raises(ValueError, match=message):
        call(family)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: families.LowRankNormal(3, 4), "rank must not exceed latent_dim = 3; got 4"),
        (lambda: families.LowRankNormal(3, 0), "rank must be a positive integer; got 0"),
        (lambda: families.Flow(3, num_steps=0), "num_steps must be a positive integer; got 0"),
        (lambda: families.Flow(3, context_dim=0), "context_dim must be a positive integer; got 0"),
        (lambda: families.Flow(9, hidden=(8,)), "hidden must hold widths of at least latent_dim"),
    ],
)
def test_family_rejects_numbers_of_its_own(call, message):
    with pytest.raises(ValueError, match=message):
        call()
