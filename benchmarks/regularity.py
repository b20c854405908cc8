"""Is a latent space regular? An autoencoder and a VAE of the same networks, figure by figure.

    OMP_NUM_THREADS=1 PYRO_VAE_DATA=../shared/data python benchmarks/regularity.py

Digits with two and with ten latent dimensions and 10 000 images of Fashion-MNIST with ten; both
models have the same networks, rate, number of epochs and order of the data, and are judged on data
that neither has seen. A row is a figure of ``diagnostics.regularity`` with its standard error for
new data; the last column is the difference in standard errors, as if the two were independent. The
held-out data are the same, so that is on the careful side.

The mean square error of held-out data is printed above each table: a model that reconstructs worse
has it easier to be regular.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from pandas import DataFrame
from torch import Tensor

import pyro_vae as pv
from pyro_vae import baselines, datasets, plots
from pyro_vae.diagnostics import regularity, regularity_summary
from pyro_vae.report import with_error
from pyro_vae.seeding import generator, seeded


def digits() -> tuple[Tensor, Tensor]:
    """Rows to fit and rows to judge by."""
    x = datasets.digits().flatten().x
    order = torch.randperm(len(x), generator=generator(0, "benchmark"))
    return x[order[:1200]], x[order[1200:]]


def fashion() -> tuple[Tensor, Tensor]:
    """Rows to fit and rows to judge by."""
    train = datasets.fashion_mnist(train=True).flatten().x[:10000]
    return train, datasets.fashion_mnist(train=False).flatten().x[:2000]


def run(
    name: str,
    parts: tuple[Tensor, Tensor],
    *,
    k: int,
    hidden: int,
    epochs: int,
    folder: Path | None,
) -> None:
    """Fit both models, print the table, draw the pictures."""
    train, test = parts
    size, started = train.shape[1], time.perf_counter()
    with seeded(0, "weights"):
        vae = pv.gaussian_vae(
            features=size, latent_dim=k, hidden=(hidden,), variance=0.05, learn_variance=True
        )
    with seeded(0, "weights"):
        ae = baselines.autoencoder(features=size, latent_dim=k, hidden=(hidden,))
    pv.fit(vae, train, epochs=epochs, progress=False)
    ae.fit(train, epochs=epochs)
    fitted = time.perf_counter()
    models: dict[str, Any] = {"VAE": vae, "autoencoder": ae}
    found = {label: regularity(model, train, held_out=test) for label, model in models.items()}
    seconds = (time.perf_counter() - fitted) / 2
    errors = ", ".join(
        f"{label} {(model.reconstruct(test) - test).square().mean():.4f}"
        for label, model in models.items()
    )
    print(f"\n{name}, k = {k}, {epochs} epochs in {fitted - started:.0f} s; {seconds:.0f} s each")
    print(f"mean square error of held-out data: {errors}")
    tables = {label: regularity_summary(dataset) for label, dataset in found.items()}
    first, second = tables.values()
    shown = DataFrame(
        {
            label: [with_error(v, e) for v, e in zip(t["value"], t["se"], strict=True)]
            for label, t in tables.items()
        },
        index=first.index,
    )
    shown["ideal"] = first["ideal"].round(3)
    error = (first["se"] ** 2 + second["se"] ** 2).map(math.sqrt)
    shown["difference / se"] = ((first["value"] - second["value"]) / error).round(1)
    print(shown.to_string())
    if folder is not None:
        stem = f"{name.lower().replace(' ', '_')}_{k}"
        plots.save(plots.regularities(found), folder / f"{stem}_figures.png")
        plots.save(plots.speeds(found), folder / f"{stem}_speeds.png")
        for label, dataset in found.items():
            plots.save(plots.prior_draws(dataset), folder / f"{stem}_draws_{label}.png")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    parser.add_argument("--skip-fashion", action="store_true")
    options = parser.parse_args()
    for k in (2, 10):
        run("digits", digits(), k=k, hidden=128, epochs=150, folder=options.pictures)
    if not options.skip_fashion:
        run("Fashion-MNIST", fashion(), k=10, hidden=400, epochs=15, folder=options.pictures)


if __name__ == "__main__":
    main()
