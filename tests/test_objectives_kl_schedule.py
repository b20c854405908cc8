"""Schedules of the KL weight, and what Pyro's objectives make of one."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch.distributions import kl_divergence

from pyro_vae import families
from pyro_vae.objectives import (
    ImportanceWeighted_ELBO,
    KLWeight,
    check_kl_weight,
    kl_cycle,
    kl_warmup,
    kl_weighted,
)


def test_warmup_rises_linearly_and_stays():
    schedule = kl_warmup(0.4, start=0.2, end=1.2)
    expected = {0.0: 0.2, 0.1: 0.45, 0.2: 0.7, 0.3: 0.95, 0.4: 1.2, 0.41: 1.2, 1.0: 1.2}
    assert {t: schedule(t) for t in expected} == pytest.approx(expected, abs=1e-12)
    assert kl_warmup(1.0)(0.25) == 0.25


def test_cycle_rises_again_and_again():
    schedule = kl_cycle(2, rise=0.8, start=0.1, end=0.9)
    expected = {0.0: 0.1, 0.2: 0.5, 0.4: 0.9, 0.45: 0.9, 0.5: 0.1, 0.7: 0.5, 0.95: 0.9, 1.0: 0.9}
    assert {t: schedule(t) for t in expected} == pytest.approx(expected, abs=1e-12)
    fourth = kl_cycle(4)
    steps = [fourth(index / 800) for index in range(800)]
    starts = [index for index in range(1, 800) if steps[index] < steps[index - 1]]
    assert starts == [200, 400, 600]
    assert steps[:200] == pytest.approx([min(index / 100, 1) for index in range(200)])


def test_schedules_say_what_they_are():
    # What fit writes to the settings of a run.
    assert repr(kl_warmup(0.3)) == "kl_warmup(0.3, start=0.0, end=1.0)"
    assert repr(kl_cycle(3)) == "kl_cycle(3, rise=0.5, start=0.0, end=1.0)"
    assert eval(repr(kl_warmup(0.3, end=2.0)))(0.15) == 1.0
    assert eval(repr(kl_cycle(3, rise=0.25)))(0.25) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_warmup(0.0), r"fraction must be above 0 and at most 1; got 0\.0"),
        (lambda: kl_warmup(1.5), r"fraction must be above 0 and at most 1; got 1\.5"),
        (lambda: kl_warmup(math.nan), "fraction must be above 0 and at most 1; got nan"),
        (lambda: kl_cycle(0), "num_cycles must be a positive integer; got 0"),
        (lambda: kl_cycle(2, rise=2.0), r"rise must be above 0 and at most 1; got 2\.0"),
        (lambda: KLWeight(-0.1), r"kl_weight must be finite and not negative; got -0\.1\.$"),
        (lambda: KLWeight("much"), "kl_weight must be finite and not negative; got 'much'"),
        (lambda: KLWeight(None), "kl_weight must be finite and not negative; got None"),
        (
            lambda: KLWeight(lambda t: t - 0.25),
            r"kl_weight must be finite and not negative; got -0\.25 at progress 0\.$",
        ),
        (
            lambda: KLWeight(lambda t: 1 - 2 * t).at(0.75),
            r"kl_weight must be finite and not negative; got -0\.5 at progress 0\.75",
        ),
        (
            lambda: KLWeight(lambda t: math.inf if t else 1.0).at(0.5),
            r"kl_weight must be finite and not negative; got inf at progress 0\.5",
        ),
    ],
)
def test_what_is_no_weight_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_weight_that_is_refused_leaves_the_last_one():
    weight = KLWeight(lambda t: 1 - 2 * t)
    weight.at(0.25)
    with pytest.raises(ValueError, match="at progress 1"):
        weight.at(1.0)
    assert weight.value == 0.5


def test_constant_weight_stays():
    weight = KLWeight(0.3)
    weight.at(0.7)
    assert weight.value == 0.3


def loss_of(objective, model, guide, x):
    torch.manual_seed(1)
    return objective.differentiable_loss(model, guide, x)


def test_programs_read_the_weight_at_each_run():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    weight = KLWeight(kl_warmup(0.5))
    model, guide = kl_weighted(vae.model, weight), kl_weighted(vae.guide, weight)
    for progress, beta in ((0.0, 0.0), (0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        weight.at(progress)
        fixed = [kl_weighted(program, beta) for program in (vae.model, vae.guide)]
        found = loss_of(Trace_ELBO(), model, guide, x).item()
        assert found == pytest.approx(loss_of(Trace_ELBO(), *fixed, x).item(), abs=1e-12)


def test_weight_that_is_always_one_returns_the_program_itself():
    vae = small_vae(family=families.DiagonalNormal)
    program = vae.model
    assert kl_weighted(program, KLWeight(1.0)) is program
    assert kl_weighted(program, KLWeight(kl_warmup(0.5, start=1.0))) is not program


OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO(),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
    "TraceGraph_ELBO": TraceGraph_ELBO(),
    "RenyiELBO": RenyiELBO(alpha=0, num_particles=1),
    "ImportanceWeighted_ELBO": ImportanceWeighted_ELBO(1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_warmup_from_nothing_is_the_expected_log_likelihood(name):
    vae, x = small_vae(family=families.DiagonalNormal, variance=0.4), torch.randn(5, 6)
    weight = KLWeight(kl_warmup(0.5))
    model, guide = kl_weighted(vae.model, weight), kl_weighted(vae.guide, weight)
    for progress, beta in ((0.0, 0.0), (0.25, 0.5)):
        weight.at(progress)
        torch.manual_seed(1)
        loss = float(OBJECTIVES[name].loss_and_grads(model, guide, x))
        torch.manual_seed(1)
        q = vae.encode(x)
        z = q.rsample()
        if name == "TraceMeanField_ELBO":
            kl = kl_divergence(q, vae.p_z())
        else:
            kl = q.log_prob(z) - vae.p_z().log_prob(z)
        expected = -(vae.p_x_given_z(z).log_prob(x) - beta * kl).sum()
        assert loss == pytest.approx(expected.item(), abs=1e-10)
        params = list(vae.parameters())
        for param, wanted in zip(params, torch.autograd.grad(expected, params), strict=True):
            torch.testing.assert_close(param.grad, wanted, rtol=0, atol=1e-10)
            param.grad = None


@pytest.mark.parametrize("weight", [0.0, 0.5, kl_warmup(0.5), KLWeight(0.5)])
def test_weight_is_refused_where_sites_are_summed_out(weight):
    with pytest.raises(ValueError, match="kl_weight must be 1 with TraceEnum_ELBO; got"):
        check_kl_weight(TraceEnum_ELBO(max_plate_nesting=1), weight)


@pytest.mark.parametrize("weight", [1, 1.0, KLWeight(1.0)])
def test_weight_of_one_goes_with_every_objective(weight):
    check_kl_weight(TraceEnum_ELBO(max_plate_nesting=1), weight)


@pytest.mark.parametrize("weight", [0.0, 0.5, kl_warmup(0.5)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_weight_goes_with_other_objectives(name, weight):
    check_kl_weight(OBJECTIVES[name], weight)


def test_check_refuses_what_is_no_weight():
    with pytest.raises(ValueError, match="kl_weight must be finite and not negative; got -1"):
        check_kl_weight(Trace_ELBO(), -1)


def mixture(x):
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)


def responsibilities(x):
    with pyro.plate("data", len(x), dim=-1):
        logits = torch.stack([-x, x, 0 * x], -1)
        pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(x / 2, 0.7))


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_weight_of_a_site_that_the_guide_enumerates_is_its_formula(beta):
    x = torch.randn(5)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    torch.manual_seed(1)
    loss = objective.loss(kl_weighted(mixture, beta), kl_weighted(responsibilities, beta), x)
    torch.manual_seed(1)
    z = x / 2 + 0.7 * torch.randn(5)
    q = dist.Categorical(logits=torch.stack([-x, x, 0 * x], -1))
    p = dist.Categorical(torch.tensor([0.2, 0.3, 0.5]))
    log_likelihood = dist.Normal(z.unsqueeze(-1) + torch.arange(3), 1.0).log_prob(x.unsqueeze(-1))
    kl_of_z = dist.Normal(x / 2, 0.7).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
    expected = (q.probs * log_likelihood).sum(-1) - beta * (kl_divergence(q, p) + kl_of_z)
    assert loss == pytest.approx(-expected.sum().item(), abs=1e-10)


def test_weight_of_a_site_that_is_summed_out_is_what_pyro_refuses():
    # Why check_kl_weight exists: the message does not name the weight.
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    model = pyro.infer.config_enumerate(mixture)
    x, objective = torch.randn(5), TraceEnum_ELBO(max_plate_nesting=1)
    objective.loss(kl_weighted(model, 1.0), kl_weighted(guide, 1.0), x)
    with pytest.raises(ValueError, match=r"share a common poutine\.scale"):
        objective.loss(kl_weighted(model, 0.5), kl_weighted(guide, 0.5), x)
