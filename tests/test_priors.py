import copy
import math
from functools import partial

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from torch import nn
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae import datasets, families, guides, likelihoods, networks, priors


def encoder_guide(latent_dim, family=families.DiagonalNormal, features=3):
    made = family(latent_dim)
    encoder = networks.MLP(features, (4,), made.num_params, activation=nn.Tanh)
    return guides.AmortizedGuide(made, encoder)


def low_rank(latent_dim):
    return families.LowRankNormal(latent_dim, 1)


def mixture(latent_dim, family=None):
    family = None if family is None else family(latent_dim)
    return priors.GaussianMixture(latent_dim, 3, family=family)


def fixed(latent_dim):
    scale_tril = (torch.eye(latent_dim) + 0.5).tril()
    return priors.Fixed(dist.MultivariateNormal(torch.ones(latent_dim), scale_tril=scale_tril))


MAKERS = {
    "StandardNormal": priors.StandardNormal,
    "Normal": priors.Normal,
    "GaussianMixture": mixture,
    "GaussianMixture, isotropic": partial(mixture, family=families.IsotropicNormal),
    "GaussianMixture, low rank": partial(mixture, family=low_rank),
    "GaussianMixture, full": partial(mixture, family=families.FullCovarianceNormal),
    "VampPrior": lambda k: priors.VampPrior(encoder_guide(k), torch.randn(4, 3)),
    "VampPrior, weights": lambda k: priors.VampPrior(
        encoder_guide(k, families.FullCovarianceNormal), torch.randn(4, 3), learn_weights=True
    ),
    "FlowPrior": partial(priors.FlowPrior, hidden=(6,)),
    "FlowPrior, spline": partial(priors.FlowPrior, hidden=(6,), steps=priors.spline_steps),
    "StudentT": partial(priors.StudentT, df=12.0, scale=0.7),
    "Laplace": partial(priors.Laplace, scale=0.7),
    "Fixed": fixed,
}
every_prior = pytest.mark.parametrize("name", MAKERS)
CONSTANT = {"StandardNormal", "StudentT", "Laplace", "Fixed"}
every_learned_prior = pytest.mark.parametrize("name", [n for n in MAKERS if n not in CONSTANT])


def perturbed(module, size=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module


def make(name, latent_dim=2, size=0.3):
    return perturbed(MAKERS[name](latent_dim), size)


def grid(latent_dim):
    """Points and log weights of a trapezoid rule that reaches out to 45 and is dense at 0."""
    step = 0.005 if latent_dim == 1 else 0.02
    u = torch.arange(-4.5, 4.5 + step / 2, step)
    axis, log_weight = u.sinh(), u.cosh().log() + math.log(step)
    points = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim)
    log_weights = torch.cartesian_prod(*[log_weight] * latent_dim).reshape(-1, latent_dim).sum(-1)
    return points, log_weights


def test_every_prior_is_under_test():
    classes = {name for name in priors.__all__ if isinstance(getattr(priors, name), type)}
    assert {name.partition(",")[0] for name in MAKERS} == classes
    assert set(priors.__all__) - classes == {"affine_steps", "spline_steps"}


@every_prior
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_density_integrates_to_one_and_draws_have_its_moments(name, latent_dim):
    p, (z, log_weights) = make(name, latent_dim, size=0.15)(), grid(latent_dim)
    with torch.no_grad():
        mass = (p.log_prob(z) + log_weights).exp()
        draws = p.sample((10_000,))
    # Kinks of Laplace and of splines leave the rule an error of about its squared step.
    assert abs(mass.sum() - 1) < 5e-4

    def functions(z):
        return torch.cat([z, (z.unsqueeze(-1) * z.unsqueeze(-2)).flatten(1)], dim=-1)

    expected = mass @ functions(z)
    found = functions(draws)
    errors = (found.mean(0) - expected) / (found.std(0) / len(draws) ** 0.5)
    assert errors.abs().max() < MAX_Z


@every_prior
def test_prior_has_its_declared_shape_and_expands(name):
    prior = make(name, 3)
    p = prior()
    assert p.batch_shape == ()
    assert p.event_shape == prior.event_shape == (3,)
    z = torch.randn(5, 4, 3)
    expected = torch.stack([prior().log_prob(row) for row in z.reshape(-1, 3)]).reshape(5, 4)
    wide = p.expand((4,))
    assert wide.batch_shape == (4,)
    assert wide.sample((5,)).shape == (5, 4, 3)
    for q in (p, wide):
        torch.testing.assert_close(q.log_prob(z), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(q.log_prob(z[0]), expected[0], rtol=0, atol=1e-10)


@every_prior
def test_prior_can_be_sampled_in_a_plate(name):
    prior = make(name, 3)

    def program():
        with pyro.plate("data", 4):
            return pyro.sample("z", prior())

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (4, 3)
    torch.testing.assert_close(
        site["log_prob"], prior().log_prob(site["value"].detach().clone()), rtol=0, atol=1e-8
    )


@every_learned_prior
def test_gradients_reach_every_parameter(name):
    prior = make(name, 3)
    prior().log_prob(torch.randn(8, 3)).sum().backward()
    assert all((parameter.grad != 0).any() for parameter in prior.parameters())


@every_learned_prior
def test_gradients_are_those_of_the_density_at_fixed_values(name):
    prior = make(name, 2)
    parameters = list(prior.parameters())
    for z in (torch.randn(6, 2), prior().sample((6,))):
        prior.zero_grad()
        for _ in range(2):  # a second pass over the same values, as in full-batch training
            prior().log_prob(z).mean().backward()
        values = []
        for size in (1e-6, -1e-6):
            with torch.no_grad():
                moved = copy.deepcopy(prior)
                for parameter, direction in zip(moved.parameters(), parameters, strict=True):
                    parameter.add_(size * direction.grad)
                values.append(moved().log_prob(z).mean())
        slope = sum(parameter.grad.square().sum() for parameter in parameters) / 2
        assert slope > 0
        torch.testing.assert_close((values[0] - values[1]) / 2e-6, slope, rtol=1e-5, atol=1e-8)


@every_prior
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_type_follow_the_tensors(name, dtype):
    prior = make(name, 2)
    z = torch.randn(7, 2)
    expected = prior().log_prob(z)
    prior.to(dtype)
    z = z.to(dtype)
    with torch.device("meta"):
        p = prior()
        log_prob = p.log_prob(z)
        made = [log_prob, p.sample((3,)), p.expand((4,)).sample(), p.expand((7,)).log_prob(z)]
    for tensor in made:
        assert tensor.dtype == dtype
        assert tensor.device.type == "cpu"
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(log_prob.to(expected), expected, rtol=tolerance, atol=tolerance)


@every_prior
def test_learned_parameters_are_saved_and_copied(name):
    prior, z = make(name, 2), torch.randn(7, 2)
    prior().sample()
    expected = prior().log_prob(z)
    assert set(prior.state_dict()) == {key for key, _ in prior.named_parameters()}
    other = make(name, 2)
    assert (name in CONSTANT) == (not list(prior.parameters()))
    if name not in CONSTANT:
        assert not torch.allclose(other().log_prob(z), expected)
    other.load_state_dict(prior.state_dict())
    twin = copy.deepcopy(prior)
    for made in (other, twin):
        assert torch.equal(made().log_prob(z), expected)
    perturbed(twin)
    assert torch.equal(prior().log_prob(z), expected)


@every_prior
def test_print_shows_what_it_is(name):
    assert repr(make(name, 2)).startswith(name.partition(",")[0] + "(")


# Starts


@pytest.mark.parametrize("latent_dim", [1, 3])
@pytest.mark.parametrize("name", ["Normal", "FlowPrior", "FlowPrior, spline"])
def test_learned_prior_starts_at_the_standard_normal(name, latent_dim):
    p, standard = MAKERS[name](latent_dim)(), priors.StandardNormal(latent_dim)()
    z = 3 * torch.randn(50, latent_dim)
    torch.testing.assert_close(p.log_prob(z), standard.log_prob(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bounds", [{}, {"min_scale": 0.3, "max_scale": 1.7}])
@pytest.mark.parametrize(
    "family",
    [
        families.IsotropicNormal,
        families.DiagonalNormal,
        families.FullCovarianceNormal,
        partial(families.LowRankNormal, rank=2),
    ],
)
def test_mixture_starts_with_scales_1_equal_weights_and_means_apart(family, bounds):
    prior = priors.GaussianMixture(3, 500, family=family(3, **bounds), spread=2.0)
    p = prior().component_distribution
    covariance = getattr(p, "covariance_matrix", None)
    covariance = p.variance.diag_embed() if covariance is None else covariance
    expected = torch.eye(3).expand(500, 3, 3)
    if hasattr(p, "cov_factor"):
        assert abs(p.cov_factor.std() - 0.1) < 0.01
        expected = expected + p.cov_factor @ p.cov_factor.mT
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(prior().mixture_distribution.probs, torch.full((500,), 1 / 500))
    # 1500 standard normal numbers times 2; the standard error of a variance is sqrt(2 / n).
    z = p.mean.flatten() / 2
    assert abs(z.mean() * 1500**0.5) < MAX_Z
    assert abs((z.square().mean() - 1) * (1500 / 2) ** 0.5) < MAX_Z


@pytest.mark.parametrize("name", [name for name in MAKERS if "Mixture" in name])
def test_mixture_learns_all_its_parameters_from_the_start(name):
    prior = MAKERS[name](2)
    prior().log_prob(torch.randn(8, 2)).sum().backward()
    # Below the diagonal, and in the factor of low rank, no gradient may be 0 for ever.
    assert (prior.params.grad != 0).all()
    assert (prior.logits.grad != 0).all()


@pytest.mark.parametrize("kind", ["tensor", "array", "dataset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vamp_prior_starts_at_distinct_rows(kind, dtype):
    x = torch.randint(0, 2, (40, 3)).double()  # 8 distinct rows
    given = {"tensor": x, "array": x.numpy(), "dataset": datasets.Dataset("bits", x)}[kind]
    guide = encoder_guide(2).to(dtype)
    state = torch.get_rng_state()
    with torch.device("meta"):
        prior = priors.VampPrior.from_data(guide, given, num_components=8, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert prior.pseudo_inputs.dtype == dtype
    assert prior.pseudo_inputs.unique(dim=0).tolist() == x.unique(dim=0).tolist()
    again = priors.VampPrior.from_data(guide, given, num_components=8, seed=3)
    assert torch.equal(again.pseudo_inputs, prior.pseudo_inputs)
    other = priors.VampPrior.from_data(guide, given, num_components=8, seed=4)
    assert not torch.equal(other.pseudo_inputs, prior.pseudo_inputs)
    assert prior.guide is guide


def test_vamp_prior_is_the_mixture_of_the_guide_at_its_pseudo_inputs():
    guide, u = encoder_guide(2, families.FullCovarianceNormal), torch.randn(5, 3)
    prior = priors.VampPrior(guide, u, learn_weights=True)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(5))
    z = torch.randn(7, 2)
    densities = torch.stack([guide(row.unsqueeze(0)).log_prob(z) for row in u])
    expected = torch.logsumexp(densities + prior.logits.log_softmax(0).unsqueeze(-1), dim=0)
    torch.testing.assert_close(prior().log_prob(z), expected, rtol=0, atol=1e-12)


def test_vamp_prior_trains_with_the_guide_that_it_shares():
    x = torch.randn(64, 3)
    guide = encoder_guide(2)
    vae = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(nn.Linear(2, 3), event_shape=(3,), variance=0.5),
        guide=guide,
    ).with_prior(priors.VampPrior.from_data(guide, x, num_components=4, learn_weights=True))
    names = {id(p): name for name, p in vae.named_parameters()}
    before = {key: p.detach().clone() for key, p in zip(names, vae.parameters(), strict=True)}
    pv.fit(vae, x, epochs=3, batch_size=16, progress=False)
    assert vae.p_z.guide is vae.q_z_given_x is guide
    assert len(names) == len(list(guide.parameters())) + 2 + 2  # pseudo-inputs, logits; decoder
    for key, parameter in zip(names, vae.parameters(), strict=True):
        assert names[id(parameter)] == names[key]
        assert not torch.equal(parameter, before[key]), names[key]
    twin = copy.deepcopy(vae)
    assert twin.p_z.guide is twin.q_z_given_x
    with pytest.raises(ValueError, match="model and guide share parameters"):
        pv.fit(vae, x, epochs=1, train="guide", progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pseudo_inputs_follow_the_guide(dtype):
    guide = encoder_guide(2).to(dtype)
    u = torch.ones(4, 3)
    prior = priors.VampPrior(guide, u)
    assert prior.pseudo_inputs.dtype == prior.logits.dtype == dtype
    assert prior().log_prob(torch.zeros(2, dtype=dtype)).dtype == dtype
    with torch.no_grad():
        prior.pseudo_inputs.zero_()
    assert (u == 1).all()


# Densities by hand


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (
            priors.Laplace(2, scale=0.7),
            lambda z: (-abs(z) / 0.7 - math.log(1.4)).sum(-1),
        ),
        (
            priors.StudentT(2, df=3.0, scale=0.7),  # 2 / (pi sqrt(3)) (1 + t^2 / 3)^-2
            lambda z: (
                math.log(2 / (math.pi * math.sqrt(3) * 0.7)) - 2 * (1 + (z / 0.7) ** 2 / 3).log()
            ).sum(-1),
        ),
        (
            priors.StudentT(2),  # 4 degrees of freedom: 3 / 8 (1 + t^2 / 4)^(-5/2)
            lambda z: (math.log(3 / 8) - 2.5 * (1 + z**2 / 4).log()).sum(-1),
        ),
    ],
)
def test_heavy_tailed_prior_has_its_density(prior, expected):
    prior, z = copy.deepcopy(prior).double(), 5 * torch.randn(20, 2)
    torch.testing.assert_close(prior().log_prob(z), expected(z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [priors.affine_steps, priors.spline_steps])
def test_density_of_a_flow_takes_one_pass_and_a_draw_one_for_each_coordinate(steps):
    prior, calls = priors.FlowPrior(3, num_steps=2, hidden=(4,), steps=steps), []
    for step in prior.steps:
        step.network.register_forward_hook(lambda *_: calls.append(1))
    prior().log_prob(torch.randn(5, 3))
    assert len(calls) == 2
    calls.clear()
    p = prior()
    z = p.sample((5,))
    assert len(calls) == 2 * 3
    with torch.no_grad():
        p.log_prob(z)  # known from the draw
    assert len(calls) == 2 * 3


# Closed forms of the KL

FAMILIES = [
    families.IsotropicNormal,
    families.DiagonalNormal,
    partial(families.LowRankNormal, rank=2),
    families.FullCovarianceNormal,
]
every_family = pytest.mark.parametrize("family", FAMILIES)
IS_NORMAL = ["StandardNormal", "Normal", "Fixed"]
HAS_NO_CLOSED_FORM = [
    name for name in MAKERS if name not in {*IS_NORMAL, "Laplace"} and "low rank" not in name
]


def member(family, *batch):
    made = family(3)
    return made(torch.randn(*batch, made.num_params))


def covariance_of(p):
    covariance = getattr(p, "covariance_matrix", None)
    return p.variance.diag_embed() if covariance is None else covariance


@every_family
@pytest.mark.parametrize("name", IS_NORMAL)
def test_kl_to_a_normal_prior_is_the_closed_form(family, name):
    q, p = member(family, 5), make(name, 3)()
    s0, s1 = covariance_of(q), covariance_of(p)
    precision, shift = torch.linalg.inv(s1), q.mean - p.mean
    expected = 0.5 * (
        torch.einsum("ij,nji->n", precision, s0)
        + torch.einsum("ni,ij,nj->n", shift, precision, shift)
        - 3
        + torch.logdet(s1)
        - torch.logdet(s0)
    )
    for other in (p, p.expand((5,))):
        torch.testing.assert_close(kl_divergence(q, other), expected, rtol=1e-10, atol=1e-10)


@every_family
@pytest.mark.parametrize("name", [*IS_NORMAL, "Laplace"])
def test_kl_to_a_prior_is_the_average_log_ratio(family, name):
    q, p = member(family), make(name, 3)()
    with torch.no_grad():
        z = q.sample((40_000,))
        ratio = q.log_prob(z) - p.log_prob(z)
        kl = kl_divergence(q, p)
    assert abs((ratio.mean() - kl) / (ratio.std() / 200)) < MAX_Z


@every_family
def test_kl_to_the_laplace_prior_expands(family):
    q, p = member(family, 5), make("Laplace", 3)()
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(q, p.expand((5,))))


@every_family
@pytest.mark.parametrize("name", HAS_NO_CLOSED_FORM)
def test_other_priors_claim_no_closed_form(family, name):
    with pytest.raises(NotImplementedError):
        kl_divergence(member(family, 5), make(name, 3)().expand((5,)))


# Errors

NARROW = "hidden must hold widths of at least latent_dim = 100"


def per_datum_guide():
    return guides.PerDatumGuide(families.DiagonalNormal(2), 10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: priors.StandardNormal(0), ValueError, "latent_dim must be a positive integer"),
        (lambda: priors.Normal(0), ValueError, "latent_dim must be a positive integer; got 0"),
        (lambda: priors.FlowPrior(0), ValueError, "latent_dim must be a positive integer; got 0"),
        (lambda: priors.FlowPrior(2, num_steps=0), ValueError, "num_steps must be a positive int"),
        (lambda: priors.FlowPrior(100), ValueError, NARROW),
        (lambda: priors.StudentT(2, df=0.0), ValueError, r"df must be positive and finite; got 0"),
        (lambda: priors.StudentT(2, scale=-1.0), ValueError, "scale must be positive and finite"),
        (lambda: priors.Laplace(2, scale=math.inf), ValueError, "scale must be positive and fin"),
        (
            lambda: priors.Laplace(1.5),
            ValueError,
            "latent_dim must be a positive integer; got 1.5",
        ),
        (
            lambda: priors.GaussianMixture(0, 2),
            ValueError,
            "latent_dim must be a positive integer",
        ),
        (
            lambda: priors.GaussianMixture(2, 0),
            ValueError,
            "num_components must be a positive int",
        ),
        (
            lambda: priors.GaussianMixture(2, 3, spread=0.0),
            ValueError,
            "spread must be positive and finite; got 0.0",
        ),
        (
            lambda: priors.GaussianMixture(2, 3, family=families.DiagonalNormal(3)),
            ValueError,
            r"family must have latent_dim = 2, the prior's; got event shape \(3,\)",
        ),
        (
            lambda: priors.GaussianMixture(2, 3, family=families.DiagonalNormal(2, max_scale=0.5)),
            ValueError,
            "family must have min_scale < 1 < max_scale",
        ),
        (
            lambda: priors.GaussianMixture(2, 3, family=families.DiagonalNormal),
            TypeError,
            "family must be an instance such as families.DiagonalNormal",
        ),
        (
            lambda: priors.VampPrior(nn.Linear(3, 2), torch.zeros(4, 3)),
            TypeError,
            "guide must be a module that declares event_shape",
        ),
        (
            lambda: priors.VampPrior(per_datum_guide(), torch.zeros(4, 3)),
            TypeError,
            "got PerDatumGuide, which has parameters for 10 data and no answer to pseudo-inputs",
        ),
        (
            lambda: priors.VampPrior.from_data(per_datum_guide(), torch.zeros(10, 3)),
            TypeError,
            "guide must map any x",
        ),
        (
            lambda: priors.VampPrior(encoder_guide(2), torch.full((4, 3), math.nan)),
            ValueError,
            "pseudo_inputs must not contain NaN",
        ),
        (
            lambda: priors.VampPrior.from_data(encoder_guide(2), torch.zeros(4, 3)),
            ValueError,
            "num_components must not exceed the number of distinct rows of x, 1; got 50. Ask for",
        ),
        (
            lambda: priors.VampPrior.from_data(
                encoder_guide(2), torch.zeros(4, 3), num_components=0
            ),
            ValueError,
            "num_components must be a positive integer; got 0",
        ),
    ],
)
def test_prior_rejects_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()


def guide_with_batch_norm():
    family = families.DiagonalNormal(2)
    encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, family.num_params))
    return guides.AmortizedGuide(family, encoder)


def test_vamp_prior_neither_uses_nor_changes_the_statistics_of_its_batch_of_pseudo_inputs():
    guide = guide_with_batch_norm()
    prior, z = priors.VampPrior(guide, torch.randn(1, 3)), torch.randn(5, 2)
    in_training = prior().log_prob(z)
    assert guide.training
    assert guide.encoder[0].num_batches_tracked == 0
    prior.eval()
    assert torch.equal(prior().log_prob(z), in_training)


def test_vamp_prior_matches_the_columns_of_a_table():
    guide = guides.AmortizedGuide(families.DiagonalNormal(2), nn.Linear(3, 4))
    frame = pd.DataFrame(torch.randn(6, 3).numpy(), columns=list("abc"))
    made = [
        priors.VampPrior.from_data(guide, table, num_components=4, columns=list("abc"))
        for table in (frame, frame[list("cba")])
    ]
    assert torch.equal(made[0].pseudo_inputs, made[1].pseudo_inputs)


def test_vamp_prior_depends_on_its_seed():
    guide = guides.AmortizedGuide(families.DiagonalNormal(2), nn.Linear(3, 4))
    x = torch.randn(50, 3)
    first, again, other = (
        priors.VampPrior.from_data(guide, x, num_components=5, seed=seed).pseudo_inputs
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_student_t_is_normalized_in_single_precision_however_many_degrees_of_freedom():
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(-1)
    p = priors.StudentT(1, df=1e6).to(torch.float32)()
    mass = p.log_prob(z.float()).double().exp().sum() * 24 / 4000
    assert abs(mass - 1) < 1e-5
