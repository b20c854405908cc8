"""How much goes through a model at once changes no figure. For more cases see properties.py."""

import numpy as np
import pytest
import torch
from helpers import linear_vae
from hypothesis import given
from hypothesis import strategies as st
from properties import cases, normals, seeds, sizes, vae_of, world
from test_diagnostics_chunks import values_of
from test_diagnostics_memory import reference_of

import pyro_vae as pv
from pyro_vae import diagnostics, traces
from pyro_vae.datasets import linear_gaussian
from pyro_vae.evaluation import evaluate

# By name: call with (vae, x, S, chunk_size), and the tolerance.
CALLS = {
    "elbo_terms": (
        lambda vae, x, s, **how: diagnostics.elbo_terms(vae, x, num_samples=s, **how),
        1e-12,
    ),
    "log_evidence": (
        lambda vae, x, s, **how: diagnostics.log_evidence(vae, x, num_samples=s, **how),
        1e-12,
    ),
    "log_evidence, smoothed": (
        lambda vae, x, s, **how: diagnostics.log_evidence(
            vae, x, num_samples=s, smoothed=True, **how
        ),
        1e-10,
    ),
    "collapse_report": (
        lambda vae, x, s, **how: diagnostics.collapse_report(vae, x, num_samples=s, **how),
        1e-10,
    ),
    "compare": (
        lambda vae, x, s, **how: pv.compare({"a": vae}, x, num_samples=s, gap_rows=0, **how),
        1e-10,
    ),
    "reference_summary": (
        lambda vae, x, s, **how: diagnostics.reference_summary(
            reference_of(x), vae, x, num_samples=s, **how
        ),
        1e-10,
    ),
    "sbc": (lambda vae, x, s, **how: diagnostics.sbc(vae, len(x), s, **how), 1e-12),
}
chunks = st.integers(1, 60) | st.just(10**6)


def same_values(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(
            found[name], values, rtol=tolerance, atol=tolerance, err_msg=name
        )


@cases(20)
@given(
    name=st.sampled_from(sorted(CALLS)),
    num_rows=sizes(2, 7),
    # Fewer draws than these leave a statistic undefined, which the calls say.
    num_samples=sizes(5, 80),
    chunk_size=chunks,
    family=normals,
    seed=seeds,
)
def test_chunk_size_changes_no_figure(name, num_rows, num_samples, chunk_size, family, seed):
    with world(seed):
        vae = vae_of(family=family, features=(6,), latent_dim=3)
        x, (call, tolerance) = vae.sample(num_rows), CALLS[name]
        before = torch.get_rng_state()
        whole = values_of(call(vae, x, num_samples))
        some = values_of(call(vae, x, num_samples, chunk_size=chunk_size))
        assert torch.equal(torch.get_rng_state(), before)
        same_values(some, whole, tolerance)


@cases(2, costly=True)
@given(bounds=st.booleans(), num_chains=sizes(2, 3), chunk_size=sizes(1, 12), seed=seeds)
def test_chunk_size_changes_no_annealed_figure(bounds, num_chains, chunk_size, seed):
    with world(seed):
        vae = vae_of()
        x = vae.sample(3)

        def figures(**how):
            options = {"num_steps": 1, "num_chains": num_chains, **how}
            if bounds:
                return values_of(diagnostics.bdmc(vae, 3, **options))
            return values_of(diagnostics.ais_log_evidence(vae, x, **options))

        # A long trajectory multiplies the rounding of a product of matrices of another size.
        same_values(figures(chunk_size=chunk_size), figures(), 1e-8)


@cases(2, costly=True)
@given(num_rows=sizes(1, 3), chunk_size=sizes(1, 500), family=normals, seed=seeds)
def test_chunk_size_changes_no_gap(num_rows, chunk_size, family, seed):
    with world(seed):
        vae = vae_of(family=family)
        x = vae.sample(num_rows)
        options = {"num_samples": 40, "num_steps": 3}
        whole = values_of(diagnostics.inference_gaps(vae, x, **options))
        some = values_of(diagnostics.inference_gaps(vae, x, **options, chunk_size=chunk_size))
        same_values(some, whole, 1e-10)


@cases(2, costly=True)
@given(
    num_rows=sizes(1, 3),
    chunk_size=sizes(1, 3000),
    prior=st.sampled_from(["standard normal", "normal", "mixture"]),
    seed=seeds,
)
def test_chunk_size_changes_no_integral(num_rows, chunk_size, prior, seed):
    with world(seed):
        vae = vae_of(latent_dim=1, prior=prior)
        x = vae.sample(num_rows)
        whole, some = (
            values_of(diagnostics.quadrature_log_evidence(vae, x, **how))
            for how in ({}, {"chunk_size": chunk_size})
        )
        same_values(some, whole, 1e-10)


@cases(15)
@given(
    num_rows=sizes(1, 7), num_samples=sizes(1, 80), chunk_size=chunks, family=normals, seed=seeds
)
def test_chunk_size_changes_no_log_weight(num_rows, num_samples, chunk_size, family, seed):
    with world(seed), torch.no_grad():
        vae = vae_of(family=family)
        x, found = vae.sample(num_rows), []
        for how in ({}, {"chunk_size": chunk_size}):
            torch.manual_seed(seed)
            found.append(traces.log_weights(vae, x, num_samples=num_samples, **how))
        assert found[0].shape == (num_samples, num_rows)
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-11)
        z = torch.randn(num_samples, num_rows, 2)
        whole = traces.JointDensity(vae, x)(z)
        some = traces.JointDensity(vae, x, chunk_size=chunk_size)(z)
        torch.testing.assert_close(some, whole, rtol=0, atol=1e-11)


@cases(8)
@given(num_rows=sizes(2, 9), numbers=sizes(1, 60), family=normals, seed=seeds)
def test_pieces_of_the_aggregate_change_no_figure(num_rows, numbers, family, seed):
    with world(seed):
        vae = vae_of(family=family)
        x = vae.sample(num_rows)
        whole = values_of(diagnostics.aggregate_kl(vae, x, num_samples=20))
        with pytest.MonkeyPatch.context() as patch:
            # Every pair of a draw and a datum has a density: so many are held at once.
            patch.setattr("pyro_vae.diagnostics.aggregate.decomposition.BLOCK", numbers)
            some = values_of(diagnostics.aggregate_kl(vae, x, num_samples=20))
        same_values(some, whole, 1e-10)


@cases(15)
@given(num_rows=sizes(1, 9), piece=sizes(1, 9), latent_dim=sizes(1, 3), seed=seeds)
def test_an_evaluation_in_pieces_is_the_mean_over_all_rows(num_rows, piece, latent_dim, seed):
    with world(seed):
        data = linear_gaussian(num_rows, features=4, latent_dim=latent_dim, seed=seed % 2**16)
        # The guide is the exact posterior: whatever is drawn, the ELBO is log p(x).
        vae = linear_vae(data.truth)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_vae.evaluation.ROWS_AT_A_TIME", piece)
            found = evaluate(vae, data.x, seed=seed)
        log_evidence = data.log_evidence
        assert found["elbo"] == pytest.approx(log_evidence.mean().item(), rel=1e-10, abs=1e-10)
        if num_rows > 1:
            error = log_evidence.std().item() / num_rows**0.5
            assert found["elbo_se"] == pytest.approx(error, rel=1e-8, abs=1e-10)
