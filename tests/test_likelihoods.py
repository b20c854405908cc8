import math

import numpy as np
import pyro
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import families, guides, likelihoods, networks, priors
from pyro_vae.distributions import SharedVarianceNormal


def gaussian(**options):
    return likelihoods.Gaussian(nn.Linear(2, 3), event_shape=(3,), **options)


@pytest.mark.parametrize("c", [1e-3, 0.1, 7.0])
@pytest.mark.parametrize("learn_variance", [True, False])
def test_gaussian_is_the_formula_with_the_constant(c, learn_variance):
    p = gaussian(variance=c, learn_variance=learn_variance)
    z, x = torch.randn(5, 2), torch.randn(5, 3)
    residual = (x - p.decoder(z)).square().sum(-1)
    C = 1 / (2 * c)  # noqa: N806
    expected = -C * residual - 1.5 * math.log(2 * math.pi * c)
    torch.testing.assert_close(p(z).log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_fixed_variance_is_exact_after_a_change_of_type():
    torch.set_default_dtype(torch.float32)
    p = gaussian(variance=0.1).double()
    assert p(torch.zeros(1, 2).double()).variance[0, 0].item() == 0.1
    assert p.variance.item() == 0.1


def test_variance_per_feature_has_the_density_of_independent_normals():
    c = [0.1, 1.0, 4.0]
    z, x = torch.randn(5, 2), torch.randn(5, 3)
    for learned in (False, True):
        p = gaussian(variance=np.array(c), learn_variance=learned)
        scale = torch.tensor(c).sqrt()
        expected = torch.distributions.Normal(p.decoder(z), scale).log_prob(x).sum(-1)
        torch.testing.assert_close(p(z).log_prob(x), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(p.variance, torch.tensor(c))


@pytest.mark.parametrize("c", [0.5, 9.0])
def test_optimal_variance_gains_what_the_formula_says(c):
    # FORMULAS (e): c* is the mean squared residual, the gain (n/2)(c*/c - 1 - log(c*/c)).
    z, x = torch.randn(50, 2), 3 * torch.randn(50, 3)
    p = gaussian(variance=c)
    best = (x - p.decoder(z)).square().mean().item()
    q = likelihoods.Gaussian(p.decoder, event_shape=(3,), variance=best, learn_variance=True)
    at_best, at_c = q(z).log_prob(x).mean(), p(z).log_prob(x).mean()
    gain = 1.5 * (best / c - 1 - math.log(best / c))
    assert abs((at_best - at_c).item() - gain) < 1e-12
    at_best.backward()
    assert abs(q.log_excess.grad.item()) < 1e-12


def test_learned_variance_stays_above_its_floor():
    p = gaussian(variance=0.1, learn_variance=True, variance_floor=1e-3)
    with torch.no_grad():
        p.log_excess.fill_(-1000.0)
    assert p.variance.item() == 1e-3


def test_variance_is_trained_only_if_learned():
    names = {name for name, _ in gaussian(variance=0.1).named_parameters()}
    assert names == {"decoder.weight", "decoder.bias"}
    names = {name for name, _ in gaussian(variance=0.1, learn_variance=True).named_parameters()}
    assert names == {"decoder.weight", "decoder.bias", "log_excess"}


def test_constant_features_with_a_variance_of_their_own_are_named():
    x = torch.randn(10, 3)
    x[:, 1] = 0.5
    p = gaussian(variance=torch.ones(3), learn_variance=True)
    with pytest.warns(UserWarning, match=r"1 feature\(s\) are constant \(width\)"):
        p.check_data(x, ("length", "width", "height"))
    gaussian(variance=1.0, learn_variance=True).check_data(x)  # one variance for all: no warning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": 0.0}, r"variance must be positive and finite; got 0\.0"),
        ({"variance": -0.1}, r"variance must be positive and finite; got -0\.1"),
        ({"variance": math.nan}, "variance must be positive and finite; got nan"),
        ({"variance": math.inf}, "variance must be positive and finite; got inf"),
        ({"variance": [1.0, 2.0]}, r"have the event shape \(3,\); got shape \(2,\)"),
        ({"variance": [1.0, -1.0, 1.0]}, "variance must be positive and finite"),
        ({"variance": 1e-7, "learn_variance": True}, "variance must be above variance_floor"),
        ({"variance_floor": -1.0}, "variance_floor must not be negative"),
        ({"variance_floor": math.nan}, "variance_floor must not be negative"),
    ],
)
def test_gaussian_rejects_a_variance_that_is_none(options, message):
    with pytest.raises(ValueError, match=message):
        gaussian(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (3, r"event_shape must be a tuple; got 3. Write \(3,\)"),
        ((0,), "event_shape must hold positive integers"),
        ((2.5,), "event_shape must hold positive integers"),
    ],
)
def test_gaussian_rejects_an_event_shape_that_is_none(shape, message):
    with pytest.raises(ValueError, match=message):
        likelihoods.Gaussian(nn.Identity(), event_shape=shape)


def test_gaussian_keeps_its_fast_distribution_where_c_does_not_depend_on_z():
    z = torch.randn(5, 2)
    for options in ({}, {"learn_variance": True}, {"variance": np.ones(3)}):
        assert type(gaussian(**options)(z)) is SharedVarianceNormal


@pytest.mark.parametrize("shape", [(3,), (1,)])
def test_variance_of_z_is_floored_softplus_of_its_network(shape):
    network = networks.MLP(2, (), shape)
    p = gaussian(variance=network, variance_floor=0.01)
    z, x = torch.randn(4, 5, 2), torch.randn(5, 3)
    c = (0.01 + network(z).exp().log1p()).expand(4, 5, 3)
    expected = torch.distributions.Normal(p.decoder(z), c.sqrt()).log_prob(x).sum(-1)
    torch.testing.assert_close(p(z).log_prob(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(p.variance_at(z), c)
    assert not p.variance_at(z).requires_grad
    assert "variance a function of z" in repr(p)
    p(z).log_prob(x).sum().backward()
    assert (network.layers[0].weight.grad != 0).any()
    with pytest.raises(ValueError, match=r"here it is a function of z\. Call variance_at\(z\)"):
        _ = p.variance


@pytest.mark.parametrize(
    "out_shape", [(1,), (6,), (2, 3), (1, 3), (2, 1)], ids=lambda shape: str(shape)
)
def test_variance_of_z_broadcasts_to_the_event(out_shape):
    network = networks.MLP(2, (), out_shape)
    p = likelihoods.Gaussian(networks.MLP(2, (), (2, 3)), (2, 3), variance=network)
    z = torch.randn(5, 2)
    raw = network(z).reshape(5, *{(1,): (1, 1), (6,): (2, 3)}.get(out_shape, out_shape))
    expected = (1e-6 + raw.exp().log1p()).expand(5, 2, 3)
    torch.testing.assert_close(p.variance_at(z), expected)
    torch.testing.assert_close(p(z).variance, expected)


def test_value_at_z_is_the_value_where_it_does_not_depend_on_z():
    z = torch.randn(4, 5, 2)
    for options in ({}, {"learn_variance": True}):
        torch.testing.assert_close(
            gaussian(variance=0.3, **options).variance_at(z), torch.full((4, 5, 3), 0.3)
        )
        c = torch.tensor([0.1, 0.2, 0.3])
        torch.testing.assert_close(
            gaussian(variance=c, **options).variance_at(z), c.expand(4, 5, 3)
        )


# The class, its parameter, its default there, and whether it is learned unless said otherwise.
POSITIVE = [
    (likelihoods.Gaussian, "variance", 1.0, False),
    (likelihoods.LogNormal, "variance", 1.0, False),
    (likelihoods.Laplace, "scale", 1.0, False),
    (likelihoods.StudentT, "scale", 1.0, False),
    (likelihoods.DiscretizedLogistic, "scale", 0.1, True),
    (likelihoods.NegativeBinomial, "concentration", [1.0, 1.0, 1.0], True),
]


@pytest.mark.parametrize(("kind", "name", "default", "learned"), POSITIVE)
def test_positive_parameters_share_one_mechanism(kind, name, default, learned):
    def make(**options):
        return kind(nn.Linear(2, 3), (3,), **options)

    def value(likelihood):
        return getattr(likelihood, name)

    z = torch.randn(5, 2)
    p = make()
    assert value(p).tolist() == pytest.approx(default, abs=1e-15)
    assert hasattr(p, "log_excess") == getattr(p, f"learn_{name}") == learned
    per_feature = torch.tensor([0.5, 1.0, 2.0])
    for learn in (False, True):
        for start in (0.7, per_feature, per_feature.numpy(), per_feature.tolist()):
            p = make(**{name: start, f"learn_{name}": learn})
            expected = torch.as_tensor(start)
            torch.testing.assert_close(value(p), expected, rtol=1e-15, atol=0)
            at_z = getattr(p, f"{name}_at")(z)
            torch.testing.assert_close(at_z, expected.expand(5, 3), rtol=1e-15, atol=0)
            assert hasattr(p, "log_excess") == learn
            is_buffer = not learn and expected.dim() > 0
            assert (f"fixed_{name}" in p.state_dict()) == is_buffer
    p = make(**{name: 0.7, f"learn_{name}": True, f"{name}_floor": 0.25})
    with torch.no_grad():
        p.log_excess.fill_(-1000.0)
    assert value(p).item() == 0.25 == getattr(p, f"{name}_floor")
    with torch.no_grad():
        p.log_excess.fill_(math.log(2.0))
    assert value(p).item() == 2.25
    network = nn.Linear(2, 1)
    p = make(**{name: network, f"{name}_floor": 0.25})
    expected = (0.25 + network(z).exp().log1p()).expand(5, 3)
    torch.testing.assert_close(getattr(p, f"{name}_at")(z), expected)
    assert f"{name}_network.weight" in p.state_dict()
    with pytest.raises(ValueError, match=rf"{name} must not depend on z.*Call {name}_at"):
        value(p)


@pytest.mark.parametrize(("kind", "name", "default", "learned"), POSITIVE)
def test_fixed_number_equals_the_same_fixed_array_and_network(kind, name, default, learned):
    decoder, network = nn.Linear(2, 3), nn.Linear(2, 3)
    nn.init.zeros_(network.weight)
    floor = 0.1
    nn.init.constant_(network.bias, math.log(math.expm1(0.7 - floor)))
    z = torch.randn(5, 2)
    x = torch.zeros(5, 3) if kind is likelihoods.DiscretizedLogistic else torch.ones(5, 3)
    log_ps = [
        kind(decoder, (3,), **{name: value, f"{name}_floor": floor, f"learn_{name}": learn})(
            z
        ).log_prob(x)
        for value in (0.7, [0.7, 0.7, 0.7], network)
        for learn in (False, True)
    ]
    for log_p in log_ps[1:]:
        torch.testing.assert_close(log_p, log_ps[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kind", "name", "default", "learned"), POSITIVE)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"": 0.0}, ValueError, r"{} must be positive and finite; got 0\.0"),
        ({"": math.nan}, ValueError, "{} must be positive and finite; got nan"),
        ({"": [1.0, 2.0]}, ValueError, r"{} must be a number or have the event shape \(3,\)"),
        ({"": "one"}, TypeError, "{} must be a number, an array or a network; got 'one'"),
        ({"": 0.1, "_floor": 0.1}, ValueError, r"{} must be above {}_floor = 0\.1"),
        ({"_floor": -1.0}, ValueError, "{}_floor must not be negative; got -1"),
        ({"": nn.Linear(2, 1), "_floor": 0.0}, ValueError, "{}_floor must be positive where {}"),
    ],
)
def test_positive_parameter_that_is_none_raises(
    kind, name, default, learned, options, error, message
):
    options = {f"{name}{suffix}": value for suffix, value in options.items()}
    with pytest.raises(error, match=message.replace("{}", name)):
        kind(nn.Linear(2, 3), (3,), **{f"learn_{name}": True, **options})


@pytest.mark.parametrize("width", [2, 4])
def test_network_of_the_wrong_width_raises(width):
    p = gaussian(variance=nn.Linear(2, width))
    with pytest.raises(ValueError, match=r"variance must be a network that returns one number.*"):
        p(torch.zeros(5, 2))


def test_network_that_loses_the_rows_raises():
    p = gaussian(variance=nn.Sequential(nn.Linear(2, 3), nn.Flatten(0)))
    with pytest.raises(ValueError, match=r"got shape \(15,\) for z with batch shape \(5,\)"):
        p(torch.zeros(5, 2))


@pytest.mark.parametrize("df", [1.0, 0.5, math.nan, math.inf, "4"])
def test_student_t_without_a_mean_raises(df):
    with pytest.raises(ValueError, match="df must be above 1 and finite"):
        likelihoods.StudentT(nn.Linear(2, 3), (3,), df=df)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda d: likelihoods.Categorical(d, (3,), num_classes=1),
            "num_classes must be at least",
        ),
        (lambda d: likelihoods.Categorical(d, (3,), num_classes=2.5), "num_classes must be a pos"),
        (lambda d: likelihoods.DiscretizedLogistic(d, (3,), levels=1), "levels must be between 2"),
        (lambda d: likelihoods.DiscretizedLogistic(d, (3,), levels=10**6), "levels must be betw"),
        (lambda d: likelihoods.Beta(d, (3,), min_concentration=0), "min_concentration must be po"),
        (lambda d: likelihoods.Beta(d, (3,), max_concentration=1e-3), "max_concentration must be"),
        (lambda d: likelihoods.NegativeBinomial(d, 3), "event_shape must be a tuple; got 3"),
    ],
)
def test_options_that_are_none_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make(nn.Linear(2, 3))


def test_beta_concentration_lies_between_its_bounds():
    likelihood = likelihoods.Beta(
        nn.Identity(), (1,), min_concentration=2.0, max_concentration=50.0
    )
    p = likelihood(torch.tensor([[0.0, -1e4], [0.0, 0.0], [0.0, 1e4]]))
    got = p.base_dist.concentration.squeeze(-1)
    torch.testing.assert_close(got, torch.tensor([2.0, 2 + math.log(2), 50.0]))


def test_beta_stays_finite_at_extreme_outputs_with_its_default_bounds():
    for dtype in (torch.float32, torch.float64):
        y = 1e4 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=dtype)
        for x in (1e-30, 1e-3, 0.5, 0.999):
            y = y.detach().requires_grad_()
            p = likelihoods.Beta(nn.Identity(), (1,))(y)
            log_p = p.log_prob(torch.tensor([x], dtype=dtype))
            log_p.sum().backward()
            assert log_p.isfinite().all()
            assert y.grad.isfinite().all()


def test_log_normal_is_gaussian_in_log_x():
    decoder, z, x = nn.Linear(2, 3), torch.randn(5, 2), torch.rand(5, 3) + 0.1
    c = [0.1, 0.2, 0.3]
    p = likelihoods.LogNormal(decoder, (3,), variance=c)(z)
    q = likelihoods.Gaussian(decoder, (3,), variance=c)(z)
    expected = q.log_prob(x.log()) - x.log().sum(-1)
    torch.testing.assert_close(p.log_prob(x), expected, rtol=0, atol=1e-12)


def test_likelihoods_agree_where_theory_says_so():
    decoder, z = nn.Linear(2, 3), torch.randn(5, 2)
    x = torch.randint(0, 6, (5, 3)).double()
    many = likelihoods.NegativeBinomial(decoder, (3,), concentration=1e13)
    poisson = likelihoods.Poisson(decoder, (3,))
    torch.testing.assert_close(many(z).log_prob(x), poisson(z).log_prob(x), rtol=0, atol=1e-9)
    two = likelihoods.Categorical(
        nn.Sequential(decoder, Stacked()), (3,), num_classes=2
    )  # logits (0, f)
    binary = likelihoods.Bernoulli(decoder, (3,))
    x = (x > 2).double()
    torch.testing.assert_close(two(z).log_prob(x), binary(z).log_prob(x), rtol=0, atol=1e-13)
    t = likelihoods.StudentT(decoder, (3,), df=1e12)(z)
    normal = likelihoods.Gaussian(decoder, (3,))(z)
    torch.testing.assert_close(t.log_prob(x), normal.log_prob(x), rtol=0, atol=1e-9)
    # Fine levels: the probability of a level is the density times the width of its bin.
    fine = likelihoods.DiscretizedLogistic(decoder, (3,), levels=65536, scale=0.3)(z)
    x = torch.randint(1, 65535, (5, 3)) / 65535
    logistic = ((x - decoder(z)) / 0.3).sigmoid()
    density = logistic * (1 - logistic) / 0.3
    expected = (density / 65535).log().sum(-1)
    torch.testing.assert_close(fine.log_prob(x), expected, rtol=0, atol=1e-8)


class Stacked(nn.Module):
    def forward(self, y):
        return torch.stack([torch.zeros_like(y), y], -2)


def test_images_of_bytes_have_the_bits_of_uniform_noise():
    # A logistic so wide that all inner bins are alike; the outermost have the rest.
    p = likelihoods.DiscretizedLogistic(nn.Identity(), (1,), scale=1e6)(torch.zeros(1, 1))
    inner = p.log_prob(torch.full((1, 1), 7 / 255)).item()
    assert abs(inner - math.log(1 / 255 / 4e6)) < 1e-6


def test_training_moves_decoder_and_parameter():
    family = families.DiagonalNormal(2)
    for kind in (likelihoods.Gaussian, likelihoods.LogNormal):
        vae = pv.VAE(
            prior=priors.StandardNormal(2),
            likelihood=kind(nn.Linear(2, 3), (3,), variance=0.5, learn_variance=True),
            guide=guides.AmortizedGuide(family, nn.Linear(3, family.num_params)),
        )
        before = {name: p.clone() for name, p in vae.p_x_given_z.named_parameters()}
        optim = pyro.optim.Adam({"lr": 1e-2})
        svi = pyro.infer.SVI(vae.model, vae.guide, optim, loss=pyro.infer.Trace_ELBO())
        for _ in range(3):
            svi.step(torch.rand(8, 3) + 0.1)
        assert all((p != before[name]).any() for name, p in vae.p_x_given_z.named_parameters())
