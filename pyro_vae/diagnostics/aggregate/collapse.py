"""Posterior collapse, read against what a linear VAE would do."""

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.elbo import mean_elbo
from pyro_vae.diagnostics.monte_carlo import Moments
from pyro_vae.diagnostics.passes import each_piece
from pyro_vae.likelihoods import Gaussian
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import CHUNK_SIZE, LatentSite, Programs, latent_site
from pyro_vae.traces.runs import draws_of_a_run

from .active_units import variance_of_means
from .directions import Directions
from .linear_theory import LinearTheory, linear_theory
from .margins import in_double, margins

__all__ = ["collapse_report"]

ROWS_AT_A_TIME = 2000

ELBO_SAMPLES = 16
"""Most draws for each datum behind the ELBO: its noise averages over the data."""

CERTAIN = 2.0
"""Monte Carlo standard errors by which an ELBO must be below another to be called lower."""


def collapse_report(
    vae: Programs,
    x: Any,
    *,
    variance: float | None = None,
    threshold: float = 0.01,
    num_samples: int = 100,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""Which latent units are active, how many should be, and a verdict in words.

    Of all VAEs with a linear decoder and variance c the one with the largest ELBO uses the
    directions of the data whose eigenvalues :math:`\lambda_j` exceed c, j at most k, and no other:

    .. math:: \mathrm{KL}_j = \tfrac12 \log \frac{\lambda_j}{c}, \quad
              \operatorname{Var}_n(\mathbb E\, z_j) = 1 - \frac{c}{\lambda_j}
              \quad (\lambda_j > c), \qquad \text{both 0 otherwise}

    So a large c, which is a small C = 1 / (2c), makes units inactive and rightly so. Fewer active
    directions than that are called posterior collapse where the ELBO is below the linear VAE's,
    which was to be had; where it is not, the nonlinear decoder needs fewer. The ELBO held against
    it is the true one: a VAE trained with another KL weight than 1 had another aim.

    Directions are counted, not units: eigenvalues of the covariance of the means, in units of the
    prior's covariance, above the threshold. A rotation of z, which a guide with full covariance
    leaves free, changes the units' variances but not these. Where means are averages of draws, as
    for a flow, their noise is taken out, and a direction must also exceed what noise alone would
    make of it, ``direction_noise``.

    Args:
        vae: A VAE, or any model and guide with one latent vector for each datum.
        x: Data, ``(N, *event_shape)``, best those it was trained on: the theory is about x.
        variance: c, where the programs do not tell; with a VAE, its likelihood's.
        threshold: Variance above which a unit or direction is active.
        num_samples: Draws from q(z|x) for each datum, where something is no closed form; the ELBO
            takes 16 at most.
        chunk_size: As for :func:`elbo_terms`.
        seed: Seed of the draws.

    Returns:
        Over ``latent``: ``variance``, ``variance_se`` and ``active``, as :func:`active_units` has
        them; ``kl`` with ``kl_mcse``, the mean :math:`\mathrm{KL}(q_j(z_j | x) \| p_j)` in nats,
        where margins are known. Over ``direction``, in descending order: ``direction_variance``.
        ``elbo`` and ``elbo_mcse``. With the theory, which needs a Gaussian likelihood with one c
        and a normal prior, over ``component``: ``eigenvalue``; over ``direction``:
        ``linear_variance`` and ``linear_kl``; ``linear_elbo``, its mean over x. Attributes:
        ``num_active`` units, ``num_active_directions``, ``num_expected`` of them by the theory
        (-1 without it), ``direction_noise`` (0 where the means are analytic), ``variance_c`` (NaN
        without it), ``verdict`` ("as expected", "more", "collapse", "fewer needed", "no theory"),
        and ``advice``, the verdict in words.

    Raises:
        ValueError: If there is not one continuous latent vector for each datum, its q(z|x) has no
            finite mean, as a Cauchy, or an argument does not fit.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, variance=2.0, hidden=())
        >>> x = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])  # its eigenvalue 1 is below c
        >>> collapse_report(vae, x).attrs["num_expected"]
        0

    References:
        Lucas, Tucker, Grosse and Norouzi (2019), Don't blame the ELBO! A linear VAE perspective on
        posterior collapse, section 4. https://arxiv.org/abs/1911.02469
    """
    threshold = finite_number(threshold, "threshold", "positive", above=0)
    num_samples = positive_integer(num_samples, "num_samples")
    chunk_size = positive_integer(chunk_size, "chunk_size")
    prior: list[Any] = []
    directions, means = Directions(), Moments(4)
    sums: dict[str, Tensor] = {}

    def visit(piece: Tensor) -> None:
        site = latent_site(vae, piece)
        prior[:] = [in_double(site.p)]
        mean, noise = directions.add(site.q, num_samples)
        means.add(mean)
        for name, values in ({"noise": noise} | _unit_kl(site, num_samples)).items():
            total = values.sum(0).cpu()
            sums[name] = sums[name] + total if name in sums else total

    each_piece(vae, x, visit, seed=seed, purpose="collapse", at_a_time=ROWS_AT_A_TIME)
    num_data = means.count
    unit_variance, error = variance_of_means(means, sums["noise"].to(means.mean) / num_data)
    unit_variance, error = unit_variance.cpu(), error.cpu()
    active = unit_variance > threshold
    covariance = _covariance(prior[0])
    direction_variances, direction_noise = directions.variances(covariance)
    limit = max(threshold, direction_noise)
    few = min(num_samples, ELBO_SAMPLES)
    elbo, elbo_mcse = mean_elbo(vae, x, num_samples=few, chunk_size=chunk_size, seed=seed)
    report: dict[str, Any] = {
        "variance": ("latent", unit_variance.numpy()),
        "variance_se": ("latent", error.numpy()),
        "active": ("latent", active.numpy()),
        "direction_variance": ("direction", direction_variances.numpy()),
        "elbo": elbo,
        "elbo_mcse": elbo_mcse,
    }
    if "kl" in sums:
        report["kl"] = "latent", (sums["kl"] / num_data).numpy()
        report["kl_mcse"] = "latent", (sums["kl_noise"].sqrt() / num_data).numpy()
    found, reason = _variance(vae, variance)
    theory = None
    if found is not None and covariance is None:
        reason = "the prior is not normal"
    elif found is not None:
        rows = DataSource(vae, resolve_device(vae, "auto")).tensor(x, name="x")
        if bool(rows.isnan().any()):
            reason = "x has missing values"
        else:
            theory = linear_theory(rows, len(active), variance=found)
    if theory is not None:
        report["eigenvalue"] = "component", theory.eigenvalues.numpy()
        report["linear_variance"] = "direction", theory.variances.numpy()
        report["linear_kl"] = "direction", theory.kl.numpy()
        report["linear_elbo"] = theory.elbo
    num_directions = int((direction_variances > limit).sum())
    verdict, advice = _verdict(num_directions, active, limit, elbo, elbo_mcse, theory, reason)
    if direction_noise > threshold:
        advice += (
            f" Below {limit:.4g} a direction cannot be told from the noise of {num_samples} draws "
            "for each datum: pass a larger num_samples to see further."
        )
    dataset = xr.Dataset(
        report,
        attrs={
            "units": "nats per datum; variances in squared units of z, eigenvalues of x",
            "threshold": threshold,
            "num_active": int(active.sum()),
            "num_active_directions": num_directions,
            "num_expected": -1 if theory is None else theory.num_active(limit),
            "direction_noise": direction_noise,
            "variance_c": math.nan if theory is None else theory.variance,
            "verdict": verdict,
            "advice": advice,
            "num_samples": num_samples,
            "seed": seed,
        },
    )
    return dataset.assign_coords({str(d): np.arange(size) for d, size in dataset.sizes.items()})


def _unit_kl(site: LatentSite, num_samples: int) -> dict[str, Tensor]:
    """KL of each unit's margins, ``(n, k)``, and the variance of its Monte Carlo error."""
    q, p = margins(in_double(site.q)), margins(in_double(site.p))
    if q is None or p is None:
        return {}
    try:
        kl = kl_divergence(q, p)
        return {"kl": kl, "kl_noise": torch.zeros_like(kl)}
    except NotImplementedError:
        draws = Moments()
        for size in draws_of_a_run(max(2, num_samples), q.batch_shape[0]):
            z = q.sample(torch.Size([size]))
            draws.add(q.log_prob(z) - p.log_prob(z))
        return {"kl": draws.mean, "kl_noise": draws.variance() / draws.count}


def _covariance(p: Any) -> Tensor | None:
    """Covariance of a normal prior, ``(k, k)``; None for another one."""
    while isinstance(p, dist.ExpandedDistribution):
        p = p.base_dist
    normal = torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal
    if isinstance(p, normal):
        covariance = p.covariance_matrix
    elif isinstance(margins(p), torch.distributions.Normal):
        variance = margins(p).variance
        covariance = variance.reshape(-1, variance.shape[-1])[:1].diag_embed()
    else:
        return None
    size = covariance.shape[-1]
    return covariance.reshape(-1, size, size)[0].cpu()


def _variance(vae: Any, given: float | None) -> tuple[float | None, str]:
    """The one c of a Gaussian likelihood, or None and why there is none."""
    if given is not None:
        return finite_number(given, "variance", "positive and finite", above=0), ""
    likelihood = getattr(vae, "p_x_given_z", None)
    if likelihood is None:
        return None, "programs do not tell their c; if they have one, pass variance=c"
    if not isinstance(likelihood, Gaussian):
        return None, f"the likelihood is {type(likelihood).__name__}, not Gaussian"
    if likelihood.depends_on_z or likelihood.variance.numel() != 1:
        return None, "the likelihood has several variances, not one c"
    return float(likelihood.variance), ""


def _verdict(
    found: int,
    active: Tensor,
    limit: float,
    elbo: float,
    mcse: float,
    theory: LinearTheory | None,
    reason: str,
) -> tuple[str, str]:
    num_units, num_active = len(active), int(active.sum())
    units = "" if num_active == found else f", in {num_active} units,"
    counted = (
        f"{found} of {num_units} latent directions{units} are active (variance above {limit:.4g})"
    )
    if theory is None:
        return "no theory", f"{counted}. No linear theory to hold that against: {reason}."
    expected = theory.num_active(limit)
    c = f"c = {theory.variance:.4g}"
    counted += f"; in the best linear VAE at {c} it is {expected}"
    elbos = f"the ELBO of {elbo:.2f} nats against the linear VAE's {theory.elbo:.2f}"
    lower = math.isfinite(elbo) and elbo < theory.elbo - CERTAIN * (mcse if mcse >= 0 else 0.0)
    if found == expected:
        rest = ""
        if expected == 0:
            rest = " No eigenvalue of the data exceeds c: a smaller c (a larger C) would use z."
        elif expected < num_units:
            rest = " The others are rightly inactive: their eigenvalues do not exceed c."
        return "as expected", f"{counted}: as theory says for a linear VAE.{rest}"
    if found > expected:
        worth = "cost more than they bring" if lower else "are worth it"
        more = f"the nonlinear decoder uses more directions, and they {worth}"
        return "more", f"{counted}: {more}, {elbos}.{' Train longer.' if lower else ''}"
    if lower:
        return "collapse", (
            f"{counted}: fewer than the linear theory, with {elbos}: posterior collapse. Try "
            "objectives.kl_warmup or objectives.FreeBits, or train longer."
        )
    return "fewer needed", (
        f"{counted}: fewer than the linear theory, but no collapse, with {elbos}: the nonlinear "
        "decoder needs fewer."
    )
