"""The variational autoencoder: three distributions, two Pyro programs."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.assembly import (
    check_cover,
    check_shape,
    check_types,
    declared,
    is_discrete,
    probe,
)
from pyro_vae.datasets import CheckedArray
from pyro_vae.distributions import location
from pyro_vae.missing_values import (
    observed_part,
    posterior_of_observed,
    refusal,
    tell_of_zeros,
    warn_of_unobserved,
)
from pyro_vae.modes import evaluation_mode
from pyro_vae.program_module import ProgramModule
from pyro_vae.rows import at_rows, per_datum_parts
from pyro_vae.traces import log_weights

__all__ = ["VAE"]


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
        missing: Whether NaN in x is a missing value, see below.

    Each part is any ``nn.Module`` that declares ``event_shape`` and returns a distribution.

    **Missing values.** With ``missing=True``, which :func:`pyro_vae.fit` sets where it is given a
    mask, an entry of x that is NaN was not observed, and the bound is one on the density of what
    was:

    .. math:: \log p(x_{\text{obs}}) \ge \mathbb E_{q(z \mid x_{\text{obs}})}
              \sum_{j \text{ observed}} \log p(x_j \mid z)
              - \mathrm{KL}(q(z \mid x_{\text{obs}}) \,\|\, p(z))

    which is the likelihood to maximize where values are missing at random. A guide that declares
    ``takes_missing``, as one whose encoder is a ``networks.WithMask`` does, sees which entries are
    missing; any other is shown zeros in their place, and its bound is the looser. A row without
    any observed entry has q = p(z): its ELBO is 0 and it teaches nothing, save that BatchNorm in
    an encoder counts its zeros.

    Attributes:
        p_z: The prior.
        p_x_given_z: The likelihood.
        q_z_given_x: The guide's distribution (``guide`` itself is the Pyro program).
        columns: Names of the features where :func:`pyro_vae.fit` was given a DataFrame.

    Raises:
        TypeError: If a part is not a module, or declares no ``event_shape``.
        ValueError: If the parts do not fit together, both shapes named; or missing is no bool.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> x = torch.zeros(5, 3)
        >>> vae.encode(x).batch_shape, vae.encode(x).event_shape
        (torch.Size([5]), torch.Size([2]))
        >>> vae.log_importance_weights(x, num_samples=7).shape
        torch.Size([7, 5])

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self,
        *,
        prior: nn.Module,
        likelihood: nn.Module,
        guide: nn.Module,
        missing: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(missing, bool):
            raise ValueError(f"missing must be True or False; got {missing!r}.")
        self.missing = missing
        self._told = False  # that the guide is shown zeros
        self.p_z = declared("p_z", prior)
        self.p_x_given_z = declared("p_x_given_z", likelihood)
        self.q_z_given_x = declared("q_z_given_x", guide)
        self._check_parts()

    def model(self, x: Tensor) -> Tensor:
        """Joint density p(z) p(x|z), observed at ``x`` of shape ``(N, *event_shape)``."""
        pyro.module(f"{self.store_name}.p_z", self.p_z)
        pyro.module(f"{self.store_name}.p_x_given_z", self.p_x_given_z)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.p_z())
            p = self.p_x_given_z(z)
            return pyro.sample("x", observed_part(p, x) if self.missing else p, obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Approximate posterior q(z|x) at ``x`` of shape ``(N, *event_shape)``."""
        pyro.module(f"{self.store_name}.q_z_given_x", self.q_z_given_x)
        with pyro.plate("data", len(x), dim=-1):
            q = self.q_z_given_x if not self.missing else self._q_z_given_observed
            return pyro.sample("z", q(x))

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
            ValueError: If x has another event shape, or holds infinity, or NaN while ``missing``
                is False.
            TypeError: If x is not numeric.
        """
        q: Any = self.q_z_given_x if not self.missing else self._q_z_given_observed
        made: dist.TorchDistribution = q(self.prepare(x).tensor)
        return made

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x|z), ``(..., *event_shape)``, at ``z`` of shape ``(..., *latent_shape)``.

        A likelihood may know a better point than the mean, as ``likelihoods.Categorical`` does:
        the most probable class.
        """
        return self._center(self.p_x_given_z(z))

    def reconstruct(self, x: Any) -> Tensor:
        """Mean of p(x|z) at the mean of q(z|x), ``(N, *event_shape)``, without gradient.

        A flow has no mean in closed form: the image of its base's mean takes its place.
        """
        with torch.no_grad(), evaluation_mode(self):
            return self.decode(location(self.encode(x)))

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
            # A prior without parameters may have been left in another floating type.
            z = self.p_z().sample(torch.Size([num_samples])).to(self.dtype)
            p: dist.TorchDistribution = self.p_x_given_z(z)
            return self._center(p) if mean else p.sample()

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
            return log_weights(self, x, num_samples=num_samples)

    def with_guide(self, guide: nn.Module) -> Self:
        """A VAE with the same p(z) and p(x|z), the very modules, and another guide.

        What one learns of p the other has too. :func:`pyro_vae.fit` with ``train="guide"`` holds p
        fixed, so that two guides are compared on the same model:

            full = families.FullCovarianceNormal(k)
            other = vae.with_guide(vae.q_z_given_x.with_family(full))  # starts where vae's is
            pv.fit(other, x, train="guide")

        Args:
            guide: Module that maps x to q(z|x).

        Raises:
            TypeError: If it is not a module, or declares no ``event_shape``.
            ValueError: If it does not fit the other parts.

        Example:
            >>> import pyro_vae as pv
            >>> from pyro_vae import families, guides
            >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
            >>> family = families.FullCovarianceNormal(2)
            >>> other = vae.with_guide(guides.AmortizedGuide(family, nn.Linear(3, 5)))
            >>> other.p_x_given_z is vae.p_x_given_z
            True
        """
        return self._with_part("q_z_given_x", guide)

    def with_prior(self, prior: nn.Module) -> Self:
        """A VAE with the same p(x|z) and q(z|x), the very modules, and another prior.

        ``priors.VampPrior`` needs a guide before it can be made, which the first VAE brings:

            vae = vae.with_prior(priors.VampPrior.from_data(vae.q_z_given_x, x))

        Args:
            prior: Module that maps () to p(z).

        Raises:
            TypeError: If it is not a module, or declares no ``event_shape``.
            ValueError: If it does not fit the other parts.

        Example:
            >>> import pyro_vae as pv
            >>> vae = pv.gaussian_vae(features=3, latent_dim=2)
            >>> other = vae.with_prior(pv.priors.Laplace(2))
            >>> other.q_z_given_x is vae.q_z_given_x
            True
        """
        return self._with_part("p_z", prior)

    def declare_missing(self) -> None:
        """Take NaN in x for a missing value from now on: ``missing`` becomes True.

        Raises:
            ValueError: If p(x|z) does not have independent entries.
        """
        if not self.missing:
            self._check_missing()
        self.missing = True

    def prepare(
        self,
        x: Any,
        *,
        columns: Sequence[str] | None = None,
        name: str = "x",
        mask: Any = None,
    ) -> CheckedArray:
        """Checked data as a tensor, as :meth:`ProgramModule.prepare` has it, in p(x|z)'s support.

        Raises:
            ValueError: Also if values lie outside the support that the likelihood declares.
            TypeError: If x is not numeric.
        """
        checked = super().prepare(x, columns=columns, name=name, mask=mask)
        check = getattr(self.p_x_given_z, "check_support", None)
        if check is not None:
            check(checked.tensor, columns=checked.columns or self.columns, name=name)
        return checked

    def check_data(self, x: Tensor, columns: Sequence[str] | None = None) -> None:
        """Let the likelihood warn of, or refuse, data that it cannot describe.

        Args:
            x: Data, ``(N, *event_shape)``.
            columns: Names of the features; ``self.columns`` unless given.

        Warns:
            UserWarning: Also of features without any observed value.
        """
        columns = self.columns if columns is None else columns
        if self.missing:
            self._told = self._told or tell_of_zeros(self.q_z_given_x)
            warn_of_unobserved(x, columns)
        check = getattr(self.p_x_given_z, "check_data", None)
        if check is not None:
            check(x, columns)

    def _q_z_given_observed(self, x: Tensor) -> dist.TorchDistribution:
        """q(z|x) where x may have NaN, and p(z) where it has nothing else."""
        return posterior_of_observed(self.q_z_given_x, self.p_z, x)

    def _check_missing(self) -> None:
        if self._refusal is not None:
            raise ValueError(self._refusal)

    @property
    def _counts(self) -> bool:
        # Of a likelihood on [0, 1] check_support says what is wrong with raw bytes, and knows the
        # likelihoods that take them.
        support = getattr(self.p_x_given_z, "support", None)
        return self._is_discrete or support is constraints.unit_interval

    def _center(self, p: dist.TorchDistribution) -> Tensor:
        center = getattr(self.p_x_given_z, "center", None)
        return p.mean if center is None else center(p)

    def _with_part(self, name: str, part: nn.Module) -> Self:
        new = copy.copy(self)
        # A copy shares the tables in which a module keeps its parts.
        for table in ("_modules", "_parameters", "_buffers"):
            setattr(new, table, dict(getattr(self, table)))
        setattr(new, name, declared(name, part))
        new._told = False
        new._check_parts()
        return new

    def _check_parts(self) -> None:
        """Run the parts once on two rows of zeros, so that a misfit shows here and not in SVI."""
        guide_shape = torch.Size(self.q_z_given_x.event_shape)  # type: ignore[arg-type]
        if self.latent_shape != guide_shape:
            raise ValueError(
                f"prior and guide must share a latent shape; got p(z) over "
                f"{tuple(self.latent_shape)} and q(z|x) over {tuple(guide_shape)}."
            )
        check_types(self)
        reference = self._reference()
        z = reference.new_zeros(2, *self.latent_shape)
        x = reference.new_zeros(2, *self.event_shape)
        some_rows = torch.zeros(2, dtype=torch.int64, device=reference.device)
        with (
            torch.no_grad(),
            evaluation_mode(self),  # BatchNorm must not learn from the zeros
            at_rows(per_datum_parts(self), some_rows),
        ):
            p_z = probe("prior", self.p_z)
            p_x_given_z = probe("likelihood", self.p_x_given_z, z)
            q_z_given_x = probe("guide", self.q_z_given_x, x)
        check_shape("prior", p_z, batch=(), event=self.latent_shape)
        check_shape("likelihood", p_x_given_z, batch=(2,), event=self.event_shape)
        check_shape("guide", q_z_given_x, batch=(2,), event=self.latent_shape)
        check_cover(p_z, q_z_given_x, z)
        self._is_discrete = is_discrete(p_x_given_z)
        self._refusal = refusal(p_x_given_z)
        if self.missing:
            self._check_missing()
