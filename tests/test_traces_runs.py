"""A plate of draws is used where it changes nothing, and only there."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import linear_vae, small_vae
from torch import nn

import pyro_vae as pv
from pyro_vae import families, guides, likelihoods, networks, priors
from pyro_vae.datasets import linear_gaussian
from pyro_vae.traces import JointDensity, densities, latent_site, log_densities, simulate
from pyro_vae.traces.runs import Runs


class TwoLevel:
    """z2 -> z1 -> x, and a guide of the same form."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2.sum(-1), 0.5))
            pyro.sample("x", dist.Normal(z1, 0.3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.unsqueeze(-1) * x.new_ones(2), 0.7).to_event(1))
            pyro.sample("z1", dist.Normal(x + 0.1 * z2[..., 0], 0.4))


def conv_vae():
    """Torch's own convolutions, which take one batch dimension alone."""
    decoder = nn.Sequential(nn.Linear(2, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 1, 1))
    encoder = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 4))
    return pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(decoder, event_shape=(1, 4, 4)),
        guide=guides.AmortizedGuide(families.DiagonalNormal(2), encoder),
    ).eval()


class MixesDraws(nn.Module):
    """Takes any batch dimensions, and centers over the first: wrong with a plate of draws."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, z):
        return self.linear(z - z.mean(0, keepdim=True))


def mixing_vae():
    return pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(MixesDraws(), event_shape=(3,)),
        guide=guides.AmortizedGuide(families.DiagonalNormal(2), networks.MLP(3, (), 4)),
    )


def test_log_densities_at_many_draws_are_those_of_the_parts():
    vae, x = small_vae(family=families.FullCovarianceNormal), torch.randn(5, 6)
    assert Runs(vae, x).takes_draws
    torch.manual_seed(3)
    found = log_densities(vae, x, num_samples=70, chunk_size=15)
    torch.manual_seed(3)
    runs = Runs(vae, x)
    assert runs.takes_draws
    z = torch.cat([runs.new_guide_trace(n).nodes["z"]["value"] for n in (64, 6)])
    q = vae.encode(x)
    for name, expected in (
        ("z", vae.p_z().log_prob(z)),
        ("x", vae.p_x_given_z(z).log_prob(x)),
    ):
        torch.testing.assert_close(found.log_p[name], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.log_q["z"], q.log_prob(z), rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 7, 10**6])
@pytest.mark.parametrize("make", [lambda: small_vae(family=families.Flow), TwoLevel, mixing_vae])
def test_result_does_not_depend_on_the_chunk(make, chunk_size):
    programs = make()
    x = torch.randn(5, *getattr(programs, "event_shape", ()))
    torch.manual_seed(1)
    whole = log_densities(programs, x, num_samples=70).log_weights
    torch.manual_seed(1)
    chunks = log_densities(programs, x, num_samples=70, chunk_size=chunk_size).log_weights
    torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-10)


def parts_at(vae, x, values):
    """Log weights at draws, from the three distributions."""
    with torch.no_grad():
        q = vae.encode(x)
        return torch.stack(
            [
                vae.p_z().log_prob(z) + vae.p_x_given_z(z).log_prob(x) - q.log_prob(z)
                for z in values
            ]
        )


def test_networks_that_mix_rows_run_draw_by_draw():
    vae = mixing_vae()
    x = torch.randn(4, 3)
    torch.manual_seed(1)
    found = log_densities(vae, x, num_samples=9).log_weights
    torch.manual_seed(1)
    runs = Runs(vae, x)
    assert not runs.takes_draws
    assert not runs.takes_rows
    values = [runs.guide_trace.nodes["z"]["value"]]
    values += [runs.new_guide_trace().nodes["z"]["value"] for _ in range(8)]
    torch.testing.assert_close(found, parts_at(vae, x, values), rtol=0, atol=1e-12)


def test_networks_that_take_one_batch_dimension_see_draws_as_rows():
    vae = conv_vae()
    x = torch.randn(4, 1, 4, 4)
    torch.manual_seed(1)
    found = log_densities(vae, x, num_samples=9).log_weights
    torch.manual_seed(1)
    runs = Runs(vae, x)
    assert not runs.takes_draws
    assert runs.takes_rows
    values = runs.repeated(9).new_guide_trace().nodes["z"]["value"].unflatten(0, (9, 4))
    torch.testing.assert_close(found, parts_at(vae, x, values), rtol=0, atol=1e-12)


class PixelPlate:
    """Pixels in a plate inside "data", each with a coin that is summed out."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            with pyro.plate("pixels", 3, dim=-2):
                y = pyro.sample(
                    "y", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"}
                )
                pyro.sample("x", dist.Normal(z.sum(-1) + y, 0.5), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            mean = torch.stack([x.mean(-1), x[..., 0]], -1)
            pyro.sample("z", dist.Normal(mean, 0.7).to_event(1))


def test_inner_plates_and_summed_out_sites_see_draws_as_rows():
    x, programs = torch.randn(5, 3), PixelPlate()
    runs = Runs(programs, x)
    assert not runs.takes_draws
    assert runs.takes_rows
    z = torch.randn(6, 5, 2, requires_grad=True)
    log_prior, log_likelihood = JointDensity(programs, x)(z)
    mean = z.sum(-1, keepdim=True)
    parts = [
        dist.Normal(mean + y, 0.5).log_prob(x) + torch.tensor(p).log()
        for y, p in ((0.0, 0.7), (1.0, 0.3))
    ]
    expected = torch.logaddexp(*parts).sum(-1)
    torch.testing.assert_close(log_likelihood, expected, rtol=0, atol=1e-11)
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(log_prior, prior, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(log_likelihood.sum(), z, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10)
    joint = JointDensity(programs, x)
    assert joint.guide_draws(7).shape == joint.prior_draws(7).shape == (7, 5, 2)
    weights = log_densities(programs, x, num_samples=40).log_weights
    assert weights.shape == (40, 5)
    assert len(weights.unique()) == 200


def test_rows_of_a_per_datum_guide_are_its_own():
    vae = conv_vae()
    x = torch.randn(4, 1, 4, 4)
    guide = guides.PerDatumGuide(families.DiagonalNormal(2), 4)
    torch.nn.init.normal_(guide.table)
    vae = vae.with_guide(guide)
    assert Runs(vae, x).takes_rows
    draws = JointDensity(vae, x).guide_draws(5000)
    q = vae.encode(x)
    z = (draws.mean(0) - q.mean) / (q.variance / 5000).sqrt()
    assert z.abs().max() < 5.2


def test_joint_density_of_two_levels_is_the_sum_of_its_sites_and_has_their_gradient():
    x, programs = torch.randn(4), TwoLevel()
    joint = JointDensity(programs, x)
    assert joint.num_dims == 3
    z = torch.randn(6, 4, 3, requires_grad=True)
    log_prior, log_likelihood = joint(z)
    z2, z1 = z[..., :2], z[..., 2]
    prior = dist.Normal(0.0, 1.0).log_prob(z2).sum(-1) + dist.Normal(z2.sum(-1), 0.5).log_prob(z1)
    torch.testing.assert_close(log_prior, prior, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_likelihood, dist.Normal(z1, 0.3).log_prob(x), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad((log_prior + log_likelihood).sum(), z)
    (expected,) = torch.autograd.grad((prior + dist.Normal(z1, 0.3).log_prob(x)).sum(), z)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [conv_vae, mixing_vae])
def test_joint_density_runs_draw_by_draw_where_it_must(make):
    vae = make()
    x, z = torch.randn(4, *vae.event_shape), torch.randn(3, 4, 2)
    log_prior, log_likelihood = JointDensity(vae, x)(z)
    with torch.no_grad():
        expected = torch.stack([vae.p_x_given_z(one).log_prob(x) for one in z])
    torch.testing.assert_close(log_likelihood.detach(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_prior, vae.p_z().log_prob(z), rtol=0, atol=1e-12)


def test_draws_of_guide_and_prior_have_their_moments():
    data = linear_gaussian(3, features=4, latent_dim=2, seed=2)
    vae = linear_vae(data.truth)
    joint = JointDensity(vae, data.x)
    posterior = data.truth.posterior(data.x)
    draws = joint.guide_draws(20_000)
    z = (draws.mean(0) - posterior.mean) / (posterior.variance / 20_000).sqrt()
    assert z.abs().max() < 4.27 + 1  # six comparisons, a common seed
    prior = joint.prior_draws(20_000)
    assert (prior.mean(0) * 20_000**0.5).abs().max() < 5.27
    assert ((prior.var(0) - 1) * (20_000 / 2) ** 0.5).abs().max() < 5.27


def test_split_is_undone_by_flat():
    joint = JointDensity(TwoLevel(), torch.randn(4))
    z = torch.randn(5, 4, 3)
    assert torch.equal(joint.flat(joint.split(z)), z)


def test_simulated_data_have_the_model_s_distribution():
    data = linear_gaussian(1, features=3, latent_dim=2, seed=2)
    simulation = simulate(linear_vae(data.truth), torch.zeros(20_000, 3))
    residuals = simulation.x - simulation.values["z"] @ data.truth.weight.T - data.truth.mean
    variance = residuals.square().mean()
    assert abs(variance / data.truth.variance - 1) < 4.27 * (2 / 60_000) ** 0.5
    assert abs(simulation.values["z"].square().mean() - 1) < 4.27 * (2 / 40_000) ** 0.5


def test_latent_site_is_the_guide_s_and_the_prior_s_distribution():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    site = latent_site(vae, x)
    torch.testing.assert_close(site.q.mean, vae.encode(x).mean, rtol=0, atol=0)
    assert site.name == "z"
    assert site.p.batch_shape == (5,)


class DiscreteLatent(TwoLevel):
    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.5)))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.full_like(x, 0.5)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latent_site(TwoLevel(), torch.randn(4)), "must have one latent site.*z2.*z1"),
        (lambda: latent_site(DiscreteLatent(), torch.randn(4)), "one continuous vector"),
        (lambda: JointDensity(DiscreteLatent(), torch.randn(4)), "'y' must be continuous"),
        (
            lambda: JointDensity(
                pv.baselines.autoencoder(features=3, latent_dim=2), torch.randn(4, 3)
            ),
            "programs must have a latent site.* got none. An autoencoder encodes to a point",
        ),
        (
            lambda: pv.diagnostics.sbc(pv.baselines.autoencoder(features=3, latent_dim=2), 10, 9),
            "programs must have a latent site",
        ),
        (
            lambda: pv.diagnostics.posterior_nuts(
                pv.baselines.autoencoder(features=3, latent_dim=2), torch.randn(4, 3)
            ),
            "programs must have a latent site",
        ),
        (
            lambda: simulate(SimpleNamespace(model=TwoLevel().guide, guide=None), torch.zeros(4)),
            "one observed site",
        ),
    ],
)
def test_programs_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_few_draws_cost_no_run_that_finds_out(monkeypatch):
    monkeypatch.setattr(Runs, "takes_draws", property(lambda self: 1 / 0))
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(5, 6)
    assert log_densities(vae, x, num_samples=densities.FEW_DRAWS - 1).log_weights.shape == (7, 5)
