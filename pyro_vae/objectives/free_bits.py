"""Free bits: a part of the KL that costs nothing."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.distributions.row_choice import rows_of_q
from pyro_vae.traces import analytic_kl, site_log_probs

from .kl_weight import BELOW_ZERO
from .plate import Plate, SameRows, latent_sites
from .plate_objective import PlateObjective, Program

__all__ = ["FreeBits", "FreeBits_ELBO"]


class FreeBits:
    """The wish for free bits, as :func:`pyro_vae.fit` takes it: ``kl_weight=FreeBits(0.1)``.

    Args:
        nats: What each latent dimension may cost for free; see :class:`FreeBits_ELBO`.

    Raises:
        ValueError: If ``nats`` is negative or not finite.

    Example:
        >>> FreeBits(0.1).objective(num_particles=2).nats
        0.1
    """

    def __init__(self, nats: float) -> None:
        self.nats = _free_nats(nats)

    def objective(self, num_particles: int = 1) -> "FreeBits_ELBO":
        """The objective for ``pyro.infer.SVI``."""
        return FreeBits_ELBO(self.nats, num_particles=num_particles)

    def __repr__(self) -> str:
        return f"FreeBits({self.nats})"


class FreeBits_ELBO(PlateObjective):  # Pyro's objectives are named so
    r"""ELBO in which each latent dimension has :math:`\lambda` nats for free.

    .. math:: \frac1N \sum_{i=1}^N \mathbb E_{q(z \mid x_i)} \log p(x_i \mid z)
              - \sum_j \max\Big(\lambda, \frac1N \sum_{i=1}^N \mathrm{KL}_j(x_i)\Big)

    over the N rows of a batch; the loss is minus that, times N and the plate's scale. Rows without
    any observed value, where q is p(z), are none of the N.
    :math:`\mathrm{KL}_j` is the analytic KL of dimension j. A dimension whose mean KL is below
    :math:`\lambda` gets no gradient from it, so the prior cannot switch it off. Where q and p do
    not both factorize, where there is no closed form, or with several latent sites, j counts
    sites: each has its whole KL, analytic or by the draws, and :math:`\lambda` nats free for each
    of its elements.

    What is trained is no bound on log p(x) for :math:`\lambda > 0`; the ELBO that
    :func:`pyro_vae.fit` reports is the true one. With :math:`\lambda = 0` it is the ELBO.

    Args:
        nats: :math:`\lambda \ge 0`.
        num_particles: Number of draws from q for each datum.

    Raises:
        ValueError: If ``nats`` is negative or not finite, or ``num_particles`` is not a positive
            integer; on use, if a latent site is not reparametrized, not in the data plate, or of
            another scale than the others.

    Example:
        >>> import pyro, torch
        >>> from pyro.distributions import Normal
        >>> def guide(x):  # KL(q || p) = 1/2
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         return pyro.sample("z", Normal(torch.ones(len(x), 1), 1.0).to_event(1))
        >>> def model(x):  # and x is never used
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        >>> x = torch.zeros(3)
        >>> FreeBits_ELBO(0.1).loss(model, guide, x), FreeBits_ELBO(2.0).loss(model, guide, x)
        (1.5, 6.0)

    References:
        Kingma et al. (2016), Improving variational inference with inverse autoregressive flow,
        appendix C.8, Objective with free bits. https://arxiv.org/abs/1606.04934
    """

    def __init__(self, nats: float, *, num_particles: int = 1) -> None:
        super().__init__(num_particles=positive_integer(num_particles, "num_particles"))
        self.nats = _free_nats(nats)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the objective, a sum over the plate times its scale."""
        likelihoods: list[Tensor] = []
        kls: dict[str, list[Tensor]] = {}
        with SameRows():
            for _ in range(self.num_particles):
                model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
                plate = Plate.of(model_trace, guide_trace)
                log_p = site_log_probs(model_trace, plate.num_data)
                for name, kl in _kl_groups(model_trace, guide_trace, log_p, plate).items():
                    kls.setdefault(name, []).append(kl)
                    del log_p[name]
                likelihoods.append(plate.log_density(log_p))
        weights = plate.row_weights(next(iter(kls.values()), likelihoods)[0])
        objective = (weights * sum(likelihoods)).sum() / self.num_particles
        for name, draws in kls.items():
            kl = torch.stack(draws).mean(0)
            # A row without data has q = p: it has no KL, and must not dilute that of the others.
            is_q = rows_of_q(guide_trace.nodes[name]["fn"])
            counts = weights if is_q is None else torch.where(is_q, weights, 0.0)
            total = counts.sum()
            # One column for each element of z, or one for all of them.
            value: Any = guide_trace.nodes[name]["value"]
            floor = self.nats * value.numel() / kl.numel()
            mean = (counts.unsqueeze(-1) * kl).sum(0) / torch.where(total > 0, total, 1.0)
            charged = mean.clamp(min=floor) if floor > 0 else mean
            objective = objective - plate.kl_weights[name] * total * charged.sum()
        return -objective


def _kl_groups(
    model_trace: poutine.Trace,
    guide_trace: poutine.Trace,
    log_p: Mapping[str, Tensor],
    plate: Plate,
) -> dict[str, Tensor]:
    """The KL that shares one floor, ``(N, k)`` or ``(N, 1)``, by latent site."""
    latent = list(latent_sites(guide_trace))
    auxiliary = [name for name in latent if name not in log_p]
    if auxiliary:
        raise ValueError(
            f"guide must sample only sites that the model has; got {auxiliary}, which have no KL."
        )
    kl, kl_per_dim = analytic_kl(model_trace, guide_trace, latent)
    if kl_per_dim is not None:
        return {latent[0]: kl_per_dim}
    if kl is not None:
        return {latent[0]: kl.unsqueeze(-1)}
    log_q = site_log_probs(guide_trace, plate.num_data)
    return {name: (log_q[name] - log_p[name]).unsqueeze(-1) for name in latent}


def _free_nats(nats: float) -> float:
    return finite_number(nats, "nats", "finite and not negative", above=BELOW_ZERO)
