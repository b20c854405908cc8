"""Compiled objectives: the values and gradients of Pyro's own at the same noise."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from pyro import poutine
from pyro.infer import (
    SVI,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn

from pyro_vae import families, guides, networks, priors
from pyro_vae.capture import NotCapturable
from pyro_vae.capture.table import MOST_GRAPHS, RUNS_BEFORE_A_FURTHER_GRAPH
from pyro_vae.objectives import (
    Compiled_ELBO,
    CompiledImportanceWeighted_ELBO,
    CompiledTrace_ELBO,
    CompiledTraceMeanField_ELBO,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    KLWeight,
    kl_weighted,
)

FAMILIES = {
    "isotropic": families.IsotropicNormal,
    "diagonal": families.DiagonalNormal,
    "low rank": partial(families.LowRankNormal, rank=2),
    "full": families.FullCovarianceNormal,
    "flow": partial(families.Flow, hidden=(5,), context_dim=2),
}
OBJECTIVES = {
    "trace": Trace_ELBO(),
    "trace, 3 draws": Trace_ELBO(num_particles=3),
    "trace, 3 draws in a plate": Trace_ELBO(num_particles=3, vectorize_particles=True),
    "mean field": TraceMeanField_ELBO(),
    "importance weighted": ImportanceWeighted_ELBO(3),
    "sticking the landing": ImportanceWeighted_ELBO(3, gradient="stl"),
    "doubly reparametrized": ImportanceWeighted_ELBO(3, gradient="dreg"),
    "free bits": FreeBits_ELBO(0.5, num_particles=2),
}


def value_and_gradients(elbo, vae, *args, seed=3, model=None, guide=None):
    torch.manual_seed(seed)
    loss = elbo.loss_and_grads(model or vae.model, guide or vae.guide, *args)
    found = {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}
    for param in vae.parameters():
        param.grad = None
    return loss, found


def assert_same(one, two, *, rtol=1e-10):
    assert one[0] == pytest.approx(two[0], rel=rtol)
    assert one[1].keys() == two[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, two[1][name], rtol=rtol, atol=rtol, msg=name)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("elbo", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_value_and_gradient_are_those_of_the_objective_at_the_same_noise(elbo, family):
    if family is FAMILIES["flow"] and getattr(elbo, "gradient", "plain") != "plain":
        pytest.skip("a flow without inverse has no density at a value for these gradients")
    vae, x = small_vae(family=family, variance=0.3, learn_variance=True), torch.randn(7, 6)
    compiled = Compiled_ELBO(elbo, backend="eager", required=True)
    value_and_gradients(compiled, vae, x)  # an ordinary run
    for seed in (1, 2):
        expected = value_and_gradients(elbo, vae, x, seed=seed)
        assert_same(value_and_gradients(compiled, vae, x, seed=seed), expected)
    assert compiled.num_graphs == 1
    torch.manual_seed(5)
    expected = elbo.loss(vae.model, vae.guide, x)
    compiled.loss(vae.model, vae.guide, x)
    torch.manual_seed(5)
    assert compiled.loss(vae.model, vae.guide, x) == pytest.approx(expected, rel=1e-10)


def test_the_compiler_leaves_value_and_gradient_as_they_are():
    elbo = Trace_ELBO(num_particles=2)
    vae = small_vae(family=families.FullCovarianceNormal, variance=0.3, learn_variance=True)
    x = torch.randn(7, 6)
    compiled = Compiled_ELBO(elbo, required=True)
    value_and_gradients(compiled, vae, x)
    for seed in (1, 2):
        expected = value_and_gradients(elbo, vae, x, seed=seed)
        assert_same(value_and_gradients(compiled, vae, x, seed=seed), expected, rtol=1e-9)
    assert compiled.num_graphs == 1


def test_noise_is_fresh_at_each_run():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(7, 6)
    elbo = CompiledTrace_ELBO(backend="eager")
    losses = {elbo.loss(vae.model, vae.guide, x) for _ in range(5)}
    assert len(losses) == 5


def test_literal_svi_trains_as_with_the_ordinary_objective():
    x, steps = torch.randn(20, 6), 15
    found = []
    for elbo in (Trace_ELBO(), CompiledTrace_ELBO(backend="eager")):
        torch.manual_seed(0)
        vae = small_vae(family=families.DiagonalNormal, variance=0.3, learn_variance=True)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        losses = [svi.step(x) for _ in range(steps)]
        found.append((losses, dict(vae.named_parameters())))
    assert_same(found[1], found[0], rtol=1e-9)


def test_a_differentiable_loss_has_the_gradient():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(7, 6)
    elbo = CompiledTrace_ELBO(backend="eager")
    params = list(vae.parameters())
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        got = elbo.differentiable_loss(vae.model, vae.guide, x)
        torch.manual_seed(seed)
        expected = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
        assert got.item() == pytest.approx(expected.item(), rel=1e-12)
        for one, two in zip(
            torch.autograd.grad(3 * got, params),
            torch.autograd.grad(3 * expected, params),
            strict=True,
        ):
            torch.testing.assert_close(one, two)
    assert elbo.num_graphs == 1


def test_gradients_are_added_as_backward_adds_them():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(7, 6)
    elbo = CompiledTrace_ELBO(backend="eager")
    elbo.loss_and_grads(vae.model, vae.guide, x)
    vae.zero_grad()
    torch.manual_seed(3)
    elbo.loss_and_grads(vae.model, vae.guide, x)
    once = [p.grad.clone() for p in vae.parameters()]
    torch.manual_seed(3)
    elbo.loss_and_grads(vae.model, vae.guide, x)
    for param, gradient in zip(vae.parameters(), once, strict=True):
        torch.testing.assert_close(param.grad, 2 * gradient)


def test_two_pairs_of_programs_have_two_graphs():
    # Pyro's JitTrace_ELBO answers for the second pair with the first one's graph.
    x, elbo = torch.randn(7, 6), CompiledTrace_ELBO(backend="eager")
    pairs = [small_vae(family=families.DiagonalNormal, variance=c) for c in (0.1, 2.0)]
    for _ in range(2):
        for vae in pairs:
            expected = value_and_gradients(Trace_ELBO(), vae, x)
            assert_same(value_and_gradients(elbo, vae, x), expected)
    assert elbo.num_graphs == 2


def test_a_new_batch_shape_gets_its_own_graph_in_time():
    vae, elbo = small_vae(family=families.DiagonalNormal), CompiledTrace_ELBO(backend="eager")
    x, rest = torch.randn(7, 6), torch.randn(4, 6)
    for run in range(RUNS_BEFORE_A_FURTHER_GRAPH + 2):
        for batch in (x, rest):
            expected = value_and_gradients(Trace_ELBO(), vae, batch, seed=run)
            assert_same(value_and_gradients(elbo, vae, batch, seed=run), expected)
        assert elbo.num_graphs == (run > 0) + (run >= RUNS_BEFORE_A_FURTHER_GRAPH)


def bernoulli_programs():
    net = nn.Linear(6, 6)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((6,), 0.3)).to_event(1))
            pyro.sample("x", dist.Normal(2 * z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=net(x)).to_event(1))

    return net, model, guide


def test_sites_that_are_not_reparametrized_have_the_score_function_gradient():
    net, model, guide = bernoulli_programs()
    x, elbo = torch.randn(7, 6), CompiledTrace_ELBO(backend="eager", required=True)
    for seed in (1, 2, 3):
        expected = value_and_gradients(Trace_ELBO(), net, x, seed=seed, model=model, guide=guide)
        got = value_and_gradients(elbo, net, x, seed=seed, model=model, guide=guide)
        assert_same(got, expected)
    assert elbo.num_graphs == 1


def test_constrained_parameters_plates_and_scales_are_pyros():
    data, elbo = torch.randn(30, 2), CompiledTrace_ELBO(2, backend="eager", required=True)

    def model(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", 300, subsample=x, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", 300, subsample=x, dim=-1):
            pyro.sample("z", dist.Normal(loc.expand(len(x), 2), 0.5).to_event(1))

    histories = []
    for objective in (Trace_ELBO(num_particles=2), elbo):
        with pyro.get_param_store().scope():
            torch.manual_seed(0)
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), objective)
            losses = [svi.step(data) for _ in range(10)]
            histories.append([*losses, *pyro.param("scale").tolist(), *pyro.param("loc").tolist()])
    assert histories[1] == pytest.approx(histories[0], rel=1e-10)


def test_a_cleared_parameter_store_is_noticed():
    elbo = CompiledTrace_ELBO(backend="eager", required=True)

    def model(x):
        loc = pyro.param("loc", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        pass

    x = torch.zeros(3)
    for start in (1.0, 5.0):
        pyro.get_param_store().clear()
        pyro.get_param_store().setdefault("loc", torch.tensor(start))
        for _ in range(3):
            expected = Trace_ELBO().loss(model, guide, x)
            assert elbo.loss_and_grads(model, guide, x) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda vae: vae.eval(),
        lambda vae: vae.p_x_given_z.requires_grad_(False),
        lambda vae: setattr(vae, "p_z", priors.Laplace(3)),
        lambda vae: vae.float(),
    ],
    ids=["mode", "frozen", "part", "cast"],
)
def test_a_change_of_the_programs_is_noticed(change):
    encoder = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    vae = small_vae(family=families.DiagonalNormal)
    vae = vae.with_guide(guides.AmortizedGuide(families.DiagonalNormal(3), encoder)).train()
    x, elbo = torch.randn(7, 6), CompiledTrace_ELBO(backend="eager", required=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*requires_grad=False")
        for _ in range(2):
            value_and_gradients(elbo, vae, x)
        change(vae)
        x = x.to(vae.dtype)
        for seed in (1, 2, 3):
            expected = value_and_gradients(Trace_ELBO(), vae, x, seed=seed)
            got = value_and_gradients(elbo, vae, x, seed=seed)
            assert_same(got, expected, rtol=1e-5 if x.dtype == torch.float32 else 1e-10)


def test_a_scheduled_kl_weight_is_read_anew():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(7, 6)
    weight = KLWeight(lambda progress: progress)
    model, guide = kl_weighted(vae.model, weight), kl_weighted(vae.guide, weight)
    elbo = CompiledTrace_ELBO(backend="eager", required=True)
    for progress in (0.1, 0.2, 0.5, 1.0):
        weight.at(progress)
        expected = value_and_gradients(Trace_ELBO(), vae, x, model=model, guide=guide)
        assert_same(value_and_gradients(elbo, vae, x, model=model, guide=guide), expected)
    assert elbo.num_graphs == 1


def branching_vae():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 6)

        def forward(self, x):
            return self.net(x) if x.sum() > 0 else self.net(-x)

    vae = small_vae(family=families.DiagonalNormal)
    return vae.with_guide(guides.AmortizedGuide(families.DiagonalNormal(3), Branching()))


def per_datum_vae():
    vae = small_vae(family=families.DiagonalNormal)
    return vae.with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), 7))


@pytest.mark.parametrize(
    ("make", "reason"),
    [(branching_vae, "depends on the value"), (per_datum_vae, "parameters for each datum")],
)
def test_programs_that_cannot_be_traced_run_as_ordinary_pyro_and_that_is_told_once(make, reason):
    vae, x = make(), torch.randn(7, 6)
    elbo = CompiledTrace_ELBO()
    with pytest.warns(UserWarning, match=f"not compiled.*{reason}"):
        got = [value_and_gradients(elbo, vae, x) for _ in range(2)][1]
    assert_same(got, value_and_gradients(Trace_ELBO(), vae, x))
    for sign in (1, -1):  # without another warning
        expected = value_and_gradients(Trace_ELBO(), vae, sign * x)
        assert_same(value_and_gradients(elbo, vae, sign * x), expected)
    assert elbo.num_graphs == 0


def test_programs_that_cannot_be_traced_raise_where_a_graph_is_required():
    vae, x = branching_vae(), torch.randn(7, 6)
    elbo = CompiledTrace_ELBO(required=True)
    value_and_gradients(elbo, vae, x)
    with pytest.raises(NotCapturable, match="must be traceable"):
        value_and_gradients(elbo, vae, x)


def test_an_error_of_the_programs_is_their_own():
    vae, elbo = small_vae(family=families.DiagonalNormal), CompiledTrace_ELBO(backend="eager")
    for _ in range(3):
        with pytest.raises(ValueError, match="must end in shape"):
            elbo.loss_and_grads(vae.model, vae.guide, torch.zeros(7, 5))


def test_what_is_summed_out_cannot_be_compiled():
    with pytest.raises(TypeError, match="Trace_ELBO"):
        Compiled_ELBO(TraceEnum_ELBO(max_plate_nesting=1))


def test_compiled_siblings_are_what_their_names_say():
    assert type(CompiledTrace_ELBO(2).elbo) is Trace_ELBO
    assert CompiledTrace_ELBO(2).elbo.num_particles == 2
    assert type(CompiledTraceMeanField_ELBO().elbo) is TraceMeanField_ELBO
    weighted = CompiledImportanceWeighted_ELBO(4, gradient="dreg").elbo
    assert (weighted.num_particles, weighted.gradient) == (4, "doubly_reparametrized")


def test_batch_norm_learns_from_a_batch_once():
    encoder = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    x, found = torch.randn(7, 6), []
    for elbo in (Trace_ELBO(), CompiledTrace_ELBO(required=True)):
        torch.manual_seed(0)
        vae = small_vae(family=families.DiagonalNormal)
        guide = guides.AmortizedGuide(families.DiagonalNormal(3), networks.MLP(6, (), 6))
        guide.encoder = encoder if not found else nn.Sequential(*encoder)
        vae = vae.with_guide(guide).train()
        encoder[1].reset_running_stats()
        for seed in range(4):
            value_and_gradients(elbo, vae, x, seed=seed)
        found.append([b.clone() for b in encoder[1].buffers()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
    assert int(found[1][2]) == 4


def test_a_scale_around_the_programs_is_kept():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(7, 6)
    model, guide = poutine.scale(vae.model, 3.0), poutine.scale(vae.guide, 3.0)
    elbo = CompiledTrace_ELBO(backend="eager", required=True)
    for seed in (1, 2):
        expected = value_and_gradients(Trace_ELBO(), vae, x, seed=seed, model=model, guide=guide)
        got = value_and_gradients(elbo, vae, x, seed=seed, model=model, guide=guide)
        assert_same(got, expected)


def tied_vae():
    vae = small_vae(family=families.DiagonalNormal)
    return vae.with_prior(
        priors.VampPrior.from_data(vae.q_z_given_x, torch.randn(5, 6), num_components=3)
    )


def test_parameters_that_parts_share_have_their_gradient_once():
    vae, x = tied_vae(), torch.randn(7, 6)
    elbo = CompiledTrace_ELBO(backend="eager", required=True)
    for seed in (1, 2):
        expected = value_and_gradients(Trace_ELBO(), vae, x, seed=seed)
        assert_same(value_and_gradients(elbo, vae, x, seed=seed), expected)
    assert elbo.num_graphs == 1


def test_a_parameter_that_pyro_does_not_know_is_refused():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(7, 6)
    factor = torch.ones(1, requires_grad=True)

    def model(x):
        return vae.model(factor * x)

    elbo = CompiledTrace_ELBO(backend="eager")
    elbo.loss_and_grads(model, vae.guide, x)
    factor.grad = None
    with pytest.warns(UserWarning, match="registered by no pyro.module"):
        elbo.loss_and_grads(model, vae.guide, x)
    assert factor.grad is not None


def test_an_attribute_a_global_and_a_variable_around_are_noticed():
    class Scaled(nn.Module):
        factor = 1.0

        def __init__(self):
            super().__init__()
            self.net, self.factor, self.shift = nn.Linear(6, 6), 1.0, torch.zeros(6)

        def forward(self, x):
            return self.factor * self.net(x) + self.shift

    net, power = Scaled(), 1.0
    vae = small_vae(family=families.DiagonalNormal)
    vae = vae.with_guide(guides.AmortizedGuide(families.DiagonalNormal(3), net))

    def model(x):
        return vae.model(power * x)

    def check():
        for seed in (1, 2, 3):
            expected = value_and_gradients(Trace_ELBO(), vae, x, seed=seed, model=model)
            assert_same(value_and_gradients(elbo, vae, x, seed=seed, model=model), expected)

    elbo, x = CompiledTrace_ELBO(backend="eager", required=True), torch.randn(7, 6)
    check()
    assert elbo.num_graphs == 1
    net.factor = 2.0
    check()
    net.shift = torch.ones(6)
    check()
    power = 3.0
    check()


def test_autocast_and_handlers_around_the_call_count():
    vae, x = small_vae(family=families.DiagonalNormal).float(), torch.randn(7, 6).float()
    elbo = CompiledTrace_ELBO(backend="eager", required=True)
    for _ in range(3):
        plain = value_and_gradients(elbo, vae, x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert value_and_gradients(elbo, vae, x)[0] == value_and_gradients(Trace_ELBO(), vae, x)[0]
    with poutine.scale(scale=3.0):
        assert value_and_gradients(elbo, vae, x)[0] == pytest.approx(3 * plain, rel=1e-5)
    assert value_and_gradients(elbo, vae, x)[0] == plain


def test_an_argument_that_cannot_be_hashed_is_told():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(7, 6)

    def model(x, extra):
        return vae.model(x)

    def guide(x, extra):
        return vae.guide(x)

    elbo = CompiledTrace_ELBO()
    with pytest.warns(UserWarning, match="cannot be hashed"):
        elbo.loss_and_grads(model, guide, x, {1, 2})


def test_the_number_of_graphs_is_bounded():
    vae, elbo = small_vae(family=families.DiagonalNormal), CompiledTrace_ELBO(backend="eager")
    for rows in range(1, MOST_GRAPHS + 4):
        for _ in range(RUNS_BEFORE_A_FURTHER_GRAPH + 2):
            elbo.loss(vae.model, vae.guide, torch.zeros(rows, 6))
    assert elbo.num_graphs == MOST_GRAPHS
