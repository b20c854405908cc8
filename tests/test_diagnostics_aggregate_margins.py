import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from test_diagnostics_aggregate import Programs
from torch.distributions import SigmoidTransform

from pyro_vae.diagnostics.aggregate.aggregate_margins import aggregate_margins


def logit_normal_density(z):
    inside = (z > 0) & (z < 1)
    z = torch.where(inside, z, 0.5)
    density = dist.Normal(0.0, 1.0).log_prob(torch.logit(z)).exp() / (z * (1 - z))
    return torch.where(inside, density, 0.0)


def within(z, low, high, density):
    return torch.where((z >= low) & (z < high), density, 0.0)


def cauchy_density(z, loc=0.0):
    return 1 / (math.pi * (1 + (z - loc).square()))


def normal_density(z):
    return dist.Normal(0.0, 1.0).log_prob(z).exp()


BETA = dist.Beta(2.0, 3.0), lambda z: within(z, 0.0, 1.0, 12 * z * (1 - z).square())
SIGMOID = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [SigmoidTransform()])
LOGIT_NORMAL = SIGMOID, logit_normal_density
NORMAL = dist.Normal(0.0, 1.0), normal_density


def uniform(low, high):
    return dist.Uniform(low, high), lambda z: within(
        z, low, high, torch.ones_like(z) / (high - low)
    )


def cauchy(loc):
    return dist.Cauchy(loc, 1.0), lambda z: cauchy_density(z, loc)


@pytest.mark.parametrize(
    ("of_q", "of_p", "ends", "tolerance"),
    [
        (BETA, uniform(0.0, 1.0), (0.0, 1.0), 0.003),
        (BETA, uniform(-1.0, 3.0), (-1.0, 3.0), 0.003),
        (LOGIT_NORMAL, NORMAL, (-5.0, 5.0), 1e-3),
        (LOGIT_NORMAL, LOGIT_NORMAL, None, 0.01),
        (NORMAL, cauchy(0.0), None, 1e-3),
        (NORMAL, cauchy(2.0), None, 1e-3),
        (cauchy(1.0), NORMAL, None, 1e-3),
        (cauchy(1.0), cauchy(0.0), None, 0.015),  # mass beyond the points
    ],
)
def test_margins_of_any_kind_are_the_exact_densities(of_q, of_p, ends, tolerance):
    (q, q_density), (p, p_density) = of_q, of_p

    def encode(x):
        return q.expand([len(x), 2]).to_event(1)

    def prior(x):
        return p.expand([2]).to_event(1)

    densities = aggregate_margins(Programs(encode, prior), torch.zeros(3, 1))
    z = torch.from_numpy(densities["z"].to_numpy())
    for name, density in (("aggregate_density", q_density), ("prior_density", p_density)):
        np.testing.assert_allclose(densities[name], density(z), rtol=1e-9, atol=1e-12)
    fine = torch.linspace(-3000.0, 3000.0, 3_000_001)
    expected = torch.trapezoid(torch.minimum(q_density(fine), p_density(fine)), fine)
    np.testing.assert_allclose(densities["overlap"], expected, atol=tolerance)
    if ends is not None:
        np.testing.assert_allclose(z[:, [0, -1]], [ends] * 2, atol=1e-9)


def test_points_at_heavy_tails_are_not_spread_thin():
    def encode(x):
        return dist.Cauchy(x.expand(len(x), 2), 0.5).to_event(1)

    densities = aggregate_margins(Programs(encode), torch.randn(300, 1))
    step = densities["z"].diff("point")
    assert float(step.max()) < 0.5


def test_pole_at_an_end_of_the_support_leaves_densities_finite():
    def encode(x):
        return dist.Beta(0.5, 0.5).expand([len(x), 1]).to_event(1)

    def prior(x):
        return dist.Uniform(0.0, 1.0).expand([1]).to_event(1)

    densities = aggregate_margins(Programs(encode, prior), torch.zeros(3, 1))
    assert np.isfinite(densities["aggregate_density"]).all()
    # min(1, 1 / (pi sqrt(z (1 - z)))): it is below 1 between the roots of z (1 - z) = 1 / pi^2.
    root = math.sqrt(1 - 4 / math.pi**2)
    expected = (1 - root) + 2 / math.pi * math.asin(root)
    assert abs(float(densities["overlap"][0]) - expected) < 0.005
