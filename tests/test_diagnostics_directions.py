import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MAX_Z
from torch.distributions import AffineTransform

from pyro_vae.diagnostics.aggregate.active_units import active_units
from pyro_vae.diagnostics.aggregate.collapse import collapse_report


def rotation_of(k):
    return torch.linalg.qr(torch.randn(k, k)).Q


def flow_programs(loc, covariance):
    """A pair whose q(z|x), N(loc, covariance) for the row x = n, does not tell its mean."""

    def encode(x):
        q = dist.MultivariateNormal(loc[x[:, 0].long()], covariance)
        return dist.TransformedDistribution(q, [AffineTransform(0.0, 1.0, event_dim=1)])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(loc.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", encode(x))

    return SimpleNamespace(model=model, guide=guide), torch.arange(float(len(loc)))[:, None]


@pytest.mark.parametrize(
    ("k", "num_data", "num_samples"),
    [(50, 1000, 100), (50, 1000, 16), (8, 10, 100), (8, 30, 100), (8, 100, 100)],
)
def test_collapsed_flow_has_no_active_direction(k, num_data, num_samples):
    programs, x = flow_programs(torch.zeros(num_data, k), torch.eye(k))
    report = collapse_report(programs, x, num_samples=num_samples)
    assert report.attrs["num_active_directions"] == 0
    # The edge of the spectrum of N normal vectors of variance 1 / S.
    edge = (2 * math.sqrt(k / num_data) + k / num_data) / num_samples
    assert 0.8 < report.attrs["direction_noise"] / edge < 1.8
    told = "cannot be told from the noise" in report.attrs["advice"]
    assert told == (report.attrs["direction_noise"] > 0.01)


@pytest.mark.parametrize(("k", "num_data"), [(50, 1000), (8, 10), (8, 30), (8, 100)])
def test_active_directions_of_a_flow_are_counted(k, num_data):
    rotation = rotation_of(k)
    scale = torch.ones(k)
    scale[:2] = 0.5**0.5
    loc = torch.zeros(num_data, k)
    loc[:, :2] = torch.randn(num_data, 2) * 0.5**0.5
    programs, x = flow_programs(loc @ rotation, rotation.mT * scale.square() @ rotation)
    report = collapse_report(programs, x)
    assert report.attrs["num_active_directions"] == 2
    expected = torch.linalg.eigvalsh(torch.cov(loc[:, :2].mT, correction=0)).flip(0)
    # The noise of a mean has variance 1 / 200 along these: to it the eigenvalue is linear.
    error = 2 * (expected.numpy() / 200 / num_data) ** 0.5 + 0.01 * k / num_data
    assert (abs(report["direction_variance"][:2] - expected.numpy()) < MAX_Z * error).all()


def test_noise_that_is_correlated_within_a_datum_is_no_direction():
    k = 4
    covariance = 0.05 * torch.eye(k) + 3.0  # one direction of variance 12.05
    programs, x = flow_programs(torch.zeros(2000, k), covariance)
    report = collapse_report(programs, x, num_samples=20)  # its noise has variance 0.6
    assert report.attrs["num_active_directions"] == 0
    assert 0 < report.attrs["direction_noise"] < 0.15


def test_guide_without_means_is_refused():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Cauchy(x, 1.0).to_event(1))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    programs = SimpleNamespace(model=model, guide=guide)
    for diagnostic in (active_units, collapse_report):
        with pytest.raises(ValueError, match="finite means .* got Cauchy with 10 of 10 means"):
            diagnostic(programs, 5 * torch.randn(5, 2))
