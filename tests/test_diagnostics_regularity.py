"""Continuity and completeness of a latent space, against cases in which they are known."""

import math

import numpy as np
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from matplotlib.axes import Axes
from pyro.distributions import Normal
from torch import nn

import pyro_vae as pv
from pyro_vae import baselines, families, likelihoods, priors
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics.latent_space import continuity, encoded, neighbors
from pyro_vae.diagnostics.latent_space.regularity import regularity, regularity_summary
from pyro_vae.distributions import DistributionModule
from pyro_vae.plots import regularity as pictures


class Model:
    """An autoencoder of two functions, as a user might write it."""

    def __init__(self, encode, decode, p_z=None):
        self.encode, self.decode = encode, decode
        if p_z is not None:
            self.p_z = p_z


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def curved(k=2, features=5):
    """An autoencoder with random weights whose decoder is curved."""
    return baselines.autoencoder(features=features, latent_dim=k, hidden=(16,))


def same(x):
    return x


SMALL = {"num_pairs": 20, "num_steps": 8, "num_samples": 60}


# Continuity.


def test_linear_decoder_is_even_straight_and_changes_as_a_linear_one():
    data = linear_gaussian(300, features=6, latent_dim=3, variance=0.2, seed=1)
    found = regularity(linear_vae(data.truth), data.x, num_samples=100)
    assert abs(found["unevenness"]) < 1e-12
    assert abs(found["path_over_chord"] - 1) < 1e-12
    assert abs(found["peak"] - 1) < 1e-12
    assert abs(found["local_change"] - 1) < 1e-12
    assert found["local_change_mcse"] < 1e-12
    assert found["local_change_se"] < 0.04  # what a point adds to both means cancels


def test_speed_along_a_parabola():
    # f(z) = z^2 from 0 to 1 in T steps has speeds (2 t - 1) / T^2.
    found = continuity.segments(torch.square, torch.zeros(3, 1), torch.ones(3, 1), 4)
    relative = np.array([1, 3, 5, 7]) / 4
    np.testing.assert_allclose(found.speed, np.tile(relative, (3, 1)), atol=1e-12)
    assert abs(found.unevenness.value - relative.std()) < 1e-12
    assert abs(found.peak.value - 7 / 4) < 1e-12
    assert abs(found.path_over_chord.value - 1) < 1e-12


def test_half_a_circle_is_longer_than_its_chord():
    def circle(z):
        return torch.cat([torch.cos(z), torch.sin(z)], -1)

    found = continuity.segments(circle, torch.zeros(2, 1), torch.full((2, 1), math.pi), 1000)
    assert abs(found.path_over_chord.value - math.pi / 2) < 1e-5
    assert found.unevenness.value < 1e-9


def test_pair_with_equal_decodings_at_both_ends_does_not_make_the_ratio_infinite():
    starts, ends = torch.tensor([[-1.0], [0.0]]), torch.tensor([[1.0], [1.0]])
    found = continuity.segments(torch.square, starts, ends, 10)
    assert abs(found.path_over_chord.value - 3) < 1e-12  # (2 + 1) / (0 + 1)


def test_local_change_of_a_sine():
    # z, z' ~ N(0, 1), f = sin(a z): both means by quadrature.
    a, d = 5.0, continuity.STEP
    points = noise(4000, 1)
    found = continuity.local_change(lambda z: torch.sin(a * z), points)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    z, e = nodes[:, None], nodes[None, :]
    change = weights @ np.square(np.sin(a * (z + d * e)) - np.sin(a * z)) @ weights / d**2
    spread = weights @ np.square(np.sin(a * nodes))
    assert abs(found.value - change / spread) < MAX_Z * found.se
    assert found.se < 0.05 * found.value
    assert found.value > 15


def test_rough_decoder_is_told_from_a_smooth_one():
    x = noise(200, 2)
    rough = Model(same, lambda z: torch.sin(20 * z))
    found = regularity(rough, x, **SMALL)
    assert found["local_change"] - 1 > 5 * found["local_change_se"]
    assert found["unevenness"] > 5 * found["unevenness_se"]


def test_local_change_errors_are_those_of_repetitions():
    def decode(z):
        return torch.sin(3 * z)

    found = [continuity.local_change(decode, noise(100, 2, seed=s)) for s in range(200)]
    values = np.array([f.value for f in found])
    claimed = np.sqrt(np.mean([f.se**2 for f in found]))
    assert 0.75 < claimed / values.std() < 1.35
    points = noise(100, 2)
    found = [continuity.local_change(decode, points) for _ in range(200)]
    values = np.array([f.value for f in found])
    claimed = np.sqrt(np.mean([f.mcse**2 for f in found]))
    assert 0.75 < claimed / values.std() < 1.35


def test_random_pairs_share_no_row_up_to_half_of_them_and_are_never_equal():
    source = torch.Generator().manual_seed(0)
    assert len(continuity.random_pairs(21, 10, source).unique()) == 20
    many = continuity.random_pairs(5, 40, source)
    assert many.shape == (40, 2)
    assert (many[:, 0] != many[:, 1]).all()


def test_nothing_to_say_of_continuity_where_nothing_moves():
    constant = Model(lambda x: x[:, :2], lambda z: 0.3 + 0 * z[:, :1].expand(-1, 5))
    found = regularity(constant, noise(90, 5), **SMALL)
    for figure in ("unevenness", "path_over_chord", "peak", "local_change"):
        assert np.isnan(found[figure]), figure
    assert found.attrs["num_moving_pairs"] == 0


# Neighbors in x.


def brute_force(real, fake, k):
    """The four figures by loops, from the papers' formulas."""
    real, fake = real.tolist(), fake.tolist()

    def radius(sample, i):
        return sorted(math.dist(sample[i], other) for other in sample)[k]

    own = [radius(real, i) for i in range(len(real))]
    others = [radius(fake, j) for j in range(len(fake))]
    inside = [[math.dist(r, y) <= own[i] for y in fake] for i, r in enumerate(real)]
    recall = [any(math.dist(r, y) <= o for y, o in zip(fake, others, strict=True)) for r in real]
    return [
        np.mean([any(row[j] for row in inside) for j in range(len(fake))]),
        np.mean(recall),
        sum(map(sum, inside)) / (k * len(fake)),
        np.mean([any(row) for row in inside]),
    ]


def test_figures_are_those_of_the_papers_formulas():
    real, fake = noise(30, 3), 0.4 + 1.3 * noise(25, 3, seed=1)
    found = neighbors.Reference(real, num_neighbors=3).figures(fake)
    np.testing.assert_allclose(found, brute_force(real, fake, 3), atol=1e-12)


@pytest.mark.parametrize(("features", "k"), [(2, 3), (20, 5)])
def test_equal_distributions_have_the_expected_density_and_coverage(features, k):
    n, m = 50, 40
    values = torch.stack(
        [
            neighbors.Reference(noise(n, features, seed=s), num_neighbors=k).figures(
                noise(m, features, seed=1000 + s)
            )
            for s in range(150)
        ]
    )
    mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
    expected = neighbors.coverage_if_equal(n, m, k)
    assert abs(mean[2] - 1) < MAX_Z * error[2]
    assert abs(mean[3] - expected) < MAX_Z * error[3]
    assert error[3] < 0.01


def test_expected_coverage_is_the_formula_of_the_paper():
    # 1 - (M - 1) ... (M - k) / ((2M - 1) ... (2M - k))
    m, k = 12, 3
    product = (11 * 10 * 9) / (23 * 22 * 21)
    assert abs(neighbors.coverage_if_equal(m, m, k) - (1 - product)) < 1e-15


def test_jackknife_errors_are_not_too_small():
    values, claimed = [], []
    fake = 1.2 * noise(80, 2, seed=77)
    for s in range(80):
        reference = neighbors.Reference(noise(80, 2, seed=s), num_neighbors=3)
        values.append(reference.figures(fake))
        claimed.append(reference.jackknife(fake).square())
    ratio = torch.stack(claimed).mean(0).sqrt() / torch.stack(values).std(0)
    assert (ratio > 0.8).all(), ratio
    assert (ratio < 2.5).all(), ratio


def test_identical_samples_are_precise_and_covered():
    x = noise(40, 3)
    assert neighbors.Reference(x, num_neighbors=2).figures(x)[[0, 1, 3]].tolist() == [1, 1, 1]


def test_distances_far_from_the_origin_are_exact():
    a, b = noise(5, 4), noise(6, 4, seed=1)
    exact = (a.unsqueeze(1) - b).norm(dim=-1)
    np.testing.assert_allclose(neighbors.distances(a + 1e6, b + 1e6), exact, atol=1e-7)


# Completeness.


def sample_of(k, num, seed=0):
    """A model whose codes are N(0, I), as its prior, and which decodes a code to itself."""
    return Model(same, same), noise(num, k, seed=seed)


def test_region_holds_its_nominal_share_in_expectation():
    shares, errors = [], []
    for seed in range(300):
        points = noise(150, 3, seed=seed)
        place = neighbors.region(points[:50], points[50:100], num_neighbors=5, level=0.9)
        inside, error = neighbors.covered(points[100:], place)
        share = inside.double().mean().item()
        shares.append(share)
        errors.append(math.hypot(error, math.sqrt(share * (1 - share) / 50)))
    values = np.array(shares)
    assert place.nominal == 46 / 51
    z = (values.mean() - place.nominal) / (values.std(ddof=1) / math.sqrt(len(values)))
    assert abs(z) < MAX_Z
    # Given the anchors; the spread of the shares has no other source than the two errors.
    assert 0.8 < np.sqrt(np.mean(np.square(errors))) / values.std() < 1.25


def test_shares_are_nominal_if_the_aggregate_is_the_prior():
    model, x = sample_of(3, 1500)
    found = regularity(model, x, num_samples=300).sel(source="prior")
    for name in ("draws_covered", "codes_covered"):
        nominal = found.attrs[f"nominal_{name.split('_')[0]}"]
        assert abs(nominal - 0.95) < 0.005
        assert abs(found[name] - nominal) < MAX_Z * found[f"{name}_se"], name
        assert found[f"{name}_se"] < 0.025


def test_fitted_normal_of_normal_codes_is_covered_and_covers():
    model, x = sample_of(2, 2000)
    found = regularity(model, x, num_samples=500).sel(source="fitted_normal")
    for name in ("draws_covered", "codes_covered"):
        assert abs(found[name] - 0.95) < MAX_Z * found[f"{name}_se"], name
    for of in ("data", "reconstructions"):
        at = found.sel(reference=of)
        assert abs(at["density"] - 1) < MAX_Z * at["density_se"]
        expected = found.attrs["expected_coverage"]
        assert abs(at["coverage"] - expected) < MAX_Z * at["coverage_se"]


def test_prior_far_wider_than_the_codes_is_not_covered():
    model, x = sample_of(4, 400)
    found = regularity(Model(lambda x: x / 50, lambda z: 50 * z), x, **SMALL)
    prior, fitted = found.sel(source="prior"), found.sel(source="fitted_normal")
    assert prior["draws_covered"] < 0.01
    assert (prior["precision"] < 0.01).all()
    assert (fitted["draws_covered"] > 0.85).all()


def test_prior_far_narrower_than_the_codes_leaves_codes_outside():
    _, x = sample_of(4, 400)
    found = regularity(Model(lambda x: 50 * x, lambda z: z / 50), x, **SMALL)
    assert found["codes_covered"].sel(source="prior") < 0.01
    assert (found["recall"].sel(source="prior") < 0.05).all()
    assert found["codes_covered"].sel(source="fitted_normal") > 0.8


def test_hole_in_the_codes_is_found():
    angle = 2 * math.pi * torch.rand(1000, generator=torch.Generator().manual_seed(0))
    ring = 3 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * noise(1000, 2)
    found = regularity(Model(same, same), ring, num_samples=300).sel(source="fitted_normal")
    assert found["draws_covered"] < 0.3


def test_collapsed_decoder_covers_almost_nothing():
    x = noise(600, 5)
    model = Model(lambda x: x[:, :2], lambda z: 0 * z[:, :1].expand(-1, 5))
    found = regularity(model, x, num_samples=300).sel(reference="data")
    assert (found["coverage"] < 0.2).all()
    assert (found["recall"] == 0).all()
    assert (found["precision"] == 1).all()  # the mean of normal data is amid them


def test_prior_of_a_vae_is_its_own():
    data = linear_gaussian(300, features=6, latent_dim=2, variance=0.2, seed=1)
    vae = linear_vae(data.truth)
    found = regularity(vae, data.x, num_samples=150)
    # The exact posterior of the true model: the aggregate is the prior.
    for name in ("draws_covered", "codes_covered"):
        at = found.sel(source="prior")
        assert abs(at[name] - 0.95) < MAX_Z * at[f"{name}_se"], name
    assert found.attrs["prior"] == "p(z)"
    wide = vae.with_prior(priors.Fixed(Normal(0.0, 50.0).expand([2]).to_event(1)))
    assert regularity(wide, data.x, **SMALL)["draws_covered"].sel(source="prior") < 0.2


class Collapsed(DistributionModule):
    """q(z|x) = N(0, I), the prior: all means are equal."""

    event_shape = torch.Size([2])

    def forward(self, x):
        return Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)


def test_aggregate_of_a_vae_is_of_draws_not_of_means():
    vae = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(nn.Linear(2, 3), event_shape=(3,)),
        guide=Collapsed(),
    )
    found = regularity(vae, noise(900, 3), num_samples=200)
    assert (abs(found["draws_covered"] - 0.95) < MAX_Z * found["draws_covered_se"]).all()
    assert (found["draws_covered_se"] < 0.05).all()


# Scale.


def moved(model, matrix, shift):
    """The same autoencoder in other coordinates of its latent space."""
    return Model(
        lambda x: model.encode(x) @ matrix + shift,
        lambda z: model.decode((z - shift) @ matrix.inverse()),
    )


CONTINUITY = ("local_change", "unevenness", "path_over_chord", "peak")


@pytest.mark.parametrize(
    "matrix", [torch.diag(torch.tensor([1e3, 1e-2])), torch.tensor([[0.0, 3.0], [-2.0, 0.7]])]
)
def test_figures_do_not_depend_on_the_coordinates_of_the_latent_space(matrix):
    matrix = matrix.double()  # parameters are made before float64 is the default
    model = curved()
    x = noise(200, 5)
    with torch.no_grad():
        first = regularity(model, x, **SMALL)
        second = regularity(moved(model, matrix, torch.tensor([5.0, -1.0])), x, **SMALL)
    for name in CONTINUITY:
        for suffix in ("", "_mcse", "_se"):
            np.testing.assert_allclose(first[name + suffix], second[name + suffix], rtol=1e-6)
    first, second = first.sel(source="fitted_normal"), second.sel(source="fitted_normal")
    for name in ("draws_covered", "codes_covered", *neighbors.FIGURES):
        np.testing.assert_allclose(first[name], second[name], atol=1e-9, err_msg=name)


def test_figures_do_not_depend_on_the_units_of_x():
    model, x = curved(), noise(200, 5)
    scaled = Model(lambda x: model.encode(x / 100 - 3), lambda z: 100 * (model.decode(z) + 3))
    with torch.no_grad():
        first, second = regularity(model, x, **SMALL), regularity(scaled, 100 * (x + 3), **SMALL)
    for name in (*CONTINUITY, *neighbors.FIGURES, "draws_covered", "codes_covered"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-6, err_msg=name)


def test_dead_unit_of_an_autoencoder_is_no_accident():
    model = Model(lambda x: torch.cat([x, 0 * x[:, :1]], 1), lambda z: z[:, :2])
    found = regularity(model, noise(200, 2), **SMALL)
    assert found["draws_covered"].sel(source="prior") == 0  # no code is off the plane
    fitted = found.sel(source="fitted_normal")
    assert abs(fitted["draws_covered"] - 0.95) < MAX_Z * fitted["draws_covered_se"]


# Promises of the interface.


def test_halves_and_held_out_data_give_figures_of_the_same_kind():
    model, x = curved(), noise(400, 5)
    with torch.no_grad():
        one = regularity(model, x, **SMALL)
        two = regularity(model, x[:200], held_out=x[200:], **SMALL)
    assert dict(one.sizes) == dict(two.sizes)
    for name in ("density", "coverage"):
        error = np.hypot(one[f"{name}_se"], two[f"{name}_se"])
        assert (abs(one[name] - two[name]) < MAX_Z * error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make", [curved, lambda: small_vae(family=families.FullCovarianceNormal, features=5)]
)
def test_same_seed_same_figures_and_the_model_is_as_before(make, dtype):
    model, x = make().to(dtype), noise(120, 5).to(dtype)
    model.train()
    before = torch.get_rng_state()
    with torch.device("meta"):
        first = regularity(model, x, seed=3, **SMALL)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert first.identical(regularity(model, x, seed=3, **SMALL))
    assert not first.equals(regularity(model, x, seed=4, **SMALL))
    assert all(first[name].dtype == np.float64 for name in first if name != "draw_is_covered")


def test_pca_images_and_flows_are_read():
    pca = baselines.PCA(2).fit(noise(100, 2, 3))
    assert regularity(pca, noise(100, 2, 3), **SMALL).sizes["latent"] == 2
    flow = small_vae(family=families.Flow, features=5)
    assert regularity(flow, noise(60, 5), **SMALL).sizes["latent"] == 3


def test_summary_has_each_figure_with_what_is_ideal():
    model, x = sample_of(2, 200)
    found = regularity(model, x, **SMALL)
    table = regularity_summary(found)
    assert len(table) == 4 + 2 * 2 + 4 * 4
    row = table.loc[("coverage", "prior", "data")]
    assert row["value"] == float(found["coverage"].sel(source="prior", reference="data"))
    assert row["ideal"] == found.attrs["expected_coverage"]
    recall = table.loc[("recall", "prior", "data"), "ideal"]
    assert recall == float(found["recall_of_data"].sel(reference="data"))
    assert table.notna().all().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 0}, "num_pairs must be a positive integer"),
        ({"num_steps": 1.5}, "num_steps must be a positive integer"),
        ({"num_steps": 1}, "num_steps must be at least 2"),
        ({"num_samples": 5}, "num_samples must be at least 20"),
        ({"num_neighbors": 60}, "x must be at least 63 rows"),
        ({"level": 1.0}, "level must be between 0 and 1"),
        ({"held_out": torch.zeros(5, 5)}, "held_out must be at least 20 rows"),
    ],
)
def test_arguments_that_do_not_fit_raise(options, message):
    with pytest.raises(ValueError, match=message):
        regularity(curved(), noise(100, 5), **options)


def test_model_without_decoder_raises():
    with pytest.raises(TypeError, match="must have encode and decode; got Linear without encode"):
        regularity(nn.Linear(2, 2), noise(100, 2))


def test_codes_that_are_no_vectors_raise():
    with pytest.raises(ValueError, match="encode each datum to one vector"):
        regularity(Model(lambda x: x.unsqueeze(1), same), noise(100, 2))


# Pictures.


def test_pictures_show_the_figures():
    x = noise(200, 5)
    found = {name: regularity(curved(), x, **SMALL) for name in ("a$", "b")}
    axes = pictures.prior_draws(found["b"])
    share = 100 * float(found["b"]["draw_is_covered"].sel(source="prior").mean())
    assert f"{share:.0f} %" in axes.get_title(loc="left")
    panels = pictures.speeds(found)
    assert len(panels) == 2
    assert all(isinstance(panel, Axes) for panel in panels)
    lines = panels[1].get_lines()
    assert any(np.array_equal(line.get_ydata(), found["b"]["speed"][0]) for line in lines)
    collapsed = regularity(Model(lambda x: x[:, :1], lambda z: 0 * z.expand(-1, 5)), x, **SMALL)
    assert pictures.speeds({"c": collapsed})[0].texts[0].get_text() == "no decoding moves"
    assert "one dimension" in pictures.prior_draws(collapsed).get_ylabel()
    with pytest.raises(ValueError, match="source must be one of"):
        pictures.prior_draws(collapsed, source="posterior")
    panels = pictures.regularities(found)
    assert r"a\$" in [text.get_text() for text in panels[0].figure.legends[0].get_texts()]


# Memory.


def test_only_the_rows_that_are_compared_are_copied(monkeypatch):
    taken = []
    first_rows = encoded.Encoded.first_rows

    def counted(self, count):
        taken.append(first_rows(self, count))
        assert self.data.data_ptr() == x.data_ptr()
        return taken[-1]

    monkeypatch.setattr(encoded.Encoded, "first_rows", counted)
    x = noise(400, 5)
    regularity(baselines.PCA(2).fit(x), x, **SMALL)
    assert [len(rows) for rows in taken] == [60, 60]
    both = torch.cat(taken).unique(dim=0)
    assert len(both) == 120  # halves share no row
    assert (torch.cdist(both, x).amin(1) < 1e-6).all()


def test_rows_stay_with_their_codes():
    x = noise(40, 5)
    latent = encoded.LatentSpace(Model(same, same), seed=0)
    for part in encoded.two_parts(latent, x, None, 0):
        mixed = encoded.shuffled(part, 0, "some")
        assert torch.equal(mixed.first_rows(20), mixed.points)
        assert not torch.equal(mixed.points, part.points)
