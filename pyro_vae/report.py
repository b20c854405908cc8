"""What a fit says in words: a few lines of text, every figure with its standard error."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from torch import Tensor

__all__ = ["concerns", "fit_report", "mean_and_error", "standard_error", "with_error"]

FloatArray = npt.NDArray[np.float64]

LABELS = {
    "elbo": "ELBO",
    "expected_log_likelihood": "  E_q log p(x|z)",
    "kl": "  KL(q(z|x) || p(z))",
}


def with_error(value: float, error: float) -> str:
    """A figure with its standard error, both to the error's second digit.

    Example:
        >>> with_error(12.3456, 0.0789)
        '12.346 ± 0.079'
        >>> with_error(-1234.5, 21.0)
        '-1234 ± 21'
    """
    if not math.isfinite(error) or error == 0:
        return f"{value:.3f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def standard_error(values: FloatArray) -> float:
    """Standard error of the mean of independent values, NaN for a single one.

    Example:
        >>> standard_error(np.array([1.0, 3.0]))
        1.0
    """
    if len(values) < 2:
        return math.nan
    with np.errstate(invalid="ignore"):  # NaN where a value is infinite
        return float(values.std(ddof=1)) / math.sqrt(len(values))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values and its standard error, NaN for a single value.

    Example:
        >>> import torch
        >>> mean_and_error(torch.tensor([1.0, 3.0]))
        (2.0, 1.0)
    """
    values = values.double()
    return values.mean().item(), standard_error(values.detach().cpu().numpy())


def concerns(units: xr.Dataset, evidence: xr.Dataset) -> list[str]:
    """What a reader of the figures should be warned of: unused units, and q far from p(z|x).

    Args:
        units: What ``diagnostics.active_units`` returned.
        evidence: What ``diagnostics.log_evidence`` returned.

    Returns:
        One line for each; none where all units are active and every k-hat is below its threshold.

    Example:
        >>> units = xr.Dataset(
        ...     {
        ...         "variance": ("latent", [0.9, 0.002]),
        ...         "active": ("latent", [True, False]),
        ...     },
        ...     attrs={"threshold": 0.01},
        ... )
        >>> khat = xr.Dataset({"pareto_khat": ("obs_id", [0.1, 0.9])})
        >>> for line in concerns(units, khat.assign_attrs(khat_threshold=0.67)):
        ...     print(line)
        warning: 1 of 2 latent units inactive (2): the variance of their means over the data is
        0.002, not above 0.01
        warning: k-hat above 0.67 for 1 of 2 rows, at most 0.90: q(z|x) is far from p(z|x) there,
        and an estimate of log p(x) too low
    """
    lines = []
    active, variance = units["active"].to_numpy(), units["variance"].to_numpy()
    if not active.all():
        idle = [str(j + 1) for j in np.flatnonzero(~active)]
        shown = ", ".join(idle[:10]) + (", ..." if len(idle) > 10 else "")
        what = "posterior collapse, all" if not active.any() else f"{len(idle)} of {len(active)}"
        lines.append(
            f"warning: {what} latent units inactive ({shown}): the variance of their means over "
            f"the data is {'at most ' if len(idle) > 1 else ''}{variance[~active].max():.2g}, not "
            f"above {units.attrs['threshold']:.2g}"
        )
    khat, limit = evidence["pareto_khat"].to_numpy(), evidence.attrs["khat_threshold"]
    above = ~(khat <= limit)  # an unknown k-hat is no good one
    if above.any():
        worst = np.nanmax(khat) if np.isfinite(khat).any() else math.nan
        lines.append(
            f"warning: k-hat above {limit:.2f} for {above.sum()} of {len(khat)} rows, at most "
            f"{worst:.2f}: q(z|x) is far from p(z|x) there, and an estimate of log p(x) too low"
        )
    return lines


def fit_report(
    *,
    heading: list[str],
    summaries: Mapping[str, pd.DataFrame],
    reference: Mapping[str, list[tuple[float, float]]],
    closing: list[str],
) -> str:
    """The report of one fit as plain text.

    Args:
        heading: Lines that say what was fitted to what.
        summaries: Name of each part of the data to what ``diagnostics.elbo_summary`` says of it.
        reference: Rows below the ELBO: name to value and standard error for each part.
        closing: Lines at the end.

    Example:
        >>> row = {"mean": 1.0, "se": 0.25, "mcse": 0.01}
        >>> table = pd.DataFrame(dict.fromkeys(LABELS, row)).T
        >>> text = fit_report(heading=[], summaries={"train": table}, reference={}, closing=[])
        >>> text.splitlines()[2].split()
        ['ELBO', '1.00', '±', '0.25']
    """
    rows = {
        label: [(table["mean"][term], table["se"][term]) for table in summaries.values()]
        for term, label in LABELS.items()
    }
    rows |= reference
    width = max(map(len, rows)) + 2
    lines = [*heading, "", f"{'nats per datum':{width}}" + "".join(f"{n:>20}" for n in summaries)]
    for label, cells in rows.items():
        lines.append(f"{label:{width}}" + "".join(f"{with_error(*cell):>20}" for cell in cells))
    noise = max(table["mcse"].max() for table in summaries.values())
    lines.append(f"(± one standard error over data; Monte Carlo error at most {noise:.2g})")
    return "\n".join([*lines, "", *closing]) + "\n"
