"""Rows are independent: in any order, and in any parts. How to run more cases: properties.py."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import (
    NORMALS,
    cases,
    cuts,
    normals,
    permutation,
    prior_names,
    seeds,
    sizes,
    vae_of,
    world,
)
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_vae import baselines, diagnostics, guides, objectives, traces
from pyro_vae.distributions import cholesky_normal, factor_normal, independent_normal

# By a constructor and its number of draws for each datum. All are sums over data.
OBJECTIVES = {
    "Trace_ELBO": (Trace_ELBO, 1),
    "Trace_ELBO, two particles": (lambda: Trace_ELBO(num_particles=2), 2),
    "TraceMeanField_ELBO": (TraceMeanField_ELBO, 1),
    "importance weighted": (lambda: objectives.ImportanceWeighted_ELBO(3), 3),
    "sticking the landing": (lambda: objectives.ImportanceWeighted_ELBO(3, gradient="stl"), 3),
    "doubly reparametrized": (lambda: objectives.ImportanceWeighted_ELBO(3, gradient="dreg"), 3),
}
shapes = st.sampled_from([(3,), (2, 2), (1, 4, 5)])


@contextlib.contextmanager
def noise_is(noise):
    """Let the k-th draw of q(z|x) take ``noise[k]``, ``(N, k)``, in place of random numbers."""
    blocks = iter(noise)

    def standard_normal(shape, dtype, device):
        block = next(blocks)
        assert block.shape == shape
        return block

    with pytest.MonkeyPatch.context() as patch:
        for module in (cholesky_normal, factor_normal, independent_normal):
            patch.setattr(module, "_standard_normal", standard_normal)
        yield


def loss_and_gradient(vae, objective, x, noise):
    vae.zero_grad()
    with noise_is(noise):
        loss = objective().differentiable_loss(vae.model, vae.guide, x)
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None
    }


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def some_vae(features, latent_dim, family, prior):
    return vae_of(
        features=features,
        latent_dim=latent_dim,
        family=family,
        prior=prior,
        convolutions=len(features) == 3,
    )


vaes = {
    "features": shapes,
    "latent_dim": sizes(1, 3),
    "family": normals,
    "prior": prior_names,
}
case = st.fixed_dictionaries(vaes)


@cases(20)
@given(case=case, num_rows=sizes(1, 7), seed=seeds)
def test_permuted_rows_have_permuted_results(case, num_rows, seed):
    with world(seed), torch.no_grad():
        vae, order = some_vae(**case), permutation(num_rows, seed)
        x = vae.sample(num_rows)
        z = torch.randn(5, num_rows, case["latent_dim"])
        assert_close(
            vae.encode(x[order]).log_prob(z[:, order]), vae.encode(x).log_prob(z)[:, order]
        )
        assert_close(vae.reconstruct(x[order]), vae.reconstruct(x)[order])
        whole, permuted = (
            traces.JointDensity(vae, rows)(values)
            for rows, values in ((x, z), (x[order], z[:, order]))
        )
        for found, expected in zip(permuted, whole, strict=True):
            assert_close(found, expected[:, order])


@cases(20)
@given(case=case, num_rows=sizes(1, 7), num_samples=sizes(1, 3), seed=seeds)
def test_permuted_rows_and_noise_have_permuted_terms(case, num_rows, num_samples, seed):
    with world(seed), torch.no_grad():
        vae, order = some_vae(**case), permutation(num_rows, seed)
        x = vae.sample(num_rows)
        noise = torch.randn(num_samples, num_rows, case["latent_dim"])
        found = []
        for rows, draws in ((x, noise), (x[order], noise[:, order])):
            # One block of draws, or draw by draw: the programs decide.
            with repeated(draws):
                found.append(traces.elbo_terms(vae, rows, num_samples=num_samples))
        whole, permuted = found
        for name in ("elbo", "expected_log_likelihood", "kl", "cross_entropy", "entropy"):
            one, other = getattr(permuted, name), getattr(whole, name)
            assert_close(one, other[..., order])


@contextlib.contextmanager
def repeated(noise):
    """Let every draw take its numbers from ``noise``, ``(S, N, k)``, from the start on."""

    def standard_normal(shape, dtype, device):
        return noise[: shape[0]] if len(shape) == 3 else noise[0]

    with pytest.MonkeyPatch.context() as patch:
        for module in (cholesky_normal, factor_normal, independent_normal):
            patch.setattr(module, "_standard_normal", standard_normal)
        yield


@cases(20)
@given(case=case, objective=st.sampled_from(sorted(OBJECTIVES)), num_rows=sizes(2, 7), seed=seeds)
def test_permuted_rows_and_noise_have_the_same_loss(case, objective, num_rows, seed):
    with world(seed):
        vae, order = some_vae(**case), permutation(num_rows, seed)
        make, num_draws = OBJECTIVES[objective]
        x, noise = vae.sample(num_rows), torch.randn(num_draws, num_rows, case["latent_dim"])
        expected = loss_and_gradient(vae, make, x, noise)
        assert_close(loss_and_gradient(vae, make, x[order], noise[:, order]), expected)


@cases(30)
@given(case=case, objective=st.sampled_from(sorted(OBJECTIVES)), cut=cuts(), seed=seeds)
def test_loss_and_gradient_of_a_batch_are_the_sums_of_those_of_its_parts(
    case, objective, cut, seed
):
    num_rows, parts = cut
    with world(seed):
        vae = some_vae(**case)
        make, num_draws = OBJECTIVES[objective]
        x, noise = vae.sample(num_rows), torch.randn(num_draws, num_rows, case["latent_dim"])
        loss, gradient = loss_and_gradient(vae, make, x, noise)
        found = [
            loss_and_gradient(vae, make, rows, draws)
            for rows, draws in zip(x.split(parts), noise.split(parts, 1), strict=True)
        ]
        assert_close(sum(part for part, _ in found), loss)
        for name, expected in gradient.items():
            assert_close(sum(part[name] for _, part in found), expected)


@cases(20)
@given(case=case, cut=cuts(), seed=seeds)
def test_densities_of_a_batch_are_those_of_its_parts_put_together(case, cut, seed):
    num_rows, parts = cut
    with world(seed), torch.no_grad():
        vae = some_vae(**case)
        x, z = vae.sample(num_rows), torch.randn(4, num_rows, case["latent_dim"])
        whole = (*traces.JointDensity(vae, x)(z), vae.encode(x).log_prob(z))
        found = [
            (*traces.JointDensity(vae, rows)(values), vae.encode(rows).log_prob(values))
            for rows, values in zip(x.split(parts), z.split(parts, 1), strict=True)
        ]
        for pieces, expected in zip(zip(*found, strict=True), whole, strict=True):
            assert_close(torch.cat(pieces, -1), expected)


@cases(20)
@given(
    family=normals,
    prior=st.sampled_from(["standard normal", "normal"]),
    latent_dim=sizes(1, 4),
    cut=cuts(),
    seed=seeds,
)
def test_analytic_kl_of_a_batch_is_that_of_its_parts_put_together(
    family, prior, latent_dim, cut, seed
):
    num_rows, parts = cut
    with world(seed), torch.no_grad():
        vae = vae_of(family=family, prior=prior, latent_dim=latent_dim)
        x = vae.sample(num_rows)
        whole = traces.elbo_terms(vae, x, num_samples=1)
        assert "kl" in whole.analytic
        pieces = [traces.elbo_terms(vae, rows, num_samples=1).kl for rows in x.split(parts)]
        assert_close(torch.cat(pieces, -1), whole.kl)
        assert_close(whole.kl.flatten(), kl_divergence(vae.encode(x), vae.p_z()))


@cases(2, costly=True)
@given(
    latent_dim=st.sampled_from([1, 1, 1, 2]),
    prior=st.sampled_from(["standard normal", "normal", "mixture"]),
    family=normals,
    cut=cuts(highest=4),
    seed=seeds,
)
def test_evidence_by_quadrature_is_that_of_each_row(latent_dim, prior, family, cut, seed):
    num_rows, parts = cut
    with world(seed):
        vae = vae_of(family=family, prior=prior, latent_dim=latent_dim)
        x, order = vae.sample(num_rows), permutation(num_rows, seed)
        whole = diagnostics.quadrature_log_evidence(vae, x)["log_evidence"].to_numpy()
        permuted = diagnostics.quadrature_log_evidence(vae, x[order])["log_evidence"]
        pieces = [
            diagnostics.quadrature_log_evidence(vae, rows)["log_evidence"]
            for rows in x.split(parts)
        ]
        # Where peaks are sought depends on draws, hence the grid: both are within the tolerance.
        np.testing.assert_allclose(permuted, whole[order.numpy()], rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=1e-4)


@cases(20)
@given(features=sizes(2, 5), num_rows=sizes(6, 12), latent_dim=sizes(1, 4), cut=cuts(), seed=seeds)
def test_pca_does_not_know_the_order_of_its_rows(features, num_rows, latent_dim, cut, seed):
    with world(seed):
        latent_dim = min(latent_dim, features - 1)
        x, order = torch.randn(num_rows, features), permutation(num_rows, seed)
        one, other = (baselines.PCA(latent_dim).fit(rows) for rows in (x, x[order]))
        new, parts = torch.randn(cut[0], features), cut[1]
        torch.testing.assert_close(other.log_prob(new), one.log_prob(new), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            other.reconstruct(new), one.reconstruct(new), rtol=1e-6, atol=1e-6
        )
        pieces = [one.log_prob(rows) for rows in new.split(parts)]
        assert_close(torch.cat(pieces), one.log_prob(new))


@cases(20)
@given(family=normals, latent_dim=sizes(1, 3), num_rows=sizes(1, 7), seed=seeds)
def test_per_datum_guide_knows_its_rows_in_any_order(family, latent_dim, num_rows, seed):
    with world(seed), torch.no_grad():
        guide = guides.PerDatumGuide(NORMALS[family](latent_dim), num_rows)
        guide.table.normal_()
        x, z = torch.zeros(num_rows, 3), torch.randn(num_rows, latent_dim)
        order = permutation(num_rows, seed)
        whole = guide(x).log_prob(z)
        with guide.at_rows(order):
            assert_close(guide(x[order]).log_prob(z[order]), whole[order])
