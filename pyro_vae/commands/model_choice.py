"""Which VAE: a configuration to a VAE, new or fitted."""

import math
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import families, likelihoods, networks, priors
from pyro_vae.commands.data_choice import DTYPES, Data, picture_settings, some_in_memory
from pyro_vae.config_file import check_settings
from pyro_vae.datasets import Dataset
from pyro_vae.kinds import FAMILIES, LIKELIHOODS, PRIORS, parse_kind
from pyro_vae.ready_made import make_vae
from pyro_vae.run_directory import RunDirectory
from pyro_vae.seeding import seeded
from pyro_vae.vae import VAE

__all__ = ["VARIANCE", "build", "has_variance", "heading", "is_density", "rebuild"]

# Each kind's number, as the user wrote it or by default, to a class or a partial of one.
PRIOR_OF: dict[str, Callable[[Any], Callable[[int], nn.Module]]] = {
    "standard": lambda _: priors.StandardNormal,
    "normal": lambda _: priors.Normal,
    "mixture": lambda n: partial(priors.GaussianMixture, num_components=n),
    "vamp": lambda _: priors.StandardNormal,  # until there is a guide: see build
    "flow": lambda n: partial(priors.FlowPrior, num_steps=n, steps=priors.affine_steps),
    "spline": lambda n: partial(priors.FlowPrior, num_steps=n, steps=priors.spline_steps),
    "student": lambda df: partial(priors.StudentT, df=df),
    "laplace": lambda _: priors.Laplace,
}
FAMILY_OF: dict[str, Callable[[Any], Callable[[int], families.Family]]] = {
    "isotropic": lambda _: families.IsotropicNormal,
    "diagonal": lambda _: families.DiagonalNormal,
    "lowrank": lambda n: partial(_low_rank, int(n)),
    "full": lambda _: families.FullCovarianceNormal,
    "flow": lambda n: partial(families.Flow, num_steps=n, steps=families.affine_steps),
    "spline": lambda n: partial(families.Flow, num_steps=n, steps=families.spline_steps),
}
LIKELIHOOD_OF: dict[str, Callable[[Any], Callable[..., likelihoods.Likelihood]]] = {
    "gaussian": lambda _: likelihoods.Gaussian,
    "laplace": lambda _: likelihoods.Laplace,
    "student": lambda df: partial(likelihoods.StudentT, df=df),
    "lognormal": lambda _: likelihoods.LogNormal,
    "bernoulli": lambda _: likelihoods.Bernoulli,
    "continuous_bernoulli": lambda _: likelihoods.ContinuousBernoulli,
    "beta": lambda _: likelihoods.Beta,
    "categorical": lambda n: partial(likelihoods.Categorical, num_classes=n),
    "poisson": lambda _: likelihoods.Poisson,
    "negative_binomial": lambda _: likelihoods.NegativeBinomial,
    "zero_inflated_poisson": lambda _: likelihoods.ZeroInflatedPoisson,
    "discretized_logistic": lambda n: partial(likelihoods.DiscretizedLogistic, levels=n),
}

WITH_VARIANCE = {"gaussian": 1.0, "lognormal": 1.0}
"""Kinds that have a variance c."""

WITH_SCALE = {"laplace": 0.5, "student": 1.0, "discretized_logistic": 3 / math.pi**2}
"""Kinds that have a scale instead: its square as a multiple of the variance that it stands for
(of the scale mixture's normal, for Student's t)."""

VARIANCE = 0.1
"""Where a variance starts, or stays, unless another is asked for."""

DENSITIES = {"gaussian", "laplace", "student", "lognormal", "continuous_bernoulli", "beta"}
"""Kinds that are densities of x, and so comparable with probabilistic PCA's."""

PRIOR_WORDS = {
    "standard": "N(0, I)",
    "normal": "N(m, S), learned",
    "mixture": "mixture of {} normals, learned",
    "vamp": "VampPrior of {} pseudo-inputs",
    "flow": "N(0, I) through {} affine steps",
    "spline": "N(0, I) through {} spline steps",
    "student": "Student's t, {} degrees of freedom",
    "laplace": "Laplace(0, 1)",
}
LIKELIHOOD_WORDS = {
    "gaussian": "N(f(z), c I)",
    "laplace": "Laplace(f(z), b)",
    "student": "Student's t around f(z), {} degrees of freedom",
    "lognormal": "exp N(f(z), c I)",
    "bernoulli": "Bernoulli(sigmoid f(z))",
    "continuous_bernoulli": "continuous Bernoulli(sigmoid f(z))",
    "beta": "Beta around sigmoid f(z)",
    "categorical": "{} classes, softmax f(z)",
    "poisson": "Poisson(exp f(z))",
    "negative_binomial": "negative binomial, mean exp f(z)",
    "zero_inflated_poisson": "zero-inflated Poisson(exp f(z))",
    "discretized_logistic": "logistic around f(z) on {} levels",
}
FAMILY_WORDS = {
    "isotropic": "N(g(x), h(x) I)",
    "diagonal": "N(g(x), diag h(x))",
    "lowrank": "N(g(x), h(x)), diagonal plus rank {}",
    "full": "N(g(x), h(x))",
    "flow": "N(g(x), diag h(x)) through {} affine steps",
    "spline": "N(g(x), diag h(x)) through {} spline steps",
}


def build(model: Mapping[str, Any], data: Data, *, seed: int) -> VAE:
    """The VAE that a configuration describes, for data of this shape.

    Pseudo-inputs of a VampPrior are rows of the data.
    """
    missing = isinstance(data, Dataset) and data.missing
    vae = _without_pseudo_inputs(model, data.event_shape, seed=seed, missing=missing)
    kind, number = parse_kind(model["prior"], PRIORS)
    if kind == "vamp":
        prior = priors.VampPrior.from_data(
            vae.q_z_given_x,
            some_in_memory(data).x,
            num_components=int(number or 0),
            seed=seed,
            missing=missing,
        )
        vae = vae.with_prior(prior)
    return vae.to(DTYPES[model["dtype"]])


def rebuild(run: RunDirectory, config: Mapping[str, Any]) -> VAE:
    """The fitted VAE of a run, without its data."""
    check_settings(config, sections=("data", "model"), name=f"config.toml of {run.path}")
    model, event_shape = config["model"], tuple(config["data"]["event_shape"])
    missing = bool(config["data"].get("missing"))
    vae = _without_pseudo_inputs(model, event_shape, seed=0, missing=missing)
    kind, number = parse_kind(model["prior"], PRIORS)
    if kind == "vamp":
        none = torch.zeros(int(number or 0), *event_shape, device="cpu")
        vae = vae.with_prior(priors.VampPrior(vae.q_z_given_x, none))
    vae = vae.to(DTYPES[model["dtype"]])
    run.read_weights(vae)
    _, vae.columns = picture_settings(config)
    vae.eval()
    return vae


def heading(model: Mapping[str, Any], train: Data, held_out: Data) -> list[str]:
    """What is fitted to what, in the symbols of the derivation."""
    words = []
    for key, kinds, table in (
        ("prior", PRIORS, PRIOR_WORDS),
        ("likelihood", LIKELIHOODS, LIKELIHOOD_WORDS),
        ("family", FAMILIES, FAMILY_WORDS),
    ):
        kind, number = parse_kind(model[key], kinds)
        words.append(table[kind].format(f"{number:g}" if number is not None else ""))
    return [
        f"{train}; {len(held_out)} held out{_gaps(held_out)}",
        f"p(z) = {words[0]}, k = {model['latent_dim']}    p(x|z) = {words[1]}, "
        f"n = {train.num_features}    q(z|x) = {words[2]}",
    ]


def _gaps(data: Data) -> str:
    if not isinstance(data, Dataset) or not data.missing:
        return ""
    return f", {data.num_missing} of {data.x.numel()} values missing"


def is_density(model: Mapping[str, Any]) -> bool:
    """Whether p(x|z) is a density of x, and not a probability or neither."""
    return parse_kind(model["likelihood"], LIKELIHOODS)[0] in DENSITIES


def has_variance(options: Namespace) -> bool:
    """Whether p(x|z) has a variance, or a scale that stands for one."""
    return parse_kind(options.likelihood, LIKELIHOODS)[0] in {*WITH_VARIANCE, *WITH_SCALE}


def _low_rank(rank: int, latent_dim: int) -> families.Family:
    """Diagonal plus low rank, of full rank where more is asked for: the same family."""
    if rank > latent_dim:
        warnings.warn(
            f"family lowrank:{rank} has rank {latent_dim} in {latent_dim} latent dimensions, "
            "where every covariance is in reach already. For more pass --latent-dim.",
            UserWarning,
            stacklevel=2,
        )
    return families.LowRankNormal(latent_dim, min(rank, latent_dim))


def _without_pseudo_inputs(
    model: Mapping[str, Any], event_shape: tuple[int, ...], *, seed: int, missing: bool
) -> VAE:
    k, hidden = model["latent_dim"], list(model["hidden"])
    num_features = math.prod(event_shape)
    if k > num_features:
        raise ValueError(
            f"latent-dim must not exceed the number of features, {num_features}; got {k}."
        )
    prior, prior_number = parse_kind(model["prior"], PRIORS)
    family, family_number = parse_kind(model["family"], FAMILIES)
    convolves = model["networks"] == "conv"
    with seeded(seed, "weights"):
        return make_vae(
            features=event_shape,
            latent_dim=k,
            hidden=hidden,
            likelihood=_likelihood(model, event_shape),
            prior=PRIOR_OF[prior](prior_number),
            family=FAMILY_OF[family](family_number),
            encoder=networks.ConvEncoder if convolves else None,
            decoder=networks.ConvDecoder if convolves else None,
            missing=missing,
        )


def _likelihood(
    model: Mapping[str, Any], event_shape: tuple[int, ...]
) -> Callable[..., likelihoods.Likelihood]:
    """Kind of p(x|z), with its variance or scale as the configuration has it."""
    kind, number = parse_kind(model["likelihood"], LIKELIHOODS)
    made = LIKELIHOOD_OF[kind](number)
    if kind not in WITH_VARIANCE and kind not in WITH_SCALE:
        asked = [
            name
            for name, is_asked in (
                ("variance", model.get("variance") is not None),
                ("fixed-variance", not model["learn_variance"]),
                ("variance-per-feature", model["variance_per_feature"]),
                ("variance-of-z", model["variance_of_z"]),
            )
            if is_asked
        ]
        if asked:
            raise ValueError(
                f"{asked[0]} must go with a likelihood that has a variance or a scale, one of "
                f"{', '.join([*WITH_VARIANCE, *WITH_SCALE])}; got {kind}."
            )
        return made
    as_variance = kind in WITH_VARIANCE
    start = (model.get("variance") or VARIANCE) * (WITH_VARIANCE | WITH_SCALE)[kind]
    spread = start if as_variance else math.sqrt(start)
    value: float | Tensor | nn.Module = spread
    if model["variance_per_feature"]:
        value = torch.full(event_shape, spread, device="cpu")
    if model["variance_of_z"]:
        value = networks.MLP(model["latent_dim"], list(model["hidden"])[::-1], event_shape)
    learns = model["learn_variance"] and not model["variance_of_z"]
    if as_variance:
        return partial(made, variance=value, learn_variance=learns)
    return partial(made, scale=value, learn_scale=learns)
