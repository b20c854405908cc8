"""What holds for every likelihood."""

import copy
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from conftest import MAX_Z
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import likelihoods as lk
from pyro_vae import networks


def whole_line(p):
    """Nodes and weights on either side of the mean, by exponentials of hyperbolic sines."""
    t = torch.linspace(-4.2, 4.2, 800)
    step = t[1] - t[0]
    x = (math.pi / 2 * t.sinh()).exp()
    w = x * math.pi / 2 * t.cosh() * step
    keep = x < 1e12
    x, w = x[keep], w[keep]
    center = p.mean.reshape(-1, 1)
    return torch.cat([center - x.flip(0), center + x], -1), torch.cat([w.flip(0), w]).expand(
        len(center), -1
    )


def half_line(p):
    t = torch.linspace(-4.2, 4.2, 2000)
    x = (math.pi / 2 * t.sinh()).exp()
    keep = (x < 1e12) & (x > 1e-12)
    x, w = x[keep], (x * math.pi / 2 * t.cosh() * (t[1] - t[0]))[keep]
    return x.expand(len(p.mean), -1), w.expand(len(p.mean), -1)


def unit_interval(p):
    t = torch.linspace(-3.1, 3.1, 800)
    half_log_odds = math.pi / 2 * t.sinh()
    x = (2 * half_log_odds).sigmoid()
    w = x * (-2 * half_log_odds).sigmoid() * math.pi * t.cosh() * (t[1] - t[0])
    return x.expand(len(p.mean), -1), w.expand(len(p.mean), -1)


def points(*values):
    """A support that is these points: each has weight one."""
    x = torch.tensor(values, dtype=torch.float64)

    def nodes(p):
        return x.expand(len(p.mean), -1), torch.ones(len(p.mean), len(x))

    return nodes


counts = points(*[float(x) for x in range(600)])
levels = points(*[j / 6 for j in range(7)])


class Case:
    """A likelihood, how to integrate over its support, and what scipy says of its density.

    ``reference`` takes the decoder's outputs, ``(rows, m, n)``, and x, ``(rows, n)``.
    """

    def __init__(self, kind, nodes, reference, example):
        self.kind, self.nodes, self.reference = kind, nodes, reference
        self.example = torch.tensor(example, dtype=torch.float64)


def sigmoid(y):
    return 1 / (1 + np.exp(-y))


def bounded(y):
    return np.logaddexp(0, y + 15) - np.logaddexp(0, y - 15) - 15


def mean(y):
    return np.exp(bounded(y))


def zero_inflated(y, x):
    gate, poisson = sigmoid(bounded(y[:, 0])), scipy.stats.poisson.pmf(x, mean(y[:, 1]))
    return np.log((x == 0) * gate + (1 - gate) * poisson)


def beta(y, x):
    m, phi = sigmoid(bounded(y[:, 0])), 6 + np.log1p(np.exp(y[:, 1]))
    return scipy.stats.beta.logpdf(x, m * phi, (1 - m) * phi)


def continuous_bernoulli(y, x):
    # The textbook form, C(lambda) lambda^x (1 - lambda)^(1 - x).
    lam = sigmoid(y[:, 0])
    constant = 2 * np.arctanh(1 - 2 * lam) / (1 - 2 * lam)
    return np.log(constant) + x * np.log(lam) + (1 - x) * np.log1p(-lam)


def categorical(y, x):
    log_p = scipy.special.log_softmax(y, axis=1)
    return np.take_along_axis(log_p, x[:, None].astype(int), axis=1)[:, 0]


def discretized_logistic(y, x):
    cdf, h = scipy.stats.logistic(y[:, 0], 0.1).cdf, 1 / 12
    upper, lower = np.where(x == 1, 1.0, cdf(x + h)), np.where(x == 0, 0.0, cdf(x - h))
    return np.log(upper - lower)


NB_CONCENTRATION = 2.5
CASES = {
    "Gaussian": Case(
        partial(lk.Gaussian, variance=0.3, learn_variance=True),
        whole_line,
        lambda y, x: scipy.stats.norm.logpdf(x, y[:, 0], 0.3**0.5),
        [0.3, -2.0],
    ),
    "Gaussian, c a function of z": Case(
        lambda decoder, event_shape: lk.Gaussian(
            decoder, event_shape, variance=constant_network(math.prod(event_shape), 0.7)
        ),
        whole_line,
        lambda y, x: scipy.stats.norm.logpdf(x, y[:, 0], (1e-6 + np.log1p(np.exp(0.7))) ** 0.5),
        [0.3, -2.0],
    ),
    "LogNormal": Case(
        partial(lk.LogNormal, variance=0.3, learn_variance=True),
        half_line,
        lambda y, x: scipy.stats.lognorm.logpdf(x, 0.3**0.5, scale=np.exp(y[:, 0])),
        [0.3, 2.0],
    ),
    "Laplace": Case(
        partial(lk.Laplace, scale=0.7, learn_scale=True),
        whole_line,
        lambda y, x: scipy.stats.laplace.logpdf(x, y[:, 0], 0.7),
        [0.3, -2.0],
    ),
    "StudentT": Case(
        partial(lk.StudentT, df=5.0, scale=0.7, learn_scale=True),
        whole_line,
        lambda y, x: scipy.stats.t.logpdf(x, 5, y[:, 0], 0.7),
        [0.3, -2.0],
    ),
    "Bernoulli": Case(
        lk.Bernoulli,
        points(0.0, 1.0),
        lambda y, x: scipy.stats.bernoulli.logpmf(x, sigmoid(y[:, 0])),
        [1.0, 0.0],
    ),
    "ContinuousBernoulli": Case(
        lk.ContinuousBernoulli, unit_interval, continuous_bernoulli, [0.0, 0.3]
    ),
    # Concentrated enough that the mass beyond the last number below 1 is below 1e-9.
    "Beta": Case(partial(lk.Beta, min_concentration=6.0), unit_interval, beta, [0.3, 0.9]),
    "Categorical": Case(
        partial(lk.Categorical, num_classes=4),
        points(0.0, 1.0, 2.0, 3.0),
        categorical,
        [3.0, 0.0],
    ),
    "Poisson": Case(
        lk.Poisson,
        counts,
        lambda y, x: scipy.stats.poisson.logpmf(x, mean(y[:, 0])),
        [0.0, 7.0],
    ),
    "NegativeBinomial": Case(
        partial(lk.NegativeBinomial, concentration=NB_CONCENTRATION),
        counts,
        lambda y, x: scipy.stats.nbinom.logpmf(
            x, NB_CONCENTRATION, NB_CONCENTRATION / (NB_CONCENTRATION + mean(y[:, 0]))
        ),
        [0.0, 7.0],
    ),
    "ZeroInflatedPoisson": Case(lk.ZeroInflatedPoisson, counts, zero_inflated, [0.0, 7.0]),
    "DiscretizedLogistic": Case(
        partial(lk.DiscretizedLogistic, levels=7, scale=0.1),
        levels,
        discretized_logistic,
        [0.5, 1.0],
    ),
}
DISCRETE = {
    "Categorical",
    "Poisson",
    "NegativeBinomial",
    "ZeroInflatedPoisson",
    "DiscretizedLogistic",
}
each_case = pytest.mark.parametrize("name", CASES)


def constant_network(width, value):
    """A network of 2-D z that says ``value`` wherever it starts."""
    network = nn.Linear(2, width)
    nn.init.zeros_(network.weight)
    nn.init.constant_(network.bias, value)
    return network


def kind_and_options(case):
    return case.kind if isinstance(case.kind, partial | type) else lk.Gaussian


def made(name, event_shape=(2,), hidden=()):
    """The likelihood of a case, with a random decoder of 2-D z."""
    case = CASES[name]
    m = lk.outputs_per_feature(kind_and_options(case))
    decoder = networks.MLP(2, hidden, (m, *event_shape), activation=nn.Tanh)
    return case.kind(decoder, event_shape=event_shape)


def outputs(likelihood, z):
    """The decoder's outputs as ``(rows, m, n)``."""
    return likelihood.decoder(z).reshape(len(z), likelihood.outputs_per_feature, -1)


def examples(name, *batch, event_shape=(2,)):
    """Data in the support, ``(*batch, *event_shape)``."""
    size = math.prod(batch) * math.prod(event_shape)
    values = CASES[name].example
    return values.repeat(size)[:size].reshape(*batch, *event_shape)


def test_every_likelihood_is_under_test():
    public = {name for name in lk.__all__ if isinstance(getattr(lk, name), type)}
    assert public - {"Likelihood"} == {name.split(",")[0] for name in CASES}


@each_case
def test_density_is_that_of_scipy(name):
    likelihood, z = made(name), torch.randn(6, 2)
    p = likelihood(z)
    x = torch.cat([p.sample((20,)), examples(name, 1, 6)])
    y = outputs(likelihood, z).detach().numpy()
    for some in x:
        expected = torch.from_numpy(CASES[name].reference(y, some.numpy())).sum(-1)
        torch.testing.assert_close(p.log_prob(some), expected, rtol=1e-9, atol=1e-9)


@each_case
def test_density_has_mass_one_and_the_mean_and_variance_of_its_distribution(name):
    case, likelihood = CASES[name], made(name, (1,))
    with torch.no_grad():
        p = likelihood(torch.randn(4, 2))
        x, w = case.nodes(p)
        mass = w * p.expand((x.shape[1], 4)).log_prob(x.mT.unsqueeze(-1)).mT.exp()
    center = (mass * x).sum(-1)
    spread = (mass * (x - center.unsqueeze(-1)).square()).sum(-1)
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(mass.sum(-1), torch.ones(4))
    close(center, p.mean.squeeze(-1))
    close(spread, p.variance.squeeze(-1))


@each_case
def test_draws_have_the_moments_of_the_density(name):
    case, likelihood = CASES[name], made(name, (1,))
    with torch.no_grad():
        p = likelihood(torch.randn(3, 2))
        x, w = case.nodes(p)
        mass = w * p.expand((x.shape[1], 3)).log_prob(x.mT.unsqueeze(-1)).mT.exp()
        draws = p.sample((20_000,)).squeeze(-1)
    assert draws.dtype == torch.float64
    likelihood.check_support(draws)
    # Bounded functions, so that no heavy tail spoils the z-score.
    for function in (lambda x: (x - 0.4).tanh(), lambda x: (2 * x).cos(), lambda x: x == x[:, :1]):
        if function(x[:1]).dtype == torch.bool:
            if name not in DISCRETE:
                continue
            expected, value = mass[:, 0], (draws == x[:, 0]).double()
        else:
            expected, value = (mass * function(x)).sum(-1), function(draws)
        z = (value.mean(0) - expected) / (value.std(0) / len(draws) ** 0.5)
        assert z.abs().max() < MAX_Z


@each_case
@pytest.mark.parametrize("batch", [(), (5,), (3, 5)])
@pytest.mark.parametrize("event_shape", [(4,), (2, 3)])
def test_shapes_are_those_of_z_and_x(name, batch, event_shape):
    likelihood, z = made(name, event_shape, hidden=(3,)), torch.randn(*batch, 2)
    p, x = likelihood(z), examples(name, *batch, event_shape=event_shape)
    assert p.batch_shape == batch
    assert p.event_shape == likelihood.event_shape == event_shape
    assert p.log_prob(x).shape == batch
    assert p.mean.shape == p.variance.shape == likelihood.center(p).shape == x.shape
    assert p.sample((7,)).shape == (7, *x.shape)
    wide = p.expand((2, *batch))
    assert wide.log_prob(x).shape == wide.sample().shape[: 1 + len(batch)] == (2, *batch)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x).expand(2, *batch))
    # Batches are independent rows: each is what it is alone.
    if batch:
        torch.testing.assert_close(likelihood(z[0]).log_prob(x[0]), p.log_prob(x)[0])


@each_case
def test_log_density_is_a_sum_over_features(name):
    likelihood, z, x = made(name, (2, 3)), torch.randn(4, 2), examples(name, 4, event_shape=(2, 3))
    y = outputs(likelihood, z).detach().numpy()
    expected = CASES[name].reference(y, x.flatten(1).numpy()).sum(-1)
    torch.testing.assert_close(likelihood(z).log_prob(x), torch.from_numpy(expected))


@each_case
def test_gradients_reach_every_parameter(name):
    likelihood, z = made(name, hidden=(3,)), torch.randn(5, 2)
    likelihood(z).log_prob(examples(name, 5)).sum().backward()
    for parameter_name, parameter in likelihood.named_parameters():
        assert (parameter.grad != 0).any(), parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@each_case
def test_gradient_is_the_slope_of_the_log_density(name):
    likelihood, x = made(name), examples(name, 3)
    z = torch.randn(3, 2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: likelihood(z).log_prob(x), z, atol=1e-6)


@each_case
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_outputs_leave_density_and_gradient_finite(name, sign, dtype):
    likelihood = made(name).to(dtype)
    x, m = examples(name, 1).to(dtype), likelihood.outputs_per_feature
    for pattern in range(2**m if m <= 2 else 3):
        signs = [sign * (1 - 2 * (pattern >> row & 1)) for row in range(m)]
        with torch.no_grad():
            likelihood.decoder.layers[0].weight.zero_()
            likelihood.decoder.layers[0].bias.copy_(1e4 * torch.tensor(signs).repeat_interleave(2))
        likelihood.zero_grad()
        z = torch.randn(1, 2, dtype=dtype)
        p = likelihood(z)
        log_p = p.log_prob(x)
        log_p.sum().backward()
        assert log_p.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in likelihood.parameters())
        if name != "LogNormal":  # whose log mean has no bounds: exp(1e4) is infinite
            likelihood.check_support(p.sample((20,)).squeeze(1))


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_follows_the_type_of_the_weights(name, dtype):
    likelihood, z = made(name).to(dtype), torch.randn(5, 2, dtype=dtype)
    p = likelihood(z)
    tensors = (p.log_prob(examples(name, 5).to(dtype)), p.mean, p.variance, p.sample())
    assert {tensor.dtype for tensor in (*tensors, likelihood.center(p))} == {dtype}


@each_case
def test_float32_agrees_with_float64(name):
    likelihood, z, x = made(name), torch.randn(5, 2), examples(name, 5)
    exact = likelihood(z).log_prob(x)
    narrow = copy.deepcopy(likelihood).float()(z.float()).log_prob(x.float())
    torch.testing.assert_close(narrow.double(), exact, rtol=3e-6, atol=3e-6)


@each_case
def test_nothing_is_made_on_the_default_device(name):
    likelihood, z, x = made(name), torch.randn(5, 2), examples(name, 5)
    with torch.device("meta"):
        p = likelihood(z)
        log_p = p.log_prob(x)
        log_p.sum().backward()
        tensors = [log_p, p.mean, p.variance, p.sample(), likelihood.center(p)]
        tensors += [p.expand((2, 5)).sample(), *(q.grad for q in likelihood.parameters())]
        likelihood.check_support(x)
        assert str(likelihood)
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


@each_case
def test_state_makes_an_equal_likelihood(name):
    first, second, z = made(name), made(name), torch.randn(5, 2)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)
    second.load_state_dict(first.state_dict())
    x = examples(name, 5)
    torch.testing.assert_close(second(z).log_prob(x), first(z).log_prob(x), rtol=0, atol=0)
    copied = copy.deepcopy(first)
    torch.testing.assert_close(copied(z).log_prob(x), first(z).log_prob(x), rtol=0, atol=0)


@each_case
def test_log_density_can_be_traced_to_one_graph(name):
    # No branch depends on a value, so that a training step can be compiled.
    likelihood, z, x = made(name), torch.randn(5, 2), examples(name, 5)
    with pyro.validation_enabled(False):
        graph = make_fx(lambda z, x: likelihood(z).log_prob(x))(z, x)
    z, x = torch.randn(5, 2), x.flip(0)
    torch.testing.assert_close(graph(z, x), likelihood(z).log_prob(x), rtol=1e-13, atol=1e-13)


@each_case
def test_support_says_whether_x_is_discrete(name):
    p = made(name)(torch.zeros(3, 2))
    assert p.support.is_discrete == (name in DISCRETE)


@each_case
@pytest.mark.parametrize("form", ["flat", "stacked", "channels"])
def test_decoder_outputs_are_read_parameter_by_parameter(name, form):
    shape = (2, 4, 4)
    m = lk.outputs_per_feature(kind_and_options(CASES[name]))
    if form == "channels":
        decoder = networks.ConvDecoder(2, (2 * m, 4, 4), channels=(3,), hidden=5)
    else:
        decoder = networks.MLP(2, (), 32 * m if form == "flat" else (m, *shape))
    likelihood, z = CASES[name].kind(decoder, event_shape=shape), torch.randn(3, 2)
    assert likelihood.num_outputs == 32 * m
    x = examples(name, 3, event_shape=shape)
    expected = CASES[name].reference(
        decoder(z).detach().reshape(3, m, 32).numpy(), x.flatten(1).numpy()
    )
    torch.testing.assert_close(likelihood(z).log_prob(x), torch.from_numpy(expected.sum(-1)))


@each_case
def test_decoder_of_another_width_is_refused_with_both_numbers(name):
    needed = 2 * lk.outputs_per_feature(kind_and_options(CASES[name]))
    wrong = CASES[name].kind(nn.Linear(2, 7), event_shape=(2,))
    message = (
        rf"decoder must return {needed} numbers for each z.*; got 7 \(shape \(5, 7\)\)\. Give"
    )
    with pytest.raises(ValueError, match=message):
        wrong(torch.zeros(5, 2))
    loses_rows = nn.Sequential(nn.Linear(2, needed), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"got shape \(\d+,\) for z with batch shape \(5,\)"):
        CASES[name].kind(loses_rows, event_shape=(2,))(torch.zeros(5, 2))


@each_case
def test_center_is_the_mean_but_for_classes(name):
    likelihood = made(name)
    p = likelihood(torch.randn(5, 2))
    if name == "Categorical":
        expected = outputs(likelihood, torch.zeros(1, 2)).argmax(1)
        at_zero = likelihood.center(likelihood(torch.zeros(1, 2)))
        torch.testing.assert_close(at_zero, expected.double())
    else:
        torch.testing.assert_close(likelihood.center(p), p.mean, rtol=0, atol=0)


@each_case
def test_validation_accepts_the_support_and_rejects_what_is_outside(name):
    p = made(name)(torch.zeros(1, 2))
    p.log_prob(examples(name, 1))
    outside = torch.full((1, 2), math.nan if "Poisson" not in name else 0.5)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(outside)


def test_outputs_per_feature_is_known_before_the_decoder():
    needed = {name: lk.outputs_per_feature(kind_and_options(case)) for name, case in CASES.items()}
    assert {name: m for name, m in needed.items() if m != 1} == {
        "Beta": 2,
        "ZeroInflatedPoisson": 2,
        "Categorical": 4,
    }
    assert lk.outputs_per_feature(partial(partial(lk.Categorical, num_classes=3))) == 3
    assert lk.outputs_per_feature(nn.Identity) == 1  # a user's own module need not say

    class Own(nn.Module):
        outputs_per_feature = 3

    assert lk.outputs_per_feature(partial(Own)) == 3


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (lk.Categorical, ValueError, "num_classes must be given for Categorical"),
        (partial(lk.Categorical, num_classes=1), ValueError, "num_classes must be at least 2"),
        (lambda: None, TypeError, "likelihood must be a class such as likelihoods.Gaussian"),
        ("Gaussian", TypeError, "likelihood must be a class such as likelihoods.Gaussian"),
    ],
)
def test_outputs_per_feature_of_what_has_none_raises(kind, error, message):
    with pytest.raises(error, match=message):
        lk.outputs_per_feature(kind)


def test_own_likelihood_needs_little():
    class Cauchy(lk.Likelihood):
        outputs_per_feature = 2

        def forward(self, z):
            loc, raw = self.outputs(z).unbind(-2)
            return dist.Cauchy(loc, raw.exp()).to_event(1)

    likelihood = Cauchy(nn.Linear(2, 6), event_shape=(3,))
    z, x = torch.randn(5, 2), torch.randn(5, 3)
    y = likelihood.decoder(z)
    expected = dist.Cauchy(y[:, :3], y[:, 3:].exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(likelihood(z).log_prob(x), expected)
    likelihood.check_support(x)
    likelihood.check_data(x)
    likelihood.check_support(x.log())  # NaN is a missing value, on which others decide

    class Above(Cauchy):
        support = dist.constraints.greater_than(-100.0)
        support_in_words = "exceed -100"

    with pytest.raises(ValueError, match="x must exceed -100, the support of Above; got"):
        Above(nn.Linear(2, 6), event_shape=(3,)).check_support(x - 100)
