"""Whether the model describes the data: predictive checks and the distribution of each feature."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from pyro_vae.diagnostics.criticism.pit import pit
from pyro_vae.diagnostics.criticism.predictive import prior_predictive_check
from pyro_vae.html_report import Measure, Section, Table
from pyro_vae.plots.criticism import pit_differences, predictive_check
from pyro_vae.report import with_error

from .study import Study, grade, shown

__all__ = ["features", "statistics"]

LEVEL = 0.05

OF_MEANS = "standard deviation of row means"

GRAY = (
    "A Bernoulli likelihood draws zeros and ones, and x has values between: binarize x, or take "
    "--likelihood continuous_bernoulli."
)

SMALL = 0.05
"""Deviation that is small even where it is certain: of a mean in standard deviations of x, of a
standard deviation relatively, of a share absolutely."""

MOST_FEATURES = 100

FEW, MANY = 0.05, 0.3
"""Share of features whose distribution is found wrong."""

SHOWN = 8

FEWEST_FOR_MEANS = 3
"""Rows from which on the standard deviation of their means says anything."""


class _AtMost(Measure):
    """A figure that may be smaller than so many draws can show."""

    @property
    def text(self) -> str:
        return f"≤ {super().text}"


def statistics(study: Study, question: str) -> Section:
    """Mean, spread and extremes of the data against data sets drawn from the model."""
    chosen = _chosen(study.x)
    found = prior_predictive_check(
        study.vae, study.x, chosen, num_samples=study.size(399, 299), seed=study.seed
    )
    count = found.sizes["statistic"]
    adjusted = np.minimum(1.0, count * found["p_value_two_sided"].to_numpy())
    least = count * 2 / (found.sizes["simulation"] + 1)
    deviation = _deviations(found, study.x)
    wrong, small = adjusted < LEVEL, f"at most {SMALL:g}"
    measures = [
        _p_value(float(adjusted.min()), least, found.sizes["simulation"]),
        # A deviation that chance explains is held against nothing.
        Measure("largest deviation that is certain", float(deviation[wrong].max()), wanted=small)
        if wrong.any()
        else Measure("largest deviation, which chance explains", float(deviation.max())),
    ]
    names = [str(name) for name in found["statistic"].values]
    if not wrong.any():
        verdict, next_step = "good", ""
        sentence = "Data drawn from the model have the mean, spread and extremes of these rows."
    else:
        worst = names[int(np.where(wrong, deviation, -1.0).argmax())]
        listed = ", ".join(name for name, is_wrong in zip(names, wrong, strict=True) if is_wrong)
        is_small = deviation[wrong].max() <= SMALL
        verdict = "doubtful" if is_small else "bad"
        sentence = f"Data drawn from the model differ from these rows in: {listed}."
        sentence += (
            " The differences are certain but small."
            if is_small
            else f" That of “{worst}” is large."
        )
        next_step = _advice(study)
    return Section(
        question,
        verdict,
        sentence,
        measures,
        next_step,
        [f"Computed {study.on_rows()}."],
        tables=[_statistics_table(found, adjusted, least)],
        pictures=[
            shown(
                predictive_check(found),
                "Each statistic over data sets drawn from the model, and of these rows (line).",
            )
        ],
    )


def features(study: Study, question: str) -> Section:
    """Each feature's distribution under the model, by its probability integral transform."""
    num_features = study.x[0].numel()
    chosen: Any = None
    if study.x.dim() == 1:
        chosen = {"x": lambda x: x}
    if num_features > MOST_FEATURES:
        chosen = np.linspace(0, num_features - 1, MOST_FEATURES).round().astype(int).tolist()
    found = pit(
        study.vae, study.x, features=chosen, num_samples=study.size(199, 49), seed=study.seed
    )
    wrong = found["p_value_adjusted"].to_numpy() < LEVEL
    share, count = float(wrong.mean()), len(wrong)
    verdict = grade(share, FEW, MANY)
    if not wrong.any():
        sentence = f"None of {count} features has another distribution than under the model."
    else:
        sentence = (
            f"{int(wrong.sum())} of {count} features are distributed otherwise than under the "
            "model."
        )
    next_step = (
        ""
        if verdict == "good"
        else GRAY
        if study.is_no_density
        else "Look at the histograms of the worst features beside draws from the model: mass at "
        "a bound, skewness or several peaks ask for another likelihood."
    )
    remarks = [f"Computed {study.on_rows()}."]
    if count < num_features:
        remarks.append(f"{count} of {num_features} features, evenly spaced.")
    return Section(
        question,
        verdict,
        sentence,
        [
            Measure(
                f"share of features with an adjusted p-value below {LEVEL:g}",
                share,
                wanted=f"at most {FEW:g}",
            )
        ],
        next_step,
        remarks,
        tables=[_features_table(found, study)],
        pictures=[
            shown(
                pit_differences(found),
                "Distribution of each feature's probability integral transform, less the uniform "
                "one: inside the band the feature is described.",
            )
        ],
    )


def _chosen(x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    low, high = x.min(), x.max()
    chosen: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda x: x.double().mean()}
    if x.numel() > 1:
        chosen["standard deviation"] = lambda x: x.double().std()
    if len(x) >= FEWEST_FOR_MEANS:
        chosen[OF_MEANS] = lambda x: x.double().reshape(len(x), -1).mean(1).std()
    chosen["share at or below the smallest value"] = lambda x: (x <= low).double().mean()
    chosen["share at or above the largest value"] = lambda x: (x >= high).double().mean()
    return chosen


def _p_value(smallest: float, least: float, num_draws: int) -> Measure:
    name, wanted = "smallest p-value, for all statistics together", f"at least {LEVEL:g}"
    if smallest > least * (1 + 1e-9):
        return Measure(name, smallest, wanted=wanted)
    return _AtMost(name, smallest, wanted=f"{wanted}; the least that {num_draws} draws can show")


def _advice(study: Study) -> str:
    if study.is_no_density:
        return GRAY
    return (
        "Look at the likelihood first: values beyond the data's bounds call for one with that "
        "support (beta, continuous_bernoulli, poisson, ...), a wrong spread for a variance per "
        "feature (--variance-per-feature) or of z (--variance-of-z)."
    )


def _deviations(found: xr.Dataset, x: Tensor) -> np.ndarray:
    observed = found["observed"].to_numpy()
    replicated = found["replicated"].mean("simulation").to_numpy()
    spread = (float(x.double().std()) if x.numel() > 1 else 0.0) or 1.0
    scales = {"mean": spread, "standard deviation": spread}
    found_names = [str(name) for name in found["statistic"].values]
    if OF_MEANS in found_names:
        at = found_names.index(OF_MEANS)
        scales[OF_MEANS] = max(abs(float(observed[at])), 1e-12 * spread)
    scale = np.array([scales.get(name, 1.0) for name in found_names])
    deviations: np.ndarray = np.abs(observed - replicated) / scale
    return deviations


def _statistics_table(found: xr.Dataset, adjusted: np.ndarray, least: float) -> Table:
    rows = []
    for index, name in enumerate(found["statistic"].values):
        draws = found["replicated"].isel(statistic=index).to_numpy()
        rows.append(
            [
                str(name),
                f"{float(found['observed'][index]):.4g}",
                with_error(draws.mean(), draws.std(ddof=1)),
                f"{float(found['p_value'][index]):.3f}",
                f"{'≤ ' if adjusted[index] <= least * (1 + 1e-9) else ''}{adjusted[index]:.3f}",
            ]
        )
    columns = ("statistic", "observed", "of drawn data, ± sd", "P(T(drawn) ≥ T)", "adjusted p")
    return Table("Statistics of all values, against data sets drawn from the model", columns, rows)


def _features_table(found: xr.Dataset, study: Study) -> Table:
    columns = getattr(study.vae, "columns", None)
    p_values = found["p_value_adjusted"].to_numpy()
    order = np.argsort(p_values, kind="stable")[:SHOWN]
    rows = []
    for index in order:
        name = found["feature"].values[index]
        shown = str(name)
        if columns is not None and isinstance(name, int | np.integer):
            shown = str(columns[int(name)])
        ranks = found["pit"].isel(feature=index).to_numpy()
        rows.append(
            [
                shown,
                f"{p_values[index]:.2g}",
                f"{(ranks < 0.1).mean():.0%}",
                f"{(np.abs(ranks - 0.5) < 0.05).mean():.0%}",
                f"{(ranks > 0.9).mean():.0%}",
            ]
        )
    head = ("feature", "adjusted p", "in the lowest tenth", "middle tenth", "highest tenth")
    return Table(
        "The features that fit worst; of each, the rows in tenths of its distribution under the "
        "model, 10% if it is right",
        head,
        rows,
    )
