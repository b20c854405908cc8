"""Programs that a user writes by hand, without any part of ours: fitted, and judged, exactly.

Two latent layers (linear and not) and a conditional VAE. Mixtures have a file of their own.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.nn import functional

import pyro_vae as pv
from pyro_vae.datasets import LinearGaussian
from pyro_vae.diagnostics import elbo_terms
from pyro_vae.evaluation import evaluate
from pyro_vae.traces import log_densities

QUIET = {"progress": False}


def still(params):
    """An optimizer that changes nothing."""
    return torch.optim.SGD(params, lr=1e-300)


def spherical(mean, scale):
    return dist.MultivariateNormal(mean, scale_tril=scale * torch.eye(mean.shape[-1]))


class Affine(nn.Module):
    """N(W x + b, L L'), whose covariance no x changes."""

    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.mean = nn.Linear(num_inputs, num_outputs)
        self.log_scale = nn.Parameter(torch.zeros(num_outputs))
        self.lower = nn.Parameter(torch.zeros(num_outputs, num_outputs))

    def forward(self, x):
        scale_tril = self.lower.tril(-1) + self.log_scale.exp().diag_embed()
        return dist.MultivariateNormal(self.mean(x), scale_tril=scale_tril)


class TwoLayers:
    """z2 -> z1 -> x with affine means, a plain object; the guide goes the same way down.

    z2 ~ N(0, I_1),  z1 ~ N(A z2 + a, s I_2),  x ~ N(W z1 + b, c I_4)
    """

    def __init__(self):
        self.prior = nn.Linear(1, 2)
        self.decoder = nn.Linear(2, 4)
        self.log_variances = nn.ParameterList([torch.tensor(0.5).log(), torch.tensor(0.3).log()])
        self.top, self.bottom = Affine(4, 1), Affine(5, 2)

    @property
    def model_parts(self):
        return nn.ModuleList([self.prior, self.decoder, self.log_variances])

    def model(self, x):
        pyro.module("model", self.model_parts)
        s, c = (log_variance.exp() for log_variance in self.log_variances)
        with pyro.plate("data", len(x), dim=-1):
            # As Normal(...).to_event(1); but to that Pyro knows no KL from a full covariance.
            z2 = pyro.sample("z2", spherical(x.new_zeros(1), 1.0))
            z1 = pyro.sample("z1", spherical(self.prior(z2), s.sqrt()))
            pyro.sample("x", dist.Normal(self.decoder(z1), c.sqrt()).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("top", self.top)
        pyro.module("bottom", self.bottom)
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", self.top(x))
            pyro.sample("z1", self.bottom(torch.cat([z2, x], -1)))

    def joint(self):
        """Mean and covariance of (z2, z1, x)."""
        a, w = self.prior.weight, self.decoder.weight
        s, c = (log_variance.exp() for log_variance in self.log_variances)
        down = torch.cat([torch.ones(1, 1), a, w @ a])
        noise = torch.cat([torch.zeros(1, 2), torch.eye(2), w])
        own = torch.cat([torch.zeros(3, 4), torch.eye(4)])
        covariance = down @ down.mT + s * noise @ noise.mT + c * own @ own.mT
        mean = torch.cat([torch.zeros(1), self.prior.bias, self.decoder(self.prior.bias)])
        return mean.detach(), covariance.detach()

    def log_evidence(self, x):
        mean, covariance = self.joint()
        return torch.distributions.MultivariateNormal(mean[3:], covariance[3:, 3:]).log_prob(x)


def conditional(mean, covariance, of, given):
    """p(of | given) of a joint normal: (gain, constant, covariance)."""
    gain = torch.linalg.solve(covariance[given][:, given], covariance[given][:, of]).mT
    rest = covariance[of][:, of] - gain @ covariance[given][:, of]
    return gain, mean[of] - gain @ mean[given], rest


class ExactTwoLayers(TwoLayers):
    """Its guide is the posterior: top down as the model, or from the data upwards."""

    def __init__(self, *, upwards=False):
        super().__init__()
        self.upwards = upwards

    def guide(self, x):
        z2, z1, data = [0], [1, 2], [3, 4, 5, 6]
        order = [(z1, data), (z2, z1)] if self.upwards else [(z2, data), (z1, z2 + data)]
        known = {3 + j: x[:, j] for j in range(4)}
        with pyro.plate("data", len(x), dim=-1):
            for of, given in order:
                gain, constant, rest = conditional(*self.joint(), of, given)
                loc = torch.stack([known[j] for j in given], -1) @ gain.mT + constant
                z = pyro.sample(
                    "z2" if of is z2 else "z1",
                    dist.MultivariateNormal(loc, covariance_matrix=rest),
                )
                known |= {j: z[:, i] for i, j in enumerate(of)}


def simulated(programs, num_data):
    mean, covariance = programs.joint()
    return torch.distributions.MultivariateNormal(mean, covariance).sample((num_data,))[:, 3:]


@pytest.mark.parametrize("upwards", [False, True])
def test_every_log_weight_of_two_layers_is_the_log_evidence_at_the_exact_posterior(upwards):
    programs = ExactTwoLayers(upwards=upwards)
    x = simulated(programs, 7)
    expected = programs.log_evidence(x)
    log_weights = log_densities(programs, x, num_samples=5).log_weights
    torch.testing.assert_close(log_weights, expected.expand(5, 7), rtol=0, atol=1e-10)
    terms = elbo_terms(programs, x.numpy(), num_samples=4)
    np.testing.assert_allclose(terms["elbo"], expected, rtol=0, atol=1e-10)
    assert terms.attrs["kl_is_analytic"] == 0
    assert abs(evaluate(programs, x, seed=0)["elbo"] - expected.mean().item()) < 1e-10


OBJECTIVES = [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_of_two_layers_is_minus_the_elbo(objective):
    programs = ExactTwoLayers()
    x = simulated(programs, 50)
    fit = pv.fit(programs, x, epochs=20, elbo=objective(), optimizer=still, **QUIET)
    expected = programs.log_evidence(x).mean().item()
    np.testing.assert_allclose(fit.history["elbo"], expected, rtol=0, atol=1e-10)
    loss = fit.history["loss"]
    if objective is TraceMeanField_ELBO:  # analytic KLs: its noise is that of log p(x|z) alone
        assert abs(loss.mean() + expected) < MAX_Z * loss.std() / 20**0.5
    else:
        np.testing.assert_allclose(loss, -expected, rtol=0, atol=1e-10)


def test_mean_field_loss_of_an_upward_guide_is_no_bound_and_what_is_reported_is():
    programs = ExactTwoLayers(upwards=True)
    x = simulated(programs, 50)
    with pytest.warns(UserWarning, match="Failed to verify mean field restriction"):
        fit = pv.fit(programs, x, epochs=30, elbo=TraceMeanField_ELBO(), optimizer=still, **QUIET)
    expected = programs.log_evidence(x).mean().item()
    np.testing.assert_allclose(fit.history["elbo"], expected, rtol=0, atol=1e-10)
    # KL(q(z1|x) || p(z1|z2)) takes z1 and z2 for independent: E|z1 - A z2|^2 / 2s is too large by
    # tr(A Cov(z2, z1 | x)) / s.
    _, _, rest = conditional(*programs.joint(), [0, 1, 2], [3, 4, 5, 6])
    s = programs.log_variances[0].exp().item()
    excess = (programs.prior.weight @ rest[:1, 1:]).trace().item() / s
    loss = fit.history["loss"]
    assert excess > 0.1
    assert abs(loss.mean() - (excess - expected)) < MAX_Z * loss.std() / 30**0.5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_guide_of_two_layers_finds_the_posterior(objective):
    programs = TwoLayers()
    x = simulated(programs, 300)
    programs.model_parts.requires_grad_(False)
    pv.fit(programs, x, epochs=60, batch_size=100, learning_rate=0.05, elbo=objective(), **QUIET)
    terms = elbo_terms(programs, x, num_samples=20)
    gap = programs.log_evidence(x).numpy() - terms["elbo"]
    error = np.sqrt((terms["elbo_mcse"] ** 2).sum()) / len(x)
    assert -MAX_Z * error < gap.mean() < 0.02


def test_model_of_two_layers_finds_the_maximum_of_the_likelihood():
    # W (A A' + s I) W' + c I is any covariance of probabilistic PCA with two components.
    truth = TwoLayers()
    x = simulated(truth, 300)
    programs = TwoLayers()
    pv.fit(programs, x, epochs=120, batch_size=100, learning_rate=0.05, **QUIET)
    best = LinearGaussian.maximum_likelihood(x, 2).log_prob(x).mean().item()
    terms = elbo_terms(programs, x, num_samples=20)
    elbo = terms["elbo"].mean().item()
    assert best - 0.02 < elbo < best + MAX_Z * np.sqrt((terms["elbo_mcse"] ** 2).sum()) / len(x)
    assert abs(elbo - programs.log_evidence(x).mean().item()) < 0.02


class Curved(nn.Module):
    """z2 -> z1 -> x, one number each layer, with tanh networks; one module registers all."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))
        self.decoder = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 3))
        self.top = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
        self.bottom = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))

    def p_z1(self, z2):
        return dist.Normal(2 * self.prior(z2).squeeze(-1), 0.6)

    def p_x(self, z1):
        return dist.Normal(2 * self.decoder(z1.unsqueeze(-1)), 0.5).to_event(1)

    def model(self, x):
        pyro.module("curved", self)
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", self.p_z1(z2.unsqueeze(-1)))
            return pyro.sample("x", self.p_x(z1), obs=x)

    def guide(self, x):
        pyro.module("curved", self)
        with pyro.plate("data", len(x), dim=-1):
            loc, raw = self.top(x).unbind(-1)
            z2 = pyro.sample("z2", dist.Normal(loc, functional.softplus(raw)))
            loc, raw = self.bottom(torch.cat([z2.unsqueeze(-1), x], -1)).unbind(-1)
            pyro.sample("z1", dist.Normal(loc, functional.softplus(raw)))

    def log_evidence(self, x, *, step):
        """FORMULAS: the trapezoid rule, which is exact to rounding for a smooth integrand."""
        z = torch.arange(-8.0, 8.0 + step / 2, step)
        log_prior = dist.Normal(0.0, 1.0).log_prob(z)[:, None]
        log_p_z1 = (log_prior + self.p_z1(z[:, None, None]).log_prob(z)).logsumexp(0)
        log_p_x = self.p_x(z).log_prob(x[:, None])
        return (log_p_z1 + log_p_x).logsumexp(-1) + 2 * math.log(step)


def test_two_curved_layers_agree_with_quadrature():
    truth = Curved()
    with torch.no_grad(), pyro.plate("data", 400):
        z2 = torch.randn(400)
        x = truth.p_x(truth.p_z1(z2.unsqueeze(-1)).sample()).sample()
    for part in (truth.prior, truth.decoder):
        part.requires_grad_(False)
    pv.fit(truth, x, epochs=40, batch_size=100, learning_rate=0.02, **QUIET)
    some, num_draws = x[:6], 4000
    with torch.no_grad():
        evidence = truth.log_evidence(some, step=0.05)
        coarse = truth.log_evidence(some, step=0.1)
        assert (evidence - coarse).abs().max() < 1e-6
        # A row of its own for every draw: the same matrix of weights in one run.
        repeated = some.repeat(num_draws, 1)
        log_weights = log_densities(truth, repeated, num_samples=1).log_weights
    log_ratios = log_weights.reshape(num_draws, 6) - evidence
    ratios = log_ratios.exp()
    z_scores = (ratios.mean(0) - 1) / (ratios.std(0) / num_draws**0.5)
    assert z_scores.abs().max() < MAX_Z
    bounds = log_ratios.reshape(20, 200, 6).logsumexp(1) - math.log(200)  # 20 of 200 draws each
    error = bounds.std(0) / 20**0.5
    assert (bounds.mean(0) < MAX_Z * error).all()
    assert bounds.mean().item() > -0.01
    terms = elbo_terms(truth, x, num_samples=20)
    gap = truth.log_evidence(x, step=0.1).detach().numpy() - terms["elbo"]
    error = np.sqrt((terms["elbo_mcse"] ** 2).sum()) / len(x)
    assert -MAX_Z * error < gap.mean() < 0.05


class Conditional(nn.Module):
    """p(x | z, y) by hand: the last three columns hold y, which is given and has no density."""

    def __init__(self):
        super().__init__()
        self.of_z = nn.Linear(2, 4, bias=False)
        self.of_y = nn.Linear(3, 4, bias=False)
        self.log_variance = nn.Parameter(torch.tensor(0.0))
        self.encoder = Affine(7, 2)

    def model(self, data):
        pyro.module("conditional", self)
        x, y = data.split([4, 3], dim=-1)
        with pyro.plate("data", len(data), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = self.of_z(z) + self.of_y(y)
            scale = (0.5 * self.log_variance).exp()
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    def guide(self, data):
        pyro.module("conditional", self)
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("z", self.encoder(data))

    def log_evidence(self, data):
        """Log p(x | y)."""
        x, y = data.split([4, 3], dim=-1)
        weight = self.of_z.weight
        covariance = weight @ weight.mT + self.log_variance.exp() * torch.eye(4)
        return torch.distributions.MultivariateNormal(self.of_y(y), covariance).log_prob(x)


def test_conditional_vae_finds_the_maximum_of_the_conditional_likelihood():
    programs = Conditional()
    with torch.no_grad():  # it starts from the truth, with a guide that knows nothing
        programs.of_z.weight.normal_()
        programs.of_y.weight.normal_()
        programs.log_variance.fill_(math.log(0.2))
        y = functional.one_hot(torch.randint(3, (400,)), 3).double()
        x = programs.of_z(torch.randn(400, 2)) + programs.of_y(y)
        x += 0.2**0.5 * torch.randn(400, 4)
    data = torch.cat([x, y], -1)
    held = [programs.log_variance, *programs.of_z.parameters(), *programs.of_y.parameters()]
    for wanted, rate in ((False, 0.05), (True, 0.02)):  # the guide first, then everything
        for parameter in held:
            parameter.requires_grad_(wanted)
        options = {"epochs": 60, "batch_size": 200, "learning_rate": rate, **QUIET}
        fit = pv.fit(programs, data, **options)
    # Given y, probabilistic PCA of what y does not explain: the means of the groups go first.
    residuals = x - y @ torch.linalg.lstsq(y, x).solution
    best = LinearGaussian.maximum_likelihood(residuals, 2).log_prob(residuals).mean().item()
    terms = elbo_terms(programs, data, num_samples=20)
    elbo = terms["elbo"].mean().item()
    assert best - 0.02 < elbo < best + MAX_Z * np.sqrt((terms["elbo_mcse"] ** 2).sum()) / 400
    exact = programs.log_evidence(data).mean().item()
    assert abs(elbo - exact) < 0.02
    assert abs(fit.history["elbo"].iloc[-1] - exact) < 0.05


class Faulty(Conditional):
    """What a user gets wrong, one thing at a time."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def model(self, x):
        plate = pyro.plate("data", len(x), dim=-1)
        if self.fault == "model outside the plate":
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1)).expand(len(x), 2)
        elif self.fault != "model lacks a site":
            with plate:
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        else:
            z = x[:, :2]
        if self.fault == "weights have a prior":
            z = z * pyro.sample("w", dist.Normal(0.0, 1.0))
        with plate:
            p = dist.Normal(self.of_z(z), 1.0)
            obs = None if self.fault == "x is not observed" else x
            pyro.sample("x", p if self.fault == "no to_event" else p.to_event(1), obs=obs)

    def guide(self, x):
        if self.fault == "weights have a prior":
            pyro.sample("w", dist.Normal(0.0, 0.1))
        with pyro.plate("data", len(x), dim=-1):
            if self.fault != "guide lacks a site":
                pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))


@pytest.mark.parametrize(
    ("fault", "num_data", "message"),
    [
        ("guide lacks a site", 5, r"a guide without \['z'\].*Add them to the guide"),
        ("x is not observed", 5, r"a guide without \['x'\].*or observe them with obs="),
        ("model lacks a site", 5, r"only sites that the model has; got \['z'\]"),
        ("model outside the plate", 5, "site 'z' must lie in the plate 'data' of 5 rows"),
        ("weights have a prior", 5, "site 'w' must lie in the plate.*that all data share"),
        ("no to_event", 5, "Shape mismatch inside plate"),  # Pyro's own
        ("no to_event", 4, r"site 'x' must have one.*got \(4, 4\).*\.to_event\(\)"),
    ],
)
def test_fault_of_a_user_is_named(fault, num_data, message):
    with pytest.raises(ValueError, match=message):
        elbo_terms(Faulty(fault), torch.randn(num_data, 4), num_samples=2)
