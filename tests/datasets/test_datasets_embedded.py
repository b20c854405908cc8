import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pyro_vae import datasets


def test_digits_are_scikit_learns_divided_by_16():
    with torch.device("meta"):
        data = datasets.digits(dtype=torch.float64)
    bunch = load_digits()
    assert np.array_equal(data.x.numpy() * 16, bunch.data)
    assert np.array_equal(data.labels.numpy(), bunch.target)
    assert (data.image_shape, data.x.dtype, data.labels.dtype) == (
        (8, 8),
        torch.float64,
        torch.int64,
    )
    assert str(data) == "digits: 1797 rows of (64,), x = raw / 16, labels 10 classes"


@pytest.fixture
def float32_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("float32_default")
def test_simulated_and_embedded_data_come_in_the_default_type():
    assert datasets.digits().x.dtype == torch.float32
    assert datasets.linear_gaussian(5).x.dtype == torch.float32


@pytest.mark.parametrize("name", datasets.__all__)
def test_public_names_are_objects_and_not_the_modules_they_come_from(name):
    thing = getattr(datasets, name)
    assert callable(thing)
    assert thing.__doc__
    assert f"pyro_vae.datasets.{name}" not in sys.modules
