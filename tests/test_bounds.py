import pytest
import torch
from torch.nn import functional

from pyro_vae.bounds import bounded, inverse_positive, positive


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_hold_however_large_the_number_is(dtype):
    raw = torch.tensor([-1e38, -1e10, -1e4, 1e4, 1e10, 1e38], dtype=dtype)
    expected = torch.tensor([-15.0] * 3 + [15.0] * 3, dtype=dtype)
    torch.testing.assert_close(bounded(raw, -15.0, 15.0), expected, rtol=1e-6, atol=0)
    expected = torch.tensor([1e-2] * 3 + [1e4] * 3, dtype=dtype)
    raw = raw * torch.tensor([1, 1, 1, 2, 1, 1], dtype=dtype)
    torch.testing.assert_close(positive(raw, 1e-2, 1e4), expected, rtol=1e-6, atol=0)


def test_numbers_well_inside_are_themselves_and_softplus():
    raw = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(bounded(raw, -30.0, 30.0), raw, rtol=0, atol=1e-11)
    expected = 0.1 + functional.softplus(raw)
    torch.testing.assert_close(positive(raw, 0.1, 50.0), expected, rtol=0, atol=1e-12)


def test_gradient_is_left_near_a_bound():
    raw = torch.tensor([-17.0, 17.0], requires_grad=True)
    bounded(raw, -15.0, 15.0).sum().backward()
    torch.testing.assert_close(raw.grad, torch.sigmoid(torch.tensor([-2.0, -2.0])))


@pytest.mark.parametrize("value", [1e-8, 0.3, 1.0, 40.0])
def test_inverse_positive_inverts(value):
    raw = torch.tensor(inverse_positive(value, 0.0, 1e3))
    torch.testing.assert_close(functional.softplus(raw).item(), value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("value", [0.011, 1.0, 4.9])
def test_inverse_positive_inverts_between_its_bounds(value):
    raw = torch.tensor(inverse_positive(value, 0.01, 5.0))
    torch.testing.assert_close(positive(raw, 0.01, 5.0).item(), value, rtol=1e-12, atol=0)
