from functools import partial

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import families, likelihoods, networks, priors


def test_parts_are_of_the_kinds_asked_for():
    vae = pv.make_vae(
        features=6,
        latent_dim=3,
        hidden=(8, 5),
        likelihood=partial(likelihoods.Categorical, num_classes=4),
        prior=partial(priors.GaussianMixture, num_components=2),
        family=partial(families.LowRankNormal, rank=1),
    )
    assert isinstance(vae.p_z, priors.GaussianMixture)
    assert isinstance(vae.p_x_given_z, likelihoods.Categorical)
    assert vae.q_z_given_x.family.rank == 1
    widths = [m.out_features for m in vae.modules() if isinstance(m, nn.Linear)]
    assert sorted(widths) == sorted([5, 8, 6 * 4, 8, 5, 3 + 3 + 3])
    assert vae.sample(5).unique().numel() <= 4


def test_networks_of_ones_own_get_the_shapes_that_the_parts_need():
    asked = {}

    def encoder(shape, outputs):
        asked["encoder"] = (shape, outputs)
        return networks.ConvEncoder(shape, outputs)

    def decoder(latent_dim, shape):
        asked["decoder"] = (latent_dim, shape)
        return networks.ConvDecoder(latent_dim, shape)

    vae = pv.make_vae(
        features=(2, 8, 8),
        latent_dim=3,
        likelihood=likelihoods.Beta,
        encoder=encoder,
        decoder=decoder,
    )
    assert asked == {"encoder": ((2, 8, 8), 6), "decoder": (3, (4, 8, 8))}
    assert vae.sample(2).shape == (2, 2, 8, 8)


def test_gaussian_and_bernoulli_vaes_are_what_they_say():
    vae = pv.gaussian_vae(features=6, latent_dim=2, variance=0.3, prior=priors.Laplace)
    assert isinstance(vae.p_z, priors.Laplace)
    assert vae.p_x_given_z.variance.item() == pytest.approx(0.3, abs=1e-12)
    vae = pv.bernoulli_vae(features=6, latent_dim=2, family=families.FullCovarianceNormal)
    z, x = torch.randn(5, 2), torch.randint(2, (5, 6)).double()
    logits = vae.p_x_given_z.decoder(z)
    expected = (x * logits - nn.functional.softplus(logits)).sum(-1)
    torch.testing.assert_close(vae.p_x_given_z(z).log_prob(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": families.LowRankNormal}, "family must be made from latent_dim alone.*rank"),
        ({"prior": priors.GaussianMixture}, "prior must be made from latent_dim alone"),
        ({"prior": priors.VampPrior}, r"vae.with_prior\(priors.VampPrior.from_data"),
    ],
)
def test_kinds_that_need_more_say_how_to_give_it(options, message):
    with pytest.raises(TypeError, match=message):
        pv.bernoulli_vae(features=6, latent_dim=2, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": families.DiagonalNormal(2)}, "family must be a class such as"),
        ({"prior": priors.StandardNormal(2)}, "prior must be a class such as"),
        ({"likelihood": "bernoulli"}, "likelihood must be a class such as .*; got 'bernoulli'"),
    ],
)
def test_parts_in_place_of_kinds_raise(options, message):
    kinds = {"likelihood": likelihoods.Bernoulli, **options}
    with pytest.raises(TypeError, match=message):
        pv.make_vae(features=6, latent_dim=2, **kinds)
