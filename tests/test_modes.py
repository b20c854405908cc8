"""Evaluation mode for a while, every submodule back in its own mode."""

import pytest
import torch
from torch import nn

from pyro_vae.modes import evaluation_mode


@pytest.fixture
def net():
    """A net in training mode but for one frozen part, a habit of fine-tuning."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)))
    net[1][0].eval()
    return net


def modes(net):
    return {name: module.training for name, module in net.named_modules()}


MIXED = {"": True, "0": True, "1": True, "1.0": False, "1.1": True}


def test_evaluation_mode_holds_for_every_submodule_inside(net):
    with evaluation_mode(net) as entered:
        assert entered is None
        assert not any(modes(net).values())


def test_evaluation_mode_puts_each_submodule_back_into_its_own_mode(net):
    assert modes(net) == MIXED
    with evaluation_mode(net):
        pass
    assert modes(net) == MIXED


def test_evaluation_mode_puts_modes_back_on_an_exception(net):
    with pytest.raises(KeyError), evaluation_mode(net):
        raise KeyError
    assert modes(net) == MIXED


def test_evaluation_mode_nests(net):
    with evaluation_mode(net):
        with evaluation_mode(net[1]):
            assert not any(modes(net).values())
        assert not any(modes(net).values())
    assert modes(net) == MIXED


def test_evaluation_mode_makes_dropout_the_identity_and_freezes_batch_norm(net):
    net.train()
    x = torch.randn(8, 3)
    statistics = net[1][0].running_mean.clone()
    with evaluation_mode(net):
        expected = net[0](x) / (1 + net[1][0].eps) ** 0.5  # running mean 0, variance 1
        torch.testing.assert_close(net(x), expected, rtol=1e-14, atol=1e-15)
    assert torch.equal(net[1][0].running_mean, statistics)


def test_evaluation_mode_passes_whatever_is_no_module():
    class Programs:
        training = True

    programs = Programs()
    with evaluation_mode(programs):
        assert programs.training is True
    with evaluation_mode(None):
        pass
