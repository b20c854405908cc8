"""The importance-weighted bound, with the scale of the plate where it belongs."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import did_you_mean, positive_integer
from pyro_vae.distributions.row_choice import rows_of_q
from pyro_vae.traces import site_log_probs

from .plate import Plate, SameRows, latent_sites
from .plate_objective import PlateObjective, Program

__all__ = ["ImportanceWeighted_ELBO"]

PLAIN, STICKING, DOUBLY = "plain", "sticking_the_landing", "doubly_reparametrized"
GRADIENTS = {PLAIN: PLAIN, STICKING: STICKING, "stl": STICKING, DOUBLY: DOUBLY, "dreg": DOUBLY}


class ImportanceWeighted_ELBO(PlateObjective):  # Pyro's objectives are named so
    r"""Importance-weighted bound on the log evidence, from K draws for each datum.

    .. math:: \mathcal L_K(x) = \log \frac1K \sum_{k=1}^K w_k, \qquad
              w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    In expectation :math:`\mathrm{ELBO} = \mathcal L_1 \le \mathcal L_K \le \mathcal L_{K+1} \le
    \log p(x)`. The loss is :math:`-s \sum_i \mathcal L_K(x_i)`: the scale s of a sub-sampled
    plate, or of ``poutine.scale``, multiplies the bound of each datum and so leaves it one.
    (``pyro.infer.RenyiELBO`` raises the weights to the power s, which is no bound for s > 1.)
    With q the exact posterior every :math:`\mathcal L_K` is the log evidence.

    A KL weight :math:`\beta` (:func:`kl_weighted`) stands inside the logarithm,
    :math:`\log w_k = \log p(x \mid z_k) - \beta\,(\log q(z_k \mid x) - \log p(z_k))`. That is
    a device of training: only :math:`\beta = 1` makes it a bound.

    Three estimators of the gradient have the same loss. With :math:`\theta` the parameters of the
    model, :math:`\phi` those of the guide and :math:`\tilde w_k = w_k / \sum_j w_j`, they are

    - ``"plain"``: :math:`\sum_k \tilde w_k \,\mathrm d \log w_k`, the total derivative.
    - ``"sticking_the_landing"`` or ``"stl"``: the same without the score of the guide,
      :math:`\partial_\phi \log q(z_k \mid x)` at fixed :math:`z_k`.
    - ``"doubly_reparametrized"`` or ``"dreg"``: :math:`\sum_k \tilde w_k^2\,
      \frac{\partial \log w_k}{\partial z_k} \frac{\mathrm d z_k}{\mathrm d \phi}` in
      :math:`\phi`, and as ``"plain"`` in :math:`\theta`. (With a KL weight
      :math:`(1 - \beta) \tilde w_k + \beta \tilde w_k^2` takes the place of the square.)

    The first and the last are unbiased for the gradient of :math:`\mathbb E\,\mathcal L_K`. The
    second is so for K = 1 alone; beyond that it is biased in :math:`\phi`. At the exact posterior
    the last two vanish in :math:`\phi` draw by draw. The signal-to-noise ratio of ``"plain"`` in
    :math:`\phi` falls as :math:`K^{-1/2}`, so a tighter bound need not train the guide better;
    that of ``"doubly_reparametrized"`` rises as :math:`K^{1/2}` where the weights have a finite
    variance, and with a guide far from the posterior may fall too. A parameter that model and
    guide share, as with a VampPrior, gets the sum of both contributions.

    Programs run once for each draw, on x as it is, and all K graphs are kept until the gradient is
    taken. All but ``"plain"`` need the density of a draw as a mere value: a flow must have an
    inverse for it, and a guide with several latent sites runs again on their values, so that it
    must not draw anything else, as dropout does.

    Args:
        num_particles: Number K of draws for each datum.
        gradient: Estimator of the gradient, by its name above.

    Raises:
        ValueError: If ``num_particles`` is not a positive integer or there is no such estimator;
            on use, if a latent site is not reparametrized, not in the data plate, or of another
            scale than the others.

    Example:
        >>> import pyro, torch
        >>> from pyro.distributions import Normal
        >>> def model(x):  # log p(x) = log N(x; 0, 2)
        ...     with pyro.plate("data", 1, dim=-1):
        ...         z = pyro.sample("z", Normal(0.0, 1.0))
        ...         pyro.sample("x", Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior
        ...     with pyro.plate("data", 1, dim=-1):
        ...         pyro.sample("z", Normal(x / 2, 0.5**0.5))
        >>> x = torch.zeros(1)
        >>> round(ImportanceWeighted_ELBO(5).loss(model, guide, x), 4)  # log(4 pi) / 2
        1.2655

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, section 3.
        https://arxiv.org/abs/1509.00519
        Roeder, Wu and Duvenaud (2017), Sticking the landing, section 3.
        https://arxiv.org/abs/1703.09194
        Tucker, Lawson, Gu and Maddison (2019), Doubly reparameterized gradient estimators for
        Monte Carlo objectives, section 3. https://arxiv.org/abs/1810.04152
        Bauer and Mnih (2021), Generalized doubly reparameterized gradient estimators, on several
        latent sites. https://arxiv.org/abs/2101.11046
        Rainforth et al. (2018), Tighter variational bounds are not necessarily better, section 3.
        https://arxiv.org/abs/1802.04537
    """

    def __init__(self, num_particles: int, *, gradient: str = PLAIN) -> None:
        super().__init__(num_particles=positive_integer(num_particles, "num_particles"))
        self.gradient = _estimator(gradient)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound, a sum over the plate times its scale, with the chosen gradient."""
        estimator = self.gradient if torch.is_grad_enabled() else PLAIN
        gate = _Gate()
        log_weights = []
        with SameRows():
            for particle in range(self.num_particles):
                drawn = self._drawn(guide, args, kwargs)
                sites = latent_sites(drawn)
                at_draw = drawn
                if estimator == DOUBLY:
                    gated = {name: gate.passed(site, particle) for name, site in sites.items()}
                    at_draw = _at(gated, drawn, guide, args, kwargs)
                model_trace = self._replayed(model, at_draw, args, kwargs)
                plate = Plate.of(model_trace, drawn)
                log_p = plate.log_density(site_log_probs(model_trace, plate.num_data))
                log_q = plate.log_density(self._log_q(at_draw, plate))
                log_weight = log_p - log_q
                # Sites weighted differently keep a part of their scores, which is right as well.
                beta = min((plate.kl_weights[name] for name in sites), default=0.0)
                if estimator != PLAIN and beta > 0:
                    # Of value 0; its gradient is the score, and cancels that in -log q.
                    fixed = {name: site["value"].detach() for name, site in sites.items()}
                    at_value = _at(fixed, drawn, guide, args, kwargs)
                    score: Any = sum(self._log_q(at_value, plate).values())
                    log_weight = log_weight + beta * (score - score.detach())
                log_weights.append(_taught(log_weight, sites))
        stacked = torch.stack(log_weights)
        # The mean of w_k times the score is that of a path derivative with w_k - w_k^2, w_k
        # normalized; which leaves w_k^2 of the w_k that the logarithm brings by itself.
        gate.factors = 1 - beta * (1 - stacked.detach().softmax(0))
        bound = stacked.logsumexp(0) - math.log(self.num_particles)
        return -(plate.row_weights(bound) * bound).sum()

    def _log_q(self, trace: poutine.Trace, plate: Plate) -> dict[str, Tensor]:
        try:
            return site_log_probs(trace, plate.num_data)
        except (KeyError, NotImplementedError) as error:
            if self.gradient == PLAIN:
                raise
            raise ValueError(
                f"gradient must be {PLAIN!r} for a guide that knows the density of its own draws "
                f"alone, as a flow without inverse does; got {self.gradient!r}."
            ) from error


class _Gate:
    """Lets values pass, and multiplies the gradient that comes back by factors known then."""

    factors: Tensor

    def passed(self, site: Any, particle: int) -> Tensor:
        """The value of a site, as another tensor.

        A distribution that knows its own draw by identity would give a log density without a
        derivative in it.
        """
        value: Tensor = site["value"].view_as(site["value"])
        if value.requires_grad:
            ones = (1,) * site["fn"].event_dim

            def scaled(gradient: Tensor) -> Tensor:
                factor = self.factors[particle]
                return gradient * factor.reshape(factor.shape + ones)

            value.register_hook(scaled)
        return value


def _taught(log_weight: Tensor, sites: Mapping[str, Any]) -> Tensor:
    """The log weight without a gradient in rows without data.

    There q is p(z) and the weight is 1 whatever either is; but without its score the gradient of
    -log q leaves that of log p(z) alone: noise, if of mean zero, in a prior that is learned.
    """
    choices = [rows for site in sites.values() if (rows := rows_of_q(site["fn"])) is not None]
    for is_q in choices if len(choices) == len(sites) else []:
        log_weight = torch.where(is_q, log_weight, log_weight.detach())
    return log_weight


def _at(
    values: Mapping[str, Tensor], drawn: poutine.Trace, guide: Program, args: Any, kwargs: Any
) -> poutine.Trace:
    """The guide's trace at other values of its latent sites."""
    trace = drawn.copy()
    for name, value in values.items():
        trace.nodes[name] = {**trace.nodes[name], "value": value}
    if len(values) < 2:
        return trace
    # q(z1 | z2) was made from the drawn z2.
    return poutine.trace(poutine.replay(guide, trace=trace)).get_trace(*args, **kwargs)


def _estimator(name: str) -> str:
    if not isinstance(name, str) or name not in GRADIENTS:
        hint = did_you_mean(str(name), GRADIENTS)
        raise ValueError(
            f"gradient must be {PLAIN!r}, {STICKING!r} or {DOUBLY!r}; got {name!r}.{hint}"
        )
    return GRADIENTS[name]
