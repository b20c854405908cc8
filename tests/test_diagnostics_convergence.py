import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae

import pyro_vae as pv
from pyro_vae import families
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics.convergence import course as convergence
from pyro_vae.diagnostics.convergence.course import restarts, trend
from pyro_vae.fit_result import FitResult
from pyro_vae.plots.convergence import elbo_trend, restart_differences


def history(values, se=0.1):
    return pd.DataFrame({"epoch": range(1, len(values) + 1), "elbo": values, "elbo_se": se})


def fit_of(values, seed=0, vae=None):
    return FitResult(vae=vae, seed=seed, rows=history(values).to_dict("records"))


def test_slope_and_its_error_are_those_of_repetitions():
    rng = np.random.default_rng(0)
    found = [
        trend(history(3.0 + 0.02 * np.arange(80) + rng.standard_normal(80)), window=80)
        for _ in range(400)
    ]
    slope = np.array([f["slope"].item() for f in found])
    error = np.array([f["slope_se"].item() for f in found])
    # Least squares on means of blocks of 10: variance 0.1 over the sum of squares of the centers.
    exact = math.sqrt(0.1 / (100 * 42))
    assert abs(slope.mean() - 0.02) < MAX_Z * exact / 20
    assert abs(slope.std(ddof=1) / exact - 1) < MAX_Z / math.sqrt(800)
    assert abs(np.square(error).mean() / exact**2 - 1) < MAX_Z * math.sqrt(2 / 6 / 400)
    low, high = (np.array([f[name].item() for f in found]) for name in ("slope_low", "slope_high"))
    covered = ((low < 0.02) & (high > 0.02)).mean()
    assert abs(covered - 0.95) < MAX_Z * math.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize(("memory", "most"), [(0.0, 0.05), (0.5, 0.065), (0.8, 0.125)])
def test_flat_curve_with_memory_is_called_flat_as_often_as_documented(memory, most):
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((130, 600))
    for t in range(1, 130):
        noise[t] += memory * noise[t - 1]
    verdicts = [trend(history(curve), window=80).attrs["verdict"] for curve in noise[50:].T]
    share = np.mean([verdict != "flat" for verdict in verdicts])
    assert share < most + MAX_Z * math.sqrt(most * (1 - most) / 600)
    assert share > most - MAX_Z * math.sqrt(most * (1 - most) / 600)


@pytest.mark.parametrize(("slope", "verdict"), [(0.05, "rising"), (-0.05, "falling")])
def test_verdict_names_the_direction_and_minds_the_tolerance(slope, verdict):
    noise = 0.1 * np.random.default_rng(0).standard_normal(60)
    curve = history(slope * np.arange(60) + noise)
    found = trend(curve)
    assert found.attrs["verdict"] == verdict
    assert found.attrs["window"] == 30
    assert found["epoch"].values.tolist() == list(range(31, 61))
    assert abs(found["gain"].item() - 29 * found["slope"].item()) < 1e-12
    np.testing.assert_allclose(np.diff(found["line"]), found["slope"].item())
    assert trend(curve, tolerance=0.1).attrs["verdict"] == "flat"


def test_trend_of_a_fit_rises_first_and_is_flat_at_the_end():
    data = linear_gaussian(200, features=4, latent_dim=2, variance=0.2, seed=1)
    vae = pv.gaussian_vae(features=4, latent_dim=2, hidden=())
    fit = pv.fit(vae, data.x, epochs=40, learning_rate=0.03, batch_size=100, progress=False)
    assert trend(fit.history[:20], window=10).attrs["verdict"] == "rising"
    assert trend(fit, window=10, tolerance=0.05).attrs["verdict"] == "flat"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: trend(h, window=7), "window must be from 8 to the number of epochs, 20; got 7"),
        (lambda h: trend(h, window=21), "window must be from 8 to the number of epochs, 20"),
        (lambda h: trend(h[:5]), "window must be from 8 to the number of epochs, 5; got 8"),
        (lambda h: trend(h, column="kl"), "history must have the columns epoch, kl; got"),
        (lambda h: trend(h, tolerance=-1.0), "tolerance must be a number not below 0; got -1.0"),
        (lambda h: trend(h.assign(elbo=math.nan)), "elbo must be finite in the last 10 epochs"),
        (lambda h: restarts([fit_of(h["elbo"])]), "fits must be at least two; got 1"),
        (
            lambda h: restarts([FitResult(None, 0, rows=[{"epoch": 1, "elbo": 0.0}])] * 2),
            "history must have the columns epoch, elbo, elbo_se",
        ),
    ],
)
def test_history_that_does_not_fit_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call(history(np.arange(20.0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fit: restarts([1, 2]), "fits must hold what pv.fit returned; got int at '0'"),
        (lambda fit: restarts({"a": fit, "b": fit.history}), "got DataFrame at 'b'"),
        (lambda fit: restarts(fit), "fits must be a sequence or a mapping of fits; got FitResult"),
        (lambda fit: trend({}), "history must be what pv.fit returned, or its history.* got dict"),
    ],
)
def test_what_is_no_fit_raises(call, message):
    with pytest.raises(TypeError, match=message):
        call(fit_of(np.arange(20.0)))


@pytest.mark.parametrize("epochs", [30, 80])
def test_curve_that_saturates_is_said_to_level_off(epochs):
    noise = 0.002 * np.random.default_rng(0).standard_normal(epochs)
    curve = -np.exp(-np.arange(epochs) / (epochs / 6)) + noise
    found = trend(history(curve), window=epochs)
    assert found.attrs["verdict"] == "rising, leveling off"
    blocks = [block.mean() for block in np.array_split(curve, 8)]
    centers = [block.mean() for block in np.array_split(np.arange(epochs), 8)]
    late = (blocks[-1] - blocks[-2]) / (centers[-1] - centers[-2])
    assert abs(found["late_slope"].item() - late) < 1e-12
    axes = elbo_trend(found)
    assert len(axes.get_lines()) == 3
    end = axes.get_lines()[2]
    assert abs(np.diff(end.get_ydata())[0] - found["late_slope"].item()) < 1e-12
    assert "leveling off" in axes.get_title(loc="left")


def test_straight_rise_is_said_to_level_off_no_more_often_than_documented():
    rng = np.random.default_rng(2)
    found = [
        trend(history(0.1 * np.arange(40) + rng.standard_normal(40)), window=40)
        for _ in range(600)
    ]
    share = np.mean([f.attrs["verdict"] == "rising, leveling off" for f in found])
    assert share < 0.025 + MAX_Z * math.sqrt(0.025 * 0.975 / 600)
    exact = trend(history(0.1 * np.arange(40)))
    assert exact.attrs["verdict"] == "rising"


def test_error_of_the_late_slope_is_that_of_repetitions():
    rng = np.random.default_rng(3)
    t = np.arange(80)
    found = [
        trend(history(t - 0.005 * t**2 + rng.standard_normal(80)), window=80) for _ in range(400)
    ]
    error = np.array([f["late_slope_se"].item() for f in found])
    exact = math.sqrt(2 / 10) / 10  # two means of ten, ten epochs apart
    assert abs(np.square(error).mean() / exact**2 - 1) < MAX_Z * math.sqrt(2 / 5 / 400) + 0.02
    spread = np.std([f["late_slope"].item() for f in found], ddof=1)
    assert abs(spread / exact - 1) < MAX_Z / math.sqrt(800)


def test_split_rhat_is_near_1_for_one_law_and_that_of_theory_for_shifted_ones():
    chains = np.random.default_rng(0).standard_normal((4, 4000))
    assert abs(convergence._split_rhat(chains) - 1) < 0.002
    shifted = chains + np.array([0.0, 0.0, 2.0, 2.0])[:, None]
    # Eight half chains with means 0 and 2: variance between them 8 / 7.
    assert abs(convergence._split_rhat(shifted) - math.sqrt(1 + 8 / 7)) < 0.02
    moving = np.stack([np.arange(10.0), np.arange(10.0)])  # halves at 2 and 7, variance 2.5
    expected = math.sqrt(4 / 5 + 25 / 3 / 2.5)
    assert abs(convergence._split_rhat(moving) - expected) < 1e-12
    assert math.isnan(convergence._split_rhat(np.ones((2, 8))))


def test_restarts_are_compared_row_by_row_on_the_data():
    data = linear_gaussian(300, features=4, latent_dim=2, variance=0.2, seed=1)
    truth = data.truth
    exact = linear_vae(truth)
    worse = linear_vae(type(truth)(truth.weight, truth.mean, truth.variance * 2))
    fits = {
        "one": fit_of(np.zeros(12), seed=1, vae=worse),
        "two": fit_of(np.ones(9), seed=2, vae=exact),
        "three": fit_of(np.ones(12), seed=3, vae=exact),
    }
    found = restarts(fits, x=data.x, num_samples=2)
    # At an exact posterior the ELBO is log p(x), without noise.
    other = worse.q_z_given_x.truth.log_prob(data.x)
    difference = (data.log_evidence - other).numpy()
    assert abs(found["difference"].sel(restart="one").item() - difference.mean()) < 1e-10
    error = difference.std(ddof=1) / math.sqrt(300)
    assert abs(found["difference_se"].sel(restart="one").item() - error) < 1e-10
    assert error < 0.5 * found["elbo_se"].sel(restart="one").item()
    assert found["differs"].values.tolist() == [True, False, False]
    assert found["difference"].values[1:].tolist() == [0.0, 0.0]
    assert (found.attrs["verdict"], found.attrs["best"]) == ("differ", "two")
    assert found["fit_seed"].values.tolist() == [1, 2, 3]
    assert found.attrs["window"] == 4
    assert np.isnan(found["curve"].sel(restart="two")).sum() == 3
    agreed = restarts(fits, x=data.x, num_samples=2, tolerance=10.0)
    assert agreed.attrs["verdict"] == "agree"


def test_restarts_without_data_have_the_errors_of_both_histories():
    found = restarts([fit_of(np.full(10, 1.0)), fit_of(np.full(10, 0.7)), fit_of(np.zeros(10))])
    np.testing.assert_allclose(found["difference"], [0.0, 0.3, 1.0])
    np.testing.assert_allclose(found["difference_se"], [0.0, 0.1 * 2**0.5, 0.1 * 2**0.5])
    assert found["differs"].values.tolist() == [False, False, True]
    assert found.attrs["is_paired"] == 0


def test_default_device_does_not_matter_to_restarts():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    fits = [fit_of(np.arange(8.0), vae=vae)] * 2
    with torch.device("meta"):
        assert restarts(fits, x=x)["difference"].values.tolist() == [0.0, 0.0]


def test_pictures_show_the_line_and_the_differences():
    curve = 0.1 * np.arange(40) + np.random.default_rng(0).standard_normal(40)
    found = trend(history(curve))
    axes = elbo_trend(found)
    points, line = axes.get_lines()
    np.testing.assert_array_equal(points.get_ydata(), curve[20:])
    np.testing.assert_array_equal(line.get_ydata(), found["line"])
    compared = restarts({"a": fit_of(curve), "b": fit_of(curve[:30] - 0.5)})
    left, right = restart_differences(compared)
    assert [text.get_text() for text in right.get_yticklabels()] == ["a", "b"]
    assert left.get_title(loc="left").endswith(f": {compared['rhat'].item():.2f}")
    low, high = left.get_ylim()
    assert low < min(curve[25:].min(), curve[15:30].min() - 0.5) < curve[25:].max() < high
    for one in (axes, left):
        one.get_figure().canvas.draw()
