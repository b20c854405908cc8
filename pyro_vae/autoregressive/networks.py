"""Networks whose outputs for one coordinate see only the coordinates before it, and start at 0."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

__all__ = ["MaskedNetwork", "PointwiseNetwork"]


class MaskedNetwork(ConditionalAutoRegressiveNN):
    """Pyro's masked network, whose outputs start at 0, with or without a context.

    Pyro keeps the masks and the order in the saved state, and copies of the masks outside the
    buffers, where ``.to()`` leaves them behind. Here they are what they are: constants.

    Args:
        order: The coordinates from first to last, at least two.
        context_dim: Length of the context; 0 for none.
        hidden: Widths of the hidden layers.
        param_dims: Number of outputs of each kind for one coordinate.
        skip_connections: Whether to add a linear function of the inputs.
    """

    def __init__(
        self,
        order: Sequence[int],
        context_dim: int,
        hidden: Sequence[int],
        param_dims: Sequence[int],
        *,
        skip_connections: bool,
    ) -> None:
        permutation: Any = torch.tensor(order)
        super().__init__(
            len(order),
            context_dim,
            list(hidden),
            param_dims=list(param_dims),
            permutation=permutation,
            skip_connections=skip_connections,
            nonlinearity=nn.Tanh(),
        )
        del self.masks, self.mask_skip, self.permutation
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        layers: list[Any] = list(self.layers)
        if self.skip_layer is not None:
            nn.init.zeros_(self.skip_layer.weight)
            layers.append(self.skip_layer)
        for layer in layers:
            mask = layer.mask
            del layer.mask
            layer.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        """Outputs of each kind, at an x and a context that broadcast against each other."""
        if context is not None:
            batch_shape = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            x = torch.cat([context.expand(*batch_shape, -1), x.expand(*batch_shape, -1)], dim=-1)
        return self._forward(x)


class PointwiseNetwork(nn.Module):
    """What a masked network is with one coordinate: a function of the context, or a constant.

    Pyro's own warns in this case, and without a context its weights would be dead.

    Args:
        context_dim: Length of the context; 0 for none.
        hidden: Widths of the hidden layers.
        param_dims: Number of outputs of each kind.
    """

    def __init__(self, context_dim: int, hidden: Sequence[int], param_dims: Sequence[int]) -> None:
        super().__init__()
        self.param_dims = list(param_dims)
        self.bias = nn.Parameter(torch.zeros(sum(param_dims)))
        self.hidden: nn.Module | None = None
        self.linear: nn.Module | None = None
        if context_dim:
            layers: list[nn.Module] = []
            for fan_in, fan_out in zip((context_dim, *hidden[:-1]), hidden, strict=True):
                layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
            self.hidden = nn.Sequential(*layers)
            linear = nn.Linear(hidden[-1] + context_dim, sum(param_dims), bias=False)
            nn.init.zeros_(linear.weight)
            self.linear = linear

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        """Outputs of each kind, in the shapes of Pyro's network for one coordinate."""
        outputs: Tensor = self.bias
        if context is not None and self.hidden is not None and self.linear is not None:
            outputs = outputs + self.linear(torch.cat([self.hidden(context), context], dim=-1))
        batch_shape = torch.broadcast_shapes(x.shape[:-1], outputs.shape[:-1])
        kinds = outputs.expand(*batch_shape, -1).unsqueeze(-1).split(self.param_dims, dim=-2)
        return [kind.squeeze(-2) for kind in kinds] if set(self.param_dims) == {1} else kinds
