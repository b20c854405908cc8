"""Figures do not depend on how much goes through the model at once."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from helpers import small_vae
from test_diagnostics_memory import reference_of

import pyro_vae as pv
from pyro_vae import diagnostics, families, guides, traces
from pyro_vae.diagnostics.latent_space import neighbors
from pyro_vae.diagnostics.monte_carlo import Moments, log_mean_less_mean
from pyro_vae.diagnostics.passes import each_piece, piece_size
from pyro_vae.traces.runs import Runs

CALLS = {
    "ais_log_evidence": lambda vae, x, **how: diagnostics.ais_log_evidence(
        vae, x[:7], num_steps=3, num_chains=5, **how
    ),
    "bdmc": lambda vae, x, **how: diagnostics.bdmc(vae, 7, num_steps=3, num_chains=5, **how),
    "collapse_report": lambda vae, x, **how: diagnostics.collapse_report(vae, x, **how),
    "compare": lambda vae, x, **how: pv.compare({"a": vae}, x, num_samples=70, gap_rows=0, **how),
    "elbo_terms": lambda vae, x, **how: diagnostics.elbo_terms(vae, x, num_samples=70, **how),
    "inference_gaps": lambda vae, x, **how: diagnostics.inference_gaps(
        vae, x[:4], num_steps=3, num_samples=70, **how
    ),
    "log_evidence": lambda vae, x, **how: diagnostics.log_evidence(
        vae, x, num_samples=70, smoothed=True, **how
    ),
    "reference_summary": lambda vae, x, **how: diagnostics.reference_summary(
        reference_of(x), vae, x, num_samples=70, **how
    ),
    "sbc": lambda vae, x, **how: diagnostics.sbc(vae, 20, 70, **how),
}


def values_of(result):
    if isinstance(result, pd.DataFrame):
        return {name: column.to_numpy(float) for name, column in result.items()}
    assert isinstance(result, xr.Dataset)
    return {name: values.to_numpy() for name, values in result.items()}


@pytest.mark.parametrize("chunk_size", [1, 37, 10**6])
@pytest.mark.parametrize("name", CALLS)
def test_result_does_not_depend_on_the_chunk(name, chunk_size):
    vae, x = small_vae(family=families.DiagonalNormal, variance=0.5), torch.randn(30, 6)
    whole = values_of(CALLS[name](vae, x))
    chunks = values_of(CALLS[name](vae, x, chunk_size=chunk_size))
    assert whole.keys() == chunks.keys()
    # A long trajectory multiplies the rounding of a product of matrices of another size.
    tolerance = 1e-8 if name in {"ais_log_evidence", "bdmc"} else 1e-12
    for column, values in whole.items():
        np.testing.assert_allclose(
            chunks[column], values, rtol=tolerance, atol=tolerance, err_msg=column
        )


def test_quadrature_does_not_depend_on_the_chunk():
    vae = small_vae(family=families.DiagonalNormal, latent_dim=1, variance=1.0)
    x = vae.sample(3)
    whole, chunks = (
        diagnostics.quadrature_log_evidence(vae, x, chunk_size=size) for size in (8000, 50)
    )
    np.testing.assert_allclose(chunks["log_evidence"], whole["log_evidence"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in {"compare"}])
def test_chunk_must_be_a_positive_integer(name):
    vae = small_vae(family=families.DiagonalNormal, variance=0.5)
    with pytest.raises(ValueError, match="chunk_size must be a positive integer; got 0"):
        CALLS[name](vae, torch.randn(8, 6), chunk_size=0)


@pytest.mark.parametrize("num_samples", [3, 70])
def test_matrix_of_log_weights_is_the_sum_of_the_densities(num_samples):
    vae, x = small_vae(family=families.Flow), torch.randn(5, 6)
    with torch.no_grad():
        torch.manual_seed(1)
        sites = traces.log_densities(vae, x, num_samples=num_samples).log_weights
        torch.manual_seed(1)
        matrix = traces.log_weights(vae, x, num_samples=num_samples, chunk_size=7)
    torch.testing.assert_close(matrix, sites, rtol=0, atol=1e-12)


def test_matrix_of_log_weights_has_the_rows_of_a_per_datum_guide(monkeypatch):
    monkeypatch.setattr("pyro_vae.traces.densities.ROWS_AT_A_TIME", 2)
    vae, x = small_vae(family=families.DiagonalNormal, variance=0.5), torch.randn(5, 6)
    vae = vae.with_guide(guides.PerDatumGuide(families.DiagonalNormal(3), 5))
    with torch.no_grad():
        # Far away from the prior: whose table it was shows.
        vae.q_z_given_x.table[:, :3] = torch.arange(5.0).unsqueeze(1) * 10
        mean = traces.log_weights(vae, x, num_samples=200).mean(0)
        whole = traces.log_densities(vae, x, num_samples=200).log_weights.mean(0)
    torch.testing.assert_close(mean, whole, rtol=0.05, atol=1.0)


class DrawByDraw(torch.nn.Module):
    """A decoder that takes one batch dimension and counts its calls and rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 6)
        self.rows: list[int] = []

    def forward(self, z):
        if z.dim() > 2:
            raise ValueError("one batch dimension alone")
        self.rows.append(len(z))
        return self.linear(z)


def test_programs_that_take_no_plate_of_draws_obey_the_chunk():
    vae = small_vae(family=families.DiagonalNormal, variance=0.5)
    decoder = DrawByDraw()
    likelihood = pv.likelihoods.Gaussian(decoder, event_shape=(6,), variance=0.5)
    vae = pv.VAE(prior=vae.p_z, likelihood=likelihood, guide=vae.q_z_given_x)
    x = torch.randn(20, 6)
    joint = traces.JointDensity(vae, x, chunk_size=100)
    assert not joint.runs.takes_draws
    assert joint.runs.takes_rows
    decoder.rows.clear()
    z = torch.randn(50, 20, 3)
    log_prior, log_likelihood = joint(z)
    assert max(decoder.rows) == 100
    expected = vae.p_x_given_z(z.flatten(0, 1)).log_prob(x.repeat(50, 1)).view(50, 20)
    torch.testing.assert_close(log_likelihood, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_prior, vae.p_z().log_prob(z), rtol=0, atol=1e-10)


def test_real_joint_runs_the_programs_no_more_often_than_the_joint(monkeypatch):
    made = []
    init = Runs.__init__

    def counted(self, programs, x):
        made.append(self)
        init(self, programs, x)

    monkeypatch.setattr(Runs, "__init__", counted)
    vae = small_vae(family=families.DiagonalNormal, variance=0.5)
    diagnostics.ais_log_evidence(vae, torch.randn(3, 6), num_steps=1, num_chains=2)
    assert len(made) == 1


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (7, 30, 63), (1,) * 100])
def test_moments_are_those_of_all_values(sizes):
    values = 1e6 + torch.randn(100, 2).exp()
    moments = Moments(4)
    for block in values.split(sizes):
        moments.add(block)
    centered = values - values.mean(0)
    for found, expected in (
        (moments.mean, values.mean(0)),
        (moments.variance(), values.var(0)),
        (moments.mcse, values.std(0) / 10),
        (moments.fourth(), centered.pow(4).mean(0)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_moments_of_one_value_have_no_error_and_of_none_no_mean():
    moments = Moments()
    with pytest.raises(RuntimeError, match="must have seen a block"):
        _ = moments.mean
    moments.add(torch.zeros(1, 2))
    assert moments.mcse.isnan().all()


def test_gap_of_many_data_is_that_of_each(monkeypatch):
    log_weights, values = torch.randn(50, 9), torch.randn(50, 9)
    whole = log_mean_less_mean(log_weights, values)
    monkeypatch.setattr("pyro_vae.diagnostics.monte_carlo.NUMBERS_AT_A_TIME", 100)
    for one, other in zip(log_mean_less_mean(log_weights, values), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_neighbors_are_found_in_pieces_as_in_one(monkeypatch):
    a, b = torch.randn(60, 3), torch.randn(45, 3)
    found = []
    for numbers in (2**20, 100):
        monkeypatch.setattr(neighbors, "NUMBERS_AT_A_TIME", numbers)
        reference = neighbors.Reference(a, num_neighbors=3)
        place = neighbors.region(a, b, num_neighbors=3, level=0.9)
        shares = neighbors.covered(b, place)[0].double()
        found.append(torch.cat([reference.figures(b), reference.jackknife(b), shares]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-14)


def test_pieces_of_chosen_rows_are_those_rows():
    vae, x = small_vae(family=families.DiagonalNormal), torch.arange(12.0).view(2, 6).repeat(5, 1)
    seen = []
    rows = torch.tensor([8, 1, 4])
    each_piece(vae, x, seen.append, seed=0, purpose="test", at_a_time=2, rows=rows)
    assert [len(piece) for piece in seen] == [2, 1]
    assert torch.equal(torch.cat(seen), x[rows])


def test_many_codes_are_a_random_subset(monkeypatch):
    monkeypatch.setattr("pyro_vae.diagnostics.latent_space.regularity.MOST_CODES", 120)
    x = torch.randn(1000, 6)
    found = diagnostics.regularity(pv.baselines.PCA(2).fit(x), x, num_samples=30, num_pairs=3)
    assert found["code_z"].sizes["obs_id"] == 30
    assert math.isclose(float(found["local_change"]), 1.0, rel_tol=1e-6)


def test_rows_of_a_piece_fall_with_their_size_and_with_the_draws():
    assert piece_size(2000, torch.empty(5, 784)) == 2000
    assert piece_size(2000, torch.empty(5, 3, 256, 256)) == 10
    assert piece_size(250, torch.empty(5, 784), num_draws=1000) == 250
    assert piece_size(250, torch.empty(5, 784), num_draws=10**7) == 1
