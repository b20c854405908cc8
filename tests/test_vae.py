import copy
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae import families, guides, likelihoods, networks, priors
from pyro_vae.datasets import linear_gaussian

FAMILIES = [families.DiagonalNormal, families.FullCovarianceNormal]


def test_programs_have_two_sites_in_one_plate():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    for trace, expected in ((guide, ["z"]), (model, ["z", "x"])):
        sites = {
            name: [(frame.name, frame.size, frame.dim) for frame in site["cond_indep_stack"]]
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and name != "data"
        }
        assert sites == dict.fromkeys(expected, [("data", 5, -1)])
    assert model.nodes["x"]["is_observed"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("c", [1e-3, 0.1, 2.5])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_elbo_is_the_formula_of_the_article(family, c, elbo):
    # -C E|x - f(z)|^2 - (n/2) log(2 pi c) - KL, the first at the same noise.
    vae, x = small_vae(family=family, variance=c), torch.randn(5, 6)
    torch.manual_seed(7)
    loss = elbo().loss(vae.model, vae.guide, x)
    torch.manual_seed(7)
    q = vae.encode(x)
    z = q.rsample()
    C, n = 1 / (2 * c), 6  # noqa: N806
    residual = (x - vae.p_x_given_z.decoder(z)).square().sum(-1)
    expected = -C * residual - n / 2 * math.log(2 * math.pi * c)
    covariance = getattr(q, "covariance_matrix", q.variance.diag_embed())
    if elbo is Trace_ELBO:
        inverse = torch.linalg.inv(covariance)
        d = z - q.mean
        log_q = -0.5 * (torch.einsum("ni,nij,nj->n", d, inverse, d) + torch.logdet(covariance))
        kl = log_q + 0.5 * z.square().sum(-1)
    else:
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        kl = 0.5 * (trace + q.mean.square().sum(-1) - 3 - torch.logdet(covariance))
    torch.testing.assert_close(torch.tensor(-loss), (expected - kl).sum(), rtol=1e-12, atol=1e-10)


def test_one_sample_elbo_is_the_log_evidence_at_the_exact_posterior():
    data = linear_gaussian(20, features=6, latent_dim=3, variance=0.2, seed=2)
    vae = linear_vae(data.truth)
    loss = Trace_ELBO().loss(vae.model, vae.guide, data.x)
    assert abs(-loss - data.log_evidence.sum().item()) < 1e-9
    log_weights = vae.log_importance_weights(data.x, num_samples=3)
    expected = data.log_evidence.expand(3, 20)
    torch.testing.assert_close(log_weights, expected, rtol=0, atol=1e-10)


def test_full_covariance_kl_is_analytic_in_pyros_mean_field_elbo():
    # A decoder that ignores z leaves nothing to chance but the KL (PITFALLS P5).
    vae = small_vae(family=families.FullCovarianceNormal)
    with torch.no_grad():
        vae.p_x_given_z.decoder.layers[0].weight.zero_()
    x = torch.randn(5, 6)
    losses = [TraceMeanField_ELBO().loss(vae.model, vae.guide, x) for _ in range(5)]
    assert max(losses) - min(losses) < 1e-12


def test_samples_have_the_moments_of_the_marginal():
    data = linear_gaussian(2, features=4, latent_dim=2, variance=0.2, seed=3)
    vae = linear_vae(data.truth)
    draws = vae.sample(40_000) - data.truth.mean
    covariance = data.truth.weight @ data.truth.weight.mT + 0.2 * torch.eye(4)
    assert (draws.mean(0) / (covariance.diagonal() / 40_000).sqrt()).abs().max() < MAX_Z
    products = draws.unsqueeze(-1) * draws.unsqueeze(-2)
    error = (products.mean(0) - covariance) / (products.std(0) / 200)
    assert error.abs().max() < MAX_Z
    means = vae.sample(40_000, mean=True) - data.truth.mean
    products = means.unsqueeze(-1) * means.unsqueeze(-2)
    error = (products.mean(0) - (covariance - 0.2 * torch.eye(4))) / (products.std(0) / 200)
    assert error.abs().max() < MAX_Z


def test_reconstruction_is_the_decoded_mean():
    data = linear_gaussian(5, features=6, latent_dim=3, variance=0.2, seed=4)
    vae = linear_vae(data.truth)
    m = data.posterior.mean
    expected = m @ data.truth.weight.mT + data.truth.mean
    torch.testing.assert_close(vae.reconstruct(data.x), expected)
    torch.testing.assert_close(vae.encode(data.x).mean, m)


def parameters(vae):
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


def train_by_hand(vae, x, steps=3):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    torch.manual_seed(11)
    for _ in range(steps):
        svi.step(x)


@pytest.mark.parametrize("make_second", [lambda vae: small_vae(family=FAMILIES[0]), copy.deepcopy])
def test_two_vaes_train_independently_by_a_users_own_svi(make_second):
    x = torch.randn(5, 6)
    first = small_vae(family=FAMILIES[0])
    second = make_second(first)
    alone = copy.deepcopy(second)
    train_by_hand(first, x)
    before = parameters(first)
    train_by_hand(second, x)
    pyro.clear_param_store()
    train_by_hand(alone, x)
    torch.testing.assert_close(parameters(second), parameters(alone), rtol=0, atol=0)
    torch.testing.assert_close(parameters(first), before, rtol=0, atol=0)


def test_making_a_vae_leaves_buffers_and_modes_alone():
    encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    decoder = nn.Linear(2, 6)
    vae = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(decoder, event_shape=(6,)),
        guide=guides.AmortizedGuide(families.DiagonalNormal(2), encoder),
    )
    assert encoder[0].num_batches_tracked == 0
    assert all(module.training for module in vae.modules())


def test_images_keep_their_shape():
    shape = (1, 8, 8)
    family = families.FullCovarianceNormal(2)
    vae = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(networks.ConvDecoder(2, shape), event_shape=shape),
        guide=guides.AmortizedGuide(family, networks.ConvEncoder(shape, family.num_params)),
    )
    x = torch.rand(3, *shape)
    assert vae.reconstruct(x).shape == (3, *shape)
    assert vae.sample(4).shape == (4, *shape)
    assert vae.log_importance_weights(x, num_samples=5).shape == (5, 3)


def test_arrays_and_tables_are_encoded_like_tensors():
    vae, x = small_vae(family=FAMILIES[0]), torch.randn(5, 6)
    names = list("abcdef")
    frame = pd.DataFrame(x.numpy(), columns=names)
    expected = vae.encode(x).mean
    torch.testing.assert_close(vae.encode(x.numpy()[::-1].copy()).mean, expected.flip(0))
    vae.columns = tuple(names)
    torch.testing.assert_close(vae.encode(frame[names[::-1]]).mean, expected)
    with pytest.raises(ValueError, match="f"):
        vae.encode(frame.rename(columns={"f": "g"}))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((2, 7)), ValueError, r"\(6,\).*got \(7,\)"),
        (np.zeros(6), ValueError, r"\(6,\)"),
        (np.zeros((0, 6)), ValueError, "no rows"),
        (np.full((2, 6), np.nan), ValueError, "NaN; got 12, the first at row 0, column 0"),
        (np.full((2, 6), np.inf), ValueError, "inf"),
        (np.full((2, 6), "a"), TypeError, "numeric|number"),
        (
            np.full((2, 6), 255, np.uint8),
            ValueError,
            r"must be scaled .* uint8 values in \[255, 25",
        ),
    ],
)
def test_encode_rejects_what_is_no_data(x, error, message):
    with pytest.raises(error, match=message):
        small_vae(family=FAMILIES[0]).encode(x)


class Part(nn.Module):
    """A user's part: any module that declares an event shape and returns a distribution."""

    def __init__(self, event_shape, make):
        super().__init__()
        self.event_shape, self.make = event_shape, make

    def forward(self, *inputs):
        return self.make(*inputs)


def parts(**changed):
    normal = {
        "prior": Part((2,), lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1)),
        "likelihood": Part(
            (3,), lambda z: dist.Normal(z.sum(-1, True).expand(-1, 3), 1.0).to_event(1)
        ),
        "guide": Part((2,), lambda x: dist.Normal(x[..., :2], 1.0).to_event(1)),
    }
    return normal | changed


def test_parts_that_a_user_wrote_are_full_citizens():
    vae = pv.VAE(**parts())
    x = torch.randn(4, 3)
    assert vae.encode(x).event_shape == (2,)
    assert vae.latent_shape == (2,)
    assert vae.event_shape == (3,)
    assert Trace_ELBO().loss(vae.model, vae.guide, x) > 0


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"prior": Part((4,), None)},
            ValueError,
            r"share a latent shape; got p\(z\) over \(4,\) and q\(z\|x\) over \(2,\)",
        ),
        ({"guide": nn.Linear(3, 4)}, TypeError, "guide must declare event_shape"),
        ({"prior": dist.Normal(0, 1)}, TypeError, "prior must be an instance of nn.Module"),
        ({"prior": priors.StandardNormal}, TypeError, "prior must be an instance of nn.Module"),
        (
            {"guide": Part((2,), lambda x: dist.Normal(x[..., :2], 1.0))},
            ValueError,
            r"guide must return .* event shape \(2,\) .* got event shape \(\) and .*\(2, 2\)",
        ),
        (
            {"likelihood": Part((3,), lambda z: dist.Normal(torch.zeros(2, 4), 1.0).to_event(1))},
            ValueError,
            r"likelihood must return .* event shape \(3,\) .* got event shape \(4,\)",
        ),
        (
            {"likelihood": likelihoods.Gaussian(nn.Linear(5, 3), event_shape=(3,))},
            ValueError,
            r"likelihood must accept an input of shape \(2, 2\); got: .*mat1 and mat2",
        ),
        ({"guide": Part((2,), lambda x: x)}, TypeError, "guide must return a distribution"),
    ],
)
def test_vae_rejects_parts_that_do_not_fit(changed, error, message):
    with pytest.raises(error, match=message):
        pv.VAE(**parts(**changed))


def test_amortized_guide_rejects_a_family_that_is_only_a_class():
    with pytest.raises(TypeError, match="family must be an instance"):
        guides.AmortizedGuide(families.DiagonalNormal, nn.Linear(3, 4))


@pytest.mark.parametrize("num_samples", [0, -1, 2.5, True])
def test_numbers_of_draws_must_be_positive_integers(num_samples):
    vae = small_vae(family=FAMILIES[0])
    with pytest.raises(ValueError, match="num_samples must be a positive integer"):
        vae.sample(num_samples)
    with pytest.raises(ValueError, match="num_samples must be a positive integer"):
        vae.log_importance_weights(torch.zeros(2, 6), num_samples=num_samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_follow_the_module(dtype):
    torch.set_default_dtype(torch.float32)
    vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=(4,)).to(dtype)
    x = torch.randn(5, 3)
    assert vae.encode(x).mean.dtype == dtype
    assert vae.sample(2).dtype == dtype
    assert vae.log_importance_weights(x, num_samples=2).dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a positive integer; got 0"),
        ({"latent_dim": -1}, "latent_dim must be a positive integer; got -1"),
        ({"latent_dim": 2.0}, "latent_dim must be a positive integer; got 2"),
        ({"latent_dim": 7}, "latent_dim must not exceed the number of features, 6; got 7"),
        ({"features": 0}, "features must hold positive integers; got 0"),
        ({"features": (2, 0)}, "features must hold positive integers"),
        ({"hidden": (0,)}, "hidden must hold positive integers"),
        ({"variance": 0.0}, "variance must be positive and finite; got 0"),
        ({"variance": -1.0}, "variance must be positive and finite; got -1"),
    ],
)
def test_gaussian_vae_refuses_what_makes_no_vae(options, message):
    with pytest.raises(ValueError, match=message):
        pv.gaussian_vae(**{"features": 6, "latent_dim": 2, **options})


def test_with_guide_shares_the_model_and_trains_on_its_own():
    vae, x = small_vae(family=FAMILIES[0]), torch.randn(5, 6)
    family = families.FullCovarianceNormal(3)
    other = vae.with_guide(guides.AmortizedGuide(family, nn.Linear(6, family.num_params)))
    assert other.p_z is vae.p_z
    assert other.p_x_given_z is vae.p_x_given_z
    assert other.store_name != vae.store_name
    assert isinstance(vae.q_z_given_x.family, FAMILIES[0])
    before = [p.detach().clone() for p in vae.q_z_given_x.parameters()]
    decoder = parameters(vae.p_x_given_z)
    train_by_hand(other, x)
    for p, kept in zip(vae.q_z_given_x.parameters(), before, strict=True):
        assert torch.equal(p, kept)
    assert not torch.equal(parameters(vae.p_x_given_z), decoder)
    train_by_hand(vae, x)  # the first is still whole


def test_with_part_keeps_a_subclass_and_its_other_members():
    class Own(pv.VAE):
        def __init__(self, *, extra, **parts):
            super().__init__(**parts)
            self.extra = nn.Parameter(extra)

    vae = Own(extra=torch.ones(2), **parts())
    vae.columns = ("a", "b", "c")
    other = vae.with_guide(parts()["guide"])
    assert type(other) is Own
    assert other.extra is vae.extra
    assert other.columns == vae.columns
    other.register_parameter("more", nn.Parameter(torch.zeros(1)))
    assert not hasattr(vae, "more")
    assert vae.with_prior(parts()["prior"]).q_z_given_x is vae.q_z_given_x


@pytest.mark.parametrize(
    ("swap", "error", "message"),
    [
        (lambda v: v.with_guide(nn.Linear(3, 4)), TypeError, "guide must declare event_shape"),
        (
            lambda v: v.with_guide(Part((4,), None)),
            ValueError,
            r"share a latent shape; got p\(z\) over \(2,\) and q\(z\|x\) over \(4,\)",
        ),
        (lambda v: v.with_prior(priors.StandardNormal(3)), ValueError, "share a latent shape"),
    ],
)
def test_with_part_rejects_parts_that_do_not_fit(swap, error, message):
    with pytest.raises(error, match=message):
        swap(pv.VAE(**parts()))


@pytest.mark.parametrize(
    "distribution",
    [
        dist.Uniform(-torch.ones(2), 1.0).to_event(1),
        dist.Gamma(torch.ones(2), 1.0).to_event(1),
        dist.Bernoulli(torch.full((2,), 0.5)).to_event(1),
    ],
)
def test_prior_without_density_where_the_guide_draws_raises(distribution):
    with pytest.raises(ValueError, match="prior must have a density wherever the guide draws"):
        pv.VAE(**parts(prior=priors.Fixed(distribution)))


def test_parts_of_different_floating_types_raise():
    vae = small_vae(family=FAMILIES[0])
    message = (
        "parts must share one floating type; got likelihood torch.float64, guide torch.float32"
    )
    with pytest.raises(ValueError, match=message):
        vae.with_guide(small_vae(family=FAMILIES[0]).float().q_z_given_x)


def test_prior_without_parameters_may_have_another_floating_type():
    vae = small_vae(family=FAMILIES[0]).with_prior(priors.StandardNormal(3).float())
    assert vae.sample(2).dtype == torch.float64
    assert vae.log_importance_weights(torch.zeros(4, 6), num_samples=2).dtype == torch.float64


def test_mean_of_a_flow_is_the_image_of_its_bases_mean():
    family = families.Flow(3, num_steps=2, context_dim=4)
    vae = small_vae(family=lambda k: family)
    x = torch.randn(5, 6)
    q = vae.encode(x)
    with torch.no_grad():  # a new flow is the diagonal normal
        torch.testing.assert_close(vae.reconstruct(x), vae.decode(q.base_dist.mean))
