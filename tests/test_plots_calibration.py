"""What the pictures of calibration and of the reference posterior draw, read back from them."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pyro_vae.arviz_container import container
from pyro_vae.plots.calibration import coverage, rank_ecdf
from pyro_vae.plots.convergence import elbo_trend, gradient_signal, restart_differences
from pyro_vae.plots.gaps import gap_bars, gaps_per_datum
from pyro_vae.plots.ledgers import ledger
from pyro_vae.plots.reference import posterior_pairs
from pyro_vae.plots.regularity import prior_draws, regularities, speeds

RNG = np.random.default_rng(0)


def a_calibration(num_latents=2, num_draws=9, num_simulations=40):
    points = np.arange(1, num_draws + 1) / (num_draws + 1)
    levels = np.array([0.5, 0.9])
    shape = (num_latents, len(levels))
    return xr.Dataset(
        {
            "ranks": (
                ("simulation", "latent"),
                RNG.integers(0, num_draws + 1, (num_simulations, num_latents)),
            ),
            "rank_log_joint": ("simulation", np.full(num_simulations, num_draws)),
            "coverage": (("latent", "level"), np.tile([0.3, 0.7], (num_latents, 1))),
            "coverage_mcse": (("latent", "level"), np.full(shape, 0.05)),
            "band_low": ("rank", points - 0.1),
            "band_high": ("rank", points + 0.1),
        },
        coords={"level": levels},
        attrs={"num_draws": num_draws, "verdict": "not calibrated", "verdict_significance": 0.01},
    )


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_curves_are_shares_below_less_what_is_expected():
    calibration = a_calibration()
    ax = rank_ecdf(calibration)
    ranks = calibration["ranks"].to_numpy()
    expected = [np.mean(ranks[:, 1] < i) - i / 10 for i in range(1, 10)]
    np.testing.assert_allclose(lines(ax)["$z_{2}$"].get_ydata(), expected)
    # All ranks of the joint density are the largest: none is below any point.
    np.testing.assert_allclose(
        lines(ax)[r"$\log\,p(x, z)$"].get_ydata(), [-i / 10 for i in range(1, 10)]
    )
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [-0.1, 0.1])
    assert "not calibrated" in ax.get_title(loc="left")
    assert "99%" in ax.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize("picture", [rank_ecdf, coverage])
def test_many_dimensions_share_one_entry_of_the_legend(picture):
    texts = [text.get_text() for text in picture(a_calibration(20)).get_legend().get_texts()]
    assert sum("$z_" in text for text in texts) == 1
    assert any("z_{20}" in text for text in texts)


@pytest.mark.parametrize("picture", [rank_ecdf, coverage])
def test_pictures_go_into_axes_that_are_given(picture):
    ax = picture(a_calibration())
    assert picture(a_calibration(), ax=ax) is ax


def test_coverage_is_drawn_with_two_standard_errors():
    ax = coverage(a_calibration())
    bars = [c.get_segments()[0][:, 1] for c in ax.containers[0].lines[2]]
    np.testing.assert_allclose(bars[0], [0.2, 0.4])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["50", "90"]
    low, high = ax.get_ylim()
    assert low < 0.2
    assert high > 0.8


def test_pairs_show_every_pair_once():
    nuts, guide = RNG.normal(size=(4, 50, 3)), RNG.normal(size=(4000, 3))
    axes = posterior_pairs(nuts, guide)
    assert len(axes) == 6
    points = axes[1].collections[0].get_offsets()  # z_2 over z_1
    assert {tuple(p) for p in np.asarray(points)} == {
        tuple(p) for p in nuts[..., :2].reshape(-1, 2)
    }
    assert axes[3].get_xlabel() == "$z_{1}$"
    assert axes[3].get_ylabel() == "$z_{3}$"
    assert len(posterior_pairs(nuts, guide, latents=[2, 0])) == 3


def test_contours_hold_the_share_of_the_guide_that_they_say():
    guide = RNG.normal(size=(20_000, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
    axes = posterior_pairs(RNG.normal(size=(2, 50, 2)), guide)
    contours = next(c for c in axes[1].collections if hasattr(c, "levels"))
    inside = [
        np.mean(path.contains_points(guide)) for path in contours.get_paths() if len(path.vertices)
    ]
    np.testing.assert_allclose(inside, [0.9, 0.5], atol=0.03)  # outermost first


def test_margins_integrate_to_one():
    axes = posterior_pairs(RNG.normal(size=(2, 500, 1)), 3 + RNG.normal(size=(4000, 1)))
    x, y = axes[0].get_lines()[0].get_data()
    assert abs(np.sum(y) * (x[1] - x[0]) - 1) < 0.02
    assert abs(np.sum(x * y) / np.sum(y) - 3) < 0.1


@pytest.mark.parametrize(
    ("nuts", "guide", "options", "message"),
    [
        ((4, 5, 2, 1), (9, 2), {}, r"nuts must have shape \(chain, draw, latent\)"),
        ((4, 5, 2), (9, 3), {}, "with as many dimensions"),
        ((4, 5, 2), (9, 2), {"latents": [2]}, "latents must be from 0 to 1; got 2"),
    ],
)
def test_shapes_that_do_not_fit_raise(nuts, guide, options, message):
    with pytest.raises(ValueError, match=message):
        posterior_pairs(RNG.normal(size=nuts), RNG.normal(size=guide), **options)


def a_reference(draws):
    posterior = xr.Dataset(
        {"z": (("chain", "draw", "obs_id", "latent"), draws)},
        coords={"obs_id": np.arange(draws.shape[2])},
    )
    return container({"posterior": posterior}, attrs={})


def of_guide(draws):
    return xr.DataArray(draws, dims=("draw", "obs_id", "latent"))


def drawn(axes):
    return np.asarray(axes[1].collections[0].get_offsets())


def test_pairs_take_what_the_diagnostics_return_and_pick_the_datum():
    nuts, guide = RNG.normal(size=(2, 30, 3, 2)), RNG.normal(size=(200, 3, 2))
    expected = posterior_pairs(nuts[:, :, 1], guide[:, 1])
    as_dataset = of_guide(guide).to_dataset(name="z")
    tree = xr.DataTree.from_dict({"posterior": a_reference(nuts)["posterior"]})
    for reference in (a_reference(nuts), tree):
        for q in (of_guide(guide), as_dataset, guide[:, 1]):
            found = posterior_pairs(reference, q, obs_id=1)
            np.testing.assert_array_equal(drawn(found), drawn(expected))
            np.testing.assert_array_equal(
                found[0].get_lines()[0].get_ydata(), expected[0].get_lines()[0].get_ydata()
            )
    alone = posterior_pairs(a_reference(nuts[:, :, 1:2]), of_guide(guide[:, 1:2]))
    np.testing.assert_array_equal(drawn(alone), drawn(expected))


def test_pairs_need_to_know_the_datum():
    nuts, guide = a_reference(RNG.normal(size=(2, 9, 3, 2))), of_guide(RNG.normal(size=(9, 3, 2)))
    with pytest.raises(ValueError, match="obs_id must say which of 3 data in nuts is drawn"):
        posterior_pairs(nuts, guide)
    with pytest.raises(ValueError, match=r"obs_id must be one of \[0, 1, 2\]; got 3"):
        posterior_pairs(nuts, guide, obs_id=3)
    for wrong in ({}, xr.Dataset(), "nuts"):
        with pytest.raises(TypeError, match=r"nuts must be what diagnostics\.posterior_nuts"):
            posterior_pairs(wrong, guide, obs_id=0)
    with pytest.raises(TypeError, match=r"guide must be what diagnostics\.guide_draws"):
        posterior_pairs(nuts, {}, obs_id=0)


@pytest.mark.parametrize(
    ("picture", "name", "source"),
    [
        (gap_bars, "gaps", "inference_gaps"),
        (gaps_per_datum, "gaps", "inference_gaps"),
        (ledger, "summary", "elbo_summary"),
        (prior_draws, "found", "regularity"),
        (elbo_trend, "found", "trend"),
        (restart_differences, "found", "restarts"),
        (gradient_signal, "found", "gradient_signal_to_noise"),
        (rank_ecdf, "calibration", "sbc"),
        (coverage, "calibration", "sbc"),
    ],
)
def test_pictures_say_whose_result_they_draw(picture, name, source):
    message = rf"{name} must be what diagnostics\.{source} returned"
    with pytest.raises(TypeError, match=rf"{message}.*; got dict"):
        picture({})
    other = pd.DataFrame({"a": [1]}) if picture is ledger else xr.Dataset({"a": 1})
    with pytest.raises(ValueError, match=rf"{message}; got a (Dataset|table) without "):
        picture(other)


def test_ledger_says_how_to_make_a_summary_of_terms():
    with pytest.raises(TypeError, match=r"got Dataset\. elbo_summary takes what elbo_terms"):
        ledger(xr.Dataset({"elbo": ("obs_id", [1.0])}))


@pytest.mark.parametrize("picture", [speeds, regularities])
def test_pictures_of_several_models_say_what_they_take(picture):
    with pytest.raises(TypeError, match="found must be a mapping from the name of each model"):
        picture(xr.Dataset())
    with pytest.raises(ValueError, match="found must have at least one model"):
        picture({})
    with pytest.raises(ValueError, match=r"found\['a'\] must be what diagnostics.regularity"):
        picture({"a": xr.Dataset()})
