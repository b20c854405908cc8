"""Any batch shape, event shape and type. How to run more cases: see properties.py."""

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import (
    batch_shapes,
    cases,
    dtypes,
    event_shapes,
    image_shapes,
    normals,
    prior_names,
    seeds,
    sizes,
    vae_of,
    world,
)
from pyro import poutine
from test_families import ALL
from test_likelihoods_laws import CASES, kind_and_options
from test_priors import MAKERS
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods, networks

small_batches = st.lists(sizes(1, 2), max_size=2).map(tuple)


def places(batch_shape):
    return itertools.product(*map(range, batch_shape))


@cases(40)
@given(
    family=st.sampled_from(ALL),
    latent_dim=sizes(1, 5),
    batch=batch_shapes,
    draws=small_batches,
    dtype=dtypes,
    seed=seeds,
)
def test_family_has_the_batch_of_its_parameters(family, latent_dim, batch, draws, dtype, seed):
    with world(seed):
        made = family(latent_dim).to(dtype)
        params = torch.randn(*batch, made.num_params, dtype=dtype)
        q = made(params)
        z = q.rsample(torch.Size(draws))
        log_q = q.log_prob(z)
        assert q.batch_shape == batch
        assert q.event_shape == made.event_shape == (latent_dim,)
        assert z.shape == (*draws, *batch, latent_dim)
        assert log_q.shape == (*draws, *batch)
        assert z.dtype == log_q.dtype == dtype
        assert log_q.isfinite().all()
        if dtype == torch.float64:
            for place in places(batch):
                alone = made(params[place]).log_prob(z[..., *place, :])
                torch.testing.assert_close(alone, log_q[..., *place], rtol=1e-10, atol=1e-9)


def likelihood_of(name, event_shape, latent_dim):
    """The likelihood of a case, with a random decoder."""
    if name == "Gaussian, c a function of z":
        variance = nn.Sequential(nn.Linear(latent_dim, math.prod(event_shape)), nn.Softplus())

        def kind(decoder, event_shape):
            return likelihoods.Gaussian(decoder, event_shape, variance=variance)

    else:
        kind = CASES[name].kind
    m = likelihoods.outputs_per_feature(kind_and_options(CASES[name]))
    decoder = networks.MLP(latent_dim, (4,), (m, *event_shape), activation=nn.Tanh)
    return kind(decoder, event_shape=event_shape)


@cases(40)
@given(
    name=st.sampled_from(sorted(CASES)),
    event_shape=event_shapes,
    latent_dim=sizes(1, 3),
    batch=batch_shapes,
    draws=small_batches,
    dtype=dtypes,
    seed=seeds,
)
def test_likelihood_has_the_batch_of_z(name, event_shape, latent_dim, batch, draws, dtype, seed):
    with world(seed), torch.no_grad():
        likelihood = likelihood_of(name, event_shape, latent_dim).to(dtype)
        z = torch.randn(*batch, latent_dim, dtype=dtype)
        p = likelihood(z)
        x = p.sample(torch.Size(draws))
        log_p = p.log_prob(x)
        assert p.batch_shape == batch
        assert p.event_shape == likelihood.event_shape == event_shape
        assert x.shape == (*draws, *batch, *event_shape)
        assert log_p.shape == (*draws, *batch)
        assert likelihood.center(p).shape == (*batch, *event_shape)
        assert x.dtype == log_p.dtype == dtype
        assert log_p.isfinite().all()
        likelihood.check_support(x)
        if dtype == torch.float64:
            for place in places(batch):
                alone = likelihood(z[place]).log_prob(x[len(draws) * (slice(None),) + place])
                torch.testing.assert_close(alone, log_p[..., *place], rtol=1e-10, atol=1e-9)


@cases(25)
@given(
    name=st.sampled_from(sorted(CASES)),
    event_shape=st.lists(sizes(1, 3), min_size=2, max_size=3).map(tuple),
    num_rows=sizes(1, 4),
    seed=seeds,
)
def test_flat_data_have_the_density_of_shaped_ones(name, event_shape, num_rows, seed):
    with world(seed), torch.no_grad():
        shaped, flat = (
            likelihood_of(name, s, 2) for s in (event_shape, (math.prod(event_shape),))
        )
        flat.load_state_dict(
            {
                key: value.reshape(flat.state_dict()[key].shape)
                for key, value in shaped.state_dict().items()
            }
        )
        z = torch.randn(num_rows, 2)
        x = shaped(z).sample()
        torch.testing.assert_close(
            flat(z).log_prob(x.flatten(1)), shaped(z).log_prob(x), rtol=1e-12, atol=1e-12
        )


@cases(30)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    latent_dim=sizes(1, 4),
    draws=batch_shapes,
    dtype=dtypes,
    seed=seeds,
)
def test_prior_has_no_batch(name, latent_dim, draws, dtype, seed):
    with world(seed), torch.no_grad():
        # A distribution that holds numbers is no module, and keeps their type.
        dtype = torch.float64 if name == "Fixed" else dtype
        p = MAKERS[name](latent_dim).to(dtype)()
        z = p.sample(torch.Size(draws)).to(dtype)
        log_p = p.log_prob(z)
        assert p.batch_shape == ()
        assert p.event_shape == (latent_dim,)
        assert z.shape == (*draws, latent_dim)
        assert log_p.shape == draws
        assert log_p.dtype == dtype
        assert log_p.isfinite().all()


@cases(30)
@given(
    kind=st.sampled_from(["MLP", "ConvEncoder", "ConvDecoder"]),
    image=image_shapes,
    batch=batch_shapes,
    dtype=dtypes,
    seed=seeds,
)
def test_network_maps_a_batch_as_it_maps_each_row(kind, image, batch, dtype, seed):
    with world(seed), torch.no_grad():
        if kind == "MLP":
            net, event, out = networks.MLP(image, (3,), image[1:]), image, image[1:]
        elif kind == "ConvEncoder":
            net, event, out = networks.ConvEncoder(image, 4, channels=(2,), hidden=3), image, (4,)
        else:
            net, event, out = networks.ConvDecoder(4, image, channels=(2,), hidden=3), (4,), image
        net = net.to(dtype)
        x = torch.randn(*batch, *event, dtype=dtype)
        y = net(x)
        assert y.shape == (*batch, *out)
        assert y.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        for place in places(batch):
            torch.testing.assert_close(net(x[place]), y[place], rtol=tolerance, atol=tolerance)


@cases(25)
@given(
    features=st.one_of(event_shapes, image_shapes),
    latent_dim=sizes(1, 3),
    num_rows=sizes(1, 7),
    num_samples=sizes(1, 4),
    family=normals,
    prior=prior_names,
    likelihood=st.sampled_from(
        [likelihoods.Gaussian, likelihoods.Bernoulli, likelihoods.Poisson, likelihoods.Beta]
    ),
    dtype=dtypes,
    seed=seeds,
)
def test_vae_takes_any_event_shape_and_number_of_rows(
    features, latent_dim, num_rows, num_samples, family, prior, likelihood, dtype, seed
):
    with world(seed):
        vae = vae_of(
            features=features,
            latent_dim=latent_dim,
            family=family,
            prior=prior,
            likelihood=likelihood,
            convolutions=len(features) == 3 and min(features[1:]) > 1,
        ).to(dtype)
        assert vae.event_shape == features
        assert vae.latent_shape == (latent_dim,)
        x = vae.sample(num_rows)
        assert x.shape == vae.sample(num_rows, mean=True).shape == (num_rows, *features)
        q = vae.encode(x)
        assert (q.batch_shape, q.event_shape) == ((num_rows,), (latent_dim,))
        assert vae.reconstruct(x).shape == x.shape
        log_weights = vae.log_importance_weights(x, num_samples=num_samples)
        assert log_weights.shape == (num_samples, num_rows)
        terms = pv.diagnostics.elbo_terms(vae, x, num_samples=num_samples)
        assert terms["elbo"].shape == (num_rows,)
        found = poutine.trace(vae.model).get_trace(x)
        found.compute_log_prob()
        for site, event in (("z", (latent_dim,)), ("x", features)):
            assert found.nodes[site]["value"].shape == (num_rows, *event)
            assert found.nodes[site]["log_prob"].shape == (num_rows,)
            assert found.nodes[site]["value"].dtype == dtype
        for figures in (x, q.mean, vae.reconstruct(x), log_weights):
            assert figures.dtype == dtype
            assert figures.isfinite().all()
