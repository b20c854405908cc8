"""Which data a likelihood refuses, in which words, and of which it warns."""

import math
import warnings

import pytest
import torch
from torch import nn

from pyro_vae import likelihoods as lk
from pyro_vae.likelihoods.data_checks import as_written

SHAPE = (3,)


def make(kind, **options):
    return kind(nn.Linear(2, 3), SHAPE, **options)


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


ONES = [1.0, 1.0, 1.0]
REFUSED = [
    (
        make(lk.Bernoulli),
        table([0, 1, 0], [0, 16, 5]),
        "x must lie in [0, 1], the support of Bernoulli; got values in [0, 16], 2 of them "
        "outside, the first at row 1, column 1. Rescale x (x / 16), or use likelihoods.Poisson "
        "for counts.",
    ),
    (
        make(lk.Bernoulli),
        table([0, -1, 0], [0, 1, 1.5]),
        "x must lie in [0, 1], the support of Bernoulli; got values in [-1, 1.5], 2 of them "
        "outside, the first at row 0, column 1. Rescale x ((x + 1) / 2.5), or use "
        "likelihoods.Gaussian for real numbers.",
    ),
    (
        make(lk.ContinuousBernoulli),
        table([0.5, 1, 2.5], [1, 1, 1]),
        "x must lie in [0, 1], the support of ContinuousBernoulli; got values in [0.5, 2.5], 1 of "
        "them outside, the first at row 0, column 2. Rescale x (x / 2.5), or use "
        "likelihoods.LogNormal for positive numbers.",
    ),
    (
        make(lk.ContinuousBernoulli),
        table([-2, -2, -2]),
        "x must lie in [0, 1], the support of ContinuousBernoulli; got values in [-2, -2], 3 of "
        "them outside, the first at row 0, column 0. Rescale x ((x + 2) / 1), or use "
        "likelihoods.Gaussian for real numbers.",
    ),
    (
        lk.Beta(nn.Linear(2, 6), SHAPE),
        table([0.5, 1, 0], [0.1, 0.1, 0.1]),
        "x must lie in (0, 1), both ends excluded, the support of Beta; got values in [0, 1], 2 "
        "of them outside, the first at row 0, column 1. Squeeze x ((x * (N - 1) + 0.5) / N, N the "
        "number of rows), or use likelihoods.ContinuousBernoulli, whose support has its ends.",
    ),
    (
        lk.Beta(nn.Linear(2, 6), SHAPE),
        table([0.5, 255, 0]),
        "x must lie in (0, 1), both ends excluded, the support of Beta; got values in [0, 255], 2 "
        "of them outside, the first at row 0, column 1. Rescale x (x / 255, then squeeze the "
        "ends: (x * (N - 1) + 0.5) / N, N the number of rows), or use likelihoods.Gaussian for "
        "real numbers.",
    ),
    (
        make(lk.Poisson),
        table([0, 1.5, 3], [0.5, 2, 1]),
        "x must hold counts 0, 1, 2, ..., the support of Poisson; got values in [0, 3], 2 of them "
        "outside (2 not whole), the first at row 0, column 1. Undo the rescaling of x if it held "
        "counts (x.round() if that is all), or use likelihoods.Gaussian for real numbers.",
    ),
    (
        make(lk.NegativeBinomial),
        table([0, -1, 3], [0, 2, 1]),
        "x must hold counts 0, 1, 2, ..., the support of NegativeBinomial; got values in [-1, 3], "
        "1 of them outside, the first at row 0, column 1. Undo what made x negative, such as a "
        "standardization, or use likelihoods.Gaussian for real numbers.",
    ),
    (
        lk.ZeroInflatedPoisson(nn.Linear(2, 6), SHAPE),
        table([0, 0.25, 1]),
        "x must hold counts 0, 1, 2, ..., the support of ZeroInflatedPoisson; got values in "
        "[0, 1], 1 of them outside (1 not whole), the first at row 0, column 1. Undo the "
        "rescaling of x if it held counts, or use likelihoods.ContinuousBernoulli for numbers in "
        "[0, 1].",
    ),
    (
        make(lk.Poisson),
        table([0.5, 1.5, 3]),
        "x must hold counts 0, 1, 2, ..., the support of Poisson; got values in [0.5, 3], 2 of "
        "them outside (2 not whole), the first at row 0, column 0. Undo the rescaling of x if it "
        "held counts (x.round() if that is all), or use likelihoods.LogNormal for positive "
        "numbers.",
    ),
    (
        lk.Categorical(nn.Linear(2, 15), SHAPE, num_classes=5),
        table([0, 4, 5], [1, 2, 7]),
        "x must hold class numbers 0, 1, ..., 4, the support of Categorical; got values in "
        "[0, 7], 2 of them outside, the first at row 0, column 2. Number the classes of x from 0 "
        "(pandas.factorize), or use num_classes=8.",
    ),
    (
        lk.Categorical(nn.Linear(2, 6), SHAPE, num_classes=2),
        table([0, 1, 0.5]),
        "x must hold class numbers 0, 1, the support of Categorical; got values in [0, 1], 1 of "
        "them outside (1 not whole), the first at row 0, column 2. Number the classes of x from 0 "
        "(pandas.factorize), or use likelihoods.Gaussian for real numbers.",
    ),
    (
        make(lk.LogNormal),
        table([1, 0, 2], ONES),
        "x must be positive, the support of LogNormal; got values in [0, 2], 1 of them outside, "
        "the first at row 0, column 1. Shift x (x + a, with some a > 0), or use "
        "likelihoods.Gaussian for real numbers.",
    ),
    (
        make(lk.LogNormal),
        table([1, -0.5, 2], ONES),
        "x must be positive, the support of LogNormal; got values in [-0.5, 2], 1 of them "
        "outside, the first at row 0, column 1. Shift x (x + 0.5 + a, with some a > 0), or use "
        "likelihoods.Gaussian for real numbers.",
    ),
    (
        make(lk.DiscretizedLogistic),
        table([0, 17, 255], [0, 0, 1]),
        "x must lie on the grid 0, 1/255, ..., 1, the support of DiscretizedLogistic; got values "
        "in [0, 255], 2 of them outside, the first at row 0, column 1. Rescale x (x / 255), or "
        "use likelihoods.NegativeBinomial for counts.",
    ),
    (
        make(lk.DiscretizedLogistic, levels=3),
        table([0, 1, 4]),
        "x must lie on the grid 0, 0.5, 1, the support of DiscretizedLogistic; got values in "
        "[0, 4], 1 of them outside, the first at row 0, column 2. Use levels=5 and x / 4, or use "
        "likelihoods.NegativeBinomial for counts.",
    ),
    (
        make(lk.DiscretizedLogistic),
        table([0, 0.0625, 1], [0.5, 0.25, 1]),
        "x must lie on the grid 0, 1/255, ..., 1, the support of DiscretizedLogistic; got values "
        "in [0, 1], 3 of them outside, the first at row 0, column 1. Use levels=17, or "
        "likelihoods.ContinuousBernoulli for any numbers in [0, 1].",
    ),
    (
        make(lk.DiscretizedLogistic, levels=2),
        table([0, 0.123, 0.77]),
        "x must lie on the grid 0, 1, the support of DiscretizedLogistic; got values in "
        "[0, 0.77], 2 of them outside, the first at row 0, column 1. Round x ((x * 1).round() / "
        "1), or likelihoods.ContinuousBernoulli for any numbers in [0, 1].",
    ),
    (
        make(lk.DiscretizedLogistic),
        table([0, -0.5, 1.5]),
        "x must lie on the grid 0, 1/255, ..., 1, the support of DiscretizedLogistic; got values "
        "in [-0.5, 1.5], 2 of them outside, the first at row 0, column 1. Rescale x ((x + 0.5) / "
        "2) and round it to the grid, or use likelihoods.Gaussian for real numbers.",
    ),
]


@pytest.mark.parametrize(("likelihood", "x", "message"), REFUSED)
def test_data_outside_the_support_are_refused_with_their_mend(likelihood, x, message):
    for dtype in (torch.float64, torch.float32):
        before = x.clone()
        with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
            likelihood.check_support(x.to(dtype))
        assert str(raised.value) == message
        assert x.equal(before)


@pytest.mark.parametrize(("likelihood", "x", "message"), REFUSED)
def test_missing_values_are_no_part_of_what_is_refused(likelihood, x, message):
    missing = torch.full_like(x[:1], math.nan)
    likelihood.check_support(missing)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        likelihood.check_support(torch.cat([x, missing]))
    assert str(raised.value) == message


def test_columns_and_the_name_of_the_data_are_told():
    x = table([0, 1, 0], [0, 1, 3])
    with pytest.raises(ValueError, match=r"held_out must lie .* row 1, column 'age'\. Rescale he"):
        make(lk.Bernoulli).check_support(x, columns=("sex", "old", "age"), name="held_out")


def test_position_in_an_image_is_told():
    x = torch.zeros(5, 1, 4, 4)
    x[2, 0, 3, 1] = -1
    likelihood = lk.Poisson(nn.Linear(2, 16), (1, 4, 4))
    with pytest.raises(ValueError, match=r"1 of them outside, the first at index \(2, 0, 3, 1\)"):
        likelihood.check_support(x)


ACCEPTED = [
    (make(lk.Bernoulli), table([0, 1, 0.3])),
    (make(lk.ContinuousBernoulli), table([0, 1, 0.3])),
    (lk.Beta(nn.Linear(2, 6), SHAPE), table([1e-12, 1 - 1e-12, 0.3])),
    (make(lk.Poisson), table([0, 1, 1e6])),
    (make(lk.NegativeBinomial), table([0, 1, 1e6])),
    (lk.ZeroInflatedPoisson(nn.Linear(2, 6), SHAPE), table([0, 1, 1e6])),
    (lk.Categorical(nn.Linear(2, 9), SHAPE, num_classes=3), table([0, 1, 2])),
    (make(lk.LogNormal), table([1e-30, 1, 1e30])),
    (make(lk.DiscretizedLogistic), table([0, 200 / 255, 1])),
    (make(lk.Gaussian), table([-1e30, 0, 1e30])),
]


@pytest.mark.parametrize(("likelihood", "x"), ACCEPTED)
def test_data_in_the_support_are_accepted_with_a_finite_density(likelihood, x):
    likelihood.check_support(x)
    assert likelihood.double()(torch.zeros(1, 2)).log_prob(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_byte_divided_by_255_is_a_level(dtype):
    bytes_ = torch.arange(256, dtype=torch.uint8)
    for x in (bytes_.to(dtype) / 255, bytes_.to(dtype) * (1 / 255)):
        make(lk.DiscretizedLogistic).check_support(x.unsqueeze(-1))


def warned(likelihood, x, columns=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        likelihood.check_data(x, columns)
    assert all(warning.category is UserWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_bernoulli_warns_once_of_gray_values():
    (message,) = warned(make(lk.Bernoulli), table([0, 0.5, 1], [0.1, 0.2, 1]))
    assert message.startswith("3 of 6 values of x lie strictly between 0 and 1, where a Bernoulli")
    for part in ("not a normalized density", "ContinuousBernoulli", "Beta", "x > 0.5"):
        assert part in message
    assert warned(make(lk.Bernoulli), table([0, 1, 1])) == []


def test_continuous_bernoulli_warns_of_binary_data_and_of_constant_ends():
    likelihood = make(lk.ContinuousBernoulli)
    (message,) = warned(likelihood, table([0, 1, 1], [1, 1, 0]))
    assert message.startswith("x holds 0 and 1 alone, where the density")
    assert "Use likelihoods.Bernoulli." in message
    (message,) = warned(likelihood, table([0, 0.4, 1], [0, 0.4, 1]), ("a", "b", "c"))
    assert message.startswith("2 feature(s) are constant at 0 or 1 (a, c), where their density")
    assert warned(likelihood, table([0, 0.4, 1], [0.1, 0.4, 0.3])) == []


UNBOUNDED = [
    (lk.Gaussian, "variance"),
    (lk.LogNormal, "variance"),
    (lk.Laplace, "scale"),
    (lk.StudentT, "scale"),
]


@pytest.mark.parametrize(("kind", "name"), UNBOUNDED)
def test_constant_features_with_a_parameter_of_their_own_are_named(kind, name):
    x = torch.rand(10, 3) + 0.1
    x[:, 1] = 0.5
    own = {name: torch.ones(3), f"learn_{name}": True}
    (message,) = warned(make(kind, **own), x, ("length", "width", "height"))
    floor = make(kind, **own).__dict__[f"{name}_floor"]
    assert message == (
        f"1 feature(s) are constant (width): their learned {name} falls to {name}_floor = "
        f"{floor}, and the ELBO grows without meaning. Drop them, or learn one {name} for all "
        "features."
    )
    assert warned(make(kind, **own), x[:, [0, 2, 0]]) == []
    assert warned(make(kind, **own), x[:1]) == []  # one row says nothing
    assert warned(make(kind, **{name: 1.0, f"learn_{name}": True}), x) == []
    assert warned(make(kind, **{name: torch.ones(3)}), x) == []


def test_constant_features_of_a_beta_are_named():
    x = torch.full((5, 12), 0.3)
    (message,) = warned(lk.Beta(nn.Linear(2, 24), (12,)), x)
    assert message == (
        "12 feature(s) are constant (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...): their concentration "
        "rises to max_concentration = 10000.0, and the ELBO grows without meaning. Drop them."
    )


@pytest.mark.parametrize("kind", [lk.Poisson, lk.NegativeBinomial, lk.DiscretizedLogistic])
def test_constant_features_are_no_matter_where_x_is_discrete(kind):
    assert warned(make(kind), torch.zeros(5, 3)) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (16.0, "16"), (-3.0, "-3"), (1 + 1e-7, "1.0000001"), (1e30, "1e+30")],
)
def test_numbers_are_written_with_the_digits_of_their_type(value, text):
    assert as_written(torch.tensor(value, dtype=torch.float32)) == text
    assert as_written(torch.tensor(0.5, dtype=torch.bfloat16)) == "0.5"
