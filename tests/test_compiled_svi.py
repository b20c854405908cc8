"""SVI as one graph takes the steps of ordinary SVI, and so does fit(compile=True)."""

import warnings

import pyro
import pytest
import torch
from helpers import small_vae
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae import families, guides
from pyro_vae.capture import NotCapturable
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.objectives import (
    Compiled_ELBO,
    CompiledImportanceWeighted_ELBO,
    CompiledTrace_ELBO,
    FreeBits,
    ImportanceWeighted_ELBO,
    kl_warmup,
)
from pyro_vae.optim import GraphAdam, OneTorchOptim, adam


def eager_graph(**options):
    """The graph without the compiler, which another test looks at."""
    return CompiledTrace_ELBO(backend="eager", required=True, **options)


def made_vae(**options):
    torch.manual_seed(0)
    family = options.pop("family", families.DiagonalNormal)
    return small_vae(family=family, variance=0.3, learn_variance=True, **options)


def steps(make_svi, batches, *, optim, rates=None):
    vae = made_vae()
    svi = make_svi(vae, optim)
    torch.manual_seed(1)
    losses = []
    for number, x in enumerate(batches):
        optim.num_data = len(x)
        optim.rate_factor = 1.0 if rates is None else rates[number]
        losses.append(svi.step(x))
    return losses, vae, svi


def ordinary(vae, optim):
    return SVI(vae.model, vae.guide, optim, Trace_ELBO())


def one_graph(vae, optim):
    return CompiledSVI(vae.model, vae.guide, optim, eager_graph())


def assert_same_parameters(one, two, *, rtol=1e-9):
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, msg=name)


@pytest.mark.parametrize("clip_norm", [None, 0.7], ids=["free", "clipped"])
def test_steps_are_those_of_svi(clip_norm):
    batches = list(torch.randn(12, 20, 6))
    rates = [1.0 - 0.05 * i for i in range(12)]
    optims = [OneTorchOptim(adam(0.01), clip_norm=clip_norm) for _ in range(2)]
    expected, first, _ = steps(ordinary, batches, optim=optims[0], rates=rates)
    losses, second, svi = steps(one_graph, batches, optim=optims[1], rates=rates)
    assert losses == pytest.approx(expected, rel=1e-9)
    assert_same_parameters(second, first)
    assert svi.num_graphs == 1
    # The moments and counts are the torch optimizer's own.
    for a, b in zip(optims[0].params, optims[1].params, strict=True):
        states = [o._optimizer.state[p] for o, p in zip(optims, (a, b), strict=True)]
        assert float(states[0]["step"]) == float(states[1]["step"]) == 12
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(states[0][key], states[1][key])


def test_ordinary_steps_may_come_between():
    # A smaller batch has no graph yet, so Pyro's own step is taken and Adam's count goes on.
    batches = [torch.randn(rows, 6) for rows in (20, 20, 20, 7, 20, 20, 7, 20)]
    expected, first, _ = steps(ordinary, batches, optim=OneTorchOptim(adam(0.01)))
    losses, second, svi = steps(one_graph, batches, optim=OneTorchOptim(adam(0.01)))
    assert losses == pytest.approx(expected, rel=1e-9)
    assert_same_parameters(second, first)
    assert svi.num_graphs == 1


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted():
    batches = list(torch.randn(8, 20, 6))
    batches[5] = torch.full((20, 6), 1e200)  # whose square is infinite
    optim = OneTorchOptim(adam(0.01))
    vae = made_vae()
    svi = one_graph(vae, optim)
    for number, x in enumerate(batches):
        before = [p.detach().clone() for p in vae.parameters()]
        optim.num_data = len(x)
        svi.step(x)
        unchanged = all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
        assert unchanged == optim.skipped_last == (number == 5)
    assert optim.num_skipped == 1
    state = optim._optimizer.state[optim.params[0]]
    assert float(state["step"]) == 7
    assert svi.num_graphs == 1


def test_another_optimizer_has_the_compiled_gradient():
    batches = list(torch.randn(8, 20, 6))

    def sgd(params):
        return torch.optim.SGD(params, lr=0.01, momentum=0.9)

    expected, first, _ = steps(ordinary, batches, optim=OneTorchOptim(sgd))
    losses, second, svi = steps(one_graph, batches, optim=OneTorchOptim(sgd))
    assert losses == pytest.approx(expected, rel=1e-9)
    assert_same_parameters(second, first)
    assert svi.num_graphs == 1
    assert not GraphAdam.exists(svi.optim)


def test_weight_decay_is_no_plain_adam():
    def decayed(params):
        return torch.optim.Adam(params, lr=0.01, weight_decay=0.1)

    batches = list(torch.randn(6, 20, 6))
    expected, first, _ = steps(ordinary, batches, optim=OneTorchOptim(decayed))
    losses, second, _ = steps(one_graph, batches, optim=OneTorchOptim(decayed))
    assert losses == pytest.approx(expected, rel=1e-9)
    assert_same_parameters(second, first)


def test_a_loaded_optimizer_state_is_noticed():
    batches = list(torch.randn(10, 20, 6))
    found = []
    for make in (ordinary, one_graph):
        optim = OneTorchOptim(adam(0.01))
        vae = made_vae()
        svi = make(vae, optim)
        torch.manual_seed(1)
        for number, x in enumerate(batches):
            if number == 6:  # new tensors for the moments, with other numbers in them
                state = optim._optimizer.state_dict()
                for entry in state["state"].values():
                    entry["exp_avg"] = entry["exp_avg"] * 2
                optim._optimizer.load_state_dict(state)
            optim.num_data = len(x)
            svi.step(x)
        found.append(vae)
    assert_same_parameters(found[1], found[0])


FITS = {
    "as it is": ({}, None),
    "KL warm-up": ({"kl_weight": kl_warmup(0.7)}, None),
    "KL weight": ({"kl_weight": 0.3}, None),
    "guide alone": ({"train": "guide"}, None),
    "patience": ({"patience": 2}, None),
    "clipped": ({"clip_norm": 1.0}, None),
    "importance weighted": (
        {"elbo": ImportanceWeighted_ELBO(3)},
        lambda: CompiledImportanceWeighted_ELBO(3, backend="eager", required=True),
    ),
}


@pytest.mark.parametrize(("options", "compiled"), FITS.values(), ids=FITS.keys())
def test_a_compiled_fit_is_the_fit(options, compiled):
    x = torch.randn(50, 6)
    options = {"epochs": 4, "batch_size": 20, "learning_rate": 0.01, "progress": False, **options}
    if "patience" in options:
        options["validation"] = torch.randn(30, 6)
    vaes = made_vae(), made_vae()
    one = pv.fit(vaes[0], x, **options)
    options["elbo"] = eager_graph() if compiled is None else compiled()
    two = pv.fit(vaes[1], x, compile=True, **options)
    assert options["elbo"].num_graphs == 1
    assert_same_parameters(vaes[1], vaes[0])
    columns = [c for c in one.history if c != "seconds"]
    for name in columns:
        assert two.history[name].tolist() == pytest.approx(one.history[name].tolist(), rel=1e-9)


def test_a_fit_through_the_compiler_is_the_fit():
    x, vaes = torch.randn(60, 6), [made_vae(family=families.FullCovarianceNormal) for _ in "ab"]
    options = {"epochs": 3, "batch_size": 20, "learning_rate": 0.01, "progress": False}
    random_state = torch.get_rng_state()
    pv.fit(vaes[0], x, **options)
    pv.fit(vaes[1], x, compile="required", **options)
    assert_same_parameters(vaes[1], vaes[0], rtol=1e-8)
    assert torch.equal(random_state, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0


def test_single_precision_agrees_to_rounding():
    x, vaes = torch.randn(60, 6).float(), [made_vae().float() for _ in "ab"]
    options = {"epochs": 5, "batch_size": 20, "learning_rate": 0.01, "progress": False}
    pv.fit(vaes[0], x, **options)
    pv.fit(vaes[1], x, compile=True, elbo=eager_graph(), **options)
    assert_same_parameters(vaes[1], vaes[0], rtol=2e-4)


def test_programs_that_cannot_be_traced_are_fitted_as_ordinary_pyro():
    vae, x = made_vae(), torch.randn(20, 6)
    per_datum = vae.with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), 20))
    options = {"epochs": 3, "batch_size": 10, "progress": False}
    with pytest.warns(UserWarning, match="not compiled.*parameters for each datum"):
        pv.fit(per_datum, x, compile=True, **options)
    other = made_vae().with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), 20))
    pv.fit(other, x, **options)
    assert_same_parameters(per_datum, other)
    with pytest.raises(NotCapturable, match="must be traceable"):
        pv.fit(per_datum, x, compile="required", **options)


def test_an_objective_that_cannot_be_compiled_is_told():
    vae, x = made_vae(), torch.randn(20, 6)
    enum = TraceEnum_ELBO(max_plate_nesting=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TraceEnum_ELBO found no sample sites")
        with pytest.warns(UserWarning, match="TraceEnum_ELBO cannot be traced"):
            pv.fit(vae, x, epochs=1, elbo=enum, compile=True, progress=False)
    with pytest.raises(NotCapturable, match="TraceEnum_ELBO cannot be traced"):
        pv.fit(vae, x, epochs=1, elbo=enum, compile="required", progress=False)


def test_free_bits_are_compiled():
    x, vaes = torch.randn(40, 6), (made_vae(), made_vae())
    options = {"epochs": 4, "batch_size": 20, "progress": False}
    pv.fit(vaes[0], x, kl_weight=FreeBits(0.2), **options)
    elbo = Compiled_ELBO(FreeBits(0.2).objective(), backend="eager", required=True)
    pv.fit(vaes[1], x, compile=True, elbo=elbo, **options)
    assert elbo.num_graphs == 1
    assert_same_parameters(vaes[1], vaes[0])


def test_compile_is_one_of_three_words():
    with pytest.raises(ValueError, match="compile must be True, False or 'required'"):
        pv.fit(made_vae(), torch.randn(5, 6), compile="yes")


def test_dropout_and_batch_norm_are_those_of_the_seed():
    found = []
    for options in ({}, {"compile": True, "elbo": eager_graph()}):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 6))
        vae = small_vae(family=families.DiagonalNormal).with_guide(
            guides.AmortizedGuide(families.DiagonalNormal(3), encoder)
        )
        x = torch.randn(40, 6)
        with warnings.catch_warnings():
            pv.fit(vae, x, epochs=3, batch_size=20, progress=False, **options)
        found.append(vae)
    assert_same_parameters(found[1], found[0])
    for a, b in zip(found[0].buffers(), found[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [60, 50], ids=["even", "a smaller last batch"])
def test_losses_that_are_read_late_are_those_that_are_read_at_once(rows, monkeypatch):
    # As on a GPU, where reading waits for the device.
    x, vaes = torch.randn(rows, 6), (made_vae(), made_vae())
    options = {"epochs": 4, "batch_size": 20, "progress": False, "compile": True}
    one = pv.fit(vaes[0], x, elbo=eager_graph(), **options)
    monkeypatch.setattr("pyro_vae.training_loop._reads_at_once", lambda x: 10)
    two = pv.fit(vaes[1], x, elbo=eager_graph(), **options)
    assert two.history["loss"].tolist() == one.history["loss"].tolist()
    assert_same_parameters(vaes[1], vaes[0])


def test_parameters_at_different_steps_have_their_own_bias_corrections():
    found = []
    for make in (ordinary, one_graph):
        optim, vae, x = OneTorchOptim(adam(0.01)), made_vae(), torch.randn(20, 6)
        svi = make(vae, optim)
        torch.manual_seed(1)
        optim.num_data = len(x)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*requires_grad=False")
            for number in range(20):
                if number in {4, 12}:
                    vae.p_x_given_z.requires_grad_(number == 12)
                torch.manual_seed(number)
                svi.step(torch.full_like(x, 0.3))
        found.append(vae)
        counts = {float(optim._optimizer.state[p]["step"]) for p in optim.params}
        assert counts == {12.0, 20.0}
    assert_same_parameters(found[1], found[0])


def test_a_changed_setting_of_the_optimizer_is_noticed():
    found = []
    for make in (ordinary, one_graph):
        optim, vae, x = OneTorchOptim(adam(0.01)), made_vae(), torch.ones(20, 6)
        svi = make(vae, optim)
        optim.num_data = len(x)
        for number in range(16):
            if number == 6:
                optim._optimizer.param_groups[0]["betas"] = (0.5, 0.9)
            if number == 11:
                optim._optimizer.param_groups[0]["weight_decay"] = 1.0
            torch.manual_seed(number)
            svi.step(x)
        found.append(vae)
    assert_same_parameters(found[1], found[0])


def test_required_holds_for_a_compiled_objective_too():
    vae = made_vae().with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), 20))
    with pytest.raises(NotCapturable, match="parameters for each datum"):
        pv.fit(
            vae,
            torch.randn(20, 6),
            epochs=3,
            compile="required",
            elbo=CompiledTrace_ELBO(backend="eager"),
            progress=False,
        )


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_steps_run_where_the_default_device_holds_no_numbers(backend):
    x, vaes = torch.randn(60, 6), (made_vae(), made_vae())
    options = {"epochs": 3, "batch_size": 20, "progress": False}
    pv.fit(vaes[0], x, **options)
    elbo = CompiledTrace_ELBO(backend=backend, required=True)
    with torch.device("meta"):
        pv.fit(vaes[1], x, compile=True, elbo=elbo, **options)
    assert elbo.num_graphs == 1
    assert_same_parameters(vaes[1], vaes[0], rtol=1e-8)
