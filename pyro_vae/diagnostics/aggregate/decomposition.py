"""The aggregate posterior against the prior: what the KL of the ELBO is made of."""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.diagnostics.monte_carlo import Moments
from pyro_vae.diagnostics.passes import piece_size
from pyro_vae.evaluation import evaluating
from pyro_vae.rows import at_rows, per_datum_parts, pieces
from pyro_vae.seeding import generator
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import LatentSite, Programs, latent_site

from .margins import factorizes, in_double, margins

__all__ = ["aggregate_kl"]

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 1000
"""Rows that are encoded at once."""

BLOCK = 2**17
"""Numbers in one block of draws times rows times latent dimensions: it bounds the memory."""

DRAWS_AT_A_TIME = 2**14
"""Draws that are held at once."""

NEAR_THE_CAP = 1.0
"""Nats below log N within which the mutual information says more about N than about q."""


def aggregate_kl(vae: Programs, x: Any, *, num_samples: int = 1000, seed: int = 0) -> xr.Dataset:
    r"""The mean KL, split into what z tells of x and how far the aggregate is from the prior.

    With the aggregate posterior :math:`\bar q(z) = \frac1N \sum_n q(z \mid x_n)`

    .. math:: \frac1N \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) = I_q(n; z)
              + \underbrace{\mathrm{KL}\Big(\bar q \,\Big\|\, \prod_j \bar q_j\Big)}_{
              \text{total correlation}} + \sum_j \mathrm{KL}(\bar q_j \,\|\, p_j)

    and the last two are :math:`\mathrm{KL}(\bar q \,\|\, p)`, the price of a prior that is not the
    aggregate: a VampPrior, mixture or flow could save it. Draws :math:`z \sim q(z \mid x_n)` are
    spread evenly over the data; at each of them :math:`\log \bar q` and :math:`\log \bar q_j` are
    sums over all N data, in blocks, in double precision. So there is Monte Carlo error but none
    from minibatches, and the parts add up draw by draw.

    These are quantities of the N data at hand: :math:`I_q(n; z) \le \log N`. Of a population the
    mutual information is underestimated, in expectation, and :math:`\mathrm{KL}(\bar q \| p)`
    overestimated by as much; within a nat of :math:`\log N` a message to the ``logging`` module
    says so. The cost is that of ``num_samples`` times N times k evaluations. A flow as guide is
    far slower, as its density at another datum's draw takes an inverse.

    Args:
        vae: A VAE, or any model and guide with one latent vector for each datum in the plate
            "data".
        x: Data, ``(N, *event_shape)``: all that the aggregate is over.
        num_samples: Number of draws from the aggregate. Up to N, each is from another datum.
        seed: Seed of the draws; the global random state is left alone.

    Returns:
        In nats, each with its ``_mcse``, the standard error of the draws' average (too large
        rather than too small where ``num_samples`` is near N or above it): ``kl``, the mean KL at
        these draws; ``mutual_information``; ``marginal_kl``, which is
        :math:`\mathrm{KL}(\bar q \| p)`. Where the margins of q(z|x) and p(z) are known, as for
        independent coordinates, normals of any covariance and mixtures of normals, also
        ``total_correlation``, ``dimension_kl`` over ``latent`` and its sum, ``dimension_kl_sum``.
        Where p is no product of its margins ``marginal_kl`` has another part,
        ``prior_dependence``, :math:`\mathbb E_{\bar q}[\sum_j \log p_j(z_j) - \log p(z)]`, of
        either sign. Attribute ``log_num_data`` is log N; ``margins_known`` is 1 or 0.

    Raises:
        ValueError: If there is not one continuous latent vector for each datum, its guide has no
            density, or the prior differs between data.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> parts = aggregate_kl(vae, torch.zeros(5, 3), num_samples=10)  # all x are equal
        >>> bool(abs(parts["mutual_information"]) < 1e-12)
        True

    References:
        Hoffman and Johnson (2016), ELBO surgery: yet another way to carve up the variational
        evidence lower bound. http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        Chen, Li, Grosse and Duvenaud (2018), Isolating sources of disentanglement in VAEs,
        equation 2. https://arxiv.org/abs/1802.04942
    """
    num_samples = positive_integer(num_samples, "num_samples")
    device = resolve_device(vae, "auto")
    rows = DataSource(vae, device).tensor(x, name="x")
    terms: dict[str, Moments] = {}
    for start in range(0, num_samples, DRAWS_AT_A_TIME):
        wanted = range(start, min(start + DRAWS_AT_A_TIME, num_samples))
        for name, values in _terms(vae, rows, wanted, seed).items():
            terms.setdefault(name, Moments()).add(values)
    dataset = _dataset(terms).assign_attrs(
        units="nats per datum",
        num_samples=num_samples,
        seed=seed,
        num_data=len(rows),
        log_num_data=math.log(len(rows)),
        margins_known=int("dimension_kl" in terms),
    )
    _warn_of_the_cap(float(dataset["mutual_information"]), len(rows))
    return dataset


def _terms(vae: Programs, rows: Tensor, wanted: range, seed: int) -> dict[str, Tensor]:
    """Each part at the draws of these numbers, ``(S,)`` or ``(S, k)``."""
    draws = _draws(vae, rows, wanted, seed)
    log_sum, log_margin_sums = _log_sums(vae, rows, draws, seed)
    log_n = math.log(len(rows))
    log_qbar = log_sum - log_n
    terms = {
        "kl": draws.log_q - draws.log_p,
        "mutual_information": draws.log_q - log_qbar,
        "marginal_kl": log_qbar - draws.log_p,
    }
    if draws.log_p_margins is not None and log_margin_sums is not None:
        log_margins = log_margin_sums - log_n
        by_dimension = log_margins - draws.log_p_margins
        terms["total_correlation"] = log_qbar - log_margins.sum(-1)
        terms["dimension_kl"] = by_dimension
        terms["dimension_kl_sum"] = by_dimension.sum(-1)
        if not draws.p_factorizes:
            terms["prior_dependence"] = draws.log_p_margins.sum(-1) - draws.log_p
    return terms


class _Draws(NamedTuple):
    """Draws from the aggregate, in double precision; the sizes are S and k."""

    z: Tensor  # (S, k)
    log_q: Tensor  # (S,), of the datum that each comes from
    log_p: Tensor  # (S,)
    log_p_margins: Tensor | None  # (S, k)
    p_factorizes: bool


def _draws(vae: Programs, rows: Tensor, wanted: range, seed: int) -> _Draws:
    """Draws spread evenly over the data: they go round in random order."""
    order = torch.randperm(len(rows), generator=generator(seed, "aggregate"), device="cpu")
    numbers = torch.arange(wanted.start, wanted.stop, device="cpu") % len(rows)
    counts = torch.bincount(order[numbers], minlength=len(rows)).to(rows.device)
    found: list[_Draws] = []
    reference: list[tuple[Tensor, Tensor]] = []

    def visit(site: LatentSite, index: Tensor) -> None:
        wanted = counts[index]
        z = site.q.sample(torch.Size([int(wanted.max().clamp(min=1))])).double()
        q, p = in_double(site.q), in_double(site.p)
        if not reference:
            reference.append((z[0, 0], p.log_prob(z[0]).flatten()[0]))
        _check_site(site, p, reference[0], len(index))
        of_p = margins(p)
        numbers = torch.arange(len(z), device=z.device).unsqueeze(-1)
        kept = numbers < wanted
        found.append(
            _Draws(
                z[kept],
                q.log_prob(z)[kept],
                p.log_prob(z).expand(kept.shape)[kept],
                None if of_p is None else of_p.log_prob(z).expand(z.shape)[kept],
                factorizes(p) or z.shape[-1] == 1,
            )
        )

    _each_piece(vae, rows, visit, seed, first_draw=wanted.start)
    z, log_q, log_p, log_p_margins, p_factorizes = zip(*found, strict=True)
    return _Draws(
        torch.cat(z),
        torch.cat(log_q),
        torch.cat(log_p),
        None if log_p_margins[0] is None else torch.cat(log_p_margins),
        p_factorizes[0],
    )


def _log_sums(
    vae: Programs, rows: Tensor, draws: _Draws, seed: int
) -> tuple[Tensor, Tensor | None]:
    r""":math:`\log \sum_n q(z \mid x_n)`, ``(S,)``, and of each margin, ``(S, k)``, if known."""
    z = draws.z
    log_sum = z.new_full(z.shape[:1], -math.inf)
    log_margin_sums: Tensor | None = torch.full_like(z, -math.inf)
    if draws.log_p_margins is None:
        log_margin_sums = None

    def visit(site: LatentSite, index: Tensor) -> None:
        nonlocal log_margin_sums
        q = in_double(site.q)
        of_q = margins(q)
        if of_q is None:
            log_margin_sums = None
        is_product = factorizes(q)
        size = max(1, BLOCK // (len(index) * z.shape[-1]))
        for start in range(0, len(z), size):
            block = slice(start, start + size)
            values = z[block].unsqueeze(1)
            wants_margins = is_product or log_margin_sums is not None
            by_margin: Any = of_q.log_prob(values) if wants_margins else None
            log_q = by_margin.sum(-1) if is_product else q.log_prob(values)
            log_sum[block] = torch.logaddexp(log_sum[block], log_q.logsumexp(1))
            if log_margin_sums is not None:
                log_margin_sums[block] = torch.logaddexp(
                    log_margin_sums[block], by_margin.logsumexp(1)
                )

    _each_piece(vae, rows, visit, seed)
    return log_sum, log_margin_sums


def _each_piece(
    vae: Programs,
    rows: Tensor,
    visit: Callable[[LatentSite, Tensor], None],
    seed: int,
    *,
    first_draw: int = 0,
) -> None:
    """Show the latent site of each piece of the data, and its row numbers."""
    parts = per_datum_parts(vae)
    purpose = ("aggregate", first_draw) if first_draw else ("aggregate",)
    size = piece_size(ROWS_AT_A_TIME, rows)
    for number, (piece, index) in enumerate(pieces(parts, rows, size)):
        with (
            evaluating(vae, seed, *purpose, number, device=rows.device),
            at_rows(parts, index),
        ):
            visit(latent_site(vae, piece), index)


def _check_site(site: LatentSite, p: Any, reference: tuple[Tensor, Tensor], num_rows: int) -> None:
    """Refuse a guide without density, and a prior that differs from that of the first datum."""
    base: Any = site.q
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, dist.Delta):
        raise ValueError(
            f"guide must have a density at {site.name!r}; got a Delta. Use a guide with a scale."
        )
    z, log_p = reference
    if not torch.allclose(p.log_prob(z.expand(num_rows, -1)), log_p, equal_nan=True):
        raise ValueError(
            f"prior must be the same for all data for an aggregate to be held against it; got one "
            f"that differs between rows at {site.name!r}."
        )


def _dataset(terms: dict[str, Moments]) -> xr.Dataset:
    columns: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name, moments in terms.items():
        mean, error = moments.mean, moments.mcse
        dims = ("latent",)[: mean.dim()]
        columns[name], columns[f"{name}_mcse"] = ((dims, v.cpu().numpy()) for v in (mean, error))
    dataset = xr.Dataset(columns)
    return dataset.assign_coords({str(d): np.arange(size) for d, size in dataset.sizes.items()})


def _warn_of_the_cap(mutual_information: float, num_data: int) -> None:
    cap = math.log(num_data)
    if num_data > 1 and mutual_information > max(cap - NEAR_THE_CAP, 0.5 * cap):
        logger.warning(
            "aggregate_kl: mutual_information is %.2f nats, and cannot exceed log N = %.2f for "
            "N = %d data. Of these data it is right; of their population it is a lower bound, and "
            "marginal_kl an upper one. More data would tell.",
            mutual_information,
            cap,
            num_data,
        )
