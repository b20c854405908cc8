import math

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vae import likelihoods


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
