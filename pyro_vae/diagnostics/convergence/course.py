"""Has SVI converged? The trend of the ELBO over the last epochs, and restarts side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.elbo import elbo_terms
from pyro_vae.fit_result import FitResult
from pyro_vae.report import standard_error

__all__ = ["restarts", "trend"]

NUM_BLOCKS = 8
T_QUANTILE = 2.4469
"""The 97.5 % point of Student's t with NUM_BLOCKS - 2 degrees of freedom."""

T_QUANTILE_OF_BEND = 2.5706
"""The same with one degree of freedom less."""

LEVELING = 0.5
"""A curve that bends down levels off where its end rises by less than so much of the whole."""

RHAT_THRESHOLD = 1.1
MAX_ERRORS = 3.0
"""Restarts differ where the ELBO's difference is more than so many standard errors."""


def trend(
    history: FitResult | pd.DataFrame,
    *,
    column: str = "elbo",
    window: int | None = None,
    tolerance: float = 0.0,
) -> xr.Dataset:
    r"""Is the ELBO still rising? Its slope over the last epochs, with its standard error.

    The window is cut into 8 blocks, and a line is fitted by least squares to their means; its
    error is that of the residuals of the block means, with Student's t of 6 degrees of freedom.
    Consecutive epochs are not independent, since the parameters wander under the noise of the
    steps; means of blocks longer than that memory nearly are. The column ``elbo_se`` has no part
    in it: all epochs are evaluated on the same rows with the same draws, so that this error is
    common to them and cancels in a slope. Where the ELBO is flat and its memory (an AR(1)
    coefficient) 0, 0.5, 0.8 or 0.95, a window of 80 epochs is called not flat in 5, 6, 12 or 30 %
    of cases, one of 40 in 5, 8, 17 or 40 %. A smaller learning rate has a longer memory.

    A straight line says little of a curve that bends. Where it rises, a parabola through the
    blocks bends down (beyond Student's t of 5 degrees of freedom, 2.5 % of false alarms), and the
    last quarter has less than half the slope of the whole, the verdict is "rising, leveling off":
    most of the gain is that of the window's beginning.

    "flat" means that no movement was found, at most ``slope_high`` nats per epoch upwards. A
    learning rate that has gone down to 0 makes any fit flat.

    Args:
        history: A fit, or its ``history``.
        column: Which column, such as "validation_elbo".
        window: Number of epochs at the end of the history that count, at least 8; unless given,
            half of them.
        tolerance: Nats per datum per epoch; a slope whose interval does not exceed it is flat.

    Returns:
        ``slope``, ``slope_se`` and the ends of its 95 % interval, ``slope_low`` and
        ``slope_high``, in nats per datum per epoch; ``gain``, the line's rise over the window, in
        nats per datum; ``late_slope``, from the last block but one to the last, the slope over the
        last quarter, and ``late_slope_se``. Over ``epoch``: the column and ``line``. Attribute
        ``verdict`` is "rising", "rising, leveling off", "falling" or "flat".

    Raises:
        TypeError: If it is neither a fit nor a table.
        ValueError: If the window is longer than the history or has fewer than 8 epochs, the
            column is missing, or one of its values is not finite.

    Example:
        >>> rows = [{"epoch": t, "elbo": 0.5 * t} for t in range(1, 17)]
        >>> found = trend(FitResult(vae=None, seed=0, rows=rows))
        >>> found["slope"].item(), found["gain"].item(), found.attrs["verdict"]
        (0.5, 3.5, 'rising')

    References:
        Flegal and Jones (2010), Batch means and spectral variance estimators in Markov chain Monte
        Carlo, section 1. https://doi.org/10.1214/09-AOS735
    """
    table = _history(history, column)
    tolerance = finite_number(tolerance, "tolerance", "a number not below 0", above=-1e-300)
    window = _window(window, len(table), least=NUM_BLOCKS)
    epochs = table["epoch"].to_numpy(float)[-window:]
    values = table[column].to_numpy(float)[-window:]
    if not np.isfinite(values).all():
        raise ValueError(
            f"{column} must be finite in the last {window} epochs; got "
            f"{int((~np.isfinite(values)).sum())} that are not."
        )
    slope, intercept, error = _line_through_blocks(epochs, values)
    low, high = slope - T_QUANTILE * error, slope + T_QUANTILE * error
    late, late_error, bend = _end_of_blocks(epochs, values)
    verdict = "rising" if low > tolerance else "falling" if high < -tolerance else "flat"
    if verdict == "rising" and bend < -T_QUANTILE_OF_BEND and late < LEVELING * slope:
        verdict = "rising, leveling off"
    return xr.Dataset(
        {
            "slope": slope,
            "slope_se": error,
            "slope_low": low,
            "slope_high": high,
            "gain": slope * (epochs[-1] - epochs[0]),
            "late_slope": late,
            "late_slope_se": late_error,
            column: ("epoch", values),
            "line": ("epoch", intercept + slope * epochs),
        },
        coords={"epoch": epochs.astype(int)},
        attrs={
            "units": "nats per datum; slopes in nats per datum per epoch",
            "verdict": verdict,
            "column": column,
            "window": window,
            "num_blocks": NUM_BLOCKS,
            "tolerance": tolerance,
        },
    )


def restarts(
    fits: Sequence[FitResult] | Mapping[str, FitResult],
    *,
    x: Any = None,
    window: int | None = None,
    tolerance: float = 0.0,
    num_samples: int = 16,
    seed: int = 0,
) -> xr.Dataset:
    r"""Do fits from several seeds agree? Their ELBOs as chains, and paired differences.

    .. math:: d_r = \frac1N \sum_i \big(\text{ELBO}_{\text{best}}(x_i) -
              \text{ELBO}_r(x_i)\big), \qquad
              \text{se}_r^2 = \operatorname{Var}_i(\cdot) / N

    The split R-hat is that of the ELBO over the last epochs, a restart for a chain. It compares
    restarts with how much each still wanders, so that it is large too where all have settled on
    values that differ by little: the differences in nats decide. There is none for z, whose axes
    each restart numbers, turns and mirrors as it likes.

    The best restart is chosen by the very values that are compared, so that the largest difference
    of equally good ones is above 0; a restart differs where its difference exceeds 3 standard
    errors and ``tolerance``.

    Args:
        fits: Fits of one model from different seeds, at least two.
        x: Data on which all are compared, ``(N, *event_shape)``, held-out at best. Without them
            the ELBOs are those of the histories, unpaired, which has a larger error.
        window: Number of epochs at the end of the histories that count, at least 4; unless given,
            half of the shortest.
        tolerance: Difference in nats per datum that does not matter.
        num_samples: Draws for each datum.
        seed: Seed of the draws, the same for all.

    Returns:
        ``rhat``. Over ``restart``: ``elbo`` and ``elbo_se``; ``difference`` from the best one and
        ``difference_se``, in nats per datum; ``differs``; and ``fit_seed``. ``curve``,
        the ELBO over ``restart`` and ``epoch``, NaN after a fit's end. Attribute ``verdict`` is
        "agree" or "differ".

    Raises:
        TypeError: If one is no fit.
        ValueError: If there are fewer than two fits, or the window does not fit the shortest.

    Example:
        >>> rows = [{"epoch": t, "elbo": float(t % 2), "elbo_se": 0.1} for t in range(1, 17)]
        >>> fits = [FitResult(vae=None, seed=seed, rows=rows) for seed in (1, 2)]
        >>> found = restarts(fits)
        >>> found["difference"].values.tolist(), found.attrs["verdict"]
        ([0.0, 0.0], 'agree')

    References:
        Gelman et al. (2013), Bayesian Data Analysis, 3rd edition, section 11.4 (split R-hat).
    """
    named = _named(fits)
    if len(named) < 2:
        raise ValueError(f"fits must be at least two; got {len(named)}.")
    tolerance = finite_number(tolerance, "tolerance", "a number not below 0", above=-1e-300)
    needed = ("elbo", "elbo_se") if x is None else ("elbo",)
    tables = [_history(fit, *needed) for fit in named.values()]
    shortest = min(map(len, tables))
    window = _window(window, shortest, least=4)
    lasts = np.stack([table["elbo"].to_numpy(float)[-window:] for table in tables])
    curve = np.full((len(tables), max(map(len, tables))), np.nan)
    for row, table in zip(curve, tables, strict=True):
        row[: len(table)] = table["elbo"]
    if x is None:
        elbo = lasts[:, -1]
        error = np.array([float(table["elbo_se"].iloc[-1]) for table in tables])
        best = int(elbo.argmax())
        difference_se = np.hypot(error, error[best])
        difference_se[best] = 0.0
    else:
        terms = [
            elbo_terms(fit.vae, x, num_samples=num_samples, seed=seed)["elbo"].to_numpy()
            for fit in named.values()
        ]
        elbo = np.array([values.mean() for values in terms])
        error = np.array([standard_error(values) for values in terms])
        best = int(elbo.argmax())
        difference_se = np.array([standard_error(terms[best] - values) for values in terms])
    difference = elbo[best] - elbo
    differs = (difference > MAX_ERRORS * difference_se) & (difference > tolerance)
    return xr.Dataset(
        {
            "rhat": _split_rhat(lasts),
            "elbo": ("restart", elbo),
            "elbo_se": ("restart", error),
            "difference": ("restart", difference),
            "difference_se": ("restart", difference_se),
            "differs": ("restart", differs),
            "fit_seed": ("restart", [fit.seed for fit in named.values()]),
            "curve": (("restart", "epoch"), curve),
        },
        coords={"restart": list(named), "epoch": np.arange(1, curve.shape[1] + 1)},
        attrs={
            "units": "nats per datum",
            "verdict": "differ" if differs.any() else "agree",
            "best": list(named)[best],
            "is_paired": int(x is not None),
            "window": window,
            "rhat_threshold": RHAT_THRESHOLD,
            "max_errors": MAX_ERRORS,
            "tolerance": tolerance,
            "num_samples": num_samples,
            "seed": seed,
        },
    )


def _named(fits: Sequence[FitResult] | Mapping[str, FitResult]) -> dict[str, FitResult]:
    if not isinstance(fits, Mapping | Sequence):
        raise TypeError(
            f"fits must be a sequence or a mapping of fits; got {type(fits).__name__}."
        )
    named = dict(fits) if isinstance(fits, Mapping) else {str(i): f for i, f in enumerate(fits)}
    for name, fit in named.items():
        if not isinstance(fit, FitResult):
            raise TypeError(
                f"fits must hold what pv.fit returned; got {type(fit).__name__} at {name!r}."
            )
    return named


def _history(fit: FitResult | pd.DataFrame, *columns: str) -> pd.DataFrame:
    table = fit.history if isinstance(fit, FitResult) else fit
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"history must be what pv.fit returned, or its history, a DataFrame; got "
            f"{type(table).__name__}."
        )
    needed = ("epoch", *columns)
    if not set(needed) <= set(table.columns):
        raise ValueError(
            f"history must have the columns {', '.join(needed)}; got {list(table.columns)}."
        )
    return table


def _window(window: int | None, length: int, *, least: int) -> int:
    window = max(least, length // 2) if window is None else positive_integer(window, "window")
    if not least <= window <= length:
        raise ValueError(
            f"window must be from {least} to the number of epochs, {length}; got {window}. "
            "Fit for more epochs."
        )
    return window


def _line_through_blocks(t: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Slope and intercept of a line through the means of blocks, and the slope's error."""
    centers, means = _block_means(t), _block_means(values)
    middle, level = centers.mean(), means.mean()
    squares = np.square(centers - middle).sum()
    slope = float((centers - middle) @ (means - level) / squares)
    residuals = means - level - slope * (centers - middle)
    error = math.sqrt(float(np.square(residuals).sum()) / (NUM_BLOCKS - 2) / squares)
    return slope, float(level - slope * middle), error


def _end_of_blocks(t: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Slope between the last two blocks, its error, and the bend of a parabola over its error.

    Errors are those of the residuals of the parabola, which a bend does not make larger.
    """
    centers, means = _block_means(t), _block_means(values)
    scaled = (centers - centers.mean()) / (centers[-1] - centers[0])
    design = np.stack([np.ones(NUM_BLOCKS), scaled, np.square(scaled)], 1)
    weights = np.linalg.pinv(design)
    coefficients = weights @ means
    squares = np.square(means - design @ coefficients).sum()
    noise = math.sqrt(float(squares) / (NUM_BLOCKS - 3))
    step = float(centers[-1] - centers[-2])
    late, bend = float(means[-1] - means[-2]) / step, float(coefficients[2])
    # A line's parabola has no bend but its roundings.
    error = max(noise * float(np.linalg.norm(weights[2])), 1e-12 * float(np.abs(means).max()))
    return late, math.sqrt(2) * noise / step, bend / error if error > 0 else 0.0


def _block_means(values: np.ndarray) -> np.ndarray:
    return np.array([block.mean() for block in np.array_split(values, NUM_BLOCKS)])


def _split_rhat(chains: np.ndarray) -> float:
    """Split R-hat of chains, ``(R, T)``; NaN where none of them moves."""
    half = chains.shape[1] // 2
    split = np.concatenate([chains[:, :half], chains[:, -half:]])
    within = split.var(axis=1, ddof=1).mean()
    between = split.mean(axis=1).var(ddof=1)
    return math.sqrt((half - 1) / half + between / within) if within > 0 else math.nan
