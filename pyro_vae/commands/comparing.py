"""``pyro-vae baselines``: PCA, linear AE, AE and VAE on one axis."""

from argparse import Namespace
from typing import Any

import pandas as pd
import torch

from pyro_vae.baselines import LINEAR_RATE, PCA, LinearAutoencoder, autoencoder
from pyro_vae.commands.data_choice import data_settings, load
from pyro_vae.commands.progress import shows_progress
from pyro_vae.ready_made import gaussian_vae
from pyro_vae.report import mean_and_error, with_error
from pyro_vae.seeding import seeded
from pyro_vae.training import fit

__all__ = ["baselines"]


def baselines(options: Namespace) -> None:
    """``pyro-vae baselines``."""
    settings = {"data": data_settings(options), "fit": {"seed": options.seed}}
    train, held_out = load(settings)
    train, held_out = train.flatten(), held_out.flatten()
    too_large = [k for k in options.latent_dims if k >= min(train.num_features, train.num_data)]
    if too_large:
        raise ValueError(
            f"latent-dims must be less than the number of features, {train.num_features}, and of "
            f"rows, {train.num_data}; got {too_large}."
        )
    training = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "progress": shows_progress(options),
    }
    rows = []
    for k in dict.fromkeys(options.latent_dims):
        n = train.num_features
        with seeded(options.seed, "weights"):
            models: dict[str, Any] = {
                "linear AE": LinearAutoencoder(n, k),
                "AE": autoencoder(features=n, latent_dim=k, hidden=options.hidden),
                "VAE": gaussian_vae(features=n, latent_dim=k, hidden=options.hidden),
            }
        for name, model in models.items():
            rate = LINEAR_RATE if name == "linear AE" else options.learning_rate
            fit(model, train, device=options.device, learning_rate=rate, **training)
        for name, model in {"PCA": PCA(k).fit(train.x), **models}.items():
            with torch.no_grad():
                means = model.reconstruct(held_out.x)
            errors = (means.cpu() - held_out.x).square().mean(1)
            mean, error = mean_and_error(errors)
            rows.append({"k": k, "model": name, "mse": mean, "se": error})
    table = pd.DataFrame(rows)
    print(f"{train}\n{held_out}\n")
    print("held-out mean squared error per feature, ± one standard error over data")
    cells = table.assign(cell=list(map(with_error, table["mse"], table["se"])))
    print(cells.pivot(index="k", columns="model", values="cell")[list(dict.fromkeys(table.model))])
    if options.out is not None:  # last, so that a path that cannot be written loses no figures
        table.to_csv(options.out, index=False)
