import copy
import pickle

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
import torch.distributions as torch_dist
from conftest import MAX_Z
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import families, guides, likelihoods, priors
from pyro_vae.autoregressive import AffineStep
from pyro_vae.distributions import CholeskyNormal
from pyro_vae.vae import VAE


def normal(d):
    return d.Independent(d.Normal(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])), 1)


def multivariate_normal(d):
    return d.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))


def by_precision(d):
    return d.MultivariateNormal(
        torch.ones(2), precision_matrix=torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    )


def low_rank(d):
    return d.LowRankMultivariateNormal(
        torch.ones(2), torch.tensor([[1.0], [0.5]]), torch.tensor([0.5, 0.2])
    )


def mixture(d):
    loc = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 0.0]])
    parts = d.Independent(d.Normal(loc, torch.tensor(0.5)), 1)
    return d.MixtureSameFamily(d.Categorical(probs=torch.tensor([0.2, 0.3, 0.5])), parts)


def transformed(d):
    affine = torch_dist.AffineTransform(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.5]))
    return d.TransformedDistribution(
        normal(d),
        [torch_dist.ExpTransform().inv.inv, affine, torch_dist.SigmoidTransform().inv.inv],
    )


def by_an_inverse(d):
    uniform = d.Independent(d.Uniform(torch.zeros(2), torch.ones(2)), 1)
    return d.TransformedDistribution(
        uniform, [torch_dist.IndependentTransform(torch_dist.SigmoidTransform().inv, 1)]
    )


def uniform(d):
    return d.Independent(d.Uniform(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 3.0])), 1)


def log_normal(d):
    return d.Independent(d.LogNormal(torch.zeros(2), torch.tensor(0.5)), 1)


def step():
    torch.manual_seed(1)
    made = AffineStep(2, hidden=(4,))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def flow(d):
    return d.TransformedDistribution(normal(d), [step().condition()])


def by_inverse_flow(d):
    return d.TransformedDistribution(normal(d), [step().condition().inv])


def by_pyro_flow(d):
    torch.manual_seed(1)
    nets = [pyro_transforms.affine_autoregressive(2, [4], stable=stable) for stable in (0, 1)]
    return d.TransformedDistribution(
        normal(d), [*nets, pyro_transforms.ComposeTransformModule([pyro_transforms.spline(2)])]
    )


DISTRIBUTIONS = [
    normal,
    multivariate_normal,
    by_precision,
    low_rank,
    mixture,
    transformed,
    by_an_inverse,
    uniform,
    log_normal,
    flow,
    by_inverse_flow,
]
every_distribution = pytest.mark.parametrize("make", DISTRIBUTIONS)
every_library = pytest.mark.parametrize("library", [dist, torch_dist], ids=["pyro", "torch"])


def values(p, *shape):
    torch.manual_seed(5)
    return p.sample(shape).clone()


@every_distribution
@every_library
def test_density_is_the_given_one(make, library):
    given = make(library)
    before = copy.copy(vars(given))
    p = priors.Fixed(given)()
    assert vars(given) == before
    z = values(given, 5, 4)
    torch.testing.assert_close(p.log_prob(z), given.log_prob(z), rtol=0, atol=1e-9)
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    assert isinstance(p, TorchDistributionMixin)
    assert isinstance(p, type(given))


@every_distribution
@every_library
def test_draws_are_the_given_ones(make, library):
    given = make(library)
    p = priors.Fixed(given)()
    torch.manual_seed(3)
    expected = given.sample((7,))
    torch.manual_seed(3)
    torch.testing.assert_close(p.sample((7,)), expected)
    assert p.has_rsample == given.has_rsample


@every_distribution
@every_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_can_be_sampled_and_observed_in_a_plate(make, library, dtype):
    prior = priors.Fixed(make(library)).to(dtype)

    def program(z=None):
        with pyro.plate("draws", 5, dim=-2), pyro.plate("data", 4, dim=-1):
            return pyro.sample("z", prior(), obs=z)

    with torch.device("meta"):
        z = program()
        site = pyro.poutine.trace(program).get_trace(z.detach()).nodes["z"]
        log_prob = site["fn"].log_prob(site["value"])
    assert z.shape == (5, 4, 2)
    assert z.dtype == dtype
    assert log_prob.dtype == dtype
    assert log_prob.device.type == "cpu"
    expected = make(dist).log_prob(z.detach().double())
    tolerance = 1e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(log_prob.double(), expected, rtol=tolerance, atol=tolerance)


@every_distribution
def test_tensors_follow_a_move_there_and_back(make):
    prior = priors.Fixed(make(torch_dist))
    z = values(make(dist), 6)
    expected = make(dist).log_prob(z)
    p = prior()
    p.log_prob(z)
    for lazy in ("precision_matrix", "covariance_matrix", "scale_tril", "mean", "variance"):
        try:
            getattr(p, lazy)
        except (AttributeError, NotImplementedError):
            continue
    prior.float()
    single = prior()
    assert single.log_prob(z.float()).dtype == torch.float32
    assert single.sample().dtype == torch.float32
    assert prior.to("meta")().sample((3,)).device.type == "meta"
    again = priors.Fixed(make(torch_dist)).double()().log_prob(z)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-9)


def test_what_a_distribution_keeps_does_not_outlast_a_move():
    prior = priors.Fixed(multivariate_normal(torch_dist))
    assert prior().precision_matrix.dtype == torch.float64
    prior.float()
    assert prior().precision_matrix.dtype == torch.float32
    with torch.inference_mode():
        assert prior().precision_matrix.is_inference()
    assert not prior().precision_matrix.is_inference()


@pytest.mark.parametrize("make", [flow, by_inverse_flow, by_pyro_flow, None])
def test_its_tensors_are_constants(make):
    loc = torch.zeros(2, requires_grad=True)
    given = dist.Normal(2 * loc, loc.exp()).to_event(1) if make is None else make(dist)
    z = torch.randn(3, 2)
    assert given.log_prob(z).requires_grad
    prior = priors.Fixed(given)
    assert not prior().log_prob(z).requires_grad
    assert not prior().rsample().requires_grad
    assert list(prior.parameters()) == []
    assert prior.state_dict() == {}


def test_later_changes_of_the_given_tensors_do_not_reach_it():
    loc = torch.zeros(2)
    prior = priors.Fixed(dist.Normal(loc, 1.0).to_event(1))
    loc += 5
    assert prior().mean.tolist() == [0, 0]
    module = step()
    prior = priors.Fixed(dist.TransformedDistribution(normal(dist), [module.condition()]))
    z = torch.randn(2)
    before = prior().log_prob(z)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(prior().log_prob(z), before)


@every_distribution
def test_it_is_copied_with_its_module(make):
    prior, z = priors.Fixed(make(torch_dist)), values(make(dist), 6)
    twin = copy.deepcopy(prior)
    assert torch.equal(twin().log_prob(z), prior().log_prob(z))
    twin.float()
    assert prior().sample().dtype == torch.float64


@pytest.mark.parametrize("make", [normal, multivariate_normal, low_rank, mixture])
def test_it_can_be_pickled(make):
    prior, z = priors.Fixed(make(torch_dist)), values(make(dist), 6)
    assert torch.equal(pickle.loads(pickle.dumps(prior))().log_prob(z), prior().log_prob(z))


@every_library
def test_transforms_of_pyro_with_networks_are_copied(library):
    given = by_pyro_flow(library)
    prior = priors.Fixed(given)
    torch.manual_seed(3)
    z = given.sample((6,))
    expected = given.log_prob(z)
    torch.manual_seed(3)
    p = prior()
    again = p.sample((6,))
    torch.testing.assert_close(again, z)
    torch.testing.assert_close(p.log_prob(again), expected, rtol=0, atol=1e-9)
    torch.manual_seed(3)
    q = prior.float()()
    with torch.device("meta"):
        single = q.rsample((6,))
        assert q.log_prob(single).dtype == torch.float32
    assert given.transforms[0].arn.layers[0].weight.dtype == torch.float64
    assert given.transforms[0].arn.layers[0].weight.requires_grad


def test_what_is_shared_within_stays_shared():
    tensor = torch.ones(2)
    transform = torch_dist.AffineTransform(tensor, tensor)
    given = torch_dist.TransformedDistribution(normal(torch_dist), [transform, transform])
    p = priors.Fixed(given)()
    assert p.transforms[0] is p.transforms[1]
    assert p.transforms[0].loc is p.transforms[0].scale
    assert p.transforms[0] is not transform


class Doubled(torch_dist.Normal):
    """A user's own distribution of torch's."""

    def log_prob(self, value):
        return super().log_prob(value) * 2


def test_users_own_distribution_keeps_its_methods():
    given = torch_dist.Independent(Doubled(torch.zeros(2), torch.ones(2)), 1)
    p = priors.Fixed(given)()
    z = torch.randn(4, 2)
    torch.testing.assert_close(p.expand((4,)).log_prob(z), given.log_prob(z))
    assert isinstance(p.base_dist, Doubled)


def test_users_own_distribution_may_have_the_name_of_one_of_torch():
    own = type("Normal", (Doubled,), {})
    given = torch_dist.Independent(own(torch.zeros(2), torch.ones(2)), 1)
    z = torch.randn(4, 2)
    torch.testing.assert_close(priors.Fixed(given)().log_prob(z), given.log_prob(z))


def test_what_transforms_remember_is_not_kept():
    given = flow(dist)
    given.sample((1000,))
    assert given.transforms[0]._cached_x_y[0] is not None
    assert priors.Fixed(given)._distribution.transforms[0]._cached_x_y == (None, None)


def test_density_with_batch_norm_is_one_of_a_single_value():
    given = dist.TransformedDistribution(normal(dist), [pyro_transforms.batchnorm(2)])
    assert given.transforms[0].training
    prior, z = priors.Fixed(given), torch.randn(5, 2)
    together = prior.train()().log_prob(z)
    torch.testing.assert_close(together, torch.stack([prior().log_prob(row) for row in z]))


def test_normals_remember_no_foreign_draw():
    given = CholeskyNormal(torch.zeros(2), scale_tril=torch.eye(2))
    z = given.rsample()
    p = priors.Fixed(given)()
    torch.testing.assert_close(p.log_prob(z), given.log_prob(z.clone()))
    assert type(p) is CholeskyNormal


@pytest.mark.parametrize(
    "family",
    [
        families.IsotropicNormal(2),
        families.DiagonalNormal(2),
        families.LowRankNormal(2, 1),
        families.FullCovarianceNormal(2),
    ],
)
@pytest.mark.parametrize("make", [normal, multivariate_normal, by_precision])
@every_library
def test_closed_forms_of_the_kl_are_found(family, make, library):
    q, p = family(torch.randn(family.num_params)), priors.Fixed(make(library))()
    with torch.no_grad():
        z = q.sample((40_000,))
        ratio = q.log_prob(z) - p.log_prob(z)
        kl = kl_divergence(q, p.expand((3,)))
    assert kl.shape == (3,)
    assert abs((ratio.mean() - kl[0]) / (ratio.std() / 200)) < MAX_Z


def test_vae_with_a_prior_of_torch():
    family = families.DiagonalNormal(2)
    vae = VAE(
        prior=priors.Fixed(mixture(torch_dist)),
        likelihood=likelihoods.Gaussian(nn.Linear(2, 3), event_shape=(3,), variance=0.1),
        guide=guides.AmortizedGuide(family, nn.Linear(3, family.num_params)),
    ).float()
    x = vae.sample(5)
    assert x.dtype == torch.float32
    assert vae.log_importance_weights(x, num_samples=2).isfinite().all()


@pytest.mark.parametrize(
    ("distribution", "error", "message"),
    [
        (
            dist.Normal(torch.zeros(2), 1.0),
            ValueError,
            r"got batch shape \(2,\) and event shape \(\). .*distribution.to_event\(1\), or",
        ),
        (
            torch_dist.Independent(torch_dist.Normal(torch.zeros(3, 2), 1.0), 1),
            ValueError,
            r"got batch shape \(3,\) and event shape \(2,\). .*to_event\(1\)",
        ),
        (
            dist.Normal(0.0, 1.0),
            ValueError,
            r"event shape \(\). Give its parameters a dimension, and make that the event",
        ),
        (priors.StandardNormal(2), TypeError, "A module that returns a distribution is a prior"),
        (dist.Normal, TypeError, "distribution must be one of Pyro's or torch's; got"),
    ],
)
def test_fixed_rejects_what_is_no_prior(distribution, error, message):
    with pytest.raises(error, match=message):
        priors.Fixed(distribution)
