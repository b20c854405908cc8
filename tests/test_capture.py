"""A captured graph does what the function does, and capturing changes nothing."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Distribution

from pyro_vae.capture import Arguments, NotCapturable, capture, compiled, is_capturing
from pyro_vae.capture.program_state import ProgramState, modules_of
from pyro_vae.objectives import CompiledTrace_ELBO


def test_a_graph_says_what_the_function_says():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)

    def function(x):
        loss = net(x).square().sum()
        return loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))

    found = capture(function, [x])
    assert {id(t) for t in found.tensors} == {id(p) for p in net.parameters()}
    other = torch.randn(5, 3)
    with torch.no_grad():
        got = found.graph(*found.tensors, other)
    for one, two in zip(got, function(other), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)


def test_closed_over_tensors_are_read_anew():
    weight, x = torch.tensor([2.0]), torch.ones(1)
    run = compiled(found := capture(lambda x: (x * weight,), [x]), [x], backend="eager")
    weight.fill_(7.0)
    assert run(*found.tensors, x)[0].item() == 7


def test_capturing_changes_no_tensor_no_random_state_and_no_setting():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()), torch.randn(5, 3)
    count = torch.zeros(1)
    before = [t.clone() for t in (*net.buffers(), count)]
    validation, random_state = Distribution._validate_args, torch.get_rng_state()

    def function(x):
        assert is_capturing()
        return net(x), count.add_(1), count.normal_()

    found = capture(function, [x])
    assert all(torch.equal(a, b) for a, b in zip(before, (*net.buffers(), count), strict=True))
    assert torch.equal(random_state, torch.get_rng_state())
    assert Distribution._validate_args == validation
    assert not is_capturing()
    # And what it writes down are these changes.
    with torch.no_grad():
        found.graph(*found.tensors, x)
    assert int(net[1].num_batches_tracked) == 1
    assert not torch.equal(count, before[-1])


def test_random_numbers_are_those_of_the_seed():
    x = torch.zeros(4, 2)

    def function(x):
        noise = torch.randn_like(x)
        return noise + nn.functional.dropout(torch.ones_like(x)), torch.rand(3, device=x.device)

    run = compiled(capture(function, [x]), [x], backend="eager")
    torch.manual_seed(1)
    expected = function(x)
    torch.manual_seed(1)
    for one, two in zip(run(x), expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x if x.sum() > 0 else -x,),
        lambda x: (x * (2 if bool((x > 0).all()) else 3),),
        lambda x: (x * float(x.detach().numpy().sum()),),
        lambda x: (x if x.tolist()[0] > 0 else -x,),
    ],
    ids=["branch", "bool", "numpy", "list"],
)
def test_a_branch_on_values_cannot_be_captured(function):
    with pytest.raises(NotCapturable):
        capture(function, [torch.ones(3)])


def test_an_error_of_the_function_is_told_as_a_reason():
    def function(x):
        raise KeyError("nowhere")

    with pytest.raises(NotCapturable, match="KeyError: 'nowhere'"):
        capture(function, [torch.ones(3)])


def test_a_failing_compiler_is_told_as_a_reason(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)
    x = torch.ones(3)
    with pytest.raises(NotCapturable, match="RuntimeError: no C\\+\\+ compiler"):
        compiled(capture(lambda x: (2 * x,), [x]), [x])


def test_another_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of"):
        CompiledTrace_ELBO(backend="no such")


def test_attributes_that_a_module_sets_anew_are_put_back_and_told():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.last = None

        def forward(self, x):
            self.last = x
            self.mean = 0.5 * self.mean + x
            return self.mean

    net, x = Remembering(), torch.ones(3)
    with pytest.raises(NotCapturable, match="Remembering sets its attribute '(last|mean)' anew"):
        capture(lambda x: (net(x),), [x], modules=[net])
    assert net.last is None
    assert type(net.mean) is torch.Tensor
    assert net.mean.tolist() == [0, 0, 0]


def test_what_is_written_through_out_or_foreach_is_put_back():
    a, b, x = torch.zeros(2), torch.zeros(2), torch.ones(2)

    def function(x):
        torch.add(a, 1, out=a)
        torch._foreach_add_([a, b], 1)
        return (x + a + b,)

    capture(function, [x])
    assert a.tolist() == b.tolist() == [0, 0]


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_that_are_not_torchs_are_refused_and_put_back(draw):
    before = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(NotCapturable, match="from Python or numpy"):
        capture(lambda x: (x * draw(),), [torch.ones(2)])
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_arguments_have_one_key_where_one_graph_serves():
    def key(*args, **kwargs):
        return Arguments(args, kwargs).key

    x = torch.zeros(4, 3)
    assert key(x) == key(torch.ones(4, 3))
    different = [
        key(torch.zeros(5, 3)),
        key(torch.zeros(4, 3, dtype=torch.float32)),
        key(torch.zeros(3, 4).t()),
        key(torch.zeros(4, 3, requires_grad=True)),
        key(x, 1),
        key(x, 1.0),
        key(x, flag=True),
        key({"x": x}),
    ]
    assert len({key(x), *different}) == 1 + len(different)


def test_arguments_are_rebuilt_around_other_tensors():
    x, y = torch.zeros(2), torch.ones(3)
    args, kwargs = Arguments((x, "a"), {"y": [y, 5]}).rebuilt([x + 1, y + 1])
    assert torch.equal(args[0], x + 1)
    assert args[1] == "a"
    assert torch.equal(kwargs["y"][0], y + 1)
    assert kwargs["y"][1] == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.eval(),
        lambda net: net[0].eval(),
        lambda net: net[0].requires_grad_(False),
        lambda net: net.float(),
        lambda net: net.append(nn.ReLU()),
        lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.detach().clone())),
        lambda net: net.__setitem__(0, nn.Linear(3, 3)),
        lambda net: setattr(net[1], "p", 0.25),
        lambda net: net[0].register_forward_hook(lambda *_: None),
    ],
    ids=["mode", "part's mode", "frozen", "cast", "grown", "parameter", "part", "number", "hook"],
)
def test_a_changed_module_is_noticed(change):
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    state = ProgramState({}, [net.forward], closed_over=list(net.parameters()))
    assert state.is_current()
    change(net)
    assert not state.is_current()


def test_modules_of_functions_partials_and_messengers_are_found():
    from functools import partial

    from pyro import poutine

    net = nn.Linear(2, 1)

    def program(x, y=0):
        return net(x)

    for wrapped in (program, partial(program, y=1), poutine.scale(program, 2.0)):
        assert modules_of(wrapped) == [net]
    assert modules_of(poutine.scale(net.forward, 2.0)) == [net]
    assert modules_of(lambda x: x) == []


def test_nothing_is_warned_of_while_capturing():
    def function(x):
        warnings.warn("as often as not", UserWarning, stacklevel=1)
        return (x,)

    capture(function, [torch.ones(1)])
