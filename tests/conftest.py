"""Float64, a fixed seed, validation on and a parameter store of its own for every test."""

from collections.abc import Iterator

import pyro
import pytest
import torch

# The rate at which a correct package fails one comparison of a simulation with its expectation.
FALSE_ALARM_RATE = 2e-5
MAX_Z = 4.27  # two-sided, in standard errors


# Tests are small: a second thread costs more than it brings, and much more on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean_world() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with pyro.get_param_store().scope(), pyro.validation_enabled(True):
        yield
    torch.set_default_dtype(dtype)
