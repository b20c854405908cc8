import logging
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from conftest import MAX_Z
from helpers import linear_vae, small_vae
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vae import distributions, families, guides
from pyro_vae.bounds import inverse_positive
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics.gaps import inference_gaps as gaps_module
from pyro_vae.diagnostics.gaps import per_datum_optimum, per_datum_search
from pyro_vae.diagnostics.gaps.inference_gaps import gap_summary, inference_gaps
from pyro_vae.diagnostics.gaps.per_datum_joint import RowsJoint
from pyro_vae.diagnostics.gaps.per_datum_optimum import draw_log_weights
from pyro_vae.diagnostics.gaps.per_datum_start import at_moments, has_family
from pyro_vae.plots.gaps import gap_bars, gaps_per_datum

DIAGONAL, FULL = families.DiagonalNormal, families.FullCovarianceNormal
ALL = ("log_evidence", "elbo", "best_elbo", *gaps_module.GAPS)


def rotated(num_data=6):
    """A linear model whose posterior is correlated."""
    return linear_gaussian(num_data, features=6, latent_dim=3, variance=0.2, seed=1)


def precision(truth):
    gram = truth.weight.T @ truth.weight / truth.variance
    return gram + torch.eye(truth.latent_dim)


def affine_encoder(truth, rest):
    """The encoder whose mean is the posterior's, and whose other outputs are constant."""
    k = truth.latent_dim
    encoder = nn.Linear(truth.num_features, k + len(rest))
    to_mean = torch.linalg.solve(precision(truth), truth.weight.T) / truth.variance
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight[:k] = to_mean
        encoder.bias[:k] = -to_mean @ truth.mean
        encoder.bias[k:] = torch.as_tensor(rest)
    return encoder


def best_diagonal(truth):
    """The diagonal guide that theory knows: FORMULAS (a)."""
    family = DIAGONAL(truth.latent_dim)
    scales = precision(truth).diagonal().rsqrt().tolist()
    raw = [inverse_positive(s, family.min_scale, family.max_scale) for s in scales]
    return guides.AmortizedGuide(family, affine_encoder(truth, raw))


def exact_full(truth):
    """The full guide that is the posterior."""
    family = FULL(truth.latent_dim)
    posterior = truth.posterior(truth.mean.unsqueeze(0))
    start = at_moments(family, posterior)
    rest = start.table[0, truth.latent_dim :]
    return guides.AmortizedGuide(family, affine_encoder(truth, rest))


def agrees(values, expected, errors):
    """Mean against expectation, in standard errors."""
    difference = float(np.mean(np.asarray(values) - np.asarray(expected)))
    error = math.sqrt(float(np.square(errors).sum())) / len(errors)
    return abs(difference) < MAX_Z * error + 1e-9


@pytest.mark.parametrize("make", [None, exact_full])
def test_exact_posterior_has_no_gap_and_no_variance(make):
    data = rotated()
    guide = None if make is None else make(data.truth)
    gaps = inference_gaps(
        linear_vae(data.truth, guide=guide),
        data.x,
        families={"full": FULL(3)},
        num_samples=50,
        num_steps=20,
    )
    for name in gaps_module.GAPS:
        assert abs(gaps[name]).max() < 1e-10
    for name in (*ALL, "family_gain"):
        assert gaps[f"{name}_mcse"].max() < 1e-10
    for name in ("log_evidence", "elbo", "best_elbo"):
        np.testing.assert_allclose(gaps[name], data.log_evidence, atol=1e-10)
    np.testing.assert_allclose(gaps["pareto_khat"], 0, atol=1e-3)


def test_best_diagonal_guide_has_an_approximation_gap_and_full_covariance_buys_it():
    data = rotated()
    expected = data.truth.best_diagonal_gap()
    assert expected > 0.5
    asked = {"full": FULL(3), "isotropic": families.IsotropicNormal(3)}
    vae = linear_vae(data.truth, guide=best_diagonal(data.truth))
    gaps = inference_gaps(vae, data.x, families=asked, num_steps=150)
    assert agrees(gaps.approximation_gap, expected, gaps.approximation_gap_mcse)
    assert agrees(gaps.amortization_gap, 0, gaps.amortization_gap_mcse)
    assert agrees(gaps.log_evidence, data.log_evidence, gaps.log_evidence_mcse)
    assert abs(gaps.amortization_gap).max() < 0.2
    full, isotropic = gaps.sel(family="full"), gaps.sel(family="isotropic")
    assert agrees(full.family_gain, expected, full.family_gain_mcse)
    assert abs(full.family_approximation_gap).max() < 1e-3
    gap = isotropic.family_approximation_gap
    assert agrees(gap, data.truth.best_isotropic_gap(), isotropic.family_approximation_gap_mcse)
    np.testing.assert_allclose(
        gaps.approximation_gap + gaps.amortization_gap, gaps.inference_gap, atol=1e-10
    )


def test_differences_are_paired():
    data = rotated()
    vae = linear_vae(data.truth, guide=best_diagonal(data.truth))
    gaps = inference_gaps(vae, data.x, num_samples=400, num_steps=100)
    unpaired = np.hypot(gaps.elbo_mcse, gaps.best_elbo_mcse)
    assert gaps.amortization_gap_mcse.median() < unpaired.median() / 3


@pytest.mark.parametrize("make", [best_diagonal, exact_full])
def test_encoder_with_a_wrong_mean_has_an_amortization_gap_of_the_closed_form(make):
    data = rotated()
    vae = linear_vae(data.truth, guide=make(data.truth))
    shift = torch.tensor([0.5, -0.3, 0.2])
    with torch.no_grad():
        vae.q_z_given_x.encoder.bias[:3] += shift
    gaps = inference_gaps(vae, data.x, num_samples=500, num_steps=150)
    expected = 0.5 * float(shift @ precision(data.truth) @ shift)
    assert expected > 1
    assert agrees(gaps.amortization_gap, expected, gaps.amortization_gap_mcse)
    approximation = data.truth.best_diagonal_gap() if make is best_diagonal else 0.0
    error = np.hypot(gaps.approximation_gap_mcse, gaps.unfinished_mcse)
    assert agrees(gaps.approximation_gap - gaps.unfinished, approximation, error)


def test_encoder_that_ignores_x_has_the_gap_of_its_kl():
    data = rotated()
    vae = linear_vae(data.truth, guide=best_diagonal(data.truth))
    with torch.no_grad():
        vae.q_z_given_x.encoder.weight.zero_()
        vae.q_z_given_x.encoder.bias.zero_()
    q = vae.encode(data.x)
    kl = kl_divergence(
        MultivariateNormal(q.mean, q.variance.diag_embed()), data.truth.posterior(data.x)
    ).detach()
    gaps = inference_gaps(vae, data.x, num_samples=500, num_steps=200)
    assert agrees(gaps.inference_gap, kl.numpy(), gaps.inference_gap_mcse)
    best = data.truth.best_diagonal_gap()
    assert agrees(gaps.approximation_gap, best, gaps.approximation_gap_mcse)
    amortization = kl.numpy() - best
    assert (amortization > 5).all()
    z = (gaps.amortization_gap - amortization) / gaps.amortization_gap_mcse
    assert abs(z).max() < MAX_Z


def test_full_covariance_is_found_where_the_posterior_is_strongly_correlated():
    data = linear_gaussian(4, features=30, latent_dim=20, variance=0.05, seed=1)
    assert data.truth.best_diagonal_gap() > 4
    vae = linear_vae(data.truth, guide=best_diagonal(data.truth))
    gaps = inference_gaps(vae, data.x, families={"full": FULL(20)}, num_samples=200, num_steps=200)
    assert abs(gaps.family_approximation_gap).max() < 0.03
    assert abs(gaps.family_unfinished).max() < 0.03


def one_dimensional():
    """A nonlinear decoder; log joint at a grid of z, ``(Z, N)``."""
    vae = small_vae(family=DIAGONAL, latent_dim=1, variance=0.05)
    with torch.no_grad():
        for parameter in vae.p_x_given_z.parameters():
            parameter.mul_(2.5)
        x = vae.sample(6)
        z = torch.linspace(-9, 9, 20001)
        log_joint = vae.p_x_given_z(z.reshape(-1, 1, 1)).log_prob(x)
        log_joint = log_joint + dist.Normal(0, 1).log_prob(z).unsqueeze(1)
    return vae, x, z, log_joint


def test_nonlinear_model_agrees_with_quadrature():
    vae, x, z, log_joint = one_dimensional()
    step = float(z[1] - z[0])
    log_evidence = log_joint.logsumexp(0) + math.log(step)
    with torch.no_grad():
        q = vae.encode(x)
        elbo = (
            ((q.base_dist.loc - z.reshape(-1, 1, 1)) / q.base_dist.scale).square()[..., 0] * -0.5
        ).softmax(0)
        entropy = q.base_dist.scale.log()[:, 0] + 0.5 * math.log(2 * math.pi * math.e)
        elbo = (elbo * log_joint).sum(0) + entropy
    # The best normal by a grid search over mean and scale, started nowhere near the encoder.
    best = torch.full_like(elbo, -math.inf)
    for scale in torch.logspace(-2.5, 0, 60):
        noise = torch.linspace(-6, 6, 121)
        weights = (-0.5 * noise.square()).softmax(0)
        means = torch.linspace(-3, 3, 601)
        points = means.unsqueeze(1) + scale * noise
        places = ((points + 9) / step).round().long()
        found = torch.einsum("s,msn->mn", weights, log_joint[places])
        entropy = scale.log() + 0.5 * math.log(2 * math.pi * math.e)
        best = torch.maximum(best, (found + entropy).max(0).values)
    gaps = inference_gaps(vae, x, num_samples=4000, num_steps=200)
    z_scores = (gaps.log_evidence - log_evidence.numpy()) / gaps.log_evidence_mcse
    assert abs(z_scores).max() < MAX_Z
    assert (abs((gaps.elbo - elbo.numpy()) / gaps.elbo_mcse) < MAX_Z).all()
    # The grid misses some 0.01 nats of the best.
    excess = gaps.best_elbo - best.numpy()
    assert (excess < 0.02 + MAX_Z * gaps.best_elbo_mcse).all()
    assert (excess > -0.02 - MAX_Z * gaps.best_elbo_mcse).mean() > 0.6  # else another mode


def test_families_need_not_contain_the_guides():
    data = rotated()
    vae = linear_vae(data.truth, guide=exact_full(data.truth))
    asked = {
        "diagonal": DIAGONAL(3),
        "low rank": families.LowRankNormal(3, 2),
        "flow": families.Flow(3, hidden=(8,)),
    }
    gaps = inference_gaps(vae, data.x, families=asked, num_samples=500, num_steps=150)
    diagonal = gaps.sel(family="diagonal")
    gap, error = diagonal.family_approximation_gap, diagonal.family_approximation_gap_mcse
    assert agrees(gap, data.truth.best_diagonal_gap(), error)
    # Rank 2 of 3 has every covariance in reach, and so has one affine step.
    assert abs(gaps.sel(family="low rank").family_approximation_gap).median() < 0.02
    assert abs(gaps.sel(family="flow").family_approximation_gap).median() < 0.04
    assert list(gaps["family"].to_numpy()) == list(asked)


def test_flow_guide_is_searched_with_its_networks():
    data = rotated()
    family = families.Flow(3, hidden=(8,), context_dim=2)
    scales = precision(data.truth).diagonal().rsqrt().tolist()
    raw = [inverse_positive(s, family.min_scale, family.max_scale) for s in scales]
    guide = guides.AmortizedGuide(family, affine_encoder(data.truth, [*raw, 0.0, 0.0]))
    before = [p.clone() for p in guide.parameters()]
    gaps = inference_gaps(
        linear_vae(data.truth, guide=guide), data.x, num_samples=500, num_steps=150
    )
    # Its steps are the identity, so it starts as the best diagonal guide.
    expected = data.truth.best_diagonal_gap()
    assert abs(gaps.amortization_gap.mean() - expected) < 0.05
    assert all(torch.equal(p, q) for p, q in zip(before, guide.parameters(), strict=True))


def test_evidence_may_be_given():
    data = rotated()
    vae = linear_vae(data.truth, guide=best_diagonal(data.truth))
    options = {"num_samples": 100, "num_steps": 20, "families": {"full": FULL(3)}}
    exact = inference_gaps(vae, data.x, log_evidence=data.log_evidence, **options)
    np.testing.assert_allclose(exact.log_evidence, data.log_evidence)
    assert (exact.log_evidence_mcse == 0).all()
    np.testing.assert_allclose(exact.inference_gap, data.log_evidence.numpy() - exact.elbo)
    np.testing.assert_allclose(exact.inference_gap_mcse, exact.elbo_mcse)
    np.testing.assert_allclose(exact.approximation_gap_mcse, exact.best_elbo_mcse)
    assert "pareto_khat" not in exact
    error = np.full(len(data.x), 0.3)
    told = xr.Dataset(
        {"log_evidence": ("obs_id", data.log_evidence.numpy()), "mcse": ("obs_id", error)}
    )
    given = inference_gaps(vae, data.x, log_evidence=told, **options)
    np.testing.assert_allclose(given.inference_gap, exact.inference_gap)
    np.testing.assert_allclose(given.inference_gap_mcse, np.hypot(0.3, exact.elbo_mcse))
    for gaps in (exact, given):
        full = gaps.sel(family="full")
        np.testing.assert_allclose(
            full.family_approximation_gap, data.log_evidence.numpy() - full.family_best_elbo
        )
        assert gaps.attrs["evidence"] == "given"


@pytest.mark.parametrize("log_evidence", [np.zeros(3), np.full(2, np.nan), xr.Dataset()])
def test_given_evidence_must_be_one_finite_value_for_each_datum(log_evidence):
    vae = small_vae(family=DIAGONAL)
    with pytest.raises(ValueError, match="log_evidence must hold a finite log p"):
        inference_gaps(vae, torch.zeros(2, 6), log_evidence=log_evidence)


class Correlated:
    """y = z_0 + c z_1 + noise: the posterior is correlated where c is not 0; x holds y and c."""

    def __init__(self, scale=0.5):
        self.scale = scale

    def weights(self, x):
        return torch.stack([torch.ones_like(x[:, 1]), x[:, 1]], dim=1)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = dist.Normal((z * self.weights(x)).sum(-1), self.scale)
            pyro.sample("y", y, obs=x[:, 0])

    def guide(self, x):
        w = self.weights(x)
        mean = w * (x[:, 0] / (self.scale**2 + w.square().sum(1))).unsqueeze(1)
        with pyro.plate("data", len(x), dim=-1):
            scale = (1 + w.square() / self.scale**2).rsqrt()
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    def log_evidence(self, x):
        variance = self.scale**2 + self.weights(x).square().sum(1)
        return dist.Normal(0, variance.sqrt()).log_prob(x[:, 0])


@pytest.fixture
def searches(monkeypatch):
    """Family and number of rows of each search."""
    found = []
    search = per_datum_search.best_members

    def best_members(joint, family, start, **options):
        found.append((type(family), len(start)))
        return search(joint, family, start, **options)

    monkeypatch.setattr(per_datum_search, "best_members", best_members)
    return found


def test_full_covariance_is_sought_for_the_evidence_of_the_data_that_need_it(searches):
    x = torch.tensor([[0.5, 0.0], [1.0, 1.5], [-1.0, 0.0], [2.0, 0.0], [-0.7, 1.0]])
    programs = Correlated()
    gaps = inference_gaps(programs, x, num_samples=500, num_steps=100)
    assert searches == [(DIAGONAL, 5), (FULL, 2)]
    np.testing.assert_allclose(gaps.log_evidence, programs.log_evidence(x), atol=0.01)
    searches.clear()
    inference_gaps(programs, x, log_evidence=programs.log_evidence(x), num_samples=50, num_steps=5)
    assert searches == [(DIAGONAL, 5)]


@pytest.mark.parametrize("thorough", [True, False])
def test_data_far_off_take_others_along_only_in_a_thorough_search(monkeypatch, thorough):
    data = rotated()
    guide = exact_full(data.truth)
    vae = linear_vae(data.truth, guide=guides.PerDatumGuide.from_amortized(guide, data.x))
    with torch.no_grad():
        vae.q_z_given_x.table[[1, 4], 0] += 1.5
        start = vae.q_z_given_x.table.clone()
    sizes = []
    ascend = per_datum_optimum._ascend

    def counted(joint, coordinates, far, num_steps):
        sizes.append(joint.num_data)
        ascend(joint, coordinates, far, num_steps)

    monkeypatch.setattr(per_datum_optimum, "_ascend", counted)
    joint = RowsJoint(vae, data.x)
    found = per_datum_optimum.best_members(joint, FULL(3), start, num_steps=150, thorough=thorough)
    assert sizes == [6 if thorough else 2, 6]
    assert bool(found.left.isnan().all()) is not thorough
    mean = data.truth.posterior(data.x).mean
    np.testing.assert_allclose(found.table[:, :3], mean.detach(), atol=1e-3)


def test_some_rows_are_weighed_as_they_are_among_all():
    data = rotated()
    guide = guides.PerDatumGuide.from_amortized(best_diagonal(data.truth), data.x)
    vae = linear_vae(data.truth, guide=guide)
    rows = torch.tensor([1, 4])
    with torch.no_grad():
        joint, q = RowsJoint(vae, data.x), vae.encode(data.x)
        torch.manual_seed(0)
        expected = draw_log_weights(joint, q, 700)[:, rows]
        with joint.at(rows) as some:
            torch.manual_seed(0)
            found = draw_log_weights(some, q, 700, rows=rows)
    np.testing.assert_allclose(found, expected)


def test_khat_of_nan_is_not_trusted(caplog):
    data = rotated()
    with caplog.at_level(logging.WARNING):
        gaps = inference_gaps(linear_vae(data.truth), data.x, num_samples=20, num_steps=2)
    assert gaps.pareto_khat.isnull().all()
    assert "or unknown, for 6 of 6 data" in caplog.text


def test_unfinished_search_is_told(caplog):
    data = rotated()
    vae = linear_vae(data.truth, guide=best_diagonal(data.truth))
    with torch.no_grad():
        vae.q_z_given_x.encoder.bias[:3] += 0.4
    with caplog.at_level(logging.WARNING):
        gaps = inference_gaps(vae, data.x, num_samples=50, num_steps=3)
    assert (gaps.unfinished > 0.2).all()
    assert "unfinished, surely so for 6 of 6 data" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        gaps = inference_gaps(vae, data.x[:4], num_samples=300, num_steps=150)
    assert abs(gaps.unfinished).max() < 0.1
    assert "unfinished" not in caplog.text


def test_what_is_left_to_gain_is_what_a_shift_costs():
    data = rotated()
    vae = linear_vae(data.truth, guide=exact_full(data.truth))
    with torch.no_grad():
        vae.q_z_given_x.encoder.bias[0] += 0.05
    # One step of about no size: what is left is the whole amortization gap.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.diagnostics.gaps.per_datum_optimum.FIRST_RATE", 1e-9)
        patch.setattr("pyro_vae.diagnostics.gaps.per_datum_optimum.LAST_RATE", 1e-9)
        gaps = inference_gaps(vae, data.x, num_samples=50, num_steps=1)
    expected = 0.5 * 0.05**2 * float(precision(data.truth)[0, 0])
    np.testing.assert_allclose(gaps.unfinished, expected, rtol=1e-6)


def test_nothing_is_left_changed():
    data = rotated()
    vae = linear_vae(data.truth, guide=best_diagonal(data.truth))
    vae.p_x_given_z.requires_grad_(False)
    flags = [p.requires_grad for p in vae.parameters()]
    values = [p.clone() for p in vae.parameters()]
    state = torch.get_rng_state()
    options = {"families": {"full": FULL(3)}, "num_samples": 20, "num_steps": 5}
    first = inference_gaps(vae, data.x, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in vae.parameters()] == flags
    assert all(p.grad is None for p in vae.parameters())
    assert all(torch.equal(p, v) for p, v in zip(vae.parameters(), values, strict=True))
    assert vae.training
    xr.testing.assert_identical(first, inference_gaps(vae, data.x, **options))
    assert not first.equals(inference_gaps(vae, data.x, seed=1, **options))


def test_per_datum_guide_is_read_by_its_rows(monkeypatch):
    data = rotated()
    amortized = best_diagonal(data.truth)
    guide = guides.PerDatumGuide.from_amortized(amortized, data.x)
    monkeypatch.setattr(gaps_module, "ROWS_AT_A_TIME", 4)
    options = {"num_samples": 50, "num_steps": 5}
    gaps = inference_gaps(linear_vae(data.truth, guide=guide), data.x, **options)
    same = inference_gaps(linear_vae(data.truth, guide=amortized), data.x, **options)
    for name in ALL:
        np.testing.assert_allclose(gaps[name], same[name], atol=1e-9)


def test_programs_of_a_users_own_are_served():
    truth = rotated().truth

    class Programs:
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("latent", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                mean = z @ truth.weight.T + truth.mean
                pyro.sample("y", dist.Normal(mean, truth.variance**0.5).to_event(1), obs=x)

        def guide(self, x):
            posterior = truth.posterior(x)
            scale = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("latent", dist.Normal(posterior.mean, scale).to_event(1))

    x = rotated().x
    gaps = inference_gaps(Programs(), x, num_samples=500, num_steps=100)
    assert agrees(gaps.approximation_gap, truth.best_diagonal_gap(), gaps.approximation_gap_mcse)


class Heavy(distributions.DistributionModule):
    """A guide of a family that nobody knows."""

    event_shape = torch.Size([3])

    def forward(self, x):
        return dist.StudentT(3.0, torch.zeros(len(x), 3), 1.0).to_event(1)


def test_guide_of_an_unknown_family_raises():
    vae = linear_vae(rotated().truth, guide=Heavy())
    with pytest.raises(ValueError, match="guide must have a family .* got StudentT"):
        inference_gaps(vae, torch.zeros(2, 6))


def test_whether_there_is_a_family_can_be_asked_beforehand():
    truth = rotated().truth

    class TwoSites:
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                u = pyro.sample("u", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("y", dist.Normal(z + u, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x, 1.0).to_event(1))
                pyro.sample("u", dist.Normal(x, 1.0).to_event(1))

    made = (best_diagonal(truth), exact_full(truth), None, Heavy())
    *known, unknown = (linear_vae(truth, guide=guide) for guide in made)
    state = torch.get_rng_state()
    assert all(has_family(vae, torch.zeros(2, 6)) for vae in known)
    assert has_family(Correlated(), torch.zeros(2, 2))
    assert not has_family(unknown, torch.zeros(2, 6))
    assert not has_family(TwoSites(), torch.zeros(2, 1))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises((ValueError, RuntimeError)):  # no word about the family
        has_family(known[0], torch.zeros(2, 5))


def test_families_must_be_named_instances():
    vae = small_vae(family=DIAGONAL)
    with pytest.raises(TypeError, match="families must be a mapping"):
        inference_gaps(vae, torch.zeros(2, 6), families=FULL(3))
    with pytest.raises(TypeError, match=r"families\['full'\] must be a family"):
        inference_gaps(vae, torch.zeros(2, 6), families={"full": FULL})
    with pytest.raises(ValueError, match="share the latent shape"):
        inference_gaps(vae, torch.zeros(2, 6), families={"full": FULL(2)})


@pytest.mark.parametrize("name", ["num_samples", "num_steps"])
def test_counts_must_be_positive_integers(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        inference_gaps(small_vae(family=DIAGONAL), torch.zeros(2, 6), **{name: 0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_dtype_follow_the_tensors(dtype):
    vae = small_vae(family=DIAGONAL).to(dtype)
    asked = {"full": FULL(3), "flow": families.Flow(3)}
    options = {"families": asked, "num_samples": 20, "num_steps": 2}
    x = torch.randn(4, 6, dtype=dtype)
    expected = inference_gaps(vae, x, **options)
    with torch.device("meta"):
        gaps = inference_gaps(vae, x, **options)
    xr.testing.assert_identical(gaps, expected)
    assert gaps.elbo.dtype == np.float64


@pytest.mark.parametrize(
    "family",
    [families.IsotropicNormal(3), DIAGONAL(3), families.Flow(3, hidden=(8,)), FULL(3)],
)
def test_moments_become_parameters(family):
    root = torch.randn(5, 3, 3)
    covariance = 0.1 * root @ root.mT + 0.01 * torch.eye(3)
    mean = torch.randn(5, 3)
    start = at_moments(family, MultivariateNormal(mean, covariance))
    q = start.family(start.table)
    if isinstance(family, FULL):
        np.testing.assert_allclose(q.covariance_matrix.detach(), covariance, atol=1e-12)
    else:
        base = getattr(q, "base_dist", q)
        scale = base.base_dist.scale if hasattr(base, "base_dist") else base.scale
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        if isinstance(family, families.IsotropicNormal):
            variance = variance.mean(-1, keepdim=True).expand(-1, 3)
        np.testing.assert_allclose(scale.detach().square(), variance, atol=1e-12)
    np.testing.assert_allclose(start.table[:, :3].detach(), mean)


def test_summary_has_the_means_and_both_errors():
    gaps = inference_gaps(
        small_vae(family=DIAGONAL),
        torch.randn(5, 6),
        families={"full": FULL(3)},
        num_samples=50,
        num_steps=5,
    )
    summary = gap_summary(gaps)
    row = summary.loc["full: gain"]
    values, errors = gaps.family_gain.to_numpy()[:, 0], gaps.family_gain_mcse.to_numpy()[:, 0]
    assert abs(row["mean"] - values.mean()) < 1e-12
    assert abs(row["se"] - values.std(ddof=1) / math.sqrt(5)) < 1e-12
    assert abs(row["mcse"] - np.sqrt(np.mean(errors**2) / 5)) < 1e-12
    parts = summary.loc[["approximation_gap", "amortization_gap"], "mean"].sum()
    assert abs(parts - summary.loc["inference_gap", "mean"]) < 1e-9


def with_families(**bought):
    """What a search might have found, with the nats that each family buys."""
    names = ("approximation_gap", "amortization_gap", "inference_gap")
    values = {
        "approximation_gap": [0.8, 1.0],
        "amortization_gap": [0.3, 0.5],
        "inference_gap": [1.1, 1.5],
    }
    columns = {name: ("obs_id", values[name]) for name in names}
    columns |= {f"{name}_mcse": ("obs_id", [0.03, 0.04]) for name in names}
    for name in ("gain", "approximation_gap"):
        sign, start = (1, 0.0) if name == "gain" else (-1, 0.9)
        row = [start + sign * gain for gain in bought.values()]
        columns[f"family_{name}"] = (("obs_id", "family"), [row, row])
        columns[f"family_{name}_mcse"] = (("obs_id", "family"), np.full((2, len(row)), 0.02))
    return xr.Dataset(columns, coords={"family": list(bought)})


def test_bars_are_as_long_as_the_gap_and_cut_at_each_family():
    axes = gap_bars(with_families(full=0.6, isotropic=-0.1))
    ends = {}
    for patch in axes.patches:
        row = round(patch.get_y() + patch.get_height() / 2)
        ends.setdefault(row, []).append((patch.get_x(), patch.get_x() + patch.get_width()))
    np.testing.assert_allclose(ends[0], [(0, 0.9), (0.9, 1.3)])
    np.testing.assert_allclose(ends[1], [(0, 0.3), (0.3, 0.9), (0.9, 1.3)])
    np.testing.assert_allclose(ends[2], [(0, 1.0), (0.9, 1.0), (1.0, 1.3)])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["guide's family", "full", "isotropic"]
    assert "1.3 nats" in axes.get_title()


def test_doubtful_data_are_told_apart():
    gaps = with_families(full=0.6).assign(
        pareto_khat=("obs_id", [0.2, 0.9]),
        unfinished=("obs_id", [0.0, 0.0]),
        unfinished_mcse=("obs_id", [0.0, 0.0]),
    )
    scatter, histogram = gaps_per_datum(gaps)
    trusted, doubtful = scatter.collections[-2:]
    np.testing.assert_allclose(trusted.get_offsets(), [[0.8, 0.3]])
    np.testing.assert_allclose(doubtful.get_offsets(), [[1.0, 0.5]])
    assert "nats" in histogram.get_xlabel()
