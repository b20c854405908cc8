"""Baselines: PCA, the linear autoencoder, the deep autoencoder.

All encode to a point and decode a point: ``encode(x)`` is ``(N, k)``, ``decode(z)`` the mean of x,
as ``vae.encode(x).mean`` and ``vae.decode(z)`` are. Fit them with ``.fit(x)``.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import pyro
import torch
from sklearn.decomposition import PCA as _SklearnPCA  # noqa: N811
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from pyro_vae import networks
from pyro_vae.arguments import named_options, positive_integer
from pyro_vae.datasets import LinearGaussian, checked_rows
from pyro_vae.distributions import SharedVarianceNormal
from pyro_vae.modes import evaluation_mode
from pyro_vae.program_module import ProgramModule
from pyro_vae.training import fit

__all__ = ["PCA", "Autoencoder", "LinearAutoencoder", "autoencoder"]

LINEAR_RATE = 0.05
"""Learning rate of the linear autoencoder, whose saddle points hold a smaller one for long."""


class PCA:
    r"""Principal components, with the exact density of the model that they maximize.

    Components are scikit-learn's. ``log_prob`` is that of probabilistic PCA,
    :math:`z \sim N(0, I)`, :math:`x \mid z \sim N(Wz + \mu, cI)`, at its
    maximum-likelihood W, :math:`\mu` and c: what a VAE with a Gaussian likelihood and a latent
    space of the same dimension has to beat.

    Args:
        latent_dim: Number k of components, less than the number of features.

    Attributes:
        density: The fitted :class:`~pyro_vae.datasets.LinearGaussian`.
        columns: Names of the features where ``fit`` was given a table, by which those of later
            ones are matched; else None.

    Raises:
        ValueError: If ``latent_dim`` is not a positive integer, or, at ``fit``, too large.
        NotFittedError: If used before ``fit``.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.2], [4.0, 0.0], [6.0, -0.2]])
        >>> pca = PCA(1).fit(x)
        >>> pca.encode(x).shape, pca.reconstruct(x).shape
        (torch.Size([4, 1]), torch.Size([4, 2]))

    References:
        Tipping and Bishop (1999), Probabilistic principal component analysis, equations 7 and 8.
        https://doi.org/10.1111/1467-9868.00196
    """

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = positive_integer(latent_dim, "latent_dim")
        self.columns: tuple[str, ...] | None = None
        self._pca: Any = None
        self._density: LinearGaussian | None = None
        self._event_shape: torch.Size | None = None

    def fit(self, x: Any) -> Self:
        """Fit to x, ``(N, *event_shape)``; more than one event dimension is flattened."""
        checked = checked_rows(x)
        rows = checked.tensor
        flat = rows.flatten(1)
        if self.latent_dim >= min(flat.shape):
            raise ValueError(
                f"latent_dim must be less than the number of rows and of features; got "
                f"{self.latent_dim} for data of shape {tuple(flat.shape)}."
            )
        # Never the randomized solver, which draws from numpy's global state.
        solver = "covariance_eigh" if len(flat) >= flat.shape[1] else "full"
        density = LinearGaussian.maximum_likelihood(flat, self.latent_dim)
        self._pca = _SklearnPCA(self.latent_dim, svd_solver=solver).fit(_numpy(flat))
        # All together and last: a fit that is refused leaves an earlier one whole.
        self._density, self._event_shape = density, rows.shape[1:]
        self.columns = checked.columns
        return self

    @property
    def density(self) -> LinearGaussian:
        """Probabilistic PCA at its maximum likelihood."""
        if self._density is None:
            raise NotFittedError("PCA must be fitted before it is used. Call fit(x).")
        return self._density

    @property
    def components(self) -> Tensor:
        """Orthonormal principal directions, ``(k, n)``, by falling variance."""
        return torch.from_numpy(np.asarray(self._fitted().components_))

    def encode(self, x: Any) -> Tensor:
        """Scores of x on the components, ``(N, k)``."""
        scores = self._fitted().transform(_numpy(self._flat(x)))
        return torch.from_numpy(np.ascontiguousarray(scores))

    def decode(self, z: Any) -> Tensor:
        """Points of the principal subspace, ``(..., *event_shape)``, with scores ``(..., k)``."""
        _ = self.density
        scores = _numpy(torch.as_tensor(z, device="cpu"))
        if scores.shape[-1:] != (self.latent_dim,):
            raise ValueError(f"z must end in shape ({self.latent_dim},); got {scores.shape}.")
        flat = self._fitted().inverse_transform(scores.reshape(-1, self.latent_dim))
        return torch.from_numpy(flat).reshape(*scores.shape[:-1], *self._shape())

    def reconstruct(self, x: Any) -> Tensor:
        """Orthogonal projection of x onto the principal subspace, ``(N, *event_shape)``."""
        return self.decode(self.encode(x))

    def log_prob(self, x: Any) -> Tensor:
        """Exact log density of probabilistic PCA, ``(N,)``, in nats."""
        return self.density.log_prob(self._flat(x))

    def _fitted(self) -> Any:
        _ = self.density
        return self._pca

    def _shape(self) -> torch.Size:
        _ = self.density
        return self._event_shape if self._event_shape is not None else torch.Size()

    def _flat(self, x: Any) -> Tensor:
        checked = checked_rows(x, event_shape=self._shape(), columns=self.columns)
        return checked.tensor.flatten(1)


class Autoencoder(ProgramModule):
    r"""Autoencoder: the VAE's networks without the distributions.

    It minimizes :math:`\frac1N \sum_i \|x_i - f(g(x_i))\|^2`. Written as Pyro programs, that is a
    model :math:`p(x) = \mathcal N(x; f(g(x)), \tfrac12 I)` without a latent site, whose
    guide is empty, so the same SVI trains it. Its "ELBO" is the negative squared error less
    :math:`\tfrac n2 \log \pi`; it is no density of x, since the mean has seen x itself.

    Like every network it encodes before it is fitted, by the weights that it starts from: they may
    have been loaded, or trained by a loop of one's own.

    Args:
        encoder: Network g, ``(..., *event_shape)`` to ``(..., k)``.
        decoder: Network f, ``(..., k)`` to ``(..., *event_shape)``.
        event_shape: Shape of one x.

    Attributes:
        history: That of the last ``fit``; see :class:`pyro_vae.FitResult`.

    Raises:
        ValueError: If the decoder does not return to the event shape.

    Example:
        >>> ae = autoencoder(features=64, latent_dim=2, hidden=(32,))
        >>> ae.encode(torch.zeros(5, 64)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, *, event_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self._event_shape = torch.Size(event_shape)
        self.history: pd.DataFrame | None = None
        probe = self._reference().new_zeros(2, *self._event_shape)
        with torch.no_grad(), evaluation_mode(self):
            returned = self.decoder(self.encoder(probe)).shape
        if returned != probe.shape:
            raise ValueError(
                f"decoder must return to shape {tuple(probe.shape)}; got {tuple(returned)}."
            )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        return self._event_shape

    def model(self, x: Tensor) -> Tensor:
        """Normal density around the reconstruction, with variance 1/2, so that C = 1."""
        pyro.module(self.store_name, self)
        mean = self.decoder(self.encoder(x))
        with pyro.plate("data", len(x), dim=-1):
            p = SharedVarianceNormal(mean, 0.5, event_dim=len(self._event_shape))
            return pyro.sample("x", p, obs=x)

    def guide(self, x: Tensor) -> None:
        """Nothing to sample: the code is a function of x."""

    def fit(
        self,
        x: Any,
        *,
        validation: Any = None,
        epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        seed: int = 0,
        progress: bool = False,
    ) -> Self:
        """Minimize the squared error by :func:`pyro_vae.fit`, which has more options."""
        result = fit(
            self,
            x,
            validation=validation,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            progress=progress,
        )
        self.history = result.history
        return self

    def encode(self, x: Any) -> Tensor:
        """Codes g(x), ``(N, k)``."""
        codes: Tensor = self.encoder(self.prepare(x).tensor)
        return codes

    def decode(self, z: Tensor) -> Tensor:
        """Decoded points f(z), ``(..., *event_shape)``."""
        decoded: Tensor = self.decoder(z)
        return decoded

    def reconstruct(self, x: Any) -> Tensor:
        """Reconstructions f(g(x)), ``(N, *event_shape)``, without gradient."""
        with torch.no_grad(), evaluation_mode(self):
            return self.decode(self.encode(x))


class LinearAutoencoder(Autoencoder):
    """Autoencoder with affine encoder and decoder.

    At its optimum the decoder spans PCA's subspace, in a basis that is neither orthogonal nor
    ordered, since any invertible matrix between encoder and decoder leaves the error as it is.

    Args:
        features: Number n of features.
        latent_dim: Dimension k of the code.

    Raises:
        ValueError: If a size is not positive, or ``latent_dim`` exceeds the number of features.

    Example:
        >>> LinearAutoencoder(64, 5).weight.shape
        torch.Size([64, 5])

    References:
        Baldi and Hornik (1989), Neural networks and principal component analysis, fact 4.
        https://doi.org/10.1016/0893-6080(89)90014-2
    """

    def __init__(self, features: int, latent_dim: int) -> None:
        latent_dim = _code_size(latent_dim, networks.as_shape(features, "features"))
        super().__init__(
            networks.MLP(features, (), latent_dim),
            networks.MLP(latent_dim, (), features),
            event_shape=(features,),
        )

    def fit(
        self,
        x: Any,
        *,
        validation: Any = None,
        epochs: int = 300,
        batch_size: int = 128,
        learning_rate: float = LINEAR_RATE,
        seed: int = 0,
        progress: bool = False,
    ) -> Self:
        """Minimize the squared error; the loss has saddle points, so the rate is a large one."""
        return super().fit(
            x,
            validation=validation,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            progress=progress,
        )

    @property
    def weight(self) -> Tensor:
        """The decoder's matrix, ``(n, k)``; its columns span the subspace of reconstructions."""
        return next(p for p in self.decoder.parameters() if p.dim() == 2).detach()


@named_options
def autoencoder(
    *, features: int | Sequence[int], latent_dim: int, hidden: int | Sequence[int] = (400,)
) -> Autoencoder:
    """A ready-made autoencoder with the networks of :func:`pyro_vae.gaussian_vae`.

    Args:
        features: Number n of features, or the shape of one x.
        latent_dim: Dimension k of the code.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.

    Raises:
        ValueError: If a size is not positive, or ``latent_dim`` exceeds the number of features.

    Example:
        >>> autoencoder(features=3, latent_dim=1).reconstruct(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """
    event_shape = networks.as_shape(features, "features")
    latent_dim = _code_size(latent_dim, event_shape)
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    return Autoencoder(
        networks.MLP(event_shape, hidden, latent_dim),
        networks.MLP(latent_dim, hidden[::-1], event_shape),
        event_shape=event_shape,
    )


def _code_size(latent_dim: Any, event_shape: tuple[int, ...]) -> int:
    latent_dim = positive_integer(latent_dim, "latent_dim")
    if latent_dim > math.prod(event_shape):
        raise ValueError(
            f"latent_dim must not exceed the number of features, {math.prod(event_shape)}; got "
            f"{latent_dim}. Put an Autoencoder together from its networks if that is what you "
            "want."
        )
    return latent_dim


def _numpy(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().cpu().numpy()
