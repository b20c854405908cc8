"""Independent normal coordinates: the same distribution as torch's, at fewer operations."""

import pytest
import torch
from pyro import distributions as dist
from torch.distributions import Distribution, Independent, kl_divergence

from pyro_vae.distributions import CholeskyNormal
from pyro_vae.distributions.independent_normal import IndependentNormal, UnitNormal
from pyro_vae.priors.copies import copied


def pair(*batch, size=3, scale_size=None, grad=False):
    loc, scale = torch.randn(*batch, size), torch.rand(*batch, scale_size or size) + 0.5
    loc.requires_grad_(grad), scale.requires_grad_(grad)
    return IndependentNormal(loc, scale), dist.Normal(loc, scale).to_event(1)


@pytest.mark.parametrize("batch", [(), (5,), (4, 5)])
@pytest.mark.parametrize("scale_size", [1, 3])
@pytest.mark.parametrize("sample_shape", [(), (7,)])
def test_it_is_the_normal_of_torch(batch, scale_size, sample_shape):
    q, expected = pair(*batch, scale_size=scale_size)
    assert (q.batch_shape, q.event_shape) == (expected.batch_shape, expected.event_shape)
    torch.manual_seed(1)
    z = q.rsample(sample_shape)
    torch.manual_seed(1)
    torch.testing.assert_close(z, expected.rsample(sample_shape), rtol=1e-14, atol=1e-14)
    for value in (z, z.clone(), torch.randn(3), torch.randn(2, *batch, 3)):  # z is its own draw
        torch.testing.assert_close(q.log_prob(value), expected.log_prob(value))
    for name in ("mean", "variance", "mode"):
        torch.testing.assert_close(getattr(q, name), getattr(expected, name))
    torch.testing.assert_close(q.entropy(), expected.entropy())


def test_log_density_of_its_own_draw_has_the_total_derivative():
    def gradient(kind):
        torch.manual_seed(2)
        loc, scale = torch.randn(5, 3), torch.rand(5, 3) + 0.5
        loc.requires_grad_(), scale.requires_grad_()
        q = kind(loc, scale)
        torch.manual_seed(3)
        z = q.rsample()
        return torch.autograd.grad((q.log_prob(z) + z.pow(3).sum(-1)).sum(), (loc, scale))

    expected = gradient(lambda loc, scale: dist.Normal(loc, scale).to_event(1))
    for found, wanted in zip(gradient(IndependentNormal), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_draw_changed_in_place_is_not_taken_for_the_draw():
    q, expected = pair(5)
    z = q.rsample()
    z += 1.0
    torch.testing.assert_close(q.log_prob(z), expected.log_prob(z))


def test_the_score_at_a_fixed_draw_is_that_of_torch():
    q, expected = pair(5, grad=True)
    z = q.sample()
    for found, wanted in zip(
        torch.autograd.grad(q.log_prob(z).sum(), (q.loc, q.scale)),
        torch.autograd.grad(expected.log_prob(z).sum(), (q.loc, q.scale)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_expand_keeps_what_has_the_shape_and_expands_the_rest():
    q, _ = pair(5)
    assert q.expand((5,)) is q
    p, expected = pair()
    wide, z = p.expand((5,)), torch.randn(5, 3)
    assert type(wide) is IndependentNormal
    assert wide.batch_shape == (5,)
    assert wide.rsample().shape == (5, 3)
    torch.testing.assert_close(wide.log_prob(z), expected.log_prob(z))
    assert wide.expand_by((2,)).sample().shape == (2, 5, 3)


def test_closed_forms_of_the_kl_are_those_of_torch():
    (q, q_expected), (p, p_expected) = pair(5), pair()
    p, p_expected = p.expand((5,)), p_expected.expand((5,))
    full = CholeskyNormal(torch.zeros(3), scale_tril=torch.randn(3, 3).tril(-1) + torch.eye(3))
    wanted = kl_divergence(q_expected, p_expected)
    for pair_of in ((q, p), (q_expected, p), (q, p_expected)):
        torch.testing.assert_close(kl_divergence(*pair_of), wanted)
    torch.testing.assert_close(kl_divergence(full, p), kl_divergence(full, p_expected))
    assert isinstance(q, Independent)
    assert isinstance(q.base_dist, dist.Normal)


def test_arguments_are_validated_where_torch_validates():
    loc, bad = torch.zeros(2, 3), torch.tensor([1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match="scale"):
        IndependentNormal(loc, bad)
    with pytest.raises(ValueError, match="value"):
        IndependentNormal(loc, bad.abs()).log_prob(torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="dimension of one event"):
        IndependentNormal(torch.tensor(0.0), torch.tensor(1.0))
    assert IndependentNormal(loc, bad, validate_args=False).batch_shape == (2,)
    try:
        Distribution.set_default_validate_args(False)
        q = IndependentNormal(loc, bad)
        assert q.log_prob(loc).isnan().all()
        assert "base_dist" not in vars(q)
        assert q._base is None  # nothing in a training step makes it
        with pytest.raises(ValueError, match="scale"):
            IndependentNormal(loc, bad, validate_args=True)
    finally:
        Distribution.set_default_validate_args(True)


@pytest.mark.parametrize("batch", [(), (5,)])
def test_unit_normal_is_the_normal_at_zero_and_one(batch):
    zeros, ones = torch.zeros(3), torch.ones(3)
    p = UnitNormal(zeros, ones).expand(batch)
    expected = dist.Normal(zeros, ones).to_event(1).expand(batch)
    assert type(p) is UnitNormal
    for value in (torch.randn(3), torch.randn(5, 3), torch.randn(7, 5, 3), p.sample((2,))):
        torch.testing.assert_close(p.log_prob(value), expected.log_prob(value))
    torch.testing.assert_close(p.entropy(), expected.entropy())


@pytest.mark.parametrize(("loc", "scale"), [(1.0, 1.0), (0.0, 2.0)])
def test_unit_normal_of_other_numbers_raises(loc, scale):
    with pytest.raises(ValueError, match="loc must be zeros and scale ones"):
        UnitNormal(torch.full((3,), loc), torch.full((3,), scale))


def test_a_copy_has_tensors_of_its_own():
    q, expected = pair(5)
    z = q.rsample()
    copy = copied(q, lambda tensor: tensor.detach().clone())
    assert type(copy) is IndependentNormal
    assert copy.loc is not q.loc
    assert copy.base_dist.loc is copy.loc
    torch.testing.assert_close(copy.log_prob(z), expected.log_prob(z))


def test_nothing_is_made_on_the_default_device():
    q, _ = pair(5)
    p = UnitNormal(torch.zeros(3), torch.ones(3))
    with torch.device("meta"):
        z = q.rsample()
        values = (z, q.log_prob(z), q.log_prob(z + 1), p.expand((5,)).log_prob(z))
    assert {value.device.type for value in values} == {"cpu"}
