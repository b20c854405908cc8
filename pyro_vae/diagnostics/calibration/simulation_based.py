"""Simulation-based calibration: whether q(z|x) is right for data that the model itself makes."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.monte_carlo import share_error
from pyro_vae.diagnostics.passes import piece_size
from pyro_vae.evaluation import evaluating
from pyro_vae.rows import per_datum_parts
from pyro_vae.sources import DataSource, resolve_device
from pyro_vae.traces import CHUNK_SIZE, JointDensity, Programs, simulate

from .uniformity import critical_log_gammas, ecdf_band, gamma_p_value, log_gamma

__all__ = ["interval_shares", "sbc"]

ROWS_AT_A_TIME = 250
"""Simulations that go through the programs at once: the noise belongs to such a piece."""

SIGNIFICANCES = (0.05, 0.01, 0.001)

VERDICT_AT = 0.01


def sbc(
    vae: Programs,
    num_simulations: int,
    num_draws: int,
    *,
    levels: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95),
    like: Any = None,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> xr.Dataset:
    r"""Ranks of the true z among draws from q(z|x), for data simulated from the model.

    .. math:: z^\ast \sim p(z), \quad x \sim p(x \mid z^\ast), \quad
              z_1, \dots, z_L \sim q(z \mid x), \quad
              r_j = \#\{l : z_{lj} < z^\ast_j\}

    If q(z|x) is p(z|x), each rank is uniform on 0, ..., L. So is the rank of
    :math:`\log p(x, z^\ast)` among :math:`\log p(x, z_l)`: it depends on the data, and finds what
    the ranks of z cannot, such as a guide that returns the prior and ignores x. Ties are broken at
    random.

    This says whether the guide finds the posterior of the *model*, over data of the model. It says
    nothing of whether the model describes the data at hand.

    Args:
        vae: A VAE, or any model and guide with their sites in the plate "data".
        num_simulations: Number S of simulated data.
        num_draws: Number L of draws from q(z|x) for each; 99 leaves a hundred ranks.
        levels: Probabilities a of the central intervals whose coverage is told.
        like: Data whose shape and type the simulated ones get, for programs that do not declare
            an ``event_shape`` as a VAE does. If it has missing values, each simulated datum lacks
            what a row of it lacks, drawn at random with the seed, and q(z|x) is judged given the
            entries that are left: by p(z|x_obs), which the pattern does not change. Without it
            this vouches for complete x alone.
        chunk_size: Rows times draws that go through the model at once, but at least the
            simulations of a piece, 250 or fewer. It bounds the memory; the result does not depend
            on it.
        seed: Seed of the simulations and draws; the global random state is left alone.

    Returns:
        ``ranks`` over ``simulation`` and ``latent``, ``rank_log_joint`` over ``simulation``, from
        0 to L. ``coverage`` over ``latent`` and ``level``: the share of simulations whose
        :math:`z^\ast_j` lies in the central interval of q, with its standard error
        ``coverage_mcse`` and, over ``level``, ``coverage_se_if_calibrated``,
        :math:`\sqrt{a (1 - a) / S}`: the one to judge its distance from a by. ``log_gamma`` over
        ``latent`` and ``log_gamma_log_joint``: the test of uniformity, with ``p_value`` and
        ``p_value_log_joint``; one test fails where it is below ``critical_log_gamma`` over
        ``significance``, and the smallest of all k + 1 where it is below
        ``critical_log_gamma_of_all`` (Bonferroni). ``band_low`` and ``band_high`` over ``rank``:
        between what shares of ranks below 1, ..., L all k + 1 distributions stay at once with
        probability 99 % if the guide is calibrated. The attribute ``verdict`` is "calibrated"
        unless the latter happens at 1 %: no sign of a fault, which more simulations might find.
        ``share_missing`` is the share of the entries of the simulated x that were left out.

    Raises:
        ValueError: If a number or level does not fit, ``like`` is missing where it is needed, or
            the guide has parameters for each datum and hence none for simulated data.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.gaussian_vae(features=3, latent_dim=2, hidden=())
        >>> calibration = sbc(vae, 100, 9)
        >>> dict(calibration["ranks"].sizes), int(calibration["ranks"].max()) <= 9
        ({'simulation': 100, 'latent': 2}, True)

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference
        algorithms with simulation-based calibration, section 4. https://arxiv.org/abs/1804.06788
        Modrak, Moon, Kim, Buerkner, Huurre, Faltejskova, Gelman and Vehtari (2023),
        Simulation-based calibration checking for Bayesian computation: the choice of test
        quantities shapes sensitivity, sections 2 and 4. https://arxiv.org/abs/2211.02383
        Saeilynoja, Buerkner and Vehtari (2022), Graphical test for discrete uniformity, section 2.
        https://arxiv.org/abs/2103.10522
    """
    num_simulations = positive_integer(num_simulations, "num_simulations")
    num_draws = positive_integer(num_draws, "num_draws")
    chunk_size = positive_integer(chunk_size, "chunk_size")
    nominal = np.array([_share(level) for level in levels])
    if nominal.size == 0:
        raise ValueError("levels must have at least one probability; got none.")
    if per_datum_parts(vae):
        raise ValueError(
            "vae must have an amortized guide, one that takes any x, for calibration; got a guide "
            "with parameters for each datum, which knows nothing of simulated data."
        )
    template = _template(vae, like)
    ranks, joint_ranks, share_missing = _ranks(
        vae, template, num_simulations, num_draws, chunk_size, seed
    )

    # How often each rank came, (latent, L + 1), times the share of it that is inside.
    counts = [np.bincount(column, minlength=num_draws + 1) for column in ranks.T.numpy()]
    inside = np.stack(counts) @ interval_shares(num_draws, nominal)
    coverage = inside / num_simulations
    num_tests = ranks.shape[1] + 1
    tests = log_gamma(torch.cat([ranks, joint_ranks.unsqueeze(1)], 1), num_draws)
    p_values = gamma_p_value(tests, num_simulations, num_draws)
    rates = [a / count for count in (1, num_tests) for a in SIGNIFICANCES]
    values = critical_log_gammas(num_simulations, num_draws, rates)
    critical, critical_of_all = values[: len(SIGNIFICANCES)], values[len(SIGNIFICANCES) :]
    decisive = critical_of_all[SIGNIFICANCES.index(VERDICT_AT)]
    band = ecdf_band(num_simulations, num_draws, VERDICT_AT / num_tests, critical=decisive)
    failed = tests.min().item() < decisive
    return xr.Dataset(
        {
            "ranks": (("simulation", "latent"), ranks.numpy()),
            "rank_log_joint": ("simulation", joint_ranks.numpy()),
            "coverage": (("latent", "level"), coverage),
            "coverage_mcse": (("latent", "level"), share_error(inside, num_simulations)),
            "coverage_se_if_calibrated": (
                "level",
                np.sqrt(nominal * (1 - nominal) / num_simulations),
            ),
            "log_gamma": ("latent", tests[:-1].numpy()),
            "log_gamma_log_joint": tests[-1].item(),
            "p_value": ("latent", p_values[:-1].numpy()),
            "p_value_log_joint": p_values[-1].item(),
            "critical_log_gamma": ("significance", critical),
            "critical_log_gamma_of_all": ("significance", critical_of_all),
            "band_low": ("rank", band[0].numpy()),
            "band_high": ("rank", band[1].numpy()),
        },
        coords={
            "simulation": np.arange(num_simulations),
            "latent": np.arange(ranks.shape[1]),
            "level": nominal,
            "significance": list(SIGNIFICANCES),
            "rank": np.arange(1, num_draws + 1),
        },
        attrs={
            "units": "ranks from 0 to num_draws; coverage as a share; log_gamma in nats",
            "num_simulations": num_simulations,
            "num_draws": num_draws,
            "num_tests": num_tests,
            "share_missing": share_missing,
            "seed": seed,
            "verdict": "not calibrated" if failed else "calibrated",
            "verdict_significance": VERDICT_AT,
        },
    )


def interval_shares(num_draws: int, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""For each rank 0, ..., L the share of it that lies in a central interval.

    Rank r stands for the probabilities from r / (L + 1) to (r + 1) / (L + 1). The shares of all
    ranks average to the level, whether or not L + 1 ranks can be divided so.

    Args:
        num_draws: L.
        levels: Probabilities a of the intervals.

    Returns:
        ``(L + 1, number of levels)``.

    Example:
        >>> interval_shares(3, np.array([0.5, 0.75])).T
        array([[0. , 1. , 1. , 0. ],
               [0.5, 1. , 1. , 0.5]])
    """
    edges = np.arange(num_draws + 2)[:, None] / (num_draws + 1)
    within = np.clip(edges, (1 - levels) / 2, (1 + levels) / 2)
    shares: NDArray[np.float64] = np.diff(within, axis=0) * (num_draws + 1)
    return shares


def _ranks(
    vae: Programs,
    template: Tensor,
    num_simulations: int,
    num_draws: int,
    chunk_size: int,
    seed: int,
) -> tuple[Tensor, Tensor, float]:
    """Ranks of z, ``(S, K)``, and of the log joint density, ``(S,)``; share of x missing."""
    ranks, joint_ranks = [], []
    missing = template.isnan()
    patterns = missing if bool(missing.any()) else None
    stand_in = template if patterns is None else torch.where(missing, 0.0, template)
    num_missing = 0
    size = piece_size(ROWS_AT_A_TIME, template)
    for start in range(0, num_simulations, size):
        index = torch.arange(start, min(start + size, num_simulations), device=template.device)
        with evaluating(vae, seed, "sbc", start, device=template.device):
            simulation = simulate(vae, stand_in[index % len(template)])
            x = simulation.x
            if patterns is not None:
                rows = torch.randint(len(patterns), (len(index),), device=x.device)
                x = torch.where(patterns[rows], torch.nan, x)
                num_missing += int(x.isnan().sum())
            joint = JointDensity(vae, x, chunk_size=chunk_size)
            truth = joint.flat(simulation.values).unsqueeze(0)
            of_truth = sum(joint(truth))
            of_z, of_joint = _Rank(), _Rank()
            for draws in joint.guide_draws_by_draws(num_draws):
                of_z.add(truth, draws)
                of_joint.add(of_truth, sum(joint(draws)))
            ranks.append(of_z.value())
            joint_ranks.append(of_joint.value())
    share = num_missing / (num_simulations * template[0].numel())
    return torch.cat(ranks).cpu(), torch.cat(joint_ranks).cpu(), share


class _Rank:
    """Number of draws below the truth, each tie counted with probability as at a random place."""

    def __init__(self) -> None:
        self._below: Any = 0
        self._equal: Any = 0

    def add(self, truth: Any, draws: Any) -> None:
        self._below = self._below + (draws < truth).sum(0)
        self._equal = self._equal + (draws == truth).sum(0)

    def value(self) -> Tensor:
        equal = self._equal
        places = torch.rand(equal.shape, dtype=torch.float64, device=equal.device) * (equal + 1)
        rank: Tensor = self._below + places.long().minimum(equal)
        return rank


def _template(vae: Programs, like: Any) -> Tensor:
    device = resolve_device(vae, "auto")
    if like is not None:
        return DataSource(vae, device).tensor(like, name="like")
    event_shape, dtype = getattr(vae, "event_shape", None), getattr(vae, "dtype", None)
    if event_shape is None or not isinstance(dtype, torch.dtype):
        raise ValueError(
            "like must be given for programs that do not declare the shape of x; got None. Pass "
            "some rows of the data."
        )
    return torch.zeros(1, *event_shape, dtype=dtype, device=device)


def _share(level: float) -> float:
    share = finite_number(level, "levels", "between 0 and 1", above=0)
    if share >= 1:
        raise ValueError(f"levels must be between 0 and 1; got {level}.")
    return share
