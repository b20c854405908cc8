"""Swap one part of a VAE at a time on Fashion-MNIST: held-out ELBO, with paired differences.

    OMP_NUM_THREADS=1 python benchmarks/parts.py --root DATA
    OMP_NUM_THREADS=1 python benchmarks/parts.py --root DATA --hold-model

Every fit has the same networks, rate, number of epochs, and order of the data; only the part named
differs from the first row. A difference is that of the ELBO of the same held-out images, averaged,
with its standard error over images. The second row is the first with another seed: differences of
its size are those of chance.

With ``--hold-model`` the model is that of the first row, held fixed, and each guide starts from
the first row's and is trained alone for half as many epochs: what a family buys by itself.
"""

import argparse
import copy
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from pyro_vae import VAE, datasets, diagnostics, families, fit, likelihoods, make_vae, priors
from pyro_vae.datasets import Dataset
from pyro_vae.report import with_error
from pyro_vae.seeding import seeded

LATENT, HIDDEN, BATCH, RATE = 20, (400,), 128, 1e-3
SAMPLES = 4


class Swap(NamedTuple):
    """What differs from the first row."""

    family: Callable[[int], families.Family] = families.DiagonalNormal
    prior: Callable[[int], nn.Module] = priors.StandardNormal
    pseudo_inputs: int = 0
    seed: int = 0


SWAPS = {
    "N(0, I), diagonal": Swap(),
    "  the same, another seed": Swap(seed=1),
    "guide: isotropic": Swap(family=families.IsotropicNormal),
    "guide: low rank 4": Swap(family=partial(families.LowRankNormal, rank=4)),
    "guide: full covariance": Swap(family=families.FullCovarianceNormal),
    "guide: affine flow, 2 steps": Swap(family=families.Flow),
    "guide: spline flow, 2 steps": Swap(
        family=partial(families.Flow, steps=families.spline_steps)
    ),
    "prior: learned normal": Swap(prior=priors.Normal),
    "prior: mixture of 10": Swap(prior=partial(priors.GaussianMixture, num_components=10)),
    "prior: mixture of 100": Swap(prior=partial(priors.GaussianMixture, num_components=100)),
    "prior: VampPrior of 100": Swap(pseudo_inputs=100),
    "prior: affine flow, 2 steps": Swap(prior=priors.FlowPrior),
}


def made(swap: Swap, train: Dataset) -> VAE:
    """A new VAE with one part swapped."""
    with seeded(swap.seed, "weights"):
        vae = make_vae(
            features=train.num_features,
            latent_dim=LATENT,
            hidden=HIDDEN,
            likelihood=partial(likelihoods.Gaussian, variance=0.1, learn_variance=True),
            prior=swap.prior,
            family=swap.family,
        )
    if not swap.pseudo_inputs:
        return vae
    guide = vae.q_z_given_x
    return vae.with_prior(
        priors.VampPrior.from_data(guide, train.x, num_components=swap.pseudo_inputs)
    )


def main() -> None:
    """Fit every VAE and print one table."""
    parser = argparse.ArgumentParser(description="Swap one part at a time on Fashion-MNIST.")
    parser.add_argument("--root", default=os.environ.get("PYRO_VAE_DATA"), help="data folder")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each fit")
    parser.add_argument("--only", nargs="*", help="rows whose name has one of these words")
    parser.add_argument("--hold-model", action="store_true", help="swap guides of one model")
    options = parser.parse_args()
    train, held_out = (
        datasets.fashion_mnist(root=options.root, train=part).flatten() for part in (True, False)
    )
    if options.hold_model:
        hold_model(train, held_out, epochs=options.epochs)
        return
    print("| prior, guide | held-out ELBO | less the first, paired | KL | c | s an epoch |")
    print("| --- | --- | --- | --- | --- | --- |")
    first: np.ndarray[Any, Any] | None = None
    for name, swap in SWAPS.items():
        if first is not None and options.only and not any(w in name for w in options.only):
            continue
        vae = made(swap, train)
        result = fit(
            vae,
            train,
            epochs=options.epochs,
            batch_size=BATCH,
            learning_rate=RATE,
            seed=swap.seed,
            progress=False,
        )
        terms = diagnostics.elbo_terms(vae, held_out, num_samples=SAMPLES)
        elbo, kl = terms["elbo"].to_numpy(), terms["kl"].to_numpy()
        difference = "" if first is None else shown(elbo - first)
        first = elbo if first is None else first
        likelihood: Any = vae.p_x_given_z
        c = float(likelihood.variance)
        print(
            f"| {name} | {shown(elbo)} | {difference} | {kl.mean():.1f} | {c:.4f} "
            f"| {result.seconds / options.epochs:.1f} |",
            flush=True,
        )
    print(
        f"\nnats per datum, {len(held_out)} held-out images, {SAMPLES} draws each, ± one standard "
        f"error over images; {options.epochs} epochs, batch {BATCH}, rate {RATE}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def hold_model(train: Dataset, held_out: Dataset, *, epochs: int) -> None:
    """Fit one model, then guides of other families that start from its own."""
    vae = made(Swap(), train)
    fit(vae, train, epochs=epochs, batch_size=BATCH, learning_rate=RATE, progress=False)
    diagonal: Any = vae.q_z_given_x
    guides = {
        "diagonal": copy.deepcopy(diagonal),
        "full covariance": diagonal.with_family(families.FullCovarianceNormal(LATENT)),
        "affine flow, 2 steps": diagonal.with_family(families.Flow(LATENT)),
    }
    print("| guide, the model held | held-out ELBO | less the first, paired |")
    print("| --- | --- | --- |")
    first: np.ndarray[Any, Any] | None = None
    for name, guide in guides.items():
        other = vae.with_guide(guide)
        half = max(1, epochs // 2)
        fit(other, train, epochs=half, learning_rate=RATE, train="guide", progress=False)
        terms = diagnostics.elbo_terms(other, held_out, num_samples=SAMPLES)
        elbo = terms["elbo"].to_numpy()
        difference = "" if first is None else shown(elbo - first)
        first = elbo if first is None else first
        print(f"| {name} | {shown(elbo)} | {difference} |", flush=True)


def shown(values: "np.ndarray[Any, Any]") -> str:
    """Mean and standard error."""
    return with_error(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)))


if __name__ == "__main__":
    main()
