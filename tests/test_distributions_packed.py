"""The packed normal against a dense one: an oracle that places each number by its own formula."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae import families, priors
from pyro_vae.distributions import CholeskyNormal, cholesky_normal
from pyro_vae.distributions.packed_normal import PackedNormal
from pyro_vae.distributions.packed_triangle import PackedTriangle, fill_triangle

SIZES = [1, 2, 3, 5, 20]
BATCHES = [(), (4,), (2, 3)]


def place(i, j, k):
    """Where the packed numbers have entry (i, j), i >= j, of the triangle."""
    first = k + i * k + j
    return first if first < k * (k + 1) // 2 else k * k - 1 - i * k - j


def oracle(params, k):
    """Torch's own multivariate normal, its factor entry by entry."""
    loc, values = params[..., :k], params[..., k:]
    zero = torch.zeros_like(loc[..., 0])
    scale = 1e-4 + functional.softplus(values) - functional.softplus(values - 1e3 + 1e-4)
    rows = []
    for i in range(k):
        sigma = scale[..., place(i, i, k)]
        row = [sigma * values[..., place(i, j, k)] / math.sqrt(k) for j in range(i)]
        rows.append(torch.stack([*row, sigma, *[zero] * (k - i - 1)], -1))
    return torch.distributions.MultivariateNormal(loc, scale_tril=torch.stack(rows, -2))


def random_params(k, batch=(4,)):
    return torch.randn(*batch, k + k * (k + 1) // 2)


@pytest.fixture
def noise(monkeypatch):
    """Draws are made of the noise given to the function that the test gets."""

    def use(values):
        monkeypatch.setattr(cholesky_normal, "_standard_normal", lambda *a, **k: values)
        return values

    return use


def draw_of(p, eps):
    """What the oracle draws from the noise."""
    return p.loc + (p.scale_tril @ eps.unsqueeze(-1)).squeeze(-1)


P_Z = {
    "standard normal": lambda k: dist.Normal(torch.zeros(k), torch.ones(k)).to_event(1),
    "normal": lambda k: dist.Normal(torch.linspace(-1, 1, k), torch.linspace(1, 2, k)).to_event(1),
    "laplace": lambda k: dist.Laplace(torch.linspace(-1, 1, k), 1.5).to_event(1),
    "correlated": lambda k: dist.MultivariateNormal(torch.ones(k), torch.eye(k) + 0.5),
}


def kl_of_the_oracle(q, name, p):
    if name == "laplace":  # by margins; E|z - m| / b of a normal, by hand
        z = (q.mean - p.base_dist.loc) / q.stddev
        folded = q.stddev * (
            math.sqrt(2 / math.pi) * (-z.square() / 2).exp() + z * torch.erf(z / math.sqrt(2))
        )
        return (math.log(3.0) + folded / 1.5).sum(-1) - q.entropy()
    covariance = p.variance.diag_embed() if name != "correlated" else p.covariance_matrix
    return kl_divergence(q, torch.distributions.MultivariateNormal(p.mean, covariance))


def quantities(q, eps, k):
    """All that is asked of a family, of ours or of the oracle's kind."""
    is_ours = isinstance(q, PackedNormal)
    z = q.rsample() if is_ours else draw_of(q, eps)
    found = {
        "draw": z,
        "log q of the draw": q.log_prob(z),
        "log q of a constant": q.log_prob(torch.linspace(-1, 1, k)),
        "entropy": q.entropy(),
        "mean": q.mean,
        "variance": q.variance,
        "stddev": q.stddev,
        "covariance": q.covariance_matrix,
    }
    for name, make in P_Z.items():
        p = make(k)
        kl = kl_divergence(q, p) if is_ours else kl_of_the_oracle(q, name, p)
        found[f"KL to {name}"] = kl
    return found


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("k", SIZES)
def test_packed_normal_has_the_values_and_gradients_of_a_dense_one(k, batch, noise):
    eps = noise(torch.randn(*batch, k))
    params = random_params(k, batch).requires_grad_()
    mine, theirs = (quantities(q, eps, k) for q in (PackedNormal(params, k), oracle(params, k)))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        wanted = theirs[name]
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12, msg=name)
        weight = torch.randn(value.shape)
        gradients = [
            torch.autograd.grad((weight * t).sum(), params, retain_graph=True)[0]
            for t in (value, wanted)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("k", SIZES)
def test_single_precision_is_as_exact_as_it_can_be(k, noise):
    eps, params = torch.randn(7, k), random_params(k, (7,))
    exact = draw_of(oracle(params, k), eps)
    noise(eps.float())
    z = PackedNormal(params.float(), k).rsample()
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_second_derivatives_through_draw_density_and_variance(k, noise):
    noise(torch.randn(2, k))

    def functions(params):
        q = PackedNormal(params, k, validate_args=False)
        z = q.rsample()
        return z, q.log_prob(z), q.variance, q.entropy()

    params = random_params(k, (2,)).requires_grad_()
    assert torch.autograd.gradcheck(functions, params)
    assert torch.autograd.gradgradcheck(functions, params)


def test_derivative_with_respect_to_the_noise_is_the_factor(noise):
    eps = noise(torch.randn(3, requires_grad=True))
    params = random_params(3, ())
    z = PackedNormal(params, 3).rsample()
    rows = [torch.autograd.grad(z[i], eps, retain_graph=True)[0] for i in range(3)]
    torch.testing.assert_close(torch.stack(rows), oracle(params, 3).scale_tril)


@pytest.mark.parametrize("sample_shape", [(6,), (2, 3), (1,)])
def test_many_draws_come_from_the_factor(sample_shape, noise):
    params = random_params(3)
    eps = noise(torch.randn(*sample_shape, 4, 3))
    q, p = PackedNormal(params, 3), oracle(params, 3)
    z = q.rsample(sample_shape)
    torch.testing.assert_close(z, draw_of(p, eps), rtol=0, atol=1e-12)
    torch.testing.assert_close(q.log_prob(z), p.log_prob(z), rtol=0, atol=1e-11)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, list | tuple) else [made]:
            if isinstance(value, torch.Tensor):
                # A view that repeats its numbers takes no memory.
                real = math.prod(n for n, s in zip(value.shape, value.stride(), strict=True) if s)
                self.numel = max(self.numel, real)
        return made


def closed_form(q, p):
    z = q.rsample()
    return p.log_prob(z).sum() - kl_divergence(q, p).sum() + q.entropy().sum()


def drawn(q, p):
    z = q.rsample()
    return p.log_prob(z).sum() - q.log_prob(z).sum()


@pytest.mark.parametrize("quantity", [closed_form, drawn])
def test_nothing_larger_than_the_parameters_is_made_on_the_way_of_training(quantity):
    k, n = 12, 5
    params = random_params(k, (n,)).requires_grad_()
    with Largest() as largest:
        q = families.FullCovarianceNormal(k)(params).expand((n,))
        quantity(q, priors.StandardNormal(k)().expand((n,))).backward()
    assert largest.numel == params.numel() < n * k * k


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_elbo_of_a_program_is_that_of_the_dense_distribution(elbo, noise):
    noise(torch.randn(4, 3))
    params = random_params(3).requires_grad_()
    losses = []

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(4, 3))

    def guide_of(make):
        def guide():
            with pyro.plate("data", 4), pyro.poutine.mask(mask=torch.arange(4) < 3):
                pyro.sample("z", make())

        return guide

    for make in (
        lambda: PackedNormal(params, 3),
        lambda: CholeskyNormal(params[..., :3], scale_tril=oracle(params, 3).scale_tril),
    ):
        loss = elbo().differentiable_loss(model, guide_of(make))
        losses.append((loss, torch.autograd.grad(loss, params)[0]))
    torch.testing.assert_close(*losses, rtol=0, atol=1e-11)


def test_own_batch_shape_leaves_it_packed_with_a_memory_of_its_own():
    q = PackedNormal(random_params(3).requires_grad_(), 3)
    z = q.rsample()
    same = q.expand((4,))
    assert type(same) is PackedNormal
    assert same._noise_behind(z) is None
    other = same.rsample()
    assert q._noise_behind(other) is None
    assert q._noise_behind(z) is not None


def test_larger_batch_shape_has_the_same_density():
    params = random_params(3, (4,)).requires_grad_()
    q, p = PackedNormal(params, 3), oracle(params, 3)
    wide = q.expand((5, 4))
    assert isinstance(wide, CholeskyNormal)
    assert wide.batch_shape == (5, 4)
    z = wide.rsample()
    assert z.shape == (5, 4, 3)
    torch.testing.assert_close(wide.log_prob(z), p.log_prob(z), rtol=0, atol=1e-11)
    torch.testing.assert_close(wide.mean, p.mean.expand(5, 4, 3))
    torch.testing.assert_close(wide.entropy(), p.entropy().expand(5, 4), rtol=0, atol=1e-12)
    single = PackedNormal(random_params(3, (1,)), 3)
    assert single.expand((4,)).sample().shape == (4, 3)
    assert single.expand([4]).expand([2, 4]).batch_shape == (2, 4)


def test_pyro_reshapes_it_as_any_multivariate_normal():
    params, z = random_params(3), torch.randn(4, 3)
    q, expected = PackedNormal(params, 3), oracle(params, 3).log_prob(z)
    assert isinstance(q, dist.MultivariateNormal)
    assert q.support is dist.constraints.real_vector
    torch.testing.assert_close(q.to_event(1).log_prob(z), expected.sum(), rtol=0, atol=1e-11)
    masked = q.mask(torch.arange(4) < 2).log_prob(z)
    torch.testing.assert_close(masked, expected * (torch.arange(4) < 2), rtol=0, atol=1e-11)
    assert q.expand_by([7]).sample().shape == (7, 4, 3)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_factor_asked_for_without_gradients_has_them_for_the_next(context):
    params = random_params(3).requires_grad_()
    q = PackedNormal(params, 3)
    with context():
        q.log_prob(torch.zeros(3))
    q.log_prob(torch.zeros(3)).sum().backward()
    assert (params.grad != 0).all()


@pytest.mark.parametrize("at", [0, 2, 3, 5, 8])
def test_number_that_is_none_is_refused_wherever_it_stands(at):
    params = random_params(3)
    params[1, at] = math.nan
    with pytest.raises(ValueError, match="Expected parameter params"):
        PackedNormal(params, 3)
    with pytest.raises(ValueError, match="Expected parameter params"):
        families.FullCovarianceNormal(3)(params)
    assert not PackedNormal(params, 3, validate_args=False)._validate_args


def test_large_numbers_are_no_fault():
    params = torch.full((4, 9), 1e38, dtype=torch.float32)  # whose sum is infinite
    assert PackedNormal(params, 3).batch_shape == (4,)


def test_value_outside_the_support_is_refused():
    q = PackedNormal(random_params(3), 3)
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.full((3,), math.nan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_made_on_the_default_device(dtype):
    params = random_params(4).to(dtype)
    p = priors.StandardNormal(4).to(dtype)()
    with torch.device("meta"):
        q = families.FullCovarianceNormal(4)(params)
        found = [q.rsample(), q.rsample((3,)), q.entropy(), q.variance, q.covariance_matrix]
        found += [q.log_prob(q.rsample()), kl_divergence(q, p), q.expand((2, 4)).sample()]
    assert all(t.device.type == "cpu" and t.dtype == dtype for t in found)


def loss_and_gradient(params, k):
    """Of a draw, by Monte Carlo and in closed form; noise from the global state."""
    q = PackedNormal(params, k, validate_args=False)
    p = dist.Normal(torch.zeros_like(q.loc), 1.0, validate_args=False).to_event(1)
    z = q.rsample()
    loss = (q.log_prob(z) - p.log_prob(z) + z.pow(3).sum(-1) + kl_divergence(q, p)).sum()
    return loss, torch.autograd.grad(loss, params)[0]


@pytest.mark.parametrize("tracing_mode", ["real", "fake"])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_traced_graph_computes_what_the_program_does(k, tracing_mode):
    params = random_params(k).requires_grad_()
    with pyro.validation_enabled(False):
        traced = make_fx(lambda t: loss_and_gradient(t, k), tracing_mode=tracing_mode)(params)
    other = random_params(k).requires_grad_()
    found = []
    for function in (traced, lambda t: loss_and_gradient(t, k)):
        torch.manual_seed(3)
        found.append(function(other))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.slow  # compiles C++
def test_compiled_program_computes_what_the_program_does():
    def loss(params, eps):
        q = PackedNormal(params, 4, validate_args=False)
        z = q.loc + q._shift(eps)
        return (z.pow(3).sum(-1) + q.variance.sum(-1) - q.entropy()).sum()

    params, eps = random_params(4).requires_grad_(), torch.randn(4, 4)
    found = []
    with pyro.validation_enabled(False):
        for function in (torch.compile(loss, fullgraph=True), loss):
            value = function(params, eps)
            found.append((value, torch.autograd.grad(value, params)[0]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_transforms_of_torch_func_go_through():
    params, eps = random_params(3), torch.randn(4, 3)

    def norm(row, noise):
        q = PackedNormal(row, 3, validate_args=False)
        return (q.loc + q._shift(noise)).square().sum() + q.entropy()

    each = torch.func.vmap(torch.func.grad(norm))(params, eps)
    whole = params.clone().requires_grad_()
    q = PackedNormal(whole, 3)
    ((q.loc + q._shift(eps)).square().sum() + q.entropy().sum()).backward()
    torch.testing.assert_close(each, whole.grad, rtol=0, atol=1e-12)


ORDER = {  # a file format: saved encoders put out their numbers in this order
    1: [[0]],
    2: [[2], [1, 0]],
    3: [[3], [5, 4], [2, 1, 0]],
    4: [[4], [8, 9], [7, 6, 5], [3, 2, 1, 0]],
    5: [[5], [10, 11], [14, 13, 12], [9, 8, 7, 6], [4, 3, 2, 1, 0]],
}


@pytest.mark.parametrize("k", ORDER)
def test_order_of_the_packed_numbers_is_the_one_in_saved_weights(k):
    found = fill_triangle(torch.arange(k * (k + 1) // 2), k)
    assert [row[: i + 1] for i, row in enumerate(found.tolist())] == ORDER[k]
    params = torch.arange(k + k * (k + 1) // 2.0) / 10
    q = families.FullCovarianceNormal(k)(params)
    for i, row in enumerate(ORDER[k]):
        sigma = 1e-4 + math.log1p(math.exp(params[k + row[i]]))
        for j in range(i):
            below = sigma * params[k + row[j]].item() / math.sqrt(k)
            assert abs(q.scale_tril[i, j].item() - below) < 1e-12
        assert abs(q.scale_tril[i, i].item() - sigma) < 1e-12
    assert torch.equal(q.loc, params[:k])


@pytest.mark.parametrize("k", range(1, 9))
def test_packed_triangle_is_the_triangle_filled(k):
    values, v = torch.randn(2, k * (k + 1) // 2), torch.randn(2, k)
    triangle, square = PackedTriangle.of(values, k), fill_triangle(values, k).tril()
    below = square.tril(-1)
    torch.testing.assert_close(triangle.diagonal(), square.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(
        triangle.below_times(v), (below @ v.unsqueeze(-1)).squeeze(-1), rtol=0, atol=1e-13
    )
    torch.testing.assert_close(
        triangle.below_squared(), below.square().sum(-1), rtol=0, atol=1e-13
    )
