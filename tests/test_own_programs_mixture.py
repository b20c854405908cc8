"""Mixtures that a user writes by hand: a discrete site, drawn by the guide or summed out.

With linear decoders p(x) = sum_y pi_y N(x; mu_y, W_y W_y' + c I), and the posterior is exact too.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from sklearn.mixture import GaussianMixture
from torch import nn

import pyro_vae as pv
from pyro_vae.diagnostics import elbo_terms
from pyro_vae.evaluation import evaluate
from pyro_vae.traces import log_densities

QUIET = {"progress": False}
ENUMERATE = {"enumerate": "parallel"}
K, LATENT, FEATURES, C = 3, 2, 4, 0.5


def still(params):
    """An optimizer that changes nothing."""
    return torch.optim.SGD(params, lr=1e-300)


class Decoders(nn.Module):
    """y ~ Categorical(pi), z ~ N(0, I), x | z, y ~ N(W_y z + mu_y, c I); all in closed form."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(K))
        self.weight = nn.Parameter(0.7 * torch.randn(K, FEATURES, LATENT))
        self.mean = nn.Parameter(torch.randn(K, FEATURES))

    def log_joint(self, x):
        """Log p(x, y), ``(N, K)``."""
        covariance = self.weight @ self.weight.mT + C * torch.eye(FEATURES)
        p_x = torch.distributions.MultivariateNormal(self.mean, covariance)
        return self.logits.log_softmax(-1) + p_x.log_prob(x.unsqueeze(1))

    def log_evidence(self, x):
        return self.log_joint(x).logsumexp(-1).detach()

    def posterior(self, x):
        """Means and covariance factors of p(z | x, y), ``(N, K, 2)`` and ``(K, 2, 2)``."""
        precision = torch.eye(LATENT) + self.weight.mT @ self.weight / C
        covariance = torch.linalg.inv(precision)
        residual = (x.unsqueeze(1) - self.mean).unsqueeze(-1)
        means = (covariance @ self.weight.mT @ residual / C).squeeze(-1)
        return means, torch.linalg.cholesky(covariance)

    def p_x(self, z, y):
        mean = (self.weight[y] @ z.unsqueeze(-1)).squeeze(-1) + self.mean[y]
        return dist.Normal(mean, C**0.5).to_event(1)

    def simulate(self, num_data):
        with torch.no_grad():
            y = torch.distributions.Categorical(logits=self.logits).sample((num_data,))
            return self.p_x(torch.randn(num_data, LATENT), y).sample()


class Exact:
    """y and z in the guide: the very posterior. A plain object."""

    def __init__(self, *, marked=True):
        self.decoders = Decoders()
        self.infer = ENUMERATE if marked else {}

    def model(self, x):
        pyro.module("decoders", self.decoders)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.decoders.logits))
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", self.decoders.p_x(z, y), obs=x)

    def guide(self, x):
        log_joint = self.decoders.log_joint(x)
        means, scale_tril = self.decoders.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=log_joint), infer=self.infer)
            rows = torch.arange(len(x))
            q = dist.MultivariateNormal(means[rows, y], scale_tril=scale_tril[y])
            pyro.sample("z", q)


class SummedOut(Exact):
    """y in the model alone: the prior of u depends on it, and q(u | x) is the mixture p(u | x)."""

    def model(self, x):
        pyro.module("decoders", self.decoders)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.decoders.logits), infer=ENUMERATE)
            shift = 3.0 * y.unsqueeze(-1) * x.new_ones(LATENT)
            u = pyro.sample("u", dist.Normal(shift, 1.0).to_event(1))
            pyro.sample("x", self.decoders.p_x(u - shift, y), obs=x)

    def guide(self, x):
        means, scale_tril = self.decoders.posterior(x)
        parts = dist.MultivariateNormal(
            means + 3.0 * torch.arange(K).unsqueeze(-1), scale_tril=scale_tril
        )
        with pyro.plate("data", len(x), dim=-1):
            responsibilities = torch.distributions.Categorical(logits=self.decoders.log_joint(x))
            pyro.sample("u", dist.MixtureSameFamily(responsibilities, parts))


PROGRAMS = {
    "y in the guide": Exact,
    "y in the guide, not marked": lambda: Exact(marked=False),
    "y summed out": SummedOut,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_log_weight_of_a_mixture_is_the_log_evidence_at_the_exact_posterior(name):
    programs = PROGRAMS[name]()
    x = programs.decoders.simulate(40)
    expected = programs.decoders.log_evidence(x)
    with torch.no_grad():
        densities = log_densities(programs, x, num_samples=5)
    log_weights = densities.log_weights
    torch.testing.assert_close(log_weights, expected.expand(5, 40), rtol=0, atol=1e-10)
    assert densities.summed_out == (("y",) if name == "y summed out" else ())
    terms = elbo_terms(programs, x.numpy(), num_samples=3)
    np.testing.assert_allclose(terms["elbo"], expected, rtol=0, atol=1e-10)
    assert terms.attrs["kl_is_analytic"] == 0
    assert abs(evaluate(programs, x, seed=0)["elbo"] - expected.mean().item()) < 1e-10


@pytest.mark.parametrize("name", ["y in the guide", "y summed out"])
def test_loss_of_a_mixture_is_minus_the_elbo(name):
    programs = PROGRAMS[name]()
    x = programs.decoders.simulate(40)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    fit = pv.fit(programs, x, epochs=2, elbo=objective, optimizer=still, batch_size=30, **QUIET)
    expected = programs.decoders.log_evidence(x).mean().item()
    np.testing.assert_allclose(fit.history["elbo"], expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(fit.history["loss"], -expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "objective", [Trace_ELBO(), TraceMeanField_ELBO(), RenyiELBO(alpha=0.5, num_particles=2)]
)
def test_objective_that_cannot_sum_out_a_site_is_refused_before_the_first_step(objective):
    programs = PROGRAMS["y summed out"]()
    x = programs.decoders.simulate(40)
    message = r"elbo must be TraceEnum_ELBO\(max_plate_nesting=1\) .*\['y'\] are summed out"
    with pytest.raises(ValueError, match=message):
        pv.fit(programs, x, epochs=1, elbo=objective, **QUIET)


def kl_of_the_posterior(decoders, x):
    """KL(p(y, z | x) || p(y, z)): the classes', and the average of the normals'."""
    means, scale_tril = decoders.posterior(x)
    log_r = decoders.log_joint(x).log_softmax(-1)
    log_det = 2 * scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    trace = scale_tril.square().sum((-2, -1))
    normals = 0.5 * (trace + means.square().sum(-1) - LATENT - log_det)
    classes = log_r - decoders.logits.log_softmax(-1)
    return (log_r.exp() * (classes + normals)).sum(-1).detach()


def test_kl_of_a_mixture_is_that_of_class_and_latent_vector_together():
    programs = Exact()
    x = programs.decoders.simulate(6)
    terms = elbo_terms(programs, x.repeat(2000, 1), num_samples=1)
    kl = terms["kl"].to_numpy().reshape(2000, 6)
    z_scores = (kl.mean(0) - kl_of_the_posterior(programs.decoders, x).numpy()) / (
        kl.std(0) / 2000**0.5
    )
    assert np.abs(z_scores).max() < MAX_Z


class Learned(nn.Module):
    """The mixture with an encoder that is affine, as the posterior is where all W_y are one W.

    The whole program is marked at once, as Pyro's tutorials do.
    """

    def __init__(self, decoders):
        super().__init__()
        self.decoders = decoders
        self.classes = nn.Linear(FEATURES, K)
        self.means = nn.Linear(FEATURES, K * LATENT)
        self.tril = nn.Parameter(torch.zeros(K, LATENT, LATENT))

    def model(self, x):
        pyro.module("decoders", self.decoders)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.decoders.logits))
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", self.decoders.p_x(z, y), obs=x)

    @config_enumerate
    def guide(self, x):
        for name in ("classes", "means"):
            pyro.module(name, getattr(self, name))
        pyro.module("tril", nn.ParameterList([self.tril]))
        means = self.means(x).unflatten(-1, (K, LATENT))
        diagonal = self.tril.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
        scale_tril = self.tril.tril(-1) + diagonal
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.classes(x)))
            rows = torch.arange(len(x))
            pyro.sample("z", dist.MultivariateNormal(means[rows, y], scale_tril=scale_tril[y]))


def test_guide_of_a_mixture_finds_the_posterior():
    decoders = Decoders()
    with torch.no_grad():
        decoders.weight.copy_(decoders.weight[0].clone())
    x = decoders.simulate(300)
    programs = Learned(decoders.requires_grad_(False))
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    options = {"epochs": 150, "batch_size": 60, "learning_rate": 0.1, "elbo": objective, **QUIET}
    pv.fit(programs, x, **options)
    terms = elbo_terms(programs, x, num_samples=20)
    gap = decoders.log_evidence(x).numpy() - terms["elbo"]
    error = np.sqrt((terms["elbo_mcse"] ** 2).sum()) / len(x)
    assert -MAX_Z * error < gap.mean() < 0.02


class PlainMixture(nn.Module):
    """p(x) = sum_y pi_y N(x; mu_y, C_y): no latent vector, and so nothing to guide."""

    def __init__(self, means):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(K))
        self.means = nn.Parameter(means.clone())
        self.tril = nn.Parameter(torch.zeros(K, FEATURES, FEATURES))

    @property
    def scale_tril(self):
        return self.tril.tril(-1) + self.tril.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    @config_enumerate
    def model(self, x):
        pyro.module("mixture", self)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            p_x = dist.MultivariateNormal(self.means[y], scale_tril=self.scale_tril[y])
            pyro.sample("x", p_x, obs=x)

    def guide(self, x):
        pass


def test_mixture_without_a_guide_is_fitted_to_the_maximum_of_the_likelihood():
    starts = 4 * torch.randn(K, FEATURES)
    spread = torch.eye(FEATURES) + 0.3 * torch.randn(K, FEATURES, FEATURES)
    y = torch.randint(K, (300,))
    x = starts[y] + (spread[y] @ torch.randn(300, FEATURES, 1)).squeeze(-1)
    programs = PlainMixture(starts)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    fit = pv.fit(
        programs, x, epochs=200, batch_size=300, learning_rate=0.05, elbo=objective, **QUIET
    )
    em = GaussianMixture(K, means_init=starts.numpy(), tol=1e-9, max_iter=500).fit(x.numpy())
    assert -0.005 < fit.history["elbo"].iloc[-1] - em.score(x.numpy()) < 1e-4
    # The loss is that before a step, the ELBO that after it.
    np.testing.assert_allclose(-fit.history["loss"][1:], fit.history["elbo"][:-1], atol=1e-10)

    same = GaussianMixture(K)
    scale_tril = programs.scale_tril.detach()
    same.weights_ = programs.logits.softmax(-1).detach().numpy()
    same.means_ = programs.means.detach().numpy()
    same.covariances_ = (scale_tril @ scale_tril.mT).numpy()
    same.precisions_cholesky_ = torch.linalg.inv(scale_tril).mT.numpy()
    terms = elbo_terms(programs, x, num_samples=2)
    expected = same.score_samples(x.numpy())
    np.testing.assert_allclose(terms["elbo"], expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(terms["expected_log_likelihood"], expected, rtol=0, atol=1e-10)
    assert not terms["kl"].any()
    assert not terms["elbo_mcse"].any()
