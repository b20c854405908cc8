import math

import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from torch.distributions import kl_divergence

from pyro_vae.distributions import CholeskyNormal, FactorNormal, SharedVarianceNormal


def spread(variance, loc):
    """The same density by torch's own Normal."""
    scale = torch.as_tensor(variance).sqrt().expand(loc.shape)
    return dist.Normal(loc, scale)


@pytest.mark.parametrize(
    ("event_shape", "variance"),
    [
        ((), 0.3),
        ((4,), 0.3),
        ((4,), [0.1, 0.2, 3.0, 0.5]),
        ((2, 3), 0.3),
        ((2, 3), [[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]]),
        ((2, 3), [0.5, 1.0, 2.0]),
    ],
)
def test_shared_variance_normal_has_the_density_of_independent_normals(event_shape, variance):
    if isinstance(variance, list):
        variance = torch.tensor(variance)
    loc, x = torch.randn(7, 5, *event_shape), torch.randn(5, *event_shape)
    event_dim = len(event_shape)
    p = SharedVarianceNormal(loc, variance, event_dim=event_dim)
    assert p.batch_shape == (7, 5)
    assert p.event_shape == event_shape
    expected = spread(variance, loc).to_event(event_dim).log_prob(x)
    torch.testing.assert_close(p.log_prob(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(p.variance, spread(variance, loc).variance)
    torch.testing.assert_close(p.expand((2, 7, 5)).log_prob(x), expected.expand(2, 7, 5))


def test_shared_variance_normal_has_the_gradients_of_independent_normals():
    x = torch.randn(5, 4)
    gradients = []
    for make in (
        lambda loc, c: SharedVarianceNormal(loc, c, event_dim=1),
        lambda loc, c: spread(c, loc).to_event(1),
    ):
        loc = torch.linspace(-1, 1, 20).reshape(5, 4).requires_grad_()
        c = torch.tensor(0.3, requires_grad=True)
        make(loc, c).log_prob(x).sum().backward()
        gradients.append((loc.grad, c.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", [0.25, torch.tensor([0.25, 4.0], dtype=torch.float64)])
def test_shared_variance_normal_draws_have_its_moments(variance):
    loc = torch.tensor([1.0, -2.0])
    draws = SharedVarianceNormal(loc, variance, event_dim=1).rsample((40_000,))
    z = (draws - loc) / torch.as_tensor(variance).sqrt()
    # Mean of z has s.d. 1 / sqrt(S), mean of z^2 has s.d. sqrt(2 / S).
    assert (z.mean(0) * 200).abs().max() < MAX_Z
    assert ((z.square().mean(0) - 1) * 200 / math.sqrt(2)).abs().max() < MAX_Z


def random_cholesky(*batch, size=3):
    tril = torch.randn(*batch, size, size).tril(-1)
    return tril + (torch.rand(*batch, size) + 0.3).diag_embed()


def test_cholesky_normal_knows_the_density_of_its_own_draw():
    loc, tril = torch.randn(5, 3), random_cholesky(5)
    q = CholeskyNormal(loc, scale_tril=tril)
    other = dist.MultivariateNormal(loc, scale_tril=tril)
    for shape in ((), (7,)):
        z = q.rsample(shape)
        torch.testing.assert_close(q.log_prob(z), other.log_prob(z), rtol=0, atol=1e-11)
        torch.testing.assert_close(q.log_prob(z + 1), other.log_prob(z + 1), rtol=0, atol=1e-11)
    wide = q.expand((2, 5))
    z = wide.rsample()
    assert z.shape == (2, 5, 3)
    torch.testing.assert_close(wide.log_prob(z), other.log_prob(z), rtol=0, atol=1e-11)


def test_cholesky_normal_does_not_trust_a_draw_that_was_changed_in_place():
    q = CholeskyNormal(torch.zeros(3), scale_tril=random_cholesky())
    z = q.sample()
    z += 1
    expected = dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril).log_prob(z)
    torch.testing.assert_close(q.log_prob(z), expected)


def test_cholesky_normal_has_the_total_derivative_at_its_own_draw():
    gradients = []
    for cls in (CholeskyNormal, dist.MultivariateNormal):
        torch.manual_seed(1)
        loc = torch.randn(5, 3, requires_grad=True)
        tril = random_cholesky(5).requires_grad_()
        q = cls(loc, scale_tril=tril)
        noise_state = torch.get_rng_state()
        z = q.rsample()
        (q.log_prob(z) + z.square().sum(-1)).sum().backward()
        torch.set_rng_state(noise_state)
        gradients.append((loc.grad, tril.grad.tril()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)


def test_cholesky_normal_has_the_partial_derivative_at_a_constant_draw():
    gradients = []
    for cls in (CholeskyNormal, dist.MultivariateNormal):
        torch.manual_seed(1)
        loc = torch.randn(5, 3, requires_grad=True)
        tril = random_cholesky(5).requires_grad_()
        q = cls(loc, scale_tril=tril)
        q.log_prob(q.sample()).sum().backward()
        gradients.append((loc.grad, tril.grad.tril()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)


def correlated_normals():
    """A normal with full covariance, and one with the covariance of factor analysis."""
    factor, diagonal = torch.randn(5, 4, 2), torch.rand(5, 4) + 0.2
    yield CholeskyNormal(torch.randn(5, 4), scale_tril=random_cholesky(5, size=4))
    yield FactorNormal(torch.randn(5, 4), factor, diagonal)


@pytest.mark.parametrize("which", [0, 1])
def test_correlated_normals_know_their_draws_in_inference_mode(which):
    q = list(correlated_normals())[which]
    with torch.inference_mode():
        z = q.rsample()
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", [0, 1])
def test_correlated_normals_have_a_closed_form_kl_to_independent_laplace_distributions(which):
    q = list(correlated_normals())[which]
    p = dist.Laplace(torch.randn(4), torch.rand(4) + 0.5).to_event(1)
    z = q.rsample((40_000,))
    ratio = q.log_prob(z) - p.log_prob(z)
    error = (ratio.mean(0) - kl_divergence(q, p)) / (ratio.std(0) / 200)
    assert error.abs().max() < MAX_Z


@pytest.mark.parametrize("which", [0, 1])
def test_correlated_normals_have_no_closed_form_kl_where_there_is_none(which):
    q = list(correlated_normals())[which]
    for p in (
        dist.StudentT(3.0, torch.zeros(4), torch.ones(4)).to_event(1),
        dist.Normal(torch.zeros(5, 4), torch.ones(4)).to_event(2),
    ):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, p)


def random_factor_normal(*batch, size=4, rank=2):
    loc, factor = torch.randn(*batch, size), torch.randn(*batch, size, rank)
    return FactorNormal(loc, factor, torch.rand(*batch, size) + 0.2)


def as_multivariate_normal(q):
    covariance = q.cov_factor @ q.cov_factor.mT + q.cov_diag.diag_embed()
    return dist.MultivariateNormal(q.loc, covariance)


def test_factor_normal_by_its_whitened_factor_is_the_one_by_its_covariance():
    params = [torch.randn(5, 4), torch.rand(5, 4) + 0.3, torch.randn(5, 4, 2)]
    loc, scale, whitened = (p.requires_grad_() for p in params)
    gradients = []
    for q in (
        FactorNormal.from_whitened(loc, scale, whitened),
        FactorNormal(loc, scale.unsqueeze(-1) * whitened, scale.square()),
    ):
        torch.manual_seed(1)
        z = q.expand((5,)).rsample()
        p = dist.Normal(torch.zeros(4), 1.0).to_event(1)
        terms = (z, q.log_prob(z), q.log_prob(z.detach()), q.variance, kl_divergence(q, p))
        total = sum(t.pow(2).sum() for t in terms)
        gradients.append((*terms, *torch.autograd.grad(total, params)))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_factor_normal_knows_the_density_of_its_own_draw(rank):
    q = random_factor_normal(5, rank=rank)
    other = as_multivariate_normal(q)
    for shape in ((), (7,)):
        z = q.rsample(shape)
        torch.testing.assert_close(q.log_prob(z), other.log_prob(z), rtol=0, atol=1e-10)
        torch.testing.assert_close(q.log_prob(z + 1), other.log_prob(z + 1), rtol=0, atol=1e-10)
    wide = q.expand((2, 5))
    z = wide.rsample()
    assert z.shape == (2, 5, 4)
    torch.testing.assert_close(wide.log_prob(z), other.log_prob(z), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e5])
def test_factor_normal_has_a_factor_however_large_and_dependent_the_columns_are(dtype, size):
    # In single precision I + A^T A is singular here.
    factor = size * torch.randn(50, 6, 1).expand(50, 6, 4)
    q = FactorNormal(torch.zeros(6), factor, torch.ones(6))
    exact = q.entropy()
    q = FactorNormal(*(t.to(dtype) for t in (torch.zeros(6), factor, torch.ones(6))))
    z = q.rsample()
    assert z.isfinite().all()
    assert q.log_prob(z).isfinite().all()
    assert q.log_prob(z.clone()).isfinite().all()
    torch.testing.assert_close(q.entropy().double(), exact, rtol=1e-5, atol=0)
    r, c = (
        torch.linalg.matrix_norm(factor.double(), 2).square(),
        3 * math.log(2 * math.pi * math.e),
    )
    torch.testing.assert_close(exact, c + 0.5 * torch.log1p(r), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["rsample", "sample"])
def test_factor_normal_has_the_derivatives_of_the_density_at_its_draws(method):
    gradients = []
    for ordinary in (False, True):
        torch.manual_seed(1)
        params = [torch.randn(5, 4), torch.randn(5, 4, 2), torch.rand(5, 4) + 0.2]
        params = [p.requires_grad_() for p in params]
        q = FactorNormal(*params)
        z = getattr(q, method)()
        # A copy is not recognized, so its density is that of Woodbury's identity.
        log_q = q.log_prob(z.clone() if ordinary else z)
        (log_q + z.square().sum(-1)).sum().backward()
        gradients.append([p.grad for p in params])
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("which", [0, 1])
def test_correlated_normals_have_the_closed_form_kl_to_independent_normals(which):
    q = list(correlated_normals())[which]
    loc, scale = torch.randn(4), torch.rand(4) + 0.5
    expected = kl_divergence(
        dist.MultivariateNormal(q.loc, q.covariance_matrix),
        dist.MultivariateNormal(loc, scale_tril=scale.diag()),
    )
    p = dist.Normal(loc, scale).to_event(1)
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(kl_divergence(q, p.expand((5,))), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("variance", [0.0, -1.0, torch.tensor([1.0, -1.0])])
def test_shared_variance_normal_rejects_a_variance_that_is_not_positive(variance):
    with pytest.raises(ValueError, match="variance must be positive; got"):
        SharedVarianceNormal(torch.zeros(3, 2), variance, event_dim=1)


def test_shared_variance_normal_rejects_a_mean_without_its_event_dimensions():
    with pytest.raises(ValueError, match="loc must have at least event_dim = 2 dimensions"):
        SharedVarianceNormal(torch.zeros(3), 1.0, event_dim=2)


def test_shared_variance_normal_rejects_values_that_are_not_numbers():
    p = SharedVarianceNormal(torch.zeros(3, 2), 1.0, event_dim=1)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full((3, 2), math.nan))


def test_independent_normals_have_a_closed_form_kl_to_a_low_rank_normal():
    q = dist.Normal(torch.randn(5, 4), torch.rand(5, 4) + 0.3).to_event(1)
    factor, diagonal = torch.randn(4, 2), torch.rand(4) + 0.2
    for p in (
        FactorNormal(torch.randn(4), factor, diagonal),
        dist.LowRankMultivariateNormal(torch.randn(4), factor, diagonal),
    ):
        expected = kl_divergence(
            dist.MultivariateNormal(q.mean, q.variance.diag_embed()),
            dist.MultivariateNormal(p.loc, factor @ factor.mT + diagonal.diag_embed()),
        )
        torch.testing.assert_close(kl_divergence(q, p), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(kl_divergence(q, p.expand((5,))), expected, rtol=0, atol=1e-10)
