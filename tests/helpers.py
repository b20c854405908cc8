"""Programs and parts that several test files share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import distributions, families, guides, likelihoods, networks, priors
from pyro_vae.datasets import LinearGaussian


class ExactPosterior(distributions.DistributionModule):
    """The guide that a linear Gaussian model deserves: p(z|x) itself."""

    def __init__(self, truth: LinearGaussian) -> None:
        super().__init__()
        self.truth = truth
        self.event_shape = torch.Size([truth.latent_dim])

    def forward(self, x: Tensor) -> distributions.CholeskyNormal:
        posterior = self.truth.posterior(x)
        return distributions.CholeskyNormal(posterior.loc, scale_tril=posterior.scale_tril)


def linear_decoder(truth: LinearGaussian) -> nn.Module:
    """f(z) = W z + mu."""
    decoder = nn.Linear(truth.latent_dim, truth.num_features)
    with torch.no_grad():
        decoder.weight.copy_(truth.weight)
        decoder.bias.copy_(truth.mean)
    return decoder


def linear_vae(truth: LinearGaussian, *, guide: nn.Module | None = None) -> pv.VAE:
    """The VAE whose model is ``truth``; its guide is the exact posterior unless given."""
    return pv.VAE(
        prior=priors.StandardNormal(truth.latent_dim),
        likelihood=likelihoods.Gaussian(
            linear_decoder(truth),
            event_shape=(truth.num_features,),
            variance=float(truth.variance),
        ),
        guide=ExactPosterior(truth) if guide is None else guide,
    )


def small_vae(
    *,
    family: Callable[[int], families.Family],
    features: int = 6,
    latent_dim: int = 3,
    **likelihood,
) -> pv.VAE:
    """A nonlinear VAE with random weights."""
    made = family(latent_dim)
    return pv.VAE(
        prior=priors.StandardNormal(latent_dim),
        likelihood=likelihoods.Gaussian(
            networks.MLP(latent_dim, (8,), features, activation=nn.Tanh),
            event_shape=(features,),
            **likelihood,
        ),
        guide=guides.AmortizedGuide(
            made, networks.MLP(features, (8,), made.num_params, activation=nn.Tanh)
        ),
    )
