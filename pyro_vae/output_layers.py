"""Networks with other outputs than they were made with."""

import copy

from torch import Tensor, nn

from pyro_vae import networks

__all__ = ["with_affine_output"]


def with_affine_output(network: nn.Module, matrix: Tensor, shift: Tensor) -> nn.Module:
    r"""A copy of a network whose output is :math:`M y + b` where the network's is y.

    Where the network ends in an ``nn.Linear`` (as an MLP, a ConvEncoder, or an ``nn.Sequential``
    with such an end does), M and b are folded into that layer, so that every new output is a free
    affine function of the last hidden layer. Otherwise they become a layer of their own.

    Args:
        network: Any network with vectors as output, ``(..., m)``.
        matrix: :math:`M`, ``(m', m)``.
        shift: :math:`b`, ``(m',)``.

    Example:
        >>> import torch
        >>> net, x = networks.MLP(3, (5,), 2), torch.ones(1, 3)
        >>> matrix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> wider = with_affine_output(net, matrix, torch.ones(3))
        >>> torch.allclose(wider(x)[:, :2] - 1, net(x), atol=1e-6), wider(x)[0, 2].item()
        (True, 1.0)
    """
    if type(network) is networks.WithMask:  # what takes its place must take missing entries too
        inner = with_affine_output(network.encoder, matrix, shift)
        return networks.WithMask(inner, event_dim=network.event_dim)
    new = copy.deepcopy(network)
    last = _last_linear(new)
    if last is None:
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], device=matrix.device)
        reference = next((p for p in new.parameters() if p.is_floating_point()), matrix)
        layer.weight, layer.bias = nn.Parameter(matrix.clone()), nn.Parameter(shift.clone())
        return nn.Sequential(new, layer.to(reference))
    weight = last.weight.detach()
    matrix, shift = matrix.to(weight), shift.to(weight)
    if last.bias is not None:
        shift = matrix @ last.bias.detach() + shift
    last.weight, last.bias = nn.Parameter(matrix @ weight), nn.Parameter(shift)
    last.out_features = len(matrix)
    return new


def _last_linear(network: nn.Module) -> nn.Linear | None:
    """The layer whose output a network returns as it is, if that is an ``nn.Linear``."""
    if type(network) is nn.Linear:
        return network
    if type(network) is nn.Sequential and len(network):
        return _last_linear(network[-1])
    if type(network) is networks.ConvEncoder:
        return _last_linear(network.head)
    if type(network) is networks.MLP and len(network.out_shape) == 1:
        return _last_linear(network.layers)
    return None
