"""The variational autoencoder: three distributions, two Pyro programs."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae import networks
from pyro_vae.arguments import positive_integer
from pyro_vae.families import DiagonalNormal, Family
from pyro_vae.guides import AmortizedGuide
from pyro_vae.likelihoods import Gaussian
from pyro_vae.modes import evaluation_mode
from pyro_vae.priors import StandardNormal
from pyro_vae.program_module import ProgramModule
from pyro_vae.traces import log_densities

__all__ = ["VAE", "gaussian_vae"]


class VAE(ProgramModule):
    r"""Variational autoencoder: p(z), p(x|z) and q(z|x), and the programs made of them.

    .. math:: \text{ELBO}(x) = \mathbb E_{q(z \mid x)} \log p(x \mid z)
              - \mathrm{KL}(q(z \mid x) \,\|\, p(z)) \le \log p(x)

    ``model`` and ``guide`` are plain Pyro programs: train them with :func:`pyro_vae.fit`, or with
    ``pyro.infer.SVI(vae.model, vae.guide, ...)`` as they are.

    Args:
        prior: Module that maps () to p(z).
        likelihood: Module that maps z to p(x|z).
        guide: Module that maps x to q(z|x).

    Each part is any ``nn.Module`` that declares ``event_shape`` and returns a distribution.

    Attributes:
        p_z: The prior.
        p_x_given_z: The likelihood.
        q_z_given_x: The guide's distribution (``guide`` itself is the Pyro program).
        columns: Names of the features where :func:`pyro_vae.fit` was given a DataFrame.

    Raises:
        TypeError: If a part is not a module, or declares no ``event_shape``.
        ValueError: If the parts do not fit together; both shapes are named.

    Example:
        >>> vae = gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> x = torch.zeros(5, 3)
        >>> vae.encode(x).batch_shape, vae.encode(x).event_shape
        (torch.Size([5]), torch.Size([2]))
        >>> vae.log_importance_weights(x, num_samples=7).shape
        torch.Size([7, 5])

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(self, *, prior: nn.Module, likelihood: nn.Module, guide: nn.Module) -> None:
        super().__init__()
        parts = {"prior": prior, "likelihood": likelihood, "guide": guide}
        shapes = {role: _declared_shape(role, part) for role, part in parts.items()}
        if shapes["prior"] != shapes["guide"]:
            raise ValueError(
                f"prior and guide must share a latent shape; got p(z) over "
                f"{tuple(shapes['prior'])} and q(z|x) over {tuple(shapes['guide'])}."
            )
        self.p_z, self.p_x_given_z, self.q_z_given_x = prior, likelihood, guide
        self._check_parts()

    def model(self, x: Tensor) -> Tensor:
        """Joint density p(z) p(x|z), observed at ``x`` of shape ``(N, *event_shape)``."""
        pyro.module(f"{self.store_name}.p_z", self.p_z)
        pyro.module(f"{self.store_name}.p_x_given_z", self.p_x_given_z)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.p_z())
            return pyro.sample("x", self.p_x_given_z(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Approximate posterior q(z|x) at ``x`` of shape ``(N, *event_shape)``."""
        pyro.module(f"{self.store_name}.q_z_given_x", self.q_z_given_x)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.q_z_given_x(x))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        return torch.Size(self.p_x_given_z.event_shape)  # type: ignore[arg-type]

    @property
    def latent_shape(self) -> torch.Size:
        """Shape of one z."""
        return torch.Size(self.p_z.event_shape)  # type: ignore[arg-type]

    def encode(self, x: Any) -> dist.TorchDistribution:
        """The distribution q(z|x): batch ``(N,)``, event ``latent_shape``.

        Args:
            x: Data, ``(N, *event_shape)``: tensor, array or DataFrame.

        Raises:
            ValueError: If x has another event shape, or holds NaN or infinity.
            TypeError: If x is not numeric.
        """
        q: dist.TorchDistribution = self.q_z_given_x(self.prepare(x).tensor)
        return q

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x|z), ``(..., *event_shape)``, at ``z`` of shape ``(..., *latent_shape)``."""
        p: dist.TorchDistribution = self.p_x_given_z(z)
        return p.mean

    def reconstruct(self, x: Any) -> Tensor:
        """Mean of p(x|z) at the mean of q(z|x), ``(N, *event_shape)``, without gradient."""
        with torch.no_grad(), evaluation_mode(self):
            return self.decode(self.encode(x).mean)

    def sample(self, num_samples: int = 1, *, mean: bool = False) -> Tensor:
        """Draws of x with z from the prior, ``(num_samples, *event_shape)``.

        Args:
            num_samples: Number of draws.
            mean: Return the mean of p(x|z) at each z instead of a draw from p(x|z).

        Raises:
            ValueError: If ``num_samples`` is not a positive integer.
        """
        num_samples = positive_integer(num_samples, "num_samples")
        with torch.no_grad(), evaluation_mode(self):
            z = self.p_z().sample(torch.Size([num_samples]))
            p: dist.TorchDistribution = self.p_x_given_z(z)
            return p.mean if mean else p.sample()

    def log_importance_weights(self, x: Any, *, num_samples: int) -> Tensor:
        r"""Log weights :math:`\log p(x, z_s) - \log q(z_s \mid x)`, shape ``(S, N)``, in nats.

        ELBO, IWAE bound, effective sample size and Pareto k-hat are reductions of this matrix.

        Args:
            x: Data, ``(N, *event_shape)``.
            num_samples: Number S of draws from q(z|x) for each datum.

        Raises:
            ValueError: If ``num_samples`` is not a positive integer, or x does not fit.
        """
        num_samples = positive_integer(num_samples, "num_samples")
        x = self.prepare(x).tensor
        with torch.no_grad(), evaluation_mode(self):
            return log_densities(self, x, num_samples=num_samples).log_weights

    def check_data(self, x: Tensor) -> None:
        """Let the likelihood warn of, or refuse, data that it cannot describe."""
        check = getattr(self.p_x_given_z, "check_data", None)
        if check is not None:
            check(x, self.columns)

    @property
    def _counts(self) -> bool:
        return self._is_discrete

    def _check_parts(self) -> None:
        """Run the parts once on two rows of zeros, so that a misfit shows here and not in SVI."""
        reference = self._reference()
        z = reference.new_zeros(2, *self.latent_shape)
        x = reference.new_zeros(2, *self.event_shape)
        with torch.no_grad(), evaluation_mode(self):  # BatchNorm must not learn from the zeros
            p_z = _probe("prior", self.p_z)
            p_x_given_z = _probe("likelihood", self.p_x_given_z, z)
            q_z_given_x = _probe("guide", self.q_z_given_x, x)
        for role, made, batch, event in (
            ("prior", p_z, (), self.latent_shape),
            ("likelihood", p_x_given_z, (2,), self.event_shape),
            ("guide", q_z_given_x, (2,), self.latent_shape),
        ):
            # A part may ignore its input; the plate then expands its empty batch shape.
            if made.event_shape != event or made.batch_shape not in {torch.Size(()), batch}:
                raise ValueError(
                    f"{role} must return a distribution with its declared event shape "
                    f"{tuple(event)} and batch shape {batch} for an input of 2 rows; got event "
                    f"shape {tuple(made.event_shape)} and batch shape {tuple(made.batch_shape)}. "
                    "Does it lack a .to_event(), or has its network another width?"
                )
        self._is_discrete = _is_discrete(p_x_given_z)


def gaussian_vae(
    *,
    features: int | Sequence[int],
    latent_dim: int,
    hidden: int | Sequence[int] = (400,),
    variance: float | Tensor = 0.1,
    learn_variance: bool = True,
    family: type[Family] = DiagonalNormal,
) -> VAE:
    r"""A ready-made VAE: standard normal prior, Gaussian likelihood, MLPs f and (g, h).

    Args:
        features: Number n of features, or the shape of one x.
        latent_dim: Dimension k of z.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse. With ``()``
            both are affine, which makes probabilistic PCA's model.
        variance: Observation variance c, in squared units of x; an array for one per feature.
        learn_variance: Whether c is learned, starting there.
        family: Family of q(z|x), called with ``latent_dim``.

    Raises:
        ValueError: If a size or the variance is not positive, or ``latent_dim`` exceeds the number
            of features.

    Example:
        >>> from pyro_vae import families
        >>> vae = gaussian_vae(features=64, latent_dim=2, family=families.FullCovarianceNormal)
        >>> vae.sample(3).shape
        torch.Size([3, 64])
    """
    event_shape = networks.as_shape(features, "features")
    latent_dim = positive_integer(latent_dim, "latent_dim")
    if latent_dim > math.prod(event_shape):
        raise ValueError(
            f"latent_dim must not exceed the number of features, {math.prod(event_shape)}; got "
            f"{latent_dim}. Put a VAE together from its parts if that is what you want."
        )
    if not isinstance(family, type):
        raise TypeError(f"family must be a class such as families.DiagonalNormal; got {family!r}.")
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    guide_family = family(latent_dim)
    encoder = networks.MLP(event_shape, hidden, guide_family.num_params)
    decoder = networks.MLP(latent_dim, hidden[::-1], event_shape)
    return VAE(
        prior=StandardNormal(latent_dim),
        likelihood=Gaussian(
            decoder, event_shape=event_shape, variance=variance, learn_variance=learn_variance
        ),
        guide=AmortizedGuide(guide_family, encoder),
    )


def _is_discrete(distribution: dist.TorchDistribution) -> bool:
    try:
        return bool(getattr(distribution.support, "is_discrete", False))
    except (AttributeError, NotImplementedError):  # a distribution need not declare its support
        return False


def _declared_shape(role: str, part: Any) -> torch.Size:
    if not isinstance(part, nn.Module):
        raise TypeError(f"{role} must be an instance of nn.Module; got {part!r}.")
    shape = getattr(part, "event_shape", None)
    if shape is None:
        raise TypeError(
            f"{role} must declare event_shape, the shape of one event of its distribution; got "
            f"{type(part).__name__} without it. "
            "Set self.event_shape = torch.Size([...]) in __init__."
        )
    return torch.Size(shape)


def _probe(role: str, part: nn.Module, *inputs: Tensor) -> dist.TorchDistribution:
    try:
        made: dist.TorchDistribution = part(*inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise ValueError(f"{role} must accept an input of shape {shapes}; got: {error}") from error
    if not (hasattr(made, "log_prob") and hasattr(made, "event_shape")):
        raise TypeError(
            f"{role} must return a distribution; got {type(made).__name__}. A network returns "
            "tensors: wrap it, as likelihoods.Gaussian and guides.AmortizedGuide do."
        )
    return made
