"""Whether training has converged."""

import numpy as np
import xarray as xr

from pyro_vae.diagnostics.convergence.course import trend
from pyro_vae.diagnostics.convergence.gradients import gradient_signal_to_noise
from pyro_vae.html_report import Measure, Picture, Section, Table
from pyro_vae.plots import history as history_picture
from pyro_vae.plots.convergence import elbo_trend, gradient_signal
from pyro_vae.report import with_error

from .study import NATS, Study, shown

__all__ = ["convergence"]

WINDOW = 0.25
"""Share of the epochs, the last ones, whose trend is judged."""

FEWEST_EPOCHS = 8

NOISY = 0.1
"""Signal-to-noise ratio below which a step goes where the noise goes."""


def convergence(study: Study, question: str) -> Section:
    """The trend of the ELBO over the last epochs, and the gradient that is left."""
    history = study.history
    if history is None or len(history) < FEWEST_EPOCHS:
        epochs = 0 if history is None else len(history)
        return Section(
            question,
            "does not apply",
            f"A trend needs a history of at least {FEWEST_EPOCHS} epochs; there are {epochs}.",
        )
    window = max(FEWEST_EPOCHS, round(WINDOW * len(history)))
    training = trend(history, window=window)
    slope, error = float(training["slope"]), float(training["slope_se"])
    said, spread = training.attrs["verdict"], float(history["elbo_se"].iloc[-1])
    measures = [_gain(training, window, spread), Measure("slope", slope, error, "nats per epoch")]
    gain = measures[0].value
    verdict, next_step = "good", ""
    sentence = f"The ELBO of the training rows is {said}."
    if said.startswith("rising"):
        if gain > spread:
            verdict = "doubtful"
            next_step = "Train longer: more epochs, or resume the fit."
        elif said == "rising":
            sentence = "The ELBO still rises, by less than its error over data."
        else:
            sentence += " As many epochs more would gain less than its error over data."
    elif said == "falling":
        verdict = "bad"
        next_step = (
            "A smaller learning rate, or --clip-norm: the steps lead away from the optimum."
        )
    new = _on_new_rows(study, window)
    if new is not None:
        lost = float(history["validation_elbo"].max() - history["validation_elbo"].iloc[-1])
        measures.append(Measure("validation ELBO below its best epoch", lost, unit=NATS))
        if new.attrs["verdict"] == "falling":
            verdict = "doubtful" if verdict == "good" else verdict
            sentence += " On validation rows it falls: the fit learns its rows by heart."
            next_step = "Stop earlier (--patience), or take smaller networks."
    gradients = gradient_signal_to_noise(
        study.vae, study.codes, num_draws=study.size(100, 20), seed=study.seed
    )
    ratio = float(gradients["snr"].median())
    measures.append(
        Measure(
            "median signal-to-noise ratio of a step's gradient",
            ratio,
            wanted=f"below {NOISY:g} where steps have nothing left to learn",
        )
    )
    return Section(
        question,
        verdict,
        sentence,
        measures,
        next_step,
        [f"The gradient is computed {study.on_codes()}."],
        tables=[_table(gradients)],
        pictures=[
            Picture(
                "The ELBO and its terms over the epochs, with two standard errors.",
                history_picture(history),
            ),
            shown(elbo_trend(training), "The last epochs, and the line that is fitted to them."),
            shown(
                gradient_signal(gradients),
                "Signal over noise in a step's gradient of each parameter tensor.",
            ),
        ],
    )


def _gain(training: xr.Dataset, window: int, spread: float) -> Measure:
    """What decides: the gain of the window, or what its last pace would bring in another one."""
    said, steps = training.attrs["verdict"], window - 1
    wanted = f"at most {spread:.2g}, the error of the ELBO over data"
    if said == "rising, leveling off":
        pace, error = float(training["late_slope"]), float(training["late_slope_se"])
        name = f"ELBO that {window} epochs more would gain at the last pace"
        return Measure(name, pace * steps, error * steps, NATS, wanted)
    wanted = {"flat": "0, which it is up to its error", "falling": "not below 0"}.get(said, wanted)
    name = f"ELBO gained over the last {window} epochs"
    error = float(training["slope_se"]) * steps
    return Measure(name, float(training["gain"]), error, NATS, wanted)


def _on_new_rows(study: Study, window: int) -> xr.Dataset | None:
    history = study.history
    if history is None or "validation_elbo" not in history:
        return None
    return trend(history, column="validation_elbo", window=window)


def _table(gradients: xr.Dataset, most: int = 12) -> Table:
    order = np.argsort(-gradients["size"].to_numpy(), kind="stable")[:most]
    rows = [
        [
            str(gradients["parameter"].values[index]),
            f"{int(gradients['size'][index])}",
            with_error(float(gradients["snr"][index]), float(gradients["snr_mcse"][index])),
        ]
        for index in order
    ]
    return Table(
        f"Gradient of a step of {gradients.attrs['batch_size']} rows: signal over noise",
        ("parameter", "size", "ratio"),
        rows,
    )
