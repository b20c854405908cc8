"""What is drawn, read back from the figures."""

import itertools
import re
import subprocess
import sys
from statistics import NormalDist

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.text import Text
from matplotlib.transforms import Affine2D

import pyro_vae as pv
from pyro_vae import plots

RNG = np.random.default_rng(0)
LONG = "od280/od315_of_diluted_wines"


def a_history(num_epochs=60, *, early=0, drop=300.0, validation=True, se=0.2):
    """An ELBO that rises from 0 to 10, whose first ``early`` epochs lie ``drop`` nats lower."""
    epoch = np.arange(1, num_epochs + 1)
    kl = 4.0 + 0.01 * epoch
    elbo = 10 - 10 * np.exp(-epoch / 15) - drop * (epoch <= early)
    table = pd.DataFrame({"epoch": epoch})
    for prefix, shift in (("", 0.0), ("validation_", -0.5))[: 2 if validation else 1]:
        table[f"{prefix}elbo"] = elbo + shift
        table[f"{prefix}expected_log_likelihood"] = elbo + shift + kl + shift
        table[f"{prefix}kl"] = kl + shift
        table[f"{prefix}elbo_se"] = se
    return table


def gaussians(num_data=40, k=2, seed=0):
    """Means and full covariances."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(num_data, k, k))
    return rng.normal(size=(num_data, k)), 0.1 * root @ root.swapaxes(1, 2) + 0.01 * np.eye(k)


def linear(z):
    """A decoder of four features that tells z_1 from z_2."""
    return torch.stack([z[:, 0], z[:, 1], z[:, 0] + 10 * z[:, 1], torch.ones_like(z[:, 0])], 1)


def images(num, *shape):
    return np.random.default_rng(1).uniform(size=(num, *shape))


def shown(axes):
    """The array of a picture."""
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def texts_drawn(figure):
    """Each text that reaches the canvas, with its box in pixels."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # settles the layout
    found = []
    original = Text.draw

    def record(self, renderer, *args, **kwargs):
        original(self, renderer, *args, **kwargs)
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_window_extent(renderer)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        figure.draw_without_rendering()
    return found


# The look of all figures


def gallery():
    means, covariances = gaussians(100)
    names = {i: f"a rather long category {i}" for i in range(20)}
    table = RNG.normal(size=(50, 13))
    wide = [f"{LONG}_{i}" for i in range(13)]
    x = images(70, 8, 8)
    references = {"probabilistic PCA, exact log p(x)": -8.9, "IWAE bound": 9.1, "another": 9.2}
    weight = torch.tensor(RNG.normal(size=(2, 64)), dtype=torch.float32)

    def decode(z):
        return z @ weight

    return {
        "history": lambda: plots.history(a_history(early=5)),
        "history, references": lambda: plots.history(a_history(), reference=references),
        "history, one epoch": lambda: plots.history(a_history(1, validation=False)),
        "reconstructions": lambda: plots.reconstructions(x, x, image_shape=(8, 8)),
        "reconstructions, one": lambda: plots.reconstructions(x[:1], x[:1], image_shape=(8, 8)),
        "reconstructions, wide": lambda: plots.reconstructions(
            x, x, image_shape=(4, 16), max_shown=40
        ),
        "reconstructions, table": lambda: plots.reconstructions(table, table, columns=wide),
        "reconstructions, incomes": lambda: plots.reconstructions(
            1e5 * table[:, :4] + 3e5, 1e5 * table[:, :4]
        ),
        "samples": lambda: plots.samples(x, image_shape=(8, 8)),
        "samples, data": lambda: plots.samples(x, image_shape=(8, 8), data=x[:9]),
        "samples, table": lambda: plots.samples(table, data=table + 1, columns=wide),
        "samples, one column": lambda: plots.samples(table[:, :1], data=table[:, :1]),
        "latent": lambda: plots.latent(means, covariances),
        "latent, 20 labels": lambda: plots.latent(
            means * [5, 0.1], covariances, np.arange(100) % 20, label_names=names
        ),
        "latent, color bar": lambda: plots.latent(means, covariances, means[:, 0]),
        "latent, tall": lambda: plots.latent(means * [0.1, 9], covariances, means[:, 0] > 0),
        "latent, one dimension": lambda: plots.latent(
            means, covariances, np.arange(100) % 10, dims=[1]
        ),
        "plane": lambda: plots.plane(decode, image_shape=(8, 8)),
        "plane, flat images": lambda: plots.plane(decode, image_shape=(4, 16), size=20),
        "plane, tall images": lambda: plots.plane(decode, image_shape=(16, 4), size=22),
        "plane, table": lambda: plots.plane(decode),
        "plane, one column": lambda: plots.plane(lambda z: 1e3 * z[:, :1], columns=[LONG]),
    }


GALLERY = gallery()


@pytest.mark.parametrize("name", GALLERY)
def test_texts_lie_inside_the_figure_and_apart(name, caplog):
    figure = GALLERY[name]()
    texts = texts_drawn(figure)
    assert texts
    assert not caplog.records  # matplotlib warns of limits and glyphs there
    width, height = figure.bbox.size
    for text, box in texts:
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1
        assert inside, f"{text!r} at {box.extents} in {width} x {height}"
    for (text, a), (other, b) in itertools.combinations(texts, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{text!r} lies upon {other!r}"


def test_figures_leave_pyplot_and_the_settings_alone():
    code = (
        "import sys, matplotlib, numpy as np\n"
        "names = set(matplotlib.rcParams) - {'backend'}\n"  # reading that imports pyplot
        "before = [matplotlib.rcParams[name] for name in names]\n"
        "from pyro_vae import plots\n"
        "plots.samples(np.eye(3)); plots.latent(np.eye(3), np.ones((3, 3)))\n"
        "plots.plane(lambda z: z, size=2)\n"
        "assert [matplotlib.rcParams[name] for name in names] == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_made_on_the_default_device():
    means, covariances = (torch.tensor(values) for values in gaussians())
    x = torch.tensor(images(5, 64))
    with torch.device("meta"):
        plots.history(a_history())
        plots.reconstructions(x, x, image_shape=(8, 8))
        plots.reconstructions(x, x)
        plots.samples(x, image_shape=(8, 8))
        plots.samples(x, data=x)
        plots.latent(means, covariances, torch.zeros(40, dtype=torch.int64, device="cpu"))
        plots.latent(means, covariances, dims=[0])
        plots.plane(linear, image_shape=(2, 2))
        plots.plane(linear, reference=x)


def test_tensors_with_gradients_and_of_any_type_are_drawn_as_their_values():
    x = torch.tensor([[0.0, 0.5, 1.0, 0.25]], requires_grad=True)
    for given in (x, x.bfloat16(), x.detach().numpy(), pd.DataFrame(x.detach().numpy())):
        figure = plots.samples(given, image_shape=(2, 2))
        np.testing.assert_array_equal(shown(figure.axes[0]), [[0, 0.5], [1, 0.25]])


# history


def test_history_draws_training_solid_and_validation_dashed():
    table = a_history()
    figure = plots.history(table)
    assert [axes.get_ylabel() for axes in figure.axes] == ["nats per datum"] * 3
    for axes, term in zip(figure.axes, ("elbo", "expected_log_likelihood", "kl"), strict=True):
        training, validation = axes.get_lines()
        assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")
        assert training.get_color() != validation.get_color()
        for line, prefix in ((training, ""), (validation, "validation_")):
            np.testing.assert_array_equal(line.get_xdata(), table["epoch"])
            np.testing.assert_array_equal(line.get_ydata(), table[f"{prefix}{term}"])
    assert legend_texts(figure) == ["training", "validation", "± 2 standard errors"]


def test_history_panels_share_the_epoch_axis():
    elbo, *others = plots.history(a_history()).axes
    assert all(elbo.get_shared_x_axes().joined(elbo, other) for other in others)
    assert [axes.get_xlabel() for axes in (elbo, *others)] == ["epoch", "", "epoch"]
    assert not others[0].xaxis.get_tick_params()["labelbottom"]  # the KL's stand below


def test_history_without_validation_or_errors_draws_one_line_a_panel():
    table = a_history(validation=False).drop(columns="elbo_se")
    figure = plots.history(table)
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 1, 1]
    assert legend_texts(figure) == ["training"]
    assert not figure.axes[0].collections


def test_history_band_is_two_standard_errors_wide():
    table = a_history(se=0.3)
    bands = plots.history(table).axes[0].collections
    assert len(bands) == 2
    for band, prefix in zip(bands, ("", "validation_"), strict=True):
        vertices = band.get_paths()[0].vertices
        for epoch, elbo in zip(table["epoch"], table[f"{prefix}elbo"], strict=True):
            at_epoch = vertices[vertices[:, 0] == epoch, 1]
            assert at_epoch.min() == pytest.approx(elbo - 0.6)
            assert at_epoch.max() == pytest.approx(elbo + 0.6)


@pytest.mark.parametrize("value", [-3.0, 9.5, 40.0])
def test_history_reference_is_a_dashed_line_in_view_with_its_label(value):
    figure = plots.history(a_history(early=5), reference={"PCA, costs $ and $": value})
    axes = figure.axes[0]
    (line,) = [line for line in axes.get_lines() if line.get_label().startswith("PCA")]
    assert line.is_dashed()
    assert set(line.get_ydata()) == {value}
    low, high = axes.get_ylim()
    assert low < value < high
    text = legend_texts(figure)[-1]
    assert text == rf"PCA, costs \$ and \$: {value:.2f}".replace("-", "−")


def test_history_references_differ_in_color():
    figure = plots.history(a_history(), reference={"a": 1.0, "b": 2.0, "c": 3.0})
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 5


@pytest.mark.parametrize("early", [1, 3, 6])
def test_history_is_made_for_the_last_epochs_and_names_those_out_of_view(early):
    table = a_history(60, early=early)
    for axes, term in zip(
        plots.history(table).axes[:2], ("elbo", "expected_log_likelihood"), strict=True
    ):
        low, high = axes.get_ylim()
        late = table[[term, f"validation_{term}"]][6:].to_numpy()
        assert low < late.min() < late.max() < high
        assert np.ptp(late) > 0.3 * (high - low)
        note = f"epochs 1–{early} out of view" if early > 1 else "epoch 1 out of view"
        assert axes.get_title(loc="right") == note


def test_history_shows_all_epochs_if_the_first_are_near():
    table = a_history()
    figure = plots.history(table)
    low, high = figure.axes[0].get_ylim()
    assert low < table["validation_elbo"].min() < table["elbo"].max() < high
    assert all(axes.get_title(loc="right") == "" for axes in figure.axes)


def test_history_last_band_is_in_view_unless_it_hides_the_curves():
    last = a_history()["elbo"].iloc[-1]
    assert plots.history(a_history(se=0.5)).axes[0].get_ylim()[1] > last + 1
    low, high = plots.history(a_history(se=500.0)).axes[0].get_ylim()
    assert high - low < 20


def test_history_axis_of_the_kl_begins_at_zero():
    assert plots.history(a_history()).axes[2].get_ylim()[0] == 0


def test_history_survives_epochs_that_are_not_finite():
    table = a_history()
    table.loc[30:, table.columns[1:]] = np.nan
    low, high = plots.history(table).axes[0].get_ylim()
    assert low < table["validation_elbo"].min() < table["elbo"].max() < high < 10
    table.loc[:, table.columns[1:]] = np.nan
    FigureCanvasAgg(plots.history(table)).draw()


def test_history_draws_what_fit_returns():
    x = torch.randn(40, 3)
    vae = pv.gaussian_vae(features=3, latent_dim=1, hidden=())
    fit = pv.fit(vae, x, validation=x[:10], epochs=3, progress=False)
    figure = plots.history(fit.history)
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 2, 2]
    assert len(figure.axes[0].collections) == 2


# reconstructions


def test_reconstructions_put_each_image_above_its_own():
    x, y = images(4, 3, 5), images(4, 3, 5) / 2
    figure = plots.reconstructions(x, y, image_shape=(3, 5), max_shown=3)
    (axes,) = figure.axes
    canvas = shown(axes)
    assert canvas.shape == (2 * 3 + 1, 3 * 5 + 2)
    for i in range(3):
        columns = slice(i * 6, i * 6 + 5)
        np.testing.assert_array_equal(canvas[:3, columns], x[i])
        np.testing.assert_array_equal(canvas[4:, columns], y[i])
    assert np.isnan(canvas[3]).all()
    labels = dict(
        zip(axes.get_yticks(), (t.get_text() for t in axes.get_yticklabels()), strict=True)
    )
    assert labels == {1: "held-out $x$", 5: "reconstruction"}


def test_reconstructions_share_the_gray_scale_of_the_data():
    x = np.array([[0.0, 16.0, 4.0, 8.0]])
    figure = plots.reconstructions(x, 2 * x - 5, image_shape=(1, 2, 2))
    image = figure.axes[0].images[0]
    assert image.get_clim() == (0, 16)
    assert image.get_cmap().name == "gray"
    assert figure.axes[0].get_xlabel() == "black: $x$ ≤ 0, white: $x$ ≥ 16"


def test_reconstructions_of_constant_images_are_drawn():
    x = np.ones((2, 4))
    FigureCanvasAgg(plots.reconstructions(x, x, image_shape=(2, 2))).draw()
    FigureCanvasAgg(plots.reconstructions(x, x)).draw()


def test_color_images_keep_their_channels():
    x, y = images(2, 3, 4, 5), images(2, 3, 4, 5)[::-1]
    canvas = shown(plots.reconstructions(x, y, image_shape=(3, 4, 5)).axes[0])
    assert canvas.shape == (2 * 4 + 1, 2 * 5 + 1, 4)
    np.testing.assert_array_equal(canvas[:4, :5, :3], np.moveaxis(x[0], 0, -1))
    np.testing.assert_array_equal(canvas[5:, 6:, :3], np.moveaxis(y[1], 0, -1))
    assert (canvas[:4, :5, 3] == 1).all()  # opaque
    assert (canvas[4, :, 3] == 0).all()  # the gap


def test_color_images_beyond_the_data_are_cut_at_their_range():
    x = np.linspace(-1, 1, 12).reshape(1, 12)
    canvas = shown(plots.reconstructions(x, 3 * x, image_shape=(3, 2, 2)).axes[0])
    np.testing.assert_allclose(
        canvas[:2, :2, :3], np.moveaxis((x.reshape(3, 2, 2) + 1) / 2, 0, -1)
    )
    assert canvas.min() == 0
    assert canvas.max() == 1


def test_reconstructions_of_a_table_are_points_about_the_diagonal():
    x, y = RNG.normal(size=(30, 3)), RNG.normal(size=(30, 3))
    figure = plots.reconstructions(x, y, columns=["a", "b", "costs $ per $"])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", r"costs \$ per \$"]
    for index, axes in enumerate(figure.axes):
        points = axes.collections[0].get_offsets()
        np.testing.assert_array_equal(points, np.stack([x[:, index], y[:, index]], 1))
        assert axes.get_xlim() == axes.get_ylim()
        (diagonal,) = axes.get_lines()
        np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert figure.get_supxlabel() == "held-out $x$"
    assert figure.get_supylabel() == "reconstruction"


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: plots.reconstructions(x, x),
        lambda x: plots.samples(x),
        lambda x: plots.plane(lambda z: z.new_ones(len(z), x.shape[1]), size=2),
    ],
    ids=["reconstructions", "samples", "plane"],
)
def test_at_most_twelve_features_are_drawn_and_the_rest_is_owned_up_to(draw):
    figure = draw(RNG.normal(size=(5, 30)))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"$x_{{{i}}}$" for i in range(1, 13)]
    assert "first 12 of 30 features" in figure.get_suptitle()
    assert "first" not in draw(RNG.normal(size=(5, 12))).get_suptitle()


def test_long_names_are_broken_behind_a_separator():
    titles = [axes.get_title() for axes in plots.samples(np.eye(2), columns=[LONG, "x" * 60]).axes]
    assert titles[0] == "od280/od315_of_diluted_\nwines"
    assert titles[1] == "x" * 25 + "…"


# samples


def test_samples_are_tiled_row_by_row():
    x = images(7, 2, 3)
    figure = plots.samples(x, image_shape=(2, 3), max_shown=5)
    canvas = shown(figure.axes[0])
    assert canvas.shape == (2 * 2 + 1, 3 * 3 + 2)
    for i in range(5):
        top, left = 3 * (i // 3), 4 * (i % 3)
        np.testing.assert_array_equal(canvas[top : top + 2, left : left + 3], x[i])
    assert np.isnan(canvas[3:, 8:]).all()  # no sixth draw


def test_samples_stand_beside_data_on_the_scale_of_the_data():
    draws, data = 5 * images(4, 2, 2), images(4, 2, 2)
    figure = plots.samples(draws, image_shape=(2, 2), data=data)
    assert [axes.get_title() for axes in figure.axes] == ["draws", "data"]
    for axes, x in zip(figure.axes, (draws, data), strict=True):
        np.testing.assert_array_equal(shown(axes)[:2, :2], x[0])
        assert axes.images[0].get_clim() == (data.min(), data.max())


def test_samples_say_what_they_are():
    x, what = images(4, 3, 3), "means of $p(x|z)$"
    figure = plots.samples(x, image_shape=(3, 3), title=what, data=x)
    assert [axes.get_title() for axes in figure.axes] == [what, "data"]
    assert legend_texts(plots.samples(x, title=what, data=x)) == ["data", what]


def test_a_wild_pixel_does_not_darken_the_samples():
    draws = images(64, 8, 8)
    draws[3, 4, 4] = 1e6
    low, high = plots.samples(draws, image_shape=(8, 8)).axes[0].images[0].get_clim()
    assert 0 <= low < high <= 1


def test_histograms_are_densities_in_common_bins():
    draws, data = RNG.normal(size=(500, 2)), RNG.normal(size=(200, 2)) + 3
    figure = plots.samples(draws, data=data, columns=["a", "b"])
    assert legend_texts(figure) == ["data", "draws"]
    assert figure.get_supylabel() == "density"
    for index, axes in enumerate(figure.axes):
        of_data, of_draws = (patch.get_data() for patch in axes.patches)
        np.testing.assert_array_equal(of_data.edges, of_draws.edges)
        for drawn, x in ((of_data, data), (of_draws, draws)):
            counts, _ = np.histogram(x[:, index], drawn.edges)
            assert counts.sum() == len(x)
            np.testing.assert_allclose(
                drawn.values, counts / len(x) / np.diff(drawn.edges), rtol=1e-12
            )


def test_histogram_of_counts_has_a_bin_for_each():
    axes = plots.samples(np.array([[0], [1], [1], [3]])).axes[0]
    drawn = axes.patches[0].get_data()
    np.testing.assert_array_equal(drawn.edges, [-0.5, 0.5, 1.5, 2.5, 3.5])
    np.testing.assert_array_equal(drawn.values, [0.25, 0.5, 0, 0.25])


# latent


def ellipses_of(figure):
    return figure.axes[0].collections[0]


def test_ellipses_are_the_contours_at_one_standard_deviation():
    means, covariances = gaussians()
    drawn = ellipses_of(plots.latent(means, covariances))
    np.testing.assert_array_equal(drawn.get_offsets(), means)
    eigenvalues = np.linalg.eigvalsh(covariances)
    np.testing.assert_allclose(drawn.get_widths(), 2 * np.sqrt(eigenvalues[:, 1]))
    np.testing.assert_allclose(drawn.get_heights(), 2 * np.sqrt(eigenvalues[:, 0]))
    for covariance, angle in zip(covariances, np.deg2rad(drawn.get_angles()), strict=True):
        values, vectors = np.linalg.eigh(covariance)
        along = np.array([np.cos(angle), np.sin(angle)])
        assert abs(along @ vectors[:, 1]) == pytest.approx(1)
        assert along @ covariance @ along == pytest.approx(values[1])


def test_ellipses_reach_the_marginal_standard_deviations_on_the_canvas():
    # An ellipse at 1 s.d. spans exactly the mean +- sqrt(Sigma_ii) in each direction.
    means, covariances = gaussians(3)
    figure = plots.latent(means, covariances)
    FigureCanvasAgg(figure).draw()
    axes, drawn = figure.axes[0], ellipses_of(figure)
    angle = np.linspace(0, 2 * np.pi, 3601)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    for mean, covariance, matrix in zip(means, covariances, drawn.get_transforms(), strict=True):
        pixels = (Affine2D(matrix) + drawn.get_transform()).transform(circle)
        points = axes.transData.inverted().transform(pixels + axes.transData.transform(mean))
        reach = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(points.min(0), mean - reach, atol=1e-5)
        np.testing.assert_allclose(points.max(0), mean + reach, atol=1e-5)


def test_variances_are_diagonal_covariances():
    means, covariances = gaussians()
    variances = np.diagonal(covariances, axis1=1, axis2=2)
    one = ellipses_of(plots.latent(means, variances))
    other = ellipses_of(plots.latent(means, variances[:, :, None] * np.eye(2)))
    np.testing.assert_array_equal(one.get_widths(), other.get_widths())
    np.testing.assert_allclose(one.get_widths(), 2 * np.sqrt(variances.max(1)))


def test_semidefinite_covariances_are_drawn():
    drawn = ellipses_of(plots.latent(np.zeros((1, 2)), np.array([[[1.0, 1.0], [1.0, 1.0]]])))
    assert drawn.get_heights()[0] == pytest.approx(0, abs=1e-6)
    assert drawn.get_widths()[0] == pytest.approx(2 * np.sqrt(2))


def test_ellipses_are_of_an_evenly_spaced_part_of_the_data():
    means, covariances = gaussians(101)
    figure = plots.latent(means, covariances, max_ellipses=5)
    np.testing.assert_array_equal(ellipses_of(figure).get_offsets(), means[[0, 25, 50, 75, 100]])
    np.testing.assert_array_equal(figure.axes[0].collections[1].get_offsets(), means)
    assert "5 of 101 data" in legend_texts(figure)[0]
    assert "1 standard deviation" in figure.axes[0].get_title()
    without = plots.latent(means, covariances, max_ellipses=0)
    assert "ellipses" not in without.axes[0].get_title()
    assert legend_texts(without) == ["prior N(0, I),\n1 and 2 s.d."]


def test_prior_is_two_dotted_circles_in_view_on_equal_axes():
    figure = plots.latent(*gaussians())
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert [(circle.center, circle.radius) for circle in circles] == [((0, 0), 1), ((0, 0), 2)]
    assert all(circle.get_linestyle() == ":" for circle in circles)
    assert axes.get_aspect() == 1
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < -2 < 2 < high


def test_means_and_ellipses_are_in_view():
    means, covariances = gaussians(20)
    figure = plots.latent(means + [7, -9], covariances)
    FigureCanvasAgg(figure).draw()
    reach = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    for index, (low, high) in enumerate((figure.axes[0].get_xlim(), figure.axes[0].get_ylim())):
        assert low < (means + [7, -9] - reach)[:, index].min()
        assert (means + [7, -9] + reach)[:, index].max() < high


def test_of_many_dimensions_the_two_that_vary_most_are_shown():
    means, covariances = gaussians(k=5)
    means = means * [1, 5, 0.1, 9, 2]
    figure = plots.latent(means, covariances)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_{4}$", "$z_{2}$")
    np.testing.assert_array_equal(axes.collections[1].get_offsets(), means[:, [3, 1]])
    marginal = covariances[:, [3, 1]][:, :, [3, 1]]
    np.testing.assert_allclose(
        ellipses_of(figure).get_widths(), 2 * np.sqrt(np.linalg.eigvalsh(marginal)[:, 1])
    )


def test_dims_choose_and_order_the_dimensions():
    means, covariances = gaussians(k=5)
    axes = plots.latent(means, covariances, dims=(4, 0)).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_{5}$", "$z_{1}$")
    np.testing.assert_array_equal(axes.collections[1].get_offsets(), means[:, [4, 0]])


def test_labels_are_named_in_the_legend_in_the_color_of_their_means():
    means, covariances = gaussians(30)
    labels = torch.arange(30) % 3
    figure = plots.latent(means, covariances, labels, label_names=["T-shirt", "coat", "bag"])
    assert legend_texts(figure)[:3] == ["T-shirt", "coat", "bag"]
    points, legend = figure.axes[0].collections[1], figure.legends[0]
    colors = points.get_facecolors()
    assert len(np.unique(colors, axis=0)) == 3
    for index, handle in enumerate(legend.legend_handles[:3]):
        expected = matplotlib.colors.to_rgb(handle.get_color())
        np.testing.assert_allclose(colors[labels.numpy() == index][:, :3], [expected] * 10)
    np.testing.assert_allclose(ellipses_of(figure).get_edgecolors()[:, :3], colors[:, :3])


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([7, 3, 7], None, ["3", "7"]),
        (["b", "a", "b"], None, ["a", "b"]),
        ([2.0, 1.0, 2.0], None, ["1", "2"]),
        ([True, False, True], ["no", "yes"], ["no", "yes"]),
        (["b", "a", "b"], {"a": "first", "b": "$2"}, ["first", r"\$2"]),
        ([5, 0, 5], {0: "none", 5: "five"}, ["none", "five"]),
    ],
)
def test_labels_of_any_kind_are_categories(labels, names, expected):
    figure = plots.latent(*gaussians(3), labels, label_names=names)
    assert legend_texts(figure)[:2] == expected


def test_legend_lies_outside_the_axes():
    figure = plots.latent(*gaussians(30), np.arange(30) % 10)
    FigureCanvasAgg(figure).draw()
    assert not figure.legends[0].get_window_extent().overlaps(figure.axes[0].bbox)


def test_continuous_labels_give_a_color_bar():
    means, covariances = gaussians(50)
    figure = plots.latent(means, covariances, means[:, 0])
    assert len(figure.axes) == 2
    assert figure.axes[1].get_ylim() == (means[:, 0].min(), means[:, 0].max())
    colors = figure.axes[0].collections[1].get_facecolors()
    expected = matplotlib.colormaps["viridis"]([0.0, 1.0])
    np.testing.assert_allclose(
        colors[[means[:, 0].argmin(), means[:, 0].argmax()], :3], expected[:, :3]
    )
    assert len(plots.latent(means, covariances, np.arange(50)).axes) == 2


def test_without_labels_the_means_have_one_color():
    figure = plots.latent(*gaussians())
    assert len(np.unique(figure.axes[0].collections[1].get_facecolors(), axis=0)) == 1


def test_ellipses_fade_where_they_cover_each_other_and_collapse_leaves_outlines():
    means, covariances = gaussians(200)
    alphas = [
        ellipses_of(plots.latent(means * spread, covariances)).get_facecolors()[0, 3]
        for spread in (10, 0.5, 1e-6)
    ]
    assert alphas[0] > alphas[1] > alphas[2] == 0


def test_one_dimension_shows_the_mixture_of_the_guide_against_the_prior():
    means, variances = np.array([[-1.0], [2.0], [2.5]]), np.array([[0.25], [0.04], [1e-8]])
    figure = plots.latent(means, variances, ["a", "b", "b"])
    top, bottom = figure.axes
    assert bottom.get_xlabel() == "$z_{1}$"
    of_a, of_b, whole, prior = top.get_lines()
    z, density = whole.get_data()
    step = z[1] - z[0]
    np.testing.assert_allclose(of_a.get_ydata() + of_b.get_ydata(), density, atol=1e-12)
    assert density.sum() * step == pytest.approx(1, abs=0.02)  # tails beyond 2 s.d. are cut
    at = np.abs(z + 1).argmin()
    assert density[at] == pytest.approx(NormalDist(-1, 0.5).pdf(z[at]) / 3, rel=1e-3)
    assert density[(z > 2.3) & (z < 2.7)].sum() * step > 1 / 3  # the narrow one is not missed
    np.testing.assert_allclose(prior.get_ydata(), [NormalDist().pdf(value) for value in z])


def test_one_dimension_shows_each_mean_with_a_bar_of_one_standard_deviation():
    means, variances = np.array([[0.5], [-1.0], [2.0]]), np.array([[0.25], [0.04], [1.0]])
    bottom = plots.latent(means, variances).axes[1]
    bars, points = bottom.collections
    np.testing.assert_array_equal(points.get_offsets(), [[0.5, 2], [-1, 1], [2, 3]])
    expected = [[[0, 2], [1, 2]], [[-1.2, 1], [-0.8, 1]], [[1, 3], [3, 3]]]
    np.testing.assert_allclose(bars.get_segments(), expected)


def test_latent_draws_what_both_families_encode():
    x = torch.randn(30, 3)
    for family in (pv.families.DiagonalNormal, pv.families.FullCovarianceNormal):
        vae = pv.gaussian_vae(features=3, latent_dim=3, hidden=(), family=family)
        q = vae.encode(x)
        given = getattr(q, "covariance_matrix", q.variance)
        drawn = ellipses_of(plots.latent(q.mean, given, dims=(0, 1)))
        assert len(drawn.get_widths()) == 30


# plane


def test_plane_tiles_the_means_at_quantiles_of_the_prior():
    figure = plots.plane(linear, image_shape=(2, 2), size=5)
    canvas = shown(figure.axes[0])
    z = [NormalDist().inv_cdf((i + 0.5) / 5) for i in range(5)]
    assert canvas.shape == (10, 10)
    for row, column in itertools.product(range(5), range(5)):
        z_1, z_2 = z[column], z[4 - row]  # z_2 grows upward
        image = canvas[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(image, [[z_1, z_2], [z_1 + 10 * z_2, 1]], atol=1e-5)


def test_plane_ticks_name_z_at_the_middle_of_each_image():
    axes = plots.plane(linear, image_shape=(2, 2), size=3).axes[0]
    middles = [0.5, 2.5, 4.5]
    np.testing.assert_array_equal(axes.get_xticks(), middles)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["−0.97", "0.00", "0.97"]
    labels = {
        tick: text.get_text()
        for tick, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    assert labels == dict(zip(middles, ["0.97", "0.00", "−0.97"], strict=True))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_1$", "$z_2$")


@pytest.mark.parametrize("size", [2, 7, 15, 20, 22, 25, 40])
def test_plane_ticks_are_few_and_symmetric(size):
    axes = plots.plane(linear, image_shape=(2, 2), size=size).axes[0]
    ticks = axes.get_xticks()
    assert 2 <= len(ticks) <= 16
    np.testing.assert_allclose(ticks + ticks[::-1], 2 * size - 1)


def test_plane_shows_color():
    canvas = shown(
        plots.plane(lambda z: torch.sigmoid(z.repeat(1, 6)), image_shape=(3, 2, 2), size=2).axes[0]
    )
    assert canvas.shape == (4, 4, 4)
    z = NormalDist().inv_cdf(0.75)
    # Features z_1, z_2, z_1, z_2 fill each channel; top right is z = (z, z).
    np.testing.assert_allclose(canvas[:2, 2:, :3], 1 / (1 + np.exp(-z)), rtol=1e-6)
    np.testing.assert_allclose(canvas[0, 0, :3], 1 / (1 + np.exp(z)), rtol=1e-6)
    np.testing.assert_allclose(canvas[0, 1, :3], 1 / (1 + np.exp(-z)), rtol=1e-6)


def test_plane_of_a_table_maps_each_feature_with_z_2_upward():
    figure = plots.plane(linear, size=5, columns=["a", "b", "c", "d"])
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in maps] == ["a", "b", "c", "d"]
    assert len(figure.axes) == 8  # each has a color bar
    ticks = np.linspace(-3, 3, 20)
    for axes, expected in zip(
        maps, (ticks[None, :], ticks[:, None], ticks[None, :] + 10 * ticks[:, None]), strict=False
    ):
        np.testing.assert_allclose(shown(axes), np.broadcast_to(expected, (20, 20)), atol=1e-5)
        assert axes.images[0].origin == "lower"
        assert axes.get_xlim() == axes.get_ylim() == (-3, 3)
        # The middle of the first and of the last pixel are -3 and 3.
        np.testing.assert_allclose(axes.images[0].get_extent(), np.array([-1, 1, -1, 1]) * 60 / 19)


def test_plane_asks_for_z_like_the_reference_and_without_gradients():
    seen = []

    def decode(z):
        seen.append((z.dtype, z.device.type, torch.is_grad_enabled(), tuple(z.shape)))
        return z

    plots.plane(decode, size=3)
    plots.plane(decode, size=3, image_shape=(1, 2), reference=torch.zeros(1, dtype=torch.float64))
    assert seen == [
        (torch.float32, "cpu", False, (144, 2)),
        (torch.float64, "cpu", False, (9, 2)),
    ]


# save


def test_save_writes_a_png_of_the_given_resolution(tmp_path):
    path = tmp_path / "picture.png"
    plots.save(Figure(figsize=(2, 1)), path, dpi=50)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == 100
    assert int.from_bytes(content[20:24], "big") == 50
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_save_that_fails_leaves_the_old_picture_alone(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    figure = Figure()

    def fail(target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    figure.savefig = fail
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


# Errors

X = np.zeros((3, 4))
MEANS, COVARIANCES = gaussians(3)
NOT_A_NUMBER = np.array([[0.0, 1.0], [np.nan, 0.0]])

ERRORS = {
    "history without columns": (
        lambda: plots.history(a_history().drop(columns=["kl", "epoch"])),
        "history must have the columns epoch, elbo, .* got none named epoch, kl. "
        "Pass FitResult.history.",
    ),
    "history without validation terms": (
        lambda: plots.history(a_history().drop(columns="validation_kl")),
        "got none named validation_kl",
    ),
    "history without rows": (
        lambda: plots.history(a_history()[:0]),
        "history must have at least one epoch; got no row.",
    ),
    "reference": (
        lambda: plots.history(a_history(), reference={"PCA": np.nan}),
        "reference must be finite; got nan for 'PCA'.",
    ),
    "reconstruction": (
        lambda: plots.reconstructions(X, X[:2]),
        r"reconstruction must have as many rows and features as x; got \(2, 4\) for x of "
        r"\(3, 4\).",
    ),
    "image shape": (
        lambda: plots.reconstructions(X, X, image_shape=(2, 3)),
        r"image_shape must have as many entries as one datum of x; got \(2, 3\), 6 entries, for 4 "
        "features.",
    ),
    "channels": (
        lambda: plots.samples(X, image_shape=(2, 2, 1)),
        r"image_shape must be \(H, W\), \(1, H, W\) or \(3, H, W\); got \(2, 2, 1\).",
    ),
    "columns": (
        lambda: plots.samples(X, columns=["a"]),
        "columns must name each feature; got 1 names for 4 features.",
    ),
    "data": (
        lambda: plots.samples(X, data=X[:, :2]),
        "data must have as many features as draws; got 2 and 4.",
    ),
    "max_shown": (
        lambda: plots.samples(X, max_shown=0),
        "max_shown must be an integer of at least 1; got 0.",
    ),
    "nan": (
        lambda: plots.samples(NOT_A_NUMBER),
        r"draws must be finite; got nan at index \(1, 0\).",
    ),
    "no rows": (
        lambda: plots.samples(X[:0]),
        r"draws must have shape \(N, \*event_shape\) with N at least 1; got \(0, 4\).",
    ),
    "means": (
        lambda: plots.latent(X[0], X[0]),
        r"means must have shape \(N, k\); got \(4,\).",
    ),
    "covariances": (
        lambda: plots.latent(MEANS, COVARIANCES[:2]),
        r"covariances must have shape \(3, 2, 2\) or, for variances, \(3, 2\) to go with the "
        r"means; got \(2, 2, 2\).",
    ),
    "a factor for a covariance": (
        lambda: plots.latent(MEANS, np.linalg.cholesky(COVARIANCES)),
        "covariances must be symmetric; got .* at row 0. Pass q.covariance_matrix, not "
        "q.scale_tril.",
    ),
    "negative variances": (
        lambda: plots.latent(MEANS, np.array([[1.0, 1.0], [1.0, -2.0], [1.0, 1.0]])),
        "covariances must be positive semidefinite; got the eigenvalue -2 at row 1.",
    ),
    "dims out of range": (
        lambda: plots.latent(MEANS, COVARIANCES, dims=(1, 2)),
        r"dims must be indices from 0 to 1, the dimensions of z; got \(1, 2\).",
    ),
    "the same dimension twice": (
        lambda: plots.latent(MEANS, COVARIANCES, dims=(1, 1)),
        r"dims must be one or two different dimensions; got \(1, 1\).",
    ),
    "labels": (
        lambda: plots.latent(MEANS, COVARIANCES, [0, 1]),
        r"labels must have shape \(3,\), one for each mean; got \(2,\).",
    ),
    "many strings": (
        lambda: plots.latent(*gaussians(21), [f"label {i}" for i in range(21)]),
        "labels must have at most 20 categories; got 21.",
    ),
    "too few names": (
        lambda: plots.latent(MEANS, COVARIANCES, [0, 1, 2], label_names=["a", "b"]),
        "label_names must name every label; got no name for 2.",
    ),
    "a negative label": (
        lambda: plots.latent(MEANS, COVARIANCES, [0, 1, -1], label_names=["a", "b"]),
        "label_names must name every label; got no name for -1.",
    ),
    "names of continuous labels": (
        lambda: plots.latent(MEANS, COVARIANCES, [0.5, 1, 2], label_names=["a", "b"]),
        "label_names must come with categories; got labels with 3 values.",
    ),
    "max_ellipses": (
        lambda: plots.latent(MEANS, COVARIANCES, max_ellipses=-1),
        "max_ellipses must be an integer of at least 0; got -1.",
    ),
    "decode": (
        lambda: plots.plane(lambda z: z.sum(0), size=2),
        r"decode must return one row for each z; got shape \(2,\) for z of shape \(64, 2\).",
    ),
    "decode that diverges": (
        lambda: plots.plane(lambda z: z / 0, image_shape=(1, 2)),
        r"decode\(z\) must be finite; got -inf at index \(0, 0\).",
    ),
    "size": (
        lambda: plots.plane(linear, size=1),
        "size must be an integer of at least 2; got 1.",
    ),
    "suffix": (
        lambda: plots.save(Figure(), "picture.pdf"),
        "path must end in .png; got 'picture.pdf'.",
    ),
    "dpi": (
        lambda: plots.save(Figure(), "picture.png", dpi=0),
        "dpi must be positive; got 0.",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_argument_raises(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_values_that_are_not_numbers_raise():
    with pytest.raises(TypeError, match=re.escape("draws must be numeric; got dtype <U1.")):
        plots.samples(np.array([["a", "b"]]))


def test_folder_that_does_not_exist_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must lie in a folder that exists; got"):
        plots.save(Figure(), tmp_path / "nowhere" / "picture.png")
