import copy
import math
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import small_vae
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, TraceMeanField_ELBO

from pyro_vae import families, guides
from pyro_vae.diagnostics.convergence.gradients import _signal_and_noise, gradient_signal_to_noise
from pyro_vae.plots.convergence import gradient_signal


class OneParameter(torch.nn.Module):
    """z ~ N(0, 1), x ~ N(a z, c); q(z|x) = N(m, s^2) with m, and a = 1 as the parameters."""

    def __init__(self, m=0.7, c=0.5, s=0.4):
        super().__init__()
        self.m, self.a = (torch.nn.Parameter(torch.tensor(v)) for v in (m, 1.0))
        self.c, self.s = c, s

    def model(self, x):
        a = pyro.param("a", self.a)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            loc = (a * z)[:, None]
            pyro.sample("x", dist.Normal(loc, math.sqrt(self.c)).to_event(1), obs=x)

    def guide(self, x):
        m = pyro.param("m", self.m)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(m.expand(len(x)), self.s))


@pytest.mark.parametrize("batch_size", [10, 40])
def test_signal_and_noise_of_one_parameter_are_those_of_theory(batch_size):
    programs, x = OneParameter(), torch.randn(40, 1) * 2 + 1
    found = gradient_signal_to_noise(programs, x, num_draws=300, batch_size=batch_size)
    m, c, s = 0.7, 0.5, 0.4
    # d/dm log w = x/c - (1 + 1/c) (m + s e); a batch of n rows of N without replacement.
    mean = x.mean().item() / c - (1 + 1 / c) * m
    rows = x.var().item() / c**2 * (1 - batch_size / 40)
    sd = math.sqrt((((1 + 1 / c) * s) ** 2 + rows) / batch_size)
    at = found.sel(parameter="m")
    for name, expected in (("signal", abs(mean)), ("noise", sd), ("snr", abs(mean) / sd)):
        z = (at[name].item() - expected) / at[f"{name}_mcse"].item()
        assert abs(z) < 1.7 * MAX_Z  # the error has 9 degrees of freedom
        assert at[f"{name}_mcse"].item() < 0.2 * expected
    assert found["program"].values.tolist() == ["model", "guide"]
    assert found["parameter"].values.tolist() == ["a", "m"]


def test_gradient_of_the_model_is_that_of_theory():
    programs, x = OneParameter(), torch.randn(40, 1)
    found = gradient_signal_to_noise(programs, x, num_draws=200, batch_size=40).sel(parameter="a")
    # d/da log p(x|z) = (x - a z) z / c with z ~ N(m, s^2); a = 1.
    m, c, s = 0.7, 0.5, 0.4
    mean = ((x.mean() * m - m**2 - s**2) / c).item()
    assert abs(found["signal"].item() - abs(mean)) < 1.7 * MAX_Z * found["signal_mcse"].item()
    # Var(x z - z^2) = s^2 (x - 2 m)^2 + 2 s^4
    variance = (s**2 * (x - 2 * m).square() + 2 * s**4).mean().item() / c**2 / 40
    assert abs(found["noise"].item() ** 2 / variance - 1) < MAX_Z * math.sqrt(2.5 / 200)


def test_signal_vanishes_at_the_optimum():
    programs, x = OneParameter(), torch.randn(40, 1)
    with torch.no_grad():
        programs.m.copy_(x.mean() / 1.5)
    ratio = gradient_signal_to_noise(programs, x, num_draws=300, batch_size=10)
    at = ratio.sel(parameter="m")
    # |mean|^2 - var / R over var: mean about 0, standard deviation about sqrt(2) / R, chi-squared.
    assert -1.01 / 300 < at["snr_squared"].item() < 18 / 300
    assert at["snr"].item() < MAX_Z * at["snr_mcse"].item()
    far = gradient_signal_to_noise(OneParameter(m=3.0), x, num_draws=20).sel(parameter="m")
    assert far["snr"].item() > 10


@pytest.mark.parametrize("mean", [0.0, 0.2, 2.0])
def test_estimates_are_unbiased_and_jackknife_errors_those_of_repetitions(mean):
    """Normal gradients with 4 elements: squared signal 4 mean^2, squared noise 4."""
    draws = torch.randn(400, 50, 4) + mean
    groups = [torch.arange(50) % 10 == g for g in range(10)]
    found = [
        _signal_and_noise(
            [g[chosen].sum(0) for chosen in groups],
            np.array([g[chosen].square().sum().item() for chosen in groups]),
            np.full(10, 5.0),
        )
        for g in draws
    ]
    columns = {name: np.array([f[name] for f in found]) for name in found[0]}
    ratio = columns["snr_squared"]
    # The ratio's bias is that of 1 / noise^2, a share of 2 / (4 * 49) of it.
    expected = mean**2 * (1 + 2 / (4 * 49))
    assert abs(ratio.mean() - expected) < MAX_Z * ratio.std() / 20 + 1e-3 * mean**2
    assert abs(columns["noise"].mean() - 2) < 0.01
    for name in ("noise", "snr", "signal", "snr_squared") if mean else ("noise", "snr_squared"):
        errors = columns[f"{name}_mcse"]
        spread = columns[name].std(ddof=1) / math.sqrt(np.square(errors).mean())
        # Chi-squared with 9 degrees of freedom each; a bias of the jackknife of up to 5 %.
        if name == "snr_squared" and not mean:  # a degenerate statistic: errors are too large
            spread *= math.sqrt(2)
        assert abs(spread - 1) < 0.05 + MAX_Z * math.sqrt((1 / 2 + 2 / 9) / 400)


def test_nothing_is_changed():
    vae, x = (
        small_vae(family=families.FullCovarianceNormal, learn_variance=True),
        torch.randn(9, 6),
    )
    frozen = vae.p_x_given_z.decoder.layers[0].bias.requires_grad_(False)  # noqa: FBT003
    vae.q_z_given_x.encoder.layers[0].weight.grad = torch.ones(8, 6)
    before, state = copy.deepcopy(vae.state_dict()), torch.get_rng_state()
    found = gradient_signal_to_noise(vae, x, num_draws=20, batch_size=4)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(list(pyro.get_param_store())) == 0
    assert not frozen.requires_grad
    assert vae.training
    grads = {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}
    assert list(grads) == ["q_z_given_x.encoder.layers.0.weight"]
    assert (grads["q_z_given_x.encoder.layers.0.weight"] == 1).all()
    names = {name for name, p in vae.named_parameters() if p.requires_grad}
    assert set(found["parameter"].values.tolist()) == names
    assert (found["noise"] > 0).all()
    again = gradient_signal_to_noise(vae, x, num_draws=20, batch_size=4)
    assert again.identical(found)


def test_constrained_parameters_of_the_store_are_served_unconstrained():
    class Scale(OneParameter):
        def guide(self, x):
            s = pyro.param("s", torch.tensor(0.4), constraint=constraints.positive)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x[:, 0], s.expand(len(x))))

    programs, x = Scale(), torch.zeros(40, 1)
    pyro.param("s", torch.tensor(0.4), constraint=constraints.positive)
    found = gradient_signal_to_noise(programs, x, num_draws=200, batch_size=40)
    # d/dlog s log w = 1 - (1 + 1/c) s^2 e^2 at x = 0
    at, factor = found.sel(parameter="s"), 3 * 0.4**2
    expected = 1 - factor
    assert abs(at["signal"].item() - expected) < 1.7 * MAX_Z * at["signal_mcse"].item()
    noise = factor * math.sqrt(2 / 40)
    assert abs(at["noise"].item() / noise - 1) < MAX_Z * math.sqrt(2.6 / 4 / 200)


def test_analytic_kl_has_less_noise_in_the_guide_where_the_model_ignores_z():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(30, 6)
    with torch.no_grad():
        vae.p_x_given_z.decoder.layers[-1].weight.zero_()
    options = {"num_draws": 20, "batch_size": 30}
    sampled = gradient_signal_to_noise(vae, x, **options)
    analytic = gradient_signal_to_noise(vae, x, elbo=TraceMeanField_ELBO(), **options)
    guide = sampled["program"].values == "guide"
    assert (sampled["noise"].values[guide] > 1e-3).all()
    assert (analytic["noise"].values[guide] < 1e-7).all()
    signal = analytic["signal"].values[guide]
    error = sampled["noise"].values[guide] / math.sqrt(20)
    assert (abs(sampled["signal"].values[guide] - signal) < MAX_Z * error).all()


def test_parameters_for_each_datum_are_served():
    vae = small_vae(family=families.DiagonalNormal)
    vae = vae.with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), num_data=8))
    found = gradient_signal_to_noise(vae, torch.randn(8, 6), num_draws=20, batch_size=3)
    assert (found["noise"].values[found["program"].values == "guide"] > 0).all()
    with pytest.raises(ValueError, match="x must be the 8 rows"):
        gradient_signal_to_noise(vae, torch.randn(7, 6))


def test_default_device_does_not_matter():
    vae, x = small_vae(family=families.DiagonalNormal).float(), torch.randn(9, 6).float()
    with torch.device("meta"):
        assert gradient_signal_to_noise(vae, x, num_draws=20)["noise"].min() > 0


def test_what_does_not_fit_raises():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(9, 6)
    with pytest.raises(ValueError, match="num_draws must be at least 20; got 19"):
        gradient_signal_to_noise(vae, x, num_draws=19)
    with pytest.raises(TypeError, match="elbo must have a differentiable_loss; got RenyiELBO"):
        gradient_signal_to_noise(vae, x, elbo=RenyiELBO(alpha=0, num_particles=2))
    bare = SimpleNamespace(model=lambda x: None, guide=lambda x: None)
    with pytest.raises(ValueError, match="vae must register parameters"):
        gradient_signal_to_noise(bare, x)


def test_picture_has_a_row_for_each_tensor():
    found = gradient_signal_to_noise(OneParameter(), torch.randn(9, 1), num_draws=20)
    found["snr"][1] = 0.0  # no signal at all: at the axis's end
    axes = gradient_signal(found)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "m"]
    assert axes.get_xlim()[0] > 0
    axes.get_figure().canvas.draw()
