"""Missing values: the density of what was observed, and nothing else, wherever x goes."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import torch
from helpers import linear_decoder
from pyro import distributions as dist
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import AffineTransform

import pyro_vae as pv
from pyro_vae import diagnostics as dg
from pyro_vae import distributions, families, guides, likelihoods, networks, priors
from pyro_vae.datasets import LinearGaussian, linear_gaussian
from pyro_vae.distributions import ObservedEntries, RowChoice
from pyro_vae.distributions.row_choice import chosen_rows
from pyro_vae.objectives import Compiled_ELBO, FreeBits_ELBO, ImportanceWeighted_ELBO

NAN = math.nan

KINDS = {
    "Gaussian": partial(likelihoods.Gaussian, variance=0.3),
    "Gaussian learned": partial(likelihoods.Gaussian, variance=0.3, learn_variance=True),
    "LogNormal": likelihoods.LogNormal,
    "Laplace": likelihoods.Laplace,
    "StudentT": likelihoods.StudentT,
    "Bernoulli": likelihoods.Bernoulli,
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli,
    "Beta": likelihoods.Beta,
    "Poisson": likelihoods.Poisson,
    "NegativeBinomial": likelihoods.NegativeBinomial,
    "ZeroInflatedPoisson": likelihoods.ZeroInflatedPoisson,
    "DiscretizedLogistic": partial(likelihoods.DiscretizedLogistic, levels=9, scale=0.4),
    "Categorical": partial(likelihoods.Categorical, num_classes=3),
}


def some_missing(x, share=0.4, seed=1):
    """x with some entries NaN, none of its rows and columns without an observed one."""
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > share
    flat = observed.reshape(len(x), -1)
    flat[:, 0] |= ~flat.any(1)
    flat[0] |= ~flat.any(0)
    return torch.where(observed, x, NAN)


def missing_vae(*, features=4, latent_dim=2, hidden=(8,), **kinds):
    return pv.make_vae(
        features=features,
        latent_dim=latent_dim,
        hidden=hidden,
        likelihood=kinds.pop("likelihood", likelihoods.Gaussian),
        missing=True,
        **kinds,
    )


class ExactMaskedPosterior(distributions.DistributionModule):
    """p(z|x_obs) of a linear Gaussian model, whatever is observed."""

    takes_missing = True

    def __init__(self, truth):
        super().__init__()
        self.truth = truth
        self.event_shape = torch.Size([truth.latent_dim])

    def forward(self, x):
        w, c = self.truth.weight, self.truth.variance
        observed = (~x.isnan()).to(w)
        precision = torch.eye(w.shape[1]) + torch.einsum("nj,ja,jb->nab", observed, w, w) / c
        residual = torch.where(x.isnan(), 0.0, x - self.truth.mean)
        covariance = torch.linalg.inv(precision)
        loc = (covariance @ (residual @ w / c).unsqueeze(-1)).squeeze(-1)
        return distributions.CholeskyNormal(loc, scale_tril=torch.linalg.cholesky(covariance))


def exact_vae(truth):
    return pv.VAE(
        prior=priors.StandardNormal(truth.latent_dim),
        likelihood=likelihoods.Gaussian(
            linear_decoder(truth),
            event_shape=(truth.num_features,),
            variance=float(truth.variance),
        ),
        guide=ExactMaskedPosterior(truth),
        missing=True,
    )


def log_evidence_of_observed(truth, x):
    """log N(x_obs; mu_obs, W_obs W_obs' + c I), row by row."""
    covariance = truth.weight @ truth.weight.mT + truth.variance * torch.eye(truth.num_features)
    found = x.new_zeros(len(x))
    for pattern in (~x.isnan()).unique(dim=0):
        rows, j = ((~x.isnan()) == pattern).all(1), pattern.nonzero().flatten()
        if len(j):
            normal = torch.distributions.MultivariateNormal(truth.mean[j], covariance[j][:, j])
            found = found.index_put((rows,), normal.log_prob(x[rows][:, j]))
    return found


def gradients(vae, x, *, elbo=None, seed=3):
    vae.zero_grad()
    torch.manual_seed(seed)
    loss = (elbo or Trace_ELBO()).loss_and_grads(vae.model, vae.guide, x)
    return loss, {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}


# --- the density of what was observed ---------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_density_is_that_of_each_observed_entry_by_itself(name):
    kind, rows, n = KINDS[name], 7, 5
    m = likelihoods.outputs_per_feature(kind)
    outputs = torch.randn(rows, m, n)
    whole = kind(nn.Identity(), event_shape=(n,))(outputs.reshape(rows, m * n))
    complete = whole.sample()
    x = some_missing(complete)
    alone = torch.stack(
        [
            kind(nn.Identity(), event_shape=(1,))(outputs[:, :, j]).log_prob(
                complete[:, j : j + 1]
            )
            for j in range(n)
        ],
        1,
    )
    expected = torch.where(x.isnan(), 0.0, alone).sum(1)
    p = ObservedEntries(whole)
    torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.log_prob(complete), whole.log_prob(complete), rtol=0, atol=1e-12)
    nothing = torch.full_like(x, NAN)
    assert p.log_prob(nothing).eq(0).all()
    assert p.sample().isfinite().all()
    assert p.event_shape == whole.event_shape
    torch.testing.assert_close(p.mean, whole.mean)


@pytest.mark.parametrize("name", KINDS)
def test_gradient_of_the_density_has_no_nan_and_none_of_missing_entries(name):
    kind, n = KINDS[name], 4
    m = likelihoods.outputs_per_feature(kind)
    outputs = torch.randn(1, m * n).requires_grad_()
    whole = kind(nn.Identity(), event_shape=(n,))(outputs)
    x = whole.sample()
    x[0, 1::2] = NAN
    ObservedEntries(whole).log_prob(x).sum().backward()
    gradient = outputs.grad.reshape(m, n)
    assert gradient.isfinite().all()
    assert gradient[:, 1::2].eq(0).all()
    assert gradient[:, ::2].abs().amax() > 0


class Between(constraints.Constraint):
    """A user's own constraint, of which nothing is known but its check."""

    def check(self, value):
        return (value > 3) & (value < 9)


class UniformOfMyOwn(dist.Uniform):
    support = Between()


class LogNormalOfMyOwn(dist.LogNormal):
    support = constraints.greater_than(7.0)

    def sample(self, sample_shape=()):
        return super().sample(sample_shape) + 7

    def log_prob(self, value):
        return super().log_prob(value - 7)


class LaterBinomial(dist.Binomial):
    support = constraints.integer_interval(5, 9)

    def sample(self, sample_shape=()):
        return super().sample(sample_shape) + 5

    def log_prob(self, value):
        return super().log_prob(value - 5)


OUTSIDE = {
    "Pareto": lambda a: dist.Pareto(5 + a.exp(), 1.5 + a.exp()),
    "Uniform": lambda a: dist.Uniform(5 - a.exp() / 10, 6 + a.exp() / 10),
    "own constraint": lambda a: UniformOfMyOwn(5 - a.exp() / 10, 7 + a.exp() / 10),
    "own density": lambda a: LogNormalOfMyOwn(a, 1.0, validate_args=False),
    "counts": lambda a: LaterBinomial(4, logits=a, validate_args=False),
    "shifted": lambda a: dist.TransformedDistribution(
        dist.LogNormal(a, 1.0), AffineTransform(5.0, 2.0)
    ),
    "negative": lambda a: dist.TransformedDistribution(
        dist.LogNormal(a, 1.0), AffineTransform(-5.0, -2.0)
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_support_of_a_users_own_leaves_gradients_those_of_complete_columns_alone(name):
    a = (0.3 * torch.randn(6, 3)).requires_grad_()
    x = OUTSIDE[name](a).sample().detach()
    x[:, 1] = NAN
    ObservedEntries(OUTSIDE[name](a).to_event(1)).log_prob(x).sum().backward()
    found, a.grad = a.grad, None
    observed = torch.tensor([True, False, True])
    complete = torch.where(observed, x, OUTSIDE[name](a).sample())
    OUTSIDE[name](a).log_prob(complete)[:, observed].sum().backward()
    assert a.grad.abs().sum() > 0
    torch.testing.assert_close(found, a.grad)
    assert (found[:, 1] == 0).all()


def test_density_broadcasts_over_a_plate_of_draws_and_images():
    p = likelihoods.Gaussian(nn.Identity(), event_shape=(2, 3), variance=0.5)(torch.randn(6, 4, 6))
    x = some_missing(torch.randn(4, 2, 3))
    together = ObservedEntries(p).log_prob(x)
    assert together.shape == (6, 4)
    for draw in range(6):
        of_draw = distributions.SharedVarianceNormal(p.loc[draw], 0.5, event_dim=2)
        torch.testing.assert_close(together[draw], ObservedEntries(of_draw).log_prob(x))
    wide = ObservedEntries(p).expand((5, 6, 4))
    torch.testing.assert_close(wide.log_prob(x), together.expand(5, 6, 4))


def test_dependent_entries_are_refused_where_the_vae_is_put_together():
    class Correlated(distributions.DistributionModule):
        event_shape = torch.Size([3])

        def forward(self, z):
            return pyro.distributions.MultivariateNormal(z.new_zeros(len(z), 3), torch.eye(3))

    family = families.DiagonalNormal(2)
    parts = {
        "prior": priors.StandardNormal(2),
        "likelihood": Correlated(),
        "guide": guides.AmortizedGuide(family, nn.Linear(3, 4)),
    }
    with pytest.raises(
        ValueError, match="likelihood must have independent entries .* Multivariat"
    ):
        pv.VAE(**parts, missing=True)
    vae = pv.VAE(**parts)
    with pytest.raises(ValueError, match="independent entries"):
        vae.declare_missing()
    assert not vae.missing


# --- against the closed form ------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked_linear():
    torch.set_default_dtype(torch.float64)
    data = linear_gaussian(40, features=5, latent_dim=2, variance=0.4, seed=2)
    x = some_missing(data.x)
    x[3] = NAN
    return data.truth, x


def test_log_weights_are_the_evidence_of_what_was_observed(masked_linear):
    truth, x = masked_linear
    vae, exact = exact_vae(truth), log_evidence_of_observed(truth, x)
    weights = vae.log_importance_weights(x, num_samples=9)
    torch.testing.assert_close(weights, exact.expand(9, -1), rtol=0, atol=1e-8)
    found = dg.log_evidence(vae, x, num_samples=50)
    np.testing.assert_allclose(found["log_evidence"], exact, atol=1e-8)
    assert float(found["pareto_khat"].max()) == 0
    terms = dg.elbo_terms(vae, x, num_samples=9)
    np.testing.assert_allclose(terms["elbo"], exact, atol=1e-8)
    assert terms.attrs["kl_is_analytic"] == 1
    assert float(terms["kl"][3]) == pytest.approx(0, abs=1e-12)


def test_evidence_by_quadrature_and_annealing_is_of_what_was_observed(masked_linear):
    truth, x = masked_linear
    vae, exact = exact_vae(truth), log_evidence_of_observed(truth, x)
    grid = dg.quadrature_log_evidence(vae, x[:6])
    np.testing.assert_allclose(grid["log_evidence"], exact[:6], atol=1e-6)


def test_fit_to_values_missing_at_random_reaches_the_maximum_of_the_observed_likelihood():
    truth = LinearGaussian(torch.tensor([[2.0], [1.0], [1.0], [2.0]]), torch.zeros(4), 0.5)
    x, _ = truth.simulate(300, seed=5)
    # Whether the last feature is missing depends on the first, which is always observed.
    x[x[:, 0] > x[:, 0].median(), 3] = NAN
    weight = torch.ones(4, 1).requires_grad_()
    mean, log_c = torch.zeros(4, requires_grad=True), torch.zeros((), requires_grad=True)
    optim = torch.optim.LBFGS([weight, mean, log_c], max_iter=200, line_search_fn="strong_wolfe")

    def log_likelihood(weight, mean, variance):
        return log_evidence_of_observed(Linear(weight, mean, variance), x).mean()

    def step():
        optim.zero_grad()
        loss = -log_likelihood(weight, mean, log_c.exp())
        loss.backward()
        return loss

    optim.step(step)
    maximum = log_likelihood(weight, mean, log_c.exp()).item()
    vae = missing_vae(
        latent_dim=1,
        hidden=(),
        likelihood=partial(likelihoods.Gaussian, variance=0.5, learn_variance=True),
        encoder=lambda shape, outputs: networks.MLP(shape, (16,), outputs, activation=nn.Tanh),
    )
    pv.fit(vae, x, epochs=150, learning_rate=5e-2, batch_size=100, progress=False)
    decoder, variance = vae.p_x_given_z.decoder.layers[0], vae.p_x_given_z.variance
    reached = log_likelihood(decoder.weight, decoder.bias, variance).item()
    assert maximum - 0.05 < reached <= maximum + 1e-6
    # Rows without missing values alone are no random part of the data.
    fitted_mean, of_complete = decoder.bias[3].item(), x[:, 3].nanmean().item()
    assert abs(fitted_mean - mean[3].item()) < 0.3 * abs(of_complete - mean[3].item())


class Linear(NamedTuple):
    weight: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    @property
    def num_features(self):
        return len(self.mean)


# --- nothing under the mask leaks -------------------------------------------------------------


@pytest.mark.parametrize("takes_missing", [True, False])
@pytest.mark.parametrize("garbage", [0.0, 1e30, math.inf, -math.inf, NAN])
def test_gradients_are_bitwise_the_same_whatever_is_under_the_mask(garbage, takes_missing):
    complete = torch.randn(9, 4)
    mask = ~some_missing(complete).isnan()
    vae = missing_vae() if takes_missing else pv.gaussian_vae(features=4, latent_dim=2)
    vae.declare_missing()
    x = torch.where(mask, complete, garbage)
    kept = x.clone()
    seen = vae.prepare(x, mask=mask).tensor
    loss, found = gradients(vae, seen)
    reference, expected = gradients(vae, torch.where(mask, complete, NAN))
    assert loss == reference
    assert math.isfinite(loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert torch.equal(x.nan_to_num(7.0), kept.nan_to_num(7.0))


def test_a_guide_without_the_mask_is_shown_zeros_and_that_is_told(caplog):
    vae = pv.gaussian_vae(features=4, latent_dim=2)
    x = some_missing(torch.randn(6, 4))
    with pytest.raises(ValueError, match="infinite"):
        pv.fit(vae, torch.full((6, 4), math.inf), mask="nan", epochs=1, progress=False)
    assert "shown zeros in their place" not in caplog.text
    for _ in range(2):
        pv.fit(vae, x, mask="nan", epochs=1, progress=False)
    assert caplog.text.count("shown zeros in their place") == 1
    caplog.clear()
    for other in (vae.with_guide(vae.q_z_given_x), vae.with_prior(priors.Laplace(2))):
        assert caplog.text == ""
        pv.fit(other, x, epochs=1, progress=False)
        assert caplog.text.count("shown zeros in their place") == 1
        caplog.clear()
    torch.testing.assert_close(vae.encode(x).mean, vae.q_z_given_x(x.nan_to_num(0.0)).mean)
    pv.fit(missing_vae(), x, epochs=1, progress=False)
    assert "shown zeros" not in caplog.text


def test_complete_data_are_treated_as_if_nothing_could_be_missing():
    vae, x = missing_vae(), torch.randn(6, 4)
    loss, found = gradients(vae, x)
    vae.missing = False
    reference, expected = gradients(vae, x)
    assert loss == reference
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", KINDS)
def test_every_likelihood_fits_data_with_missing_values(name):
    vae = missing_vae(likelihood=KINDS[name])
    x = some_missing(vae.sample(20))
    fit = pv.fit(vae, x, epochs=2, batch_size=8, progress=False)
    assert np.isfinite(fit.history["elbo"]).all()
    assert vae.reconstruct(x).isfinite().all()


# --- rows without any observed value ----------------------------------------------------------

FAMILIES = {
    "diagonal": families.DiagonalNormal,
    "isotropic": families.IsotropicNormal,
    "full": families.FullCovarianceNormal,
    "low rank": partial(families.LowRankNormal, rank=1),
    "flow": families.Flow,
}
PRIORS = {
    "standard": priors.StandardNormal,
    "normal": priors.Normal,
    "Laplace": priors.Laplace,
    "StudentT": priors.StudentT,
    "mixture": partial(priors.GaussianMixture, num_components=3),
    "flow": priors.FlowPrior,
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_without_any_value_have_the_prior_and_teach_nothing(family, prior):
    vae = missing_vae(family=FAMILIES[family], prior=PRIORS[prior])
    nothing = torch.full((5, 4), NAN)
    z = torch.randn(5, 2)
    p = vae.p_z()
    torch.testing.assert_close(vae.encode(nothing).log_prob(z), p.log_prob(z), rtol=0, atol=1e-12)
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO(), ImportanceWeighted_ELBO(3)):
        loss, found = gradients(vae, nothing, elbo=elbo)
        assert loss == pytest.approx(0, abs=1e-12)
        for gradient in found.values():
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    x = torch.cat([some_missing(torch.randn(3, 4)), nothing])
    terms = dg.elbo_terms(vae, x, num_samples=3)
    np.testing.assert_allclose(terms["elbo"][3:], 0, atol=1e-12)
    np.testing.assert_allclose(terms["kl"][3:], 0, atol=1e-12)
    assert np.all(np.isfinite(terms["elbo"]))
    assert (abs(terms["elbo"][:3]) > 1e-3).all()


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
@pytest.mark.parametrize("closed_form", [True, False])
def test_free_bits_are_those_of_rows_with_values(family, closed_form):
    prior = None if closed_form else partial(priors.GaussianMixture, num_components=2)
    vae = missing_vae(family=family, **({} if closed_form else {"prior": prior}))
    objective = FreeBits_ELBO(0.7)
    loss, found = gradients(vae, torch.full((3, 4), NAN), elbo=objective)
    assert loss == pytest.approx(0, abs=1e-12)
    assert all((gradient == 0).all() for gradient in found.values())
    x = some_missing(torch.randn(4, 4))
    expected, of_some = gradients(vae, x, elbo=objective)
    padded = torch.cat([x, torch.full((3, 4), NAN)])
    if closed_form:  # no draws: the mean of z alone makes the loss
        vae.p_x_given_z.forward = lambda z: dist.Normal(torch.zeros(len(z), 4), 1.0).to_event(1)
        expected, of_some = gradients(vae, x, elbo=objective)
        loss, found = gradients(vae, padded, elbo=objective)
        assert loss == pytest.approx(expected, rel=1e-12)
        for name, gradient in of_some.items():
            torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("gradient", ["plain", "stl", "dreg"])
@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_weights_of_rows_without_values_teach_a_learned_prior_nothing(gradient, family):
    vae = missing_vae(prior=partial(priors.GaussianMixture, num_components=2), family=family)
    objective = ImportanceWeighted_ELBO(3, gradient=gradient)
    loss, found = gradients(vae, torch.full((5, 4), NAN), elbo=objective)
    assert loss == pytest.approx(0, abs=1e-12)
    assert all((gradient == 0).all() for gradient in found.values())


def test_kl_of_each_dimension_is_kept_beside_rows_without_values():
    vae = missing_vae()
    x = torch.cat([torch.randn(2, 4), torch.full((1, 4), NAN)])
    per_dim = dg.elbo_terms(vae, x, num_samples=2)["kl_per_dim"]
    alone = dg.elbo_terms(vae, x[:2], num_samples=2)["kl_per_dim"]
    np.testing.assert_allclose(per_dim[:2], alone, atol=1e-12)
    np.testing.assert_allclose(per_dim[2], 0, atol=1e-12)


def test_terms_that_only_some_pieces_have_are_left_out(monkeypatch):
    monkeypatch.setattr("pyro_vae.diagnostics.elbo.ROWS_AT_A_TIME", 2)
    vae = missing_vae(prior=partial(priors.GaussianMixture, num_components=2))
    x = torch.randn(4, 4)
    assert "entropy_per_dim" in dg.elbo_terms(vae, x, num_samples=2)
    x[0] = NAN
    assert "entropy_per_dim" not in dg.elbo_terms(vae, x, num_samples=2)
    x = x.flip(0)
    assert "entropy_per_dim" not in dg.elbo_terms(vae, x, num_samples=2)


def test_choice_of_rows_draws_and_weighs_each_row_by_its_own_distribution():
    q = families.FullCovarianceNormal(2)(torch.randn(3, 5))
    p = priors.GaussianMixture(2, 3)()
    is_q = torch.tensor([True, False, True])
    choice = chosen_rows(q, p, is_q)
    assert isinstance(choice, RowChoice)
    z = choice.rsample()
    expected = torch.where(is_q, q.log_prob(z.detach()), p.log_prob(z))
    torch.testing.assert_close(choice.log_prob(z), expected)
    torch.testing.assert_close(choice.log_prob(z.clone()), expected)
    torch.testing.assert_close(choice.mean, torch.where(is_q[:, None], q.mean, p.mean))
    torch.testing.assert_close(choice.variance, torch.where(is_q[:, None], q.variance, p.variance))
    wide = choice.expand((4, 3))
    assert wide.rsample().shape == (4, 3, 2)
    torch.testing.assert_close(wide.log_prob(z), expected.expand(4, 3))


def test_a_narrow_guide_far_from_the_prior_leaves_no_nan_in_rows_that_are_not_its():
    vae = missing_vae(family=families.FullCovarianceNormal).to(torch.float32)
    with torch.no_grad():
        bias = vae.q_z_given_x.encoder.encoder.layers[-1].bias
        bias[:2], bias[2:] = 1e38, -50.0  # (z - mean) / scale is infinite
    q = vae.encode(torch.tensor([[NAN] * 4, [1.0] * 4], dtype=torch.float32))
    z = torch.zeros(2, 2, requires_grad=True, dtype=torch.float32)
    q.log_prob(z)[0].backward()
    assert z.grad[0].isfinite().all()
    assert q.log_prob(z)[0].isfinite()


# --- networks ---------------------------------------------------------------------------------


def test_encoder_sees_zeros_and_the_mask_beside_them():
    seen = []
    encoder = networks.WithMask(nn.Identity())
    x = torch.tensor([[5.0, NAN], [NAN, 0.0]])
    assert encoder(x).tolist() == [[5, 0, 1, 0], [0, 0, 0, 1]]
    image = networks.WithMask(nn.Identity(), event_dim=3)
    shown = image(torch.tensor([[[[1.0, NAN]]]]).expand(2, 3, 1, 2))
    assert shown.shape == (2, 6, 1, 2)
    assert shown[0, :, 0].tolist() == [[1, 0]] * 6
    conv = networks.WithMask(networks.ConvEncoder((2, 8, 8), 5))
    assert conv.event_dim == 3
    assert conv(some_missing(torch.randn(4, 3, 1, 8, 8))).shape == (4, 3, 5)
    assert seen == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_richer_family_starts_where_the_guide_is_through_the_mask(wrapped):
    vae = missing_vae()
    if wrapped:  # whose last layer is not known
        inner = nn.Sequential(networks.MLP(8, (3,), 4), nn.Tanh())
        vae = vae.with_guide(
            guides.AmortizedGuide(families.DiagonalNormal(2), networks.WithMask(inner))
        )
    richer = vae.q_z_given_x.with_family(families.FullCovarianceNormal(2))
    x = some_missing(torch.randn(6, 4))
    assert richer.takes_missing
    torch.testing.assert_close(richer(x).mean, vae.encode(x).mean)
    torch.testing.assert_close(richer(x).variance, vae.encode(x).variance)
    table = guides.PerDatumGuide.from_amortized(richer, x)
    torch.testing.assert_close(table(x).mean, richer(x).mean)
    assert vae.with_guide(table).missing


@pytest.mark.parametrize("features", [6, (1, 8, 8)])
def test_builders_make_encoders_that_know_the_mask(features):
    conv = isinstance(features, tuple)
    vae = pv.make_vae(
        features=features,
        latent_dim=2,
        likelihood=likelihoods.Bernoulli,
        encoder=networks.ConvEncoder if conv else None,
        decoder=networks.ConvDecoder if conv else None,
        missing=True,
    )
    assert vae.missing
    assert vae.q_z_given_x.takes_missing
    x = some_missing(vae.sample(3))
    assert vae.encode(x).mean.shape == (3, 2)
    other = x.clone()
    other[~x.isnan()] = 0.0
    zero = torch.zeros_like(x)
    assert not torch.allclose(vae.encode(other).mean, vae.encode(zero).mean)
    for builder in (pv.gaussian_vae, pv.bernoulli_vae):
        assert builder(features=6, latent_dim=2, missing=True).q_z_given_x.takes_missing
        assert not builder(features=6, latent_dim=2).missing


def test_vamp_prior_and_its_own_guide_take_missing_values():
    vae = missing_vae()
    vae = vae.with_prior(priors.VampPrior(vae.q_z_given_x, torch.randn(3, 4)))
    x = torch.cat([some_missing(torch.randn(5, 4)), torch.full((2, 4), NAN)])
    pv.fit(vae, x, epochs=1, progress=False)
    np.testing.assert_allclose(dg.elbo_terms(vae, x, num_samples=2)["elbo"][5:], 0, atol=1e-12)


# --- compiled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Gaussian learned", "Beta", "Categorical", "Poisson"])
@pytest.mark.parametrize("family", ["diagonal", "full", "flow"])
def test_compiled_loss_and_gradients_are_those_of_ordinary_runs(kind, family):
    vae = missing_vae(likelihood=KINDS[kind], family=FAMILIES[family])
    complete = vae.sample(6)
    x = some_missing(complete)
    compiled = Compiled_ELBO(Trace_ELBO(), backend="eager", required=True)
    with pyro.validation_enabled(False):
        gradients(vae, x, elbo=compiled)
        loss, found = gradients(vae, x, elbo=compiled)
        assert compiled.num_graphs == 1
        reference, expected = gradients(vae, x)
        assert loss == pytest.approx(reference, rel=1e-10)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10)
        # The same graph serves other patterns: rows without values, and complete ones.
        other = complete.clone()
        other[2:] = NAN
        for batch in (other, torch.full_like(x, NAN), complete):
            loss, found = gradients(vae, batch, elbo=compiled)
            assert all(gradient.isfinite().all() for gradient in found.values())
            if batch is not other:
                reference, _ = gradients(vae, batch)
                assert loss == pytest.approx(reference, rel=1e-10, abs=1e-10)
        assert compiled.num_graphs == 1
