import itertools
import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_vae import families
from pyro_vae.datasets import linear_gaussian
from pyro_vae.traces import elbo_terms, log_densities

ENUMERATE = {"enumerate": "parallel"}


def normal(value, mean, scale):
    """Log density of a normal, by hand."""
    standardized = (value - mean) / scale
    return -0.5 * standardized**2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def test_log_weights_at_the_exact_posterior_are_all_the_log_evidence():
    data = linear_gaussian(5, features=6, latent_dim=3, variance=0.2, seed=1)
    log_weights = log_densities(linear_vae(data.truth), data.x, num_samples=4).log_weights
    assert log_weights.shape == (4, 5)
    expected = data.log_evidence.expand(4, 5)
    torch.testing.assert_close(log_weights, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_log_densities_are_those_of_the_parts_at_the_same_draws(family):
    vae, x = small_vae(family=family, variance=0.3), torch.randn(5, 6)
    torch.manual_seed(3)
    densities = log_densities(vae, x, num_samples=4)
    torch.manual_seed(3)
    z = torch.stack([vae.encode(x).rsample() for _ in range(4)])
    torch.testing.assert_close(densities.log_q["z"], vae.encode(x).log_prob(z))
    torch.testing.assert_close(densities.log_p["z"], vae.p_z().log_prob(z))
    torch.testing.assert_close(densities.log_p["x"], vae.p_x_given_z(z).log_prob(x))


def test_kl_per_dimension_adds_up_to_the_closed_form():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    q = vae.encode(x)
    mean, variance = q.mean, q.variance
    expected = 0.5 * (variance + mean.square() - 1 - variance.log())
    terms = elbo_terms(vae, x, num_samples=2)
    torch.testing.assert_close(terms.kl_per_dim, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.kl, expected.sum(-1).expand(2, 5), rtol=0, atol=1e-12)
    assert terms.kl_is_analytic


@pytest.mark.parametrize("family", [families.DiagonalNormal, families.FullCovarianceNormal])
def test_terms_add_up_to_the_elbo(family):
    vae, x = small_vae(family=family), torch.randn(5, 6)
    terms = elbo_terms(vae, x, num_samples=3)
    torch.testing.assert_close(terms.elbo, terms.expected_log_likelihood - terms.kl)


def test_parameter_store_is_not_written_to():
    vae = small_vae(family=families.DiagonalNormal)
    elbo_terms(vae, torch.randn(5, 6), num_samples=1)
    assert list(pyro.get_param_store().keys()) == []


def test_parameter_store_is_read_where_it_knows_the_program():
    def model(x):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(torch.zeros(len(x))))

    x = torch.randn(4)
    programs = SimpleNamespace(model=model, guide=guide)
    pyro.param("shift", torch.tensor(2.0))
    densities = log_densities(programs, x, num_samples=1)
    expected = dist.Normal(2.0, 1.0).log_prob(x).unsqueeze(0)
    torch.testing.assert_close(densities.log_p["x"], expected.detach())


def test_two_latent_sites_have_no_analytic_kl():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        # The exact posterior of the chain: z1 | x, then z2 | z1.
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, (2 / 3) ** 0.5))
            pyro.sample("z2", dist.Normal(z1 / 2, 0.5**0.5))

    x = torch.randn(4)
    programs = SimpleNamespace(model=model, guide=guide)
    terms = elbo_terms(programs, x, num_samples=3)
    assert not terms.kl_is_analytic
    expected = dist.Normal(0.0, 3**0.5).log_prob(x).expand(3, 4)
    torch.testing.assert_close(terms.elbo, expected, rtol=0, atol=1e-12)


def test_plate_scale_does_not_count_and_a_mask_does():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(4, 6)
    mask = torch.tensor([True, False, True, False])
    scaled = SimpleNamespace(
        model=poutine.scale(vae.model, 25.0), guide=poutine.scale(vae.guide, 25.0)
    )
    masked = SimpleNamespace(
        model=poutine.mask(vae.model, mask), guide=poutine.mask(vae.guide, mask)
    )
    weights = []
    for programs in (vae, scaled, masked):
        torch.manual_seed(5)
        weights.append(log_densities(programs, x, num_samples=2).log_weights)
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0] * mask)


NORMALS = {
    "isotropic": lambda k: families.IsotropicNormal(k),
    "diagonal": lambda k: families.DiagonalNormal(k),
    "low rank": lambda k: families.LowRankNormal(k, 2),
    "full": lambda k: families.FullCovarianceNormal(k),
}


@pytest.mark.parametrize("name", NORMALS)
def test_kl_of_a_normal_family_is_its_closed_form(name):
    vae, x = small_vae(family=NORMALS[name]), torch.randn(5, 6)
    q = vae.encode(x)
    covariance = (
        torch.diag_embed(q.variance) if name in {"isotropic", "diagonal"} else q.covariance_matrix
    )
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    expected = 0.5 * (trace + q.mean.square().sum(-1) - 3 - torch.logdet(covariance))
    densities = log_densities(vae, x, num_samples=2)
    torch.testing.assert_close(densities.analytic_kl, expected, rtol=0, atol=1e-12)
    assert (densities.kl_per_dim is not None) == (name in {"isotropic", "diagonal"})


def programs_of(prior, q):
    """One latent site "z": its prior, and a function that makes its q."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.reshape(len(x), -1).sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q())

    return SimpleNamespace(model=model, guide=guide)


SHIFT = dist.transforms.AffineTransform(1.0, 2.0)


def vector(mean, scale):
    return dist.Normal(mean, scale).expand([3]).to_event(1)


def lognormal_by_hand(num_data=4):
    """A draw of exp(N(0.3, 0.5^2)) whose noise Pyro does not see."""
    noise = torch.randn(num_data)
    log_z = 0.3 + 0.5 * noise
    return dist.Delta(log_z.exp(), log_density=normal(log_z, 0.3, 0.5) - log_z)


@pytest.mark.parametrize(
    ("prior", "q"),
    [
        (dist.LogNormal(0.0, 1.0), lognormal_by_hand),
        (dist.Normal(0.0, 1.0).mask(True), lambda: dist.Normal(1.0, 2.0).mask(False)),
        (vector(0.0, 1.0).mask(False), lambda: vector(1.0, 2.0)),
        (vector(0.0, 1.0), lambda: dist.TransformedDistribution(vector(0.0, 1.0), [SHIFT])),
    ],
    ids=["delta", "masked both", "masked prior", "flow"],
)
def test_kl_that_theory_does_not_know_is_estimated(prior, q):
    x = torch.randn(4)
    programs = programs_of(prior, q)
    torch.manual_seed(1)
    terms = elbo_terms(programs, x, num_samples=3)
    assert not terms.kl_is_analytic
    assert terms.kl_per_dim is None
    torch.manual_seed(1)
    densities = log_densities(programs, x, num_samples=3)
    expected = densities.log_q["z"] - densities.log_p["z"]
    torch.testing.assert_close(terms.kl, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.expected_log_likelihood, densities.log_p["x"])


def test_log_density_of_a_delta_counts():
    programs = programs_of(dist.LogNormal(0.0, 1.0), lambda: lognormal_by_hand(4000))
    terms = elbo_terms(programs, torch.randn(4000), num_samples=1)
    # KL of two log-normals is that of the normals.
    expected = 0.5 * (0.25 + 0.09 - 1 - math.log(0.25))
    z_score = (terms.kl.mean() - expected) / (terms.kl.std() / terms.kl.numel() ** 0.5)
    assert abs(z_score) < MAX_Z


def test_auxiliary_site_counts_in_log_q_alone():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            log_z = pyro.sample("log_z", dist.Normal(0.3, 0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(log_z.exp(), log_density=-log_z))

    x = torch.randn(4)
    auxiliary = SimpleNamespace(model=model, guide=guide)
    plain = programs_of(dist.LogNormal(0.0, 1.0), lambda: dist.LogNormal(0.3, 0.5))
    found = []
    for programs in (auxiliary, plain):
        torch.manual_seed(2)
        found.append(elbo_terms(programs, x, num_samples=3))
    assert not found[0].kl_is_analytic
    torch.testing.assert_close(found[0].elbo, found[1].elbo, rtol=0, atol=1e-12)


def test_deterministic_site_has_no_density_and_a_factor_has():
    weight = torch.tensor([0.5, -1.0, 2.0, 0.0])

    def model(x):
        pyro.deterministic("shift", torch.ones(()))  # not per datum, and need not be
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.factor("extra", weight)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
            pyro.deterministic("thrice", 3 * z)
            pyro.factor("tilt", 3 * weight, has_rsample=True)

    x = torch.randn(4)
    programs = SimpleNamespace(model=model, guide=guide)
    torch.manual_seed(1)
    densities = log_densities(programs, x, num_samples=3)
    assert (set(densities.log_p), set(densities.log_q)) == ({"z", "extra", "x"}, {"z", "tilt"})
    assert set(densities.observed) == {"extra", "x"}
    torch.manual_seed(1)
    z = torch.stack([torch.randn(4) * 2 for _ in range(3)])
    expected = normal(z, 0, 1) + normal(x, z, 1) - normal(z, 0, 2) - 2 * weight
    torch.testing.assert_close(densities.log_weights, expected, rtol=0, atol=1e-12)
    torch.manual_seed(1)
    terms = elbo_terms(programs, x, num_samples=3)
    log_likelihood = normal(x, z, 1) + weight
    torch.testing.assert_close(terms.expected_log_likelihood, log_likelihood, rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.kl, log_likelihood - expected, rtol=0, atol=1e-12)


def test_plate_inside_the_data_is_summed_over():
    means = torch.randn(3)  # of pixels

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("pixels", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.squeeze(-1) + means[:, None], 0.5), obs=x.mT)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", 3, dim=-2):
            mean = 0.8 * (x.mT - means[:, None]).unsqueeze(-1)
            pyro.sample("z", dist.Normal(mean, 0.2**0.5).to_event(1))

    x = torch.randn(4, 3)
    terms = elbo_terms(SimpleNamespace(model=model, guide=guide), x, num_samples=2)
    # The exact posterior of every pixel.
    expected = normal(x, means, 1.25**0.5).sum(-1)
    torch.testing.assert_close(terms.elbo, expected.expand(2, 4), rtol=0, atol=1e-12)
    m = 0.8 * (x - means)
    kl = 0.5 * (0.2 + m.square() - 1 - math.log(0.2)).sum(-1)
    assert terms.kl_is_analytic
    assert terms.kl_per_dim is None
    torch.testing.assert_close(terms.kl[0], kl, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_data", [1, 2, 5])
@pytest.mark.parametrize("mark", ["site", "program"])
def test_sites_that_only_the_model_marks_are_summed_out(num_data, mark):
    weights = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    shift = torch.tensor([-1.0, 0.5, 2.0])
    infer = ENUMERATE if mark == "site" else {}

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Bernoulli(0.3), infer=infer)
            b = pyro.sample("b", dist.Categorical(weights[a.long()]), infer=infer)
            # Observed before the last latent site, and one site that depends on neither a nor b.
            pyro.sample("x0", dist.Normal(a, 1.0), obs=x[:, 0])
            z1 = pyro.sample("z1", dist.Normal(2 * a, 1.0))
            free = pyro.sample("free", dist.Normal(0.0, 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1 * shift[b], 0.7))
            pyro.sample("x1", dist.Normal(z1 + a, 0.5), obs=x[:, 1])
            pyro.sample("x2", dist.Normal(z2 * free + shift[b], 0.8), obs=x[:, 2])

    draws = []

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x[:, 2], 1.0))
            free = pyro.sample("free", dist.Normal(0.0, 1.0))
            draws.append((pyro.sample("z1", dist.Normal(0.5 * z2, 2.0)), free, z2))

    x = torch.randn(num_data, 3)
    marked = model if mark == "site" else config_enumerate(model)
    densities = log_densities(SimpleNamespace(model=marked, guide=guide), x, num_samples=3)
    z1, free, z2 = (torch.stack(values) for values in zip(*draws, strict=True))
    latent, joint = [], []
    for a, b in itertools.product(range(2), range(3)):
        prior = math.log(0.3 if a else 0.7) + weights[a, b].log()
        latent.append(prior + normal(z1, 2 * a, 1) + normal(z2, z1 * shift[b], 0.7))
        joint.append(
            latent[-1] + normal(x[:, 0], a, 1) + normal(x[:, 1], z1 + a, 0.5)
            + normal(x[:, 2], z2 * free + shift[b], 0.8)
        )  # fmt: skip
    log_p_z, log_p_xz = (torch.stack(terms).logsumexp(0) for terms in (latent, joint))
    log_q = normal(z2, x[:, 2], 1) + normal(free, 0, 1) + normal(z1, 0.5 * z2, 2)
    close = {"rtol": 0, "atol": 1e-12}
    expected = log_p_xz + normal(free, 0, 1) - log_q
    torch.testing.assert_close(densities.log_weights, expected, **close)
    assert set(densities.summed_out) == {"a", "b"}
    assert set(densities.log_p) == {"z1", "free", "z2", "x0", "x1", "x2"}
    assert set(densities.observed) == {"x0", "x1", "x2"}
    found = densities.log_p["z1"] + densities.log_p["z2"]
    torch.testing.assert_close(found, log_p_z, **close)
    torch.testing.assert_close(densities.log_p["free"], normal(free, 0, 1), **close)
    found = sum(densities.log_p[name] for name in densities.observed)
    torch.testing.assert_close(found, log_p_xz - log_p_z, **close)


def test_values_per_pixel_and_per_datum_are_summed_out_each_in_its_place():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.4), infer=ENUMERATE)
            with pyro.plate("pixels", 3, dim=-2):
                on = pyro.sample("on", dist.Bernoulli(0.2 + 0.5 * y), infer=ENUMERATE)
                pyro.sample("x", dist.Normal(3 * on - y, 0.6), obs=x.mT)

    x = torch.randn(4, 3)
    programs = SimpleNamespace(model=model, guide=lambda x: None)
    of_y = []
    for y, prior in ((0, 0.6), (1, 0.4)):
        p_on = 0.2 + 0.5 * y
        pixel = torch.logaddexp(
            math.log(p_on) + normal(x, 3 - y, 0.6), math.log(1 - p_on) + normal(x, -y, 0.6)
        )
        of_y.append(math.log(prior) + pixel.sum(-1))
    expected = torch.logaddexp(*of_y)
    terms = elbo_terms(programs, x, num_samples=2)
    torch.testing.assert_close(terms.elbo, expected.expand(2, 4), rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.kl, torch.zeros(2, 4), rtol=0, atol=0)
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(model, programs.guide, x)
    assert loss == pytest.approx(-expected.sum().item(), abs=1e-10)


def test_chain_of_discrete_sites_is_the_forward_algorithm():
    move = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
    mean, steps = torch.tensor([-1.0, 0.0, 2.0]), 12

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = torch.tensor(0)
            for t in pyro.markov(range(steps)):
                y = pyro.sample(f"y{t}", dist.Categorical(move[y]), infer=ENUMERATE)
                pyro.sample(f"x{t}", dist.Normal(mean[y], 1.0), obs=x[:, t])

    x = torch.randn(2, steps)
    forward = move[0].expand(2, 3)
    for t in range(steps):
        if t:
            forward = forward @ move
        forward = forward * normal(x[:, t : t + 1], mean, 1.0).exp()
    programs = SimpleNamespace(model=model, guide=lambda x: None)
    log_weights = log_densities(programs, x, num_samples=1).log_weights
    torch.testing.assert_close(log_weights[0], forward.sum(-1).log(), rtol=0, atol=1e-12)


def test_impossible_data_have_the_density_zero():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer=ENUMERATE)
            pyro.sample("x1", dist.Uniform(y, y + 1), obs=x)
            pyro.sample("x2", dist.Uniform(y, y + 2), obs=x)

    programs = SimpleNamespace(model=model, guide=lambda x: None)
    with pyro.validation_enabled(False):
        elbo = elbo_terms(programs, torch.tensor([0.5, 1.5, 5.0]), num_samples=1).elbo
    assert elbo[0].tolist() == [math.log(0.25), math.log(0.25), -math.inf]


def test_masked_datum_counts_nothing_where_a_site_is_summed_out():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer=ENUMERATE)
            pyro.sample("x", dist.Normal(3 * y, 1.0), obs=x)

    x, mask = torch.randn(4), torch.tensor([True, False, True, False])
    whole, masked = (
        log_densities(SimpleNamespace(model=m, guide=lambda x: None), x, num_samples=1).log_weights
        for m in (model, poutine.mask(model, mask))
    )
    torch.testing.assert_close(masked, whole * mask, rtol=0, atol=1e-12)


def test_mark_of_a_site_that_the_guide_has_changes_nothing():
    def model(x, infer):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3), infer=infer)
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, infer):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.6), infer=infer)
            pyro.sample("z", dist.Normal(2 * y, 1.0))

    x, found = torch.randn(4), []
    for infer in ({}, ENUMERATE):
        programs = SimpleNamespace(
            model=lambda x, infer=infer: model(x, infer),
            guide=lambda x, infer=infer: guide(x, infer),
        )
        torch.manual_seed(0)
        densities = log_densities(programs, x, num_samples=5)
        assert densities.summed_out == ()
        found.append(densities.log_weights)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("prior_depends", [True, False])
def test_kl_is_analytic_where_the_prior_does_not_depend_on_a_site_that_is_summed_out(
    prior_depends,
):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3), infer=ENUMERATE)
            z = pyro.sample("z", dist.Normal(2 * y if prior_depends else 0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 2 * y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5))

    x = torch.randn(4)
    repeated = x.expand(2000, 4).flatten()
    terms = elbo_terms(SimpleNamespace(model=model, guide=guide), repeated, num_samples=1)
    assert terms.kl_is_analytic != prior_depends
    if not prior_depends:
        expected = 0.5 * (0.25 + x.square() - 1 - math.log(0.25))
        torch.testing.assert_close(terms.kl[0, :4], expected, rtol=0, atol=1e-12)
    # Quadrature over z of what both terms average.
    z = torch.linspace(-12, 12, 4001)[:, None]
    of_y = [
        (math.log(p_y), normal(z, 2 * y * prior_depends, 1.0), normal(x, z + 2 * y, 1.0))
        for y, p_y in ((0, 0.7), (1, 0.3))
    ]
    log_p_z = torch.stack([prior + p_z for prior, p_z, _ in of_y]).logsumexp(0)
    log_p_xz = torch.stack([sum(parts) for parts in of_y]).logsumexp(0)
    q = normal(z, x, 0.5).exp() * (24 / 4000)
    for found, log_ratio in (
        (terms.kl, normal(z, x, 0.5) - log_p_z),
        (terms.expected_log_likelihood, log_p_xz - log_p_z),
    ):
        draws = found.reshape(2000, 4)
        error = draws.std(0) / 2000**0.5
        assert ((draws.mean(0) - (q * log_ratio).sum(0)).abs() <= MAX_Z * error + 1e-9).all()


def with_site(x, *, plate):
    if plate:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
    else:
        pyro.sample("z", dist.Normal(0.0, 1.0))


def latent_y(distribution, infer):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", distribution, infer=infer)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + y.sum(), 1.0), obs=x)

    return model


def partly_observed(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=x > 0)


def batched(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3, len(x)), 1.0))
        pyro.sample("x", dist.Normal(z.sum(0), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            lambda x: with_site(x, plate=False),
            lambda x: with_site(x, plate=False),
            "site 'z' must lie in the plate 'data' of 4 rows",
        ),
        (
            lambda x: None,
            lambda x: with_site(x, plate=True),
            r"guide must sample only sites that the model has; got \['z'\], and the model's "
            r"latent sites are \[\]",
        ),
        (
            lambda x: with_site(x, plate=True),
            lambda x: None,
            r"guide must sample every latent site of the model; got a guide without \['z'\], "
            r"whose sites are \[\]. Add them to the guide, or observe them with obs=, or mark a",
        ),
        (
            latent_y(dist.Bernoulli(0.5), {"enumerate": "sequential"}),
            lambda x: with_site(x, plate=True),
            r"got a guide without \['y'\], whose sites are \['z'\].*\"enumerate\": \"parallel\"",
        ),
        (
            partly_observed,
            lambda x: with_site(x, plate=True),
            r"without \['x_unobserved'\].*Where obs_mask made it, fn.mask\(obs_mask\)",
        ),
        (
            latent_y(dist.Poisson(2.0), ENUMERATE),
            lambda x: with_site(x, plate=True),
            "site 'y' must have finitely many values to be summed out, all of them; got Poisson. ",
        ),
        (
            latent_y(dist.Bernoulli(torch.full((2,), 0.5)).to_event(1), ENUMERATE),
            lambda x: with_site(x, plate=True),
            "got Independent. Use Categorical or Bernoulli without .to_event",
        ),
        (
            latent_y(dist.Bernoulli(0.5), {**ENUMERATE, "num_samples": 5}),
            lambda x: with_site(x, plate=True),
            "all of them; got Bernoulli with num_samples=5",
        ),
        (
            batched,
            batched,
            r"site 'z' must have one log density for each datum, shape \(4,\), or one in each of "
            r"its plates, \{-1: 4\}; got \(3, 4\). Move dependent",
        ),
    ],
)
def test_log_densities_rejects_programs_that_are_not_per_datum(model, guide, message):
    with pytest.raises(ValueError, match=message):
        log_densities(SimpleNamespace(model=model, guide=guide), torch.zeros(4), num_samples=2)
