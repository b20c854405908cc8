"""What is missing altogether changes nothing. How to run more cases: see properties.py."""

import contextlib
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import NORMALS, PRIORS, cases, normals, prior_names, seeds, sizes, world
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import normal

import pyro_vae as pv
from pyro_vae import guides, likelihoods, networks, objectives, traces
from pyro_vae.distributions import (
    ObservedEntries,
    cholesky_normal,
    factor_normal,
    independent_normal,
)

LIKELIHOODS = {
    "Gaussian": partial(likelihoods.Gaussian, variance=0.3, learn_variance=True),
    "Laplace": partial(likelihoods.Laplace, scale=0.4, learn_scale=True),
    "StudentT": likelihoods.StudentT,
    "LogNormal": likelihoods.LogNormal,
    "Bernoulli": likelihoods.Bernoulli,
    "Beta": likelihoods.Beta,
    "Categorical": partial(likelihoods.Categorical, num_classes=3),
    "Poisson": likelihoods.Poisson,
    "ZeroInflatedPoisson": likelihoods.ZeroInflatedPoisson,
}
OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "importance weighted": lambda: objectives.ImportanceWeighted_ELBO(2),
    "sticking the landing": lambda: objectives.ImportanceWeighted_ELBO(2, gradient="stl"),
    "doubly reparametrized": lambda: objectives.ImportanceWeighted_ELBO(2, gradient="dreg"),
    "free bits": lambda: objectives.FreeBits_ELBO(0.3),
}


def vae_with_missing(features, *, likelihood, family, prior, latent_dim, sees_mask):
    made, kind = NORMALS[family](latent_dim), LIKELIHOODS[likelihood]
    width = features * likelihoods.outputs_per_feature(kind)
    shown = 2 * features if sees_mask else features
    encoder = networks.MLP(shown, (5,), made.num_params, activation=nn.Tanh)
    return pv.VAE(
        prior=PRIORS[prior](latent_dim),
        likelihood=kind(
            networks.MLP(latent_dim, (5,), width, activation=nn.Tanh), event_shape=(features,)
        ),
        guide=guides.AmortizedGuide(made, networks.WithMask(encoder) if sees_mask else encoder),
        missing=True,
    )


def first_features(tensor, name, large, small):
    """What a tensor of the larger VAE has for the features that the smaller has too."""
    if name.endswith("encoder.layers.0.weight"):
        return tensor.unflatten(1, (-1, large))[..., :small].flatten(1)
    if "decoder.layers.2" in name:
        return tensor.unflatten(0, (-1, large))[:, :small].flatten(0, 1)
    return tensor


@contextlib.contextmanager
def noise_of_rows(noise):
    """Let each draw of q(z|x) take the first rows of ``noise``, ``(N, k)``."""

    def standard_normal(shape, dtype, device):
        return noise[: shape[-2]].expand(shape)

    with pytest.MonkeyPatch.context() as patch:
        # Beside rows without any value q is a plain Normal of each coordinate.
        for module in (normal, cholesky_normal, factor_normal, independent_normal):
            patch.setattr(module, "_standard_normal", standard_normal)
        yield


def loss_and_gradient(vae, objective, x, noise):
    vae.zero_grad()
    with noise_of_rows(noise):
        loss = OBJECTIVES[objective]().differentiable_loss(vae.model, vae.guide, x)
    if loss.requires_grad:
        loss.backward()
    zeros = {name: torch.zeros_like(p) for name, p in vae.named_parameters()}
    found = {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}
    return loss.detach(), zeros | found


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def with_holes(x, share):
    """Data with entries left out at random, and one in each row kept."""
    holes = torch.rand_like(x) < share
    holes[torch.arange(len(x)), torch.randint(x.shape[1], (len(x),))] = False
    return x.masked_fill(holes, torch.nan)


case = st.fixed_dictionaries(
    {
        "likelihood": st.sampled_from(sorted(LIKELIHOODS)),
        "family": normals,
        "prior": prior_names,
        "latent_dim": sizes(1, 3),
        "sees_mask": st.booleans(),
    }
)
shares = st.sampled_from([0.0, 0.3, 0.9])
objective_names = st.sampled_from(sorted(OBJECTIVES))


@cases(15)
@given(
    case=case,
    features=sizes(1, 4),
    more=sizes(1, 4),
    num_rows=sizes(1, 5),
    share=shares,
    objective=objective_names,
    seed=seeds,
)
def test_features_that_are_missing_altogether_change_nothing(
    case, features, more, num_rows, share, objective, seed
):
    with world(seed):
        large = vae_with_missing(features + more, **case)
        small = vae_with_missing(features, **case)
        cut = partial(first_features, large=features + more, small=features)
        small.load_state_dict({name: cut(t, name) for name, t in large.state_dict().items()})
        x = with_holes(small.sample(num_rows), share)
        padded = torch.cat([x, torch.full((num_rows, more), torch.nan)], 1)
        z = torch.randn(3, num_rows, case["latent_dim"])
        with torch.no_grad():
            assert_close(large.encode(padded).log_prob(z), small.encode(x).log_prob(z))
            assert_close(traces.JointDensity(large, padded)(z), traces.JointDensity(small, x)(z))
            assert_close(large.reconstruct(padded)[:, :features], small.reconstruct(x))
        noise = torch.randn(num_rows, case["latent_dim"])
        expected, of_small = loss_and_gradient(small, objective, x, noise)
        loss, of_large = loss_and_gradient(large, objective, padded, noise)
        assert_close(loss, expected)
        for name, gradient in of_large.items():
            kept = cut(gradient, name)
            assert_close(kept, of_small[name])
            if kept.shape != gradient.shape:
                # What belongs to missing features alone learns nothing.
                assert_close(gradient.abs().sum(), kept.abs().sum())


@cases(15)
@given(
    case=case,
    features=sizes(1, 4),
    num_rows=sizes(1, 5),
    more=sizes(1, 3),
    share=shares,
    objective=objective_names,
    seed=seeds,
)
def test_rows_that_are_missing_altogether_change_nothing(
    case, features, num_rows, more, share, objective, seed
):
    with world(seed):
        vae = vae_with_missing(features, **case)
        x = with_holes(vae.sample(num_rows), share)
        padded = torch.cat([x, torch.full((more, features), torch.nan)])
        noise = torch.randn(num_rows + more, case["latent_dim"])
        expected, of_some = loss_and_gradient(vae, objective, x, noise)
        loss, of_all = loss_and_gradient(vae, objective, padded, noise)
        assert_close(loss, expected)
        assert of_all.keys() == of_some.keys()
        for name, gradient in of_all.items():
            assert_close(gradient, of_some[name])
        log_weights = vae.log_importance_weights(padded, num_samples=3)
        assert_close(log_weights[:, num_rows:], torch.zeros(3, more))


@cases(15)
@given(
    name=st.sampled_from(sorted(LIKELIHOODS)),
    features=sizes(1, 5),
    num_rows=sizes(1, 5),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    seed=seeds,
)
def test_density_of_what_is_observed_is_that_of_those_features_alone(
    name, features, num_rows, share, seed
):
    with world(seed), torch.no_grad():
        kind = LIKELIHOODS[name]
        width = features * likelihoods.outputs_per_feature(kind)
        p = kind(networks.MLP(2, (3,), width), event_shape=(features,))(torch.randn(num_rows, 2))
        complete = p.sample()
        x = with_holes(complete, share)
        observed = ~x.isnan()
        # Each feature by itself: the difference that it makes to a density of all of them.
        entries = ObservedEntries(p).log_prob(
            torch.where(
                torch.eye(features, dtype=torch.bool), complete.unsqueeze(1), torch.nan
            ).movedim(1, 0)
        )
        assert_close(entries.sum(0), p.log_prob(complete))
        assert_close((entries.mT * observed).sum(1), ObservedEntries(p).log_prob(x))
