"""``fit(..., train="guide")``: p(x, z) is held fixed, to the last bit."""

import copy
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae import baselines, families, guides, likelihoods, priors

QUIET = {"progress": False}


def fitted(vae, x, **options):
    return pv.fit(vae, x, **{"epochs": 2, "batch_size": 4, "train": "guide", **QUIET, **options})


def vae_with_moving_parts():
    """A decoder with BatchNorm and dropout, and a learned prior."""
    decoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6))
    family = families.DiagonalNormal(3)
    return pv.VAE(
        prior=priors.Normal(3),
        likelihood=likelihoods.Gaussian(decoder, event_shape=(6,), learn_variance=True),
        guide=guides.AmortizedGuide(family, nn.Linear(6, 6)),
    )


def state(module):
    return copy.deepcopy(module.state_dict())


def test_model_is_as_it_was_and_the_guide_is_not():
    vae, x = vae_with_moving_parts(), torch.randn(11, 6)
    before = state(vae)
    fitted(vae, x)
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("q_z_given_x"), name


@pytest.mark.parametrize("num_frozen", [1, 4])
def test_model_that_was_frozen_already_is_held_with_its_averages(num_frozen):
    vae, x = vae_with_moving_parts(), torch.randn(11, 6)
    for layer in list(vae.p_x_given_z.decoder)[:num_frozen]:
        layer.requires_grad_(False)
    before = state(vae.p_x_given_z)
    fitted(vae, x)
    assert all(torch.equal(v, before[n]) for n, v in vae.p_x_given_z.state_dict().items())


def test_everything_can_be_trained_again_afterwards():
    vae, x = vae_with_moving_parts(), torch.randn(11, 6)
    vae.p_x_given_z.decoder[0].weight.requires_grad_(False)  # the user's own choice stays
    fitted(vae, x)
    frozen = {name for name, p in vae.named_parameters() if not p.requires_grad}
    assert frozen == {"p_x_given_z.decoder.0.weight"}
    before = state(vae)
    fitted(vae, x, train="all")
    moved = {name for name, p in vae.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, _ in vae.named_parameters()} - frozen


def test_everything_can_be_trained_again_after_an_error():
    def stop(result):
        raise RuntimeError("enough")

    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(11, 6)
    with pytest.raises(RuntimeError, match="enough"):
        fitted(vae, x, callbacks=[stop])
    assert all(p.requires_grad for p in vae.parameters())


def test_gradient_of_the_guide_is_the_same_whether_the_model_is_held_or_not():
    x = torch.randn(4, 6)
    start = small_vae(family=families.FullCovarianceNormal)
    vaes = [copy.deepcopy(start) for _ in range(2)]
    sgd = lambda params: torch.optim.SGD(params, lr=0.01)  # noqa: E731
    for vae, train in zip(vaes, ("guide", "all"), strict=True):
        fitted(vae, x, epochs=1, train=train, optimizer=sgd)
    for held, trained in zip(*(vae.q_z_given_x.parameters() for vae in vaes), strict=True):
        assert torch.equal(held, trained)
    assert not torch.equal(vaes[0].p_x_given_z.decoder.layers[0].weight,
                           vaes[1].p_x_given_z.decoder.layers[0].weight)  # fmt: skip


def test_model_is_held_where_a_data_loader_brings_the_batches():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(8, 6)
    before = state(vae.p_x_given_z)
    fitted(vae, DataLoader(TensorDataset(x), batch_size=4))
    assert all(torch.equal(v, before[n]) for n, v in vae.p_x_given_z.state_dict().items())


class Own(nn.Module):
    """Programs by hand, with a module for each."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(1, 2), nn.Linear(2, 1)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def test_model_of_own_programs_is_held():
    programs, x = Own(), torch.randn(9, 2)
    before = state(programs)
    fitted(programs, x)
    for name, value in programs.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("decoder")


def test_guide_that_shares_parameters_with_the_model_raises():
    vae, x = small_vae(family=families.DiagonalNormal), torch.randn(8, 6)
    shared = vae.with_prior(priors.VampPrior(vae.q_z_given_x, x[:3]))
    with pytest.raises(ValueError, match="train must be 'all' where model and guide share"):
        fitted(shared, x)
    assert all(p.requires_grad for p in shared.parameters())
    apart = shared.with_guide(copy.deepcopy(shared.q_z_given_x))
    before = state(apart.p_z)
    fitted(apart, x)
    assert all(torch.equal(v, before[n]) for n, v in apart.p_z.state_dict().items())


def test_guide_without_parameters_raises():
    with pytest.raises(ValueError, match="train must be 'all' for a guide without parameters"):
        fitted(baselines.LinearAutoencoder(6, 2), torch.randn(8, 6))


def test_plain_objects_have_their_model_held():
    own = Own()
    programs, x = SimpleNamespace(model=own.model, guide=own.guide), torch.randn(9, 2)
    before = state(own)
    fitted(programs, x)
    for name, value in own.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("decoder")


def test_what_to_train_must_be_known():
    with pytest.raises(ValueError, match="train must be 'all' or 'guide'; got 'encoder'"):
        fitted(Own(), torch.randn(9, 2), train="encoder")
