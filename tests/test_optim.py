"""One torch optimizer inside Pyro's SVI: the per-datum gradient, one step, nothing left behind."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae.optim import OneTorchOptim, adam, constant, cosine, warmup
from pyro_vae.optim.one_torch import _global_norm


class Line:
    """x ~ N(a + b t, 1) with t = 0, 1, ...: gradients of the loss are sums of residuals.

    No latent site, so that the loss has no noise: -sum_i log N(x_i; a, exp(b)).
    """

    def __init__(self, a=0.5, b=-0.25):
        self.net = nn.ParameterDict(
            {"b": nn.Parameter(torch.tensor(b)), "a": nn.Parameter(torch.tensor(a))}
        )

    def model(self, x):
        pyro.module("line", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.net["a"], self.net["b"].exp()), obs=x)

    def guide(self, x):
        pass

    def mean_gradient(self, x):
        """Of the loss per datum with respect to a and b, by hand."""
        a, b = self.values()
        r = (x - a) / math.exp(b)
        return torch.stack([(-r / math.exp(b)).mean(), (1 - r.square()).mean()])

    def values(self):
        return torch.tensor([self.net["a"].item(), self.net["b"].item()])


def sgd(rate, *, fused=False):
    return lambda params: torch.optim.SGD(params, lr=rate, fused=fused)


# A fused optimizer divides gradients itself, another one is handed divided ones.
both_kinds = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


def step(programs, optim, x, *, num_data=None, rate_factor=1.0):
    optim.num_data = len(x) if num_data is None else num_data
    optim.rate_factor = rate_factor
    return SVI(programs.model, programs.guide, optim, Trace_ELBO()).step(x)


X = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.9], dtype=torch.float64)


@both_kinds
def test_one_step_of_sgd_is_the_gradient_of_the_loss_per_datum(fused):
    line = Line()
    before, gradient = line.values(), line.mean_gradient(X)
    step(line, OneTorchOptim(sgd(0.1, fused=fused)), X)
    torch.testing.assert_close(line.values(), before - 0.1 * gradient, rtol=1e-13, atol=1e-14)


def test_step_does_not_change_when_every_row_is_doubled():
    once, twice = Line(), Line()
    step(once, OneTorchOptim(sgd(0.1)), X)
    with pyro.get_param_store().scope():
        step(twice, OneTorchOptim(sgd(0.1)), X.repeat(2))
    assert (once.values() - Line().values()).abs().min() > 1e-3
    torch.testing.assert_close(once.values(), twice.values(), rtol=1e-14, atol=1e-15)


@both_kinds
@pytest.mark.parametrize("share", [0.3, 2.0], ids=["clipped", "below the limit"])
def test_clipping_is_torchs_clip_grad_norm_of_the_gradient_per_datum(share, fused):
    line = Line()
    before, gradient = line.values(), line.mean_gradient(X)
    clip_norm = share * gradient.norm().item()
    step(line, OneTorchOptim(sgd(0.1, fused=fused), clip_norm=clip_norm), X)
    clipped = nn.Parameter(torch.zeros(2))
    clipped.grad = gradient.clone()
    nn.utils.clip_grad_norm_([clipped], clip_norm)
    assert (share < 1) == (not torch.equal(clipped.grad, gradient))
    # torch adds 1e-6 to the norm before it divides.
    torch.testing.assert_close(
        line.values(), before - 0.1 * clipped.grad, rtol=0, atol=1e-6 / gradient.norm().item()
    )
    length = (line.values() - before).norm().item() / 0.1
    assert length == pytest.approx(min(share, 1.0) * gradient.norm().item(), rel=1e-12)


def test_global_norm_is_that_of_all_numbers_whatever_their_types():
    shapes = [(3, 4), (5,), (), (0, 2)]
    grads = [torch.randn(shape) for shape in shapes]
    found = _global_norm([grads[0].float(), *grads[1:]])
    numbers = torch.cat([grad.flatten() for grad in grads])
    assert found == pytest.approx(numbers.norm().item(), rel=1e-6)
    assert _global_norm(grads) == pytest.approx(
        float(torch.nn.utils.get_total_norm(grads)), rel=1e-14
    )


@both_kinds
def test_clipped_and_unclipped_steps_in_turn_are_each_divided_once(fused):
    line, optim = Line(), OneTorchOptim(sgd(0.1, fused=fused), clip_norm=3.0)
    for x in (X, 4 * X, X, 5 * X):
        before, gradient = line.values(), line.mean_gradient(x)
        is_clipped = gradient.norm() > 3
        assert is_clipped == (x.abs().max() > 2)
        step(line, optim, x)
        expected = before - 0.1 * gradient * (3 / gradient.norm() if is_clipped else 1)
        torch.testing.assert_close(line.values(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradient_that_is_not_finite_changes_nothing_and_the_next_step_works(bad):
    line, optim = Line(), OneTorchOptim(adam(0.1), clip_norm=1.0)
    before = line.values()
    with pyro.validation_enabled(is_validate=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro tells of a NaN loss, but not of an infinite one
        step(line, optim, torch.cat([X, torch.tensor([bad])]))
    assert torch.equal(line.values(), before)
    assert (optim.num_skipped, optim.skipped_last) == (1, True)
    fresh = Line()
    step(line, optim, X)
    with pyro.get_param_store().scope():
        step(fresh, OneTorchOptim(adam(0.1), clip_norm=1.0), X)
    assert (optim.num_skipped, optim.skipped_last) == (1, False)
    assert not torch.equal(line.values(), before)
    # Bitwise: the skipped step left nothing in Adam's moments or in its count of steps either.
    assert torch.equal(line.values(), fresh.values())


@both_kinds
def test_one_gradient_that_is_not_finite_holds_back_every_parameter(fused):
    line, optim = Line(), OneTorchOptim(sgd(0.1, fused=fused))
    step(line, optim, X)
    before = line.values()
    line.net["a"].grad, line.net["b"].grad = torch.tensor(1.0), torch.tensor(math.nan)
    optim(set(optim.params))
    assert torch.equal(line.values(), before)
    assert optim.num_skipped == 1


class Many:
    """Parameters with names whose order is not that of their registration."""

    names = ("m", "c", "z", "a", "k", "y", "b")

    def __init__(self):
        self.net = nn.ParameterDict({n: nn.Parameter(torch.zeros(2)) for n in self.names})

    def model(self, x):
        pyro.module("many", self.net)
        total = sum(self.net.values())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total.sum(), 1.0), obs=x)

    def guide(self, x):
        pass


def test_params_are_in_the_order_of_their_names_whatever_the_set_order():
    many, optim = Many(), OneTorchOptim(sgd(0.1))
    step(many, optim, X)
    assert [id(p) for p in optim.params] == [id(many.net[name]) for name in sorted(Many.names)]
    group = optim._optimizer.param_groups[0]["params"]
    assert [id(p) for p in group] == [id(p) for p in optim.params]
    # The same from a list in any order, as a set may hand it over.
    for order in (Many.names, Many.names[::-1]):
        other = OneTorchOptim(sgd(0.1))
        other([many.net[name] for name in order])
        assert [id(p) for p in other.params] == [id(p) for p in optim.params]


class Growing:
    """Uses a second parameter only for data above 10."""

    def __init__(self):
        self.first = nn.ParameterDict({"p": nn.Parameter(torch.zeros(()))})
        self.second = nn.ParameterDict({"p": nn.Parameter(torch.zeros(()))})

    def model(self, x):
        pyro.module("first", self.first)
        mean = self.first["p"]
        if x.max() > 10:
            pyro.module("second", self.second)
            mean = mean + self.second["p"]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(self, x):
        pass


def test_parameter_that_appears_later_gets_a_group_with_the_full_learning_rate():
    growing, optim = Growing(), OneTorchOptim(sgd(0.1))
    step(growing, optim, X, rate_factor=0.5)
    first = growing.first["p"].item()
    assert first == pytest.approx(0.1 * 0.5 * X.mean().item(), rel=1e-13)
    large = X + 20
    step(growing, optim, large, rate_factor=0.25)  # the factor must not compound with 0.5
    move = 0.1 * 0.25 * (large.mean().item() - first)
    assert growing.second["p"].item() == pytest.approx(move, rel=1e-13)
    assert growing.first["p"].item() == pytest.approx(first + move, rel=1e-13)
    groups = optim._optimizer.param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(growing.first["p"])],
        [id(growing.second["p"])],
    ]
    assert [group["lr"] for group in groups] == [0.025, 0.025]
    second = growing.second["p"].item()
    step(growing, optim, X, rate_factor=1.0)  # the second has no gradient here
    assert growing.second["p"].item() == second


def test_rate_factor_multiplies_the_rate_of_each_group():
    line = Line()
    before, gradient = line.values(), line.mean_gradient(X)

    def two_rates(params):
        return torch.optim.SGD(
            [{"params": [p], "lr": r} for p, r in zip(params, (0.1, 0.4), strict=True)]
        )

    step(line, OneTorchOptim(two_rates), X, rate_factor=0.5)
    expected = before - torch.tensor([0.05, 0.2]) * gradient
    torch.testing.assert_close(line.values(), expected, rtol=1e-13, atol=1e-14)


def test_rate_factor_of_zero_leaves_the_parameters_at_the_very_first_step():
    line = Line()
    before, optim = line.values(), OneTorchOptim(adam(0.1))
    step(line, optim, X, rate_factor=0.0)
    assert torch.equal(line.values(), before)
    assert optim.num_skipped == 0
    step(line, optim, X, rate_factor=1.0)
    assert (line.values() - before).abs().min() > 0.01


def test_adam_is_torchs_unfused_adam_on_the_gradient_per_datum():
    line, optim = Line(), OneTorchOptim(adam(0.03))
    reference = Line()
    plain = torch.optim.Adam([reference.net["a"], reference.net["b"]], lr=0.03, fused=False)
    for scale in (1.0, -2.0, 0.5, 3.0, -1.0):
        step(line, optim, X * scale)
        gradient = reference.mean_gradient(X * scale)
        reference.net["a"].grad, reference.net["b"].grad = gradient.unbind()
        plain.step()
    assert (line.values() - Line().values()).abs().min() > 0.01
    torch.testing.assert_close(line.values(), reference.values(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradient", [1.0, math.nan], ids=["taken", "skipped"])
def test_gradients_are_released_after_a_step(gradient):
    many, optim = Many(), OneTorchOptim(adam(0.1))
    step(many, optim, X)
    assert [p.grad for p in optim.params] == [None] * len(Many.names)
    for p in optim.params:
        p.grad = torch.full_like(p, gradient)
    optim(set(optim.params))
    assert [p.grad for p in optim.params] == [None] * len(Many.names)


def test_constant_schedule_is_one():
    assert [constant(t) for t in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]


def test_cosine_schedule_has_the_values_of_its_formula():
    values = [cosine(t) for t in (0.0, 0.25, 1 / 3, 0.5, 1.0)]
    expected = [1.0, 0.5 + math.sqrt(2) / 4, 0.75, 0.5, 0.0]
    assert values == pytest.approx(expected, rel=1e-14, abs=1e-16)


def test_warmup_rises_linearly_and_hands_over_the_rest_from_its_start():
    schedule = warmup(0.2)
    values = [schedule(t) for t in (0.0, 0.05, 0.1, 0.2, 0.6, 1.0)]
    assert values == pytest.approx([0.0, 0.25, 0.5, 1.0, 0.5, 0.0], rel=1e-14, abs=1e-16)
    seen = []
    warmup(0.5, then=lambda t: seen.append(t) or 7.0)(0.75)
    assert seen == [0.5]
    assert warmup(0.5, then=lambda t: 7.0)(0.75) == 7.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adam(0.0), "learning_rate must be positive and finite; got 0.0"),
        (lambda: adam(-1e-3), "learning_rate must be positive and finite; got -0.001"),
        (lambda: adam(math.nan), "learning_rate must be positive and finite; got nan"),
        (lambda: adam(math.inf), "learning_rate must be positive and finite; got inf"),
        (
            lambda: OneTorchOptim(adam(1e-3), clip_norm=0.0),
            "clip_norm must be positive or None; got 0.0",
        ),
        (
            lambda: OneTorchOptim(adam(1e-3), clip_norm=math.nan),
            "clip_norm must be positive or None; got nan",
        ),
        (lambda: warmup(0.0), "fraction must lie strictly between 0 and 1; got 0.0"),
        (lambda: warmup(1.0), "fraction must lie strictly between 0 and 1; got 1.0"),
        (lambda: warmup(math.nan), "fraction must lie strictly between 0 and 1; got nan"),
    ],
)
def test_optim_errors_name_argument_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
