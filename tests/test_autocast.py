"""Networks in bfloat16 with densities in float32."""

import copy

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import families, guides, likelihoods, networks, priors
from pyro_vae.autocast import Autocast

FLOAT = torch.float32


def network(*widths):
    return networks.MLP(widths[0], widths[1:-1], widths[-1], activation=nn.Tanh).to(FLOAT)


def vae_with(wrap):
    torch.manual_seed(1)
    family = families.DiagonalNormal(2)
    decoder, encoder = network(2, 16, 6), network(6, 16, family.num_params)
    return pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(wrap(decoder), event_shape=(6,), variance=0.3),
        guide=guides.AmortizedGuide(family, wrap(encoder)),
    ).to(FLOAT)


def test_output_is_float32_within_the_precision_of_bfloat16():
    inner = network(5, 32, 7)
    x = torch.randn(64, 5, dtype=FLOAT)
    exact, rounded = inner(x), Autocast(inner)(x)
    assert rounded.dtype == FLOAT
    assert torch.equal(rounded, rounded.bfloat16().float())  # it was rounded
    assert 0 < (rounded - exact).abs().max() < 2**-6 * exact.abs().max()


def test_density_is_that_of_float32_at_the_rounded_mean():
    vae = vae_with(Autocast)
    z, x = torch.randn(9, 2, dtype=FLOAT), torch.randn(9, 6, dtype=FLOAT)
    mean = vae.p_x_given_z.decoder(z)
    likelihood = likelihoods.Gaussian(nn.Identity(), event_shape=(6,), variance=0.3).to(FLOAT)
    assert torch.equal(vae.p_x_given_z(z).log_prob(x), likelihood(mean).log_prob(x))
    assert vae.encode(x).mean.dtype == FLOAT


def test_fit_keeps_parameters_and_gradients_in_float32():
    vae = vae_with(Autocast)
    before = copy.deepcopy(vae.state_dict())
    fit = pv.fit(vae, torch.randn(40, 6, dtype=FLOAT), epochs=2, batch_size=8, progress=False)
    after = vae.state_dict()
    assert {value.dtype for value in after.values()} == {FLOAT}
    moved = [key for key in after if not torch.equal(after[key], before[key])]
    assert len(moved) == len(list(vae.parameters())) == 8
    assert fit.history["elbo"].notna().all()


def test_weights_serve_with_and_without():
    plain, wrapped = vae_with(lambda inner: inner), vae_with(Autocast)
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        for param in plain.parameters():
            param.add_(1.0)
    assert not wrapped.load_state_dict(plain.state_dict()).missing_keys
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(plain.parameters(), vae_with(Autocast).parameters(), strict=True):
        assert not torch.equal(a, b)
    plain.load_state_dict(wrapped.state_dict())


def test_weights_of_networks_inside_have_their_names_too():
    # Buffers, a child called "network", and two wrappers, one inside the other.
    inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(FLOAT)
    nested = nn.ModuleDict({"network": Autocast(inner)}).to(FLOAT)
    nested.forward = lambda x: nested["network"](x)
    outer = Autocast(nested)
    assert set(outer.state_dict()) == {f"network.{key}" for key in inner.state_dict()}
    state = {key: value + 1 for key, value in outer.state_dict().items()}
    outer.load_state_dict(state)
    assert torch.equal(inner[0].weight, state["network.0.weight"])
    assert inner[1].num_batches_tracked == 1
    with pytest.raises(RuntimeError, match="Missing key"):
        outer.load_state_dict({})


def test_float16_rounds_less_and_copies_are_independent():
    inner = network(5, 32, 7)
    x = torch.randn(64, 5, dtype=FLOAT)
    exact = inner(x)
    bfloat, half = Autocast(inner)(x), Autocast(inner, torch.float16)(x)
    assert (half - exact).abs().max() < (bfloat - exact).abs().max() / 4
    twin = copy.deepcopy(Autocast(inner))
    assert twin.network is not inner
    assert torch.equal(twin(x), bfloat)


def test_default_device_is_not_used():
    inner, x = Autocast(network(5, 8, 3)), torch.randn(4, 5, dtype=FLOAT, device="cpu")
    with torch.device("meta"):
        assert inner(x).device.type == "cpu"


def test_autocast_is_off_outside():
    Autocast(network(5, 8, 3))(torch.zeros(4, 5, dtype=FLOAT))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_types_than_float32_are_refused(dtype):
    with pytest.raises(TypeError, match=f"x must be float32 .* got {dtype}"):
        Autocast(network(5, 3))(torch.zeros(4, 5).to(dtype))


def test_type_must_be_narrow():
    with pytest.raises(ValueError, match=r"dtype must be torch.bfloat16 .* got torch.float32"):
        Autocast(network(5, 3), FLOAT)
