"""Ready-made VAEs: parts that fit together, from a few numbers."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from pyro_vae import networks
from pyro_vae.arguments import named_options, positive_integer
from pyro_vae.families import DiagonalNormal, Family
from pyro_vae.guides import AmortizedGuide
from pyro_vae.likelihoods import Bernoulli, Gaussian, Likelihood, outputs_per_feature
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.vae import VAE

__all__ = ["bernoulli_vae", "gaussian_vae", "make_vae"]


@named_options
def make_vae(
    *,
    features: int | Sequence[int],
    latent_dim: int,
    hidden: int | Sequence[int] = (400,),
    likelihood: Callable[..., Likelihood],
    prior: Callable[[int], nn.Module] = StandardNormal,
    family: Callable[[int], Family] = DiagonalNormal,
    encoder: Callable[[tuple[int, ...], int], nn.Module] | None = None,
    decoder: Callable[[int, tuple[int, ...]], nn.Module] | None = None,
    missing: bool = False,
) -> VAE:
    r"""A VAE from the kinds of its parts, with networks of the sizes that they need.

    A kind is a class, or a ``functools.partial`` of one where it has options of its own:

        make_vae(
            features=64,
            latent_dim=5,
            likelihood=partial(likelihoods.Categorical, num_classes=17),
            prior=partial(priors.GaussianMixture, num_components=10),
            family=partial(families.LowRankNormal, rank=2),
        )

    Args:
        features: Number n of features, or the shape of one x.
        latent_dim: Dimension k of z.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse. With ``()``
            both are affine.
        likelihood: Kind of p(x|z), called with ``decoder`` and ``event_shape``.
        prior: Kind of p(z), called with ``latent_dim``. A ``VampPrior`` needs the guide first: see
            :meth:`VAE.with_prior`.
        family: Kind of family of q(z|x), called with ``latent_dim``.
        encoder: Makes another encoder than an MLP, from the shape of one x and the number of
            outputs.
        decoder: Makes another decoder than an MLP, from ``latent_dim`` and the shape of one
            output: that of x, its first size multiplied by the likelihood's outputs per feature.
        missing: Whether x may have missing values, NaN: see :class:`VAE`. The encoder, in a
            ``networks.WithMask``, then gets the mask beside x: its shape has twice the first size.

    Raises:
        ValueError: If a size is not positive, or ``latent_dim`` exceeds the number of features.
        TypeError: If a kind is a part already.

    Example:
        >>> from pyro_vae import families, likelihoods
        >>> vae = make_vae(
        ...     features=64,
        ...     latent_dim=2,
        ...     likelihood=likelihoods.Beta,
        ...     family=partial(families.LowRankNormal, rank=1),
        ... )
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """
    for name, kind, example in (
        ("likelihood", likelihood, "likelihoods.Bernoulli"),
        ("prior", prior, "priors.Laplace"),
        ("family", family, "families.DiagonalNormal"),
    ):
        if isinstance(kind, nn.Module) or not callable(kind):
            raise TypeError(
                f"{name} must be a class such as {example}, or a functools.partial of one; got "
                f"{kind!r}. Put parts that you have together with pyro_vae.VAE."
            )
    event_shape = networks.as_shape(features, "features")
    latent_dim = positive_integer(latent_dim, "latent_dim")
    if latent_dim > math.prod(event_shape):
        raise ValueError(
            f"latent_dim must not exceed the number of features, {math.prod(event_shape)}; got "
            f"{latent_dim}. Put a VAE together from its parts if that is what you want."
        )
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    guide_family: Family = _made("family", family, latent_dim)
    outputs = (outputs_per_feature(likelihood) * event_shape[0], *event_shape[1:])
    if encoder is None:
        encoder = partial(_mlp, hidden)
    if decoder is None:
        decoder = partial(_mlp, hidden[::-1])
    shown = (2 * event_shape[0], *event_shape[1:]) if missing else event_shape
    network = encoder(shown, guide_family.num_params)
    if missing:
        network = networks.WithMask(network, event_dim=len(event_shape))
    guide = AmortizedGuide(guide_family, network)
    return VAE(
        prior=_made("prior", prior, latent_dim),
        likelihood=likelihood(decoder(latent_dim, outputs), event_shape=event_shape),
        guide=guide,
        missing=missing,
    )


@named_options
def gaussian_vae(
    *,
    features: int | Sequence[int],
    latent_dim: int,
    hidden: int | Sequence[int] = (400,),
    variance: float | Tensor = 0.1,
    learn_variance: bool = True,
    prior: Callable[[int], nn.Module] = StandardNormal,
    family: Callable[[int], Family] = DiagonalNormal,
    missing: bool = False,
) -> VAE:
    r"""A VAE with Gaussian likelihood, :math:`p(x \mid z) = \mathcal N(f(z), cI)`, and MLPs.

    Args:
        features: Number n of features, or the shape of one x.
        latent_dim: Dimension k of z.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse. With ``()``
            both are affine, which makes probabilistic PCA's model.
        variance: Observation variance c, in squared units of x; an array for one per feature.
        learn_variance: Whether c is learned, starting there.
        prior: Kind of p(z), called with ``latent_dim``; see :func:`make_vae`.
        family: Kind of family of q(z|x), called with ``latent_dim``.
        missing: Whether x may have missing values, NaN; see :func:`make_vae`.

    Raises:
        ValueError: If a size or the variance is not positive, or ``latent_dim`` exceeds the number
            of features.
        TypeError: If a kind is a part already.

    Example:
        >>> from pyro_vae import families
        >>> vae = gaussian_vae(features=64, latent_dim=2, family=families.FullCovarianceNormal)
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """
    return make_vae(
        features=features,
        latent_dim=latent_dim,
        hidden=hidden,
        likelihood=partial(Gaussian, variance=variance, learn_variance=learn_variance),
        prior=prior,
        family=family,
        missing=missing,
    )


@named_options
def bernoulli_vae(
    *,
    features: int | Sequence[int],
    latent_dim: int,
    hidden: int | Sequence[int] = (400,),
    prior: Callable[[int], nn.Module] = StandardNormal,
    family: Callable[[int], Family] = DiagonalNormal,
    missing: bool = False,
) -> VAE:
    r"""A VAE for binary x, :math:`p(x_j = 1 \mid z) = 1 / (1 + e^{-f_j(z)})`, and MLPs.

    Args:
        features: Number n of features, or the shape of one x.
        latent_dim: Dimension k of z.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        prior: Kind of p(z), called with ``latent_dim``; see :func:`make_vae`.
        family: Kind of family of q(z|x), called with ``latent_dim``.
        missing: Whether x may have missing values, NaN; see :func:`make_vae`.

    Raises:
        ValueError: If a size is not positive, or ``latent_dim`` exceeds the number of features.
        TypeError: If a kind is a part already.

    Example:
        >>> vae = bernoulli_vae(features=64, latent_dim=2)
        >>> sorted(vae.sample(100).unique().tolist())
        [0.0, 1.0]
    """
    return make_vae(
        features=features,
        latent_dim=latent_dim,
        hidden=hidden,
        likelihood=Bernoulli,
        prior=prior,
        family=family,
        missing=missing,
    )


def _made(name: str, kind: Callable[[int], Any], latent_dim: int) -> Any:
    try:
        return kind(latent_dim)
    except TypeError as error:
        if isinstance(kind, type) and issubclass(kind, VampPrior):
            raise TypeError(
                "prior must be made without the guide; got VampPrior. Give it to the VAE later: "
                "vae.with_prior(priors.VampPrior.from_data(vae.q_z_given_x, x))."
            ) from error
        raise TypeError(
            f"{name} must be made from latent_dim alone; got {kind!r}: {error}. Give it the rest "
            "before, as functools.partial(families.LowRankNormal, rank=2) does."
        ) from error


def _mlp(
    hidden: tuple[int, ...], in_shape: int | Sequence[int], out_shape: int | Sequence[int]
) -> nn.Module:
    return networks.MLP(in_shape, hidden, out_shape)
