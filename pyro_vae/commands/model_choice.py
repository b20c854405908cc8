"""Which VAE: a configuration to a VAE, new or fitted."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae import families, guides, likelihoods, networks, priors
from pyro_vae.commands.data_choice import picture_settings
from pyro_vae.datasets import Dataset
from pyro_vae.run_directory import RunDirectory
from pyro_vae.seeding import seeded
from pyro_vae.vae import VAE

__all__ = ["build", "rebuild"]

FAMILIES: dict[str, Callable[[int], families.Family]] = {
    "diagonal": families.DiagonalNormal,
    "full": families.FullCovarianceNormal,
}


def build(model: Mapping[str, Any], data: Dataset, *, seed: int) -> VAE:
    """The VAE that a configuration describes, for data of this shape."""
    k, hidden, event_shape = model["latent_dim"], list(model["hidden"]), data.event_shape
    if k > data.num_features:
        raise ValueError(
            f"latent-dim must not exceed the number of features, {data.num_features}; got {k}."
        )
    family: families.Family = FAMILIES[model["family"]](k)
    variance: float | Tensor = model["variance"]
    if model["variance_per_feature"]:
        variance = torch.full(event_shape, model["variance"], device="cpu")
    with seeded(seed, "weights"):
        encoder: torch.nn.Module
        decoder: torch.nn.Module
        if model["networks"] == "conv":
            encoder = networks.ConvEncoder(event_shape, family.num_params)
            decoder = networks.ConvDecoder(k, event_shape)
        else:
            encoder = networks.MLP(event_shape, hidden, family.num_params)
            decoder = networks.MLP(k, hidden[::-1], event_shape)
        vae = VAE(
            prior=priors.StandardNormal(k),
            likelihood=likelihoods.Gaussian(
                decoder,
                event_shape=event_shape,
                variance=variance,
                learn_variance=model["learn_variance"],
            ),
            guide=guides.AmortizedGuide(family, encoder),
        )
    return vae.to(getattr(torch, model["dtype"]))


def rebuild(run: RunDirectory, config: Mapping[str, Any]) -> VAE:
    """The fitted VAE of a run, without its data."""
    rows = torch.zeros(1, *config["data"]["event_shape"], device="cpu")
    _, columns = picture_settings(config)
    vae = build(config["model"], Dataset("run", rows), seed=0)
    run.read_weights(vae)
    vae.columns = columns
    vae.eval()
    return vae
