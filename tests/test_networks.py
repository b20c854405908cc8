"""Networks are maps of single data: batch dimensions, sizes and types change nothing else."""

import itertools

import pytest
import torch
from torch import nn

from pyro_vae import networks
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder

# Every public network by a constructor and the shape of one input and of one output.
NETWORKS = {
    "Linear": (lambda: networks.Linear(6, 4), (6,), (4,)),
    "MLP": (lambda: MLP(6, (8, 5), 4), (6,), (4,)),
    "MLP affine": (lambda: MLP(6, (), 4), (6,), (4,)),
    "MLP of images": (lambda: MLP((2, 3, 4), (7,), (3, 2)), (2, 3, 4), (3, 2)),
    "ConvEncoder": (
        lambda: ConvEncoder((3, 9, 7), 5, channels=(4, 6), hidden=8),
        (3, 9, 7),
        (5,),
    ),
    "WithMask": (lambda: networks.WithMask(MLP(12, (5,), 4)), (6,), (4,)),
    "WithMask of images": (
        lambda: networks.WithMask(ConvEncoder((2, 9, 7), 5, channels=(4,), hidden=8)),
        (1, 9, 7),
        (5,),
    ),
    "ConvDecoder": (
        lambda: ConvDecoder(5, (3, 9, 7), channels=(6, 4), hidden=8),
        (5,),
        (3, 9, 7),
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """Constructor, shape of one input, shape of one output."""
    return NETWORKS[request.param]


def test_registry_holds_every_public_network():
    wrappers = {"Autocast"}  # around any of them, in single precision alone: test_autocast.py
    assert {name.split()[0] for name in NETWORKS} == set(networks.__all__) - wrappers


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_network_maps_a_batch_as_it_maps_each_row(network, batch_shape):
    make, in_shape, out_shape = network
    net, x = make(), torch.randn(*batch_shape, *in_shape)
    y = net(x)
    assert y.shape == (*batch_shape, *out_shape)
    for index in itertools.product(*map(range, batch_shape)):
        row = net(x[index].unsqueeze(0))[0]
        torch.testing.assert_close(y[index], row, rtol=1e-12, atol=1e-13)


def test_network_gradient_reaches_every_parameter(network):
    make, in_shape, out_shape = network
    net, weights = make(), torch.randn(50, *out_shape)
    (net(torch.randn(50, *in_shape)) * weights).sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_network_float32_agrees_with_float64(network):
    make, in_shape, _ = network
    net, x = make(), torch.randn(10, *in_shape)
    expected = net(x)
    y = net.to(torch.float32)(x.to(torch.float32))
    assert y.dtype == torch.float32
    assert (y - expected).abs().max() < 1e-5 * expected.abs().max()


def test_network_state_dict_round_trip_keeps_the_map(network):
    make, in_shape, _ = network
    net, other = make(), make()
    x = torch.randn(4, *in_shape)
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_mlp_without_hidden_layers_is_the_affine_map():
    net = MLP((2, 3), (), 4)
    weight, bias = net.parameters()
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(net(x), x.reshape(7, 6) @ weight.T + bias, rtol=1e-13, atol=1e-14)


def test_mlp_applies_the_activation_between_layers_and_not_after_the_last():
    net = MLP(3, (5, 4), 2, activation=nn.Tanh)
    w1, b1, w2, b2, w3, b3 = net.parameters()
    x = torch.randn(6, 3)
    expected = torch.tanh(torch.tanh(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    torch.testing.assert_close(net(x), expected, rtol=1e-13, atol=1e-14)


def test_conv_encoder_applies_the_activation_everywhere_but_at_the_end():
    # Every unit is positive at a large bias, where ReLU is the identity: the net is then affine.
    net = ConvEncoder((1, 8, 8), 3, channels=(2, 4), hidden=5)
    inner = [net.convolutions[0], net.convolutions[2], net.head.layers[0]]
    x, y = torch.randn(2, 4, 1, 8, 8)

    def curvature():
        return (net(x) + net(y) - 2 * net((x + y) / 2)).abs().max().item()

    assert curvature() > 1e-3
    for layer in inner:
        nn.init.constant_(layer.bias, 1e3)
    assert curvature() < 1e-9
    nn.init.constant_(net.head.layers[-1].bias, -1e6)  # the output has no activation to meet
    assert net(x).max() < 0


def test_conv_decoder_output_is_unbounded():
    net = ConvDecoder(2, (1, 5, 6), channels=(4, 3), hidden=5)
    z = torch.randn(3, 2)
    before = net(z)
    with torch.no_grad():
        net.convolutions[-1].bias -= 100.0
    torch.testing.assert_close(net(z), before - 100.0, rtol=0, atol=1e-10)


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_are_those_worked_out_by_hand():
    assert count(MLP(64, (32, 16), 10)) == (64 + 1) * 32 + (32 + 1) * 16 + (16 + 1) * 10
    assert count(MLP((1, 28, 28), (), (2, 5))) == (784 + 1) * 10
    # 4 x 4 kernels; 28 halves to 14 and 7.
    encoder = ConvEncoder((1, 28, 28), 40)
    assert count(encoder) == (
        (1 * 16 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 49 + 1) * 256 + (256 + 1) * 40
    )
    decoder = ConvDecoder(10, (3, 28, 28))
    assert count(decoder) == (
        (10 + 1) * 256 + (256 + 1) * 64 * 49 + (64 * 16 * 32 + 32) + (32 * 16 * 3 + 3)
    )
    # 9 x 7 halves, rounded down, to 4 x 3 and 2 x 1.
    odd = ConvEncoder((1, 9, 7), 5, channels=(2, 3), hidden=6)
    assert count(odd) == (16 + 1) * 2 + (2 * 16 + 1) * 3 + (3 * 2 + 1) * 6 + (6 + 1) * 5


@pytest.mark.parametrize(
    "shape",
    [(3, 30, 26), (1, 28, 28), (1, 9, 7), (2, 4, 5), (1, 31, 16)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("channels", [(), (3,), (3, 2)], ids=lambda c: f"{len(c)} convolutions")
def test_conv_networks_return_the_image_size_exactly(shape, channels):
    x = torch.randn(2, *shape)
    encoder = ConvEncoder(shape, 5, channels=channels, hidden=4)
    decoder = ConvDecoder(5, shape, channels=channels[::-1], hidden=4)
    assert decoder(encoder(x)).shape == x.shape


def test_conv_decoder_reaches_every_pixel_of_an_odd_image():
    net = ConvDecoder(3, (1, 9, 7), channels=(4, 3), hidden=20, activation=nn.Tanh)
    assert net(torch.randn(50, 3)).std(0).min() > 1e-3


def test_conv_networks_halve_as_often_as_the_image_allows():
    channels = (2,) * 9
    encoder = ConvEncoder((1, 512, 513), 3, channels=channels, hidden=4)
    assert encoder.head.layers[0].in_features == 2 * 1 * 1
    decoder = ConvDecoder(3, (1, 512, 513), channels=channels, hidden=4)
    assert decoder(torch.zeros(1, 3)).shape == (1, 1, 512, 513)


MLP_INPUT = r"input must end in shape \(2, 3\); got \(5, 6\)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP(0, (), 1), r"in_shape must hold positive integers; got 0"),
        (lambda: MLP((), (), 1), r"in_shape must hold positive integers; got \(\)"),
        (lambda: MLP(3, (), (2, -1)), r"out_shape must hold positive integers; got \(2, -1\)"),
        (lambda: MLP(3, (4, 0), 1), r"hidden must hold positive integers; got \(0,\)"),
        (lambda: MLP(3, (2.5,), 1), r"hidden must hold positive integers; got \(2.5,\)"),
        (lambda: MLP(3, ((4, 5),), 1), r"hidden must hold positive integers; got \(\(4, 5\),\)"),
        (lambda: MLP((True, 2), (), 1), r"in_shape must hold positive integers; got \(True, 2\)"),
        (lambda: MLP((2, 3), (), 1)(torch.zeros(5, 6)), MLP_INPUT),
        (lambda: MLP((2, 3), (), 1)(torch.zeros(3)), r"must end in shape \(2, 3\); got \(3,\)"),
        (
            lambda: ConvEncoder((28, 28), 2),
            r"in_shape must be \(channels, height, width\); got \(28, 28\)",
        ),
        (
            lambda: ConvEncoder((1, 3, 8), 2),
            r"in_shape must have height and width of at least 4 to be halved 2 times; "
            r"got \(1, 3, 8\)",
        ),
        (
            lambda: ConvDecoder(2, (1, 8, 7), channels=(4, 3, 2)),
            r"out_shape must have height and width of at least 8",
        ),
        (
            lambda: ConvEncoder((1, 8, 8), 2)(torch.zeros(5, 1, 8, 7)),
            r"input must end in shape \(1, 8, 8\); got \(5, 1, 8, 7\)",
        ),
    ],
)
def test_networks_errors_name_argument_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
