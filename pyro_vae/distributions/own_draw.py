"""What a distribution remembers of the draw that it made last."""

import torch
from torch import Tensor

__all__ = ["OwnDraw"]


class OwnDraw:
    """Mixin of a reparametrized distribution that recognizes its last draw.

    The noise behind a draw tells its log density without inverting anything. Only that very tensor
    is recognized: not a copy, not a draw changed in place, and not a draw without a graph while
    gradients are wanted. At a fixed value the density depends on the parameters, at fixed noise it
    does not, so a draw by ``sample()`` must take the ordinary route.
    """

    _draw: tuple[Tensor, int, Tensor] | None = None

    def _remember(self, draw: Tensor, noise: Tensor) -> Tensor:
        # Tensors of torch.inference_mode do not count changes in place: none is recognized.
        self._draw = None if draw.is_inference() else (draw, draw._version, noise)
        return draw

    def _noise_behind(self, value: Tensor) -> Tensor | None:
        """The noise that made ``value``, if this distribution drew it last and it is a path."""
        if self._draw is None:
            return None
        draw, version, noise = self._draw
        is_path = value.requires_grad or not torch.is_grad_enabled()
        return noise if value is draw and value._version == version and is_path else None
