"""The arguments of a call, of which a graph takes all but the tensors for granted."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Arguments", "described"]


class Arguments:
    """The arguments of a call: tensors, and all else, which a graph takes as it is.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Attributes:
        tensors: The tensors among them, in order.
        key: Hashable: equal for calls that one graph can serve; None where an argument is neither
            a tensor nor hashable, so that none can.

    Example:
        >>> one, two = (Arguments((torch.zeros(n, 3), "a"), {}) for n in (5, 5))
        >>> one.key == two.key, one.key == Arguments((torch.zeros(4, 3), "a"), {}).key
        (True, False)
        >>> args, kwargs = one.rebuilt([torch.ones(5, 3)])
        >>> args[1]
        'a'
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
            # As nearly always; the general way takes as long as a small layer.
            self._leaves: list[Any] = [args[0]]
            self._spec: Any = None
            structure: Hashable = None
        else:
            self._leaves, self._spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
            structure = str(self._spec)
        self.tensors = [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]
        self.key: Hashable = (
            structure,
            tuple(described(leaf) for leaf in self._leaves),
            torch.get_default_dtype(),
            *_autocasts(),
        )
        try:
            hash(self.key)
        except TypeError:
            self.key = None

    def rebuilt(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with other tensors in place of these."""
        if self._spec is None:
            return (tensors[0],), {}
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs


def described(leaf: Any) -> Hashable:
    """What a graph takes for granted of a tensor: all but its values; of another object, all.

    Example:
        >>> described(torch.zeros(2)) == described(torch.ones(2)), described(1) == described(1.0)
        (True, False)
    """
    if not isinstance(leaf, Tensor):
        return (type(leaf), leaf)
    return (leaf.shape, leaf.dtype, leaf.device, leaf.stride(), leaf.requires_grad)


def _autocasts() -> tuple[Hashable, ...]:
    """Types in which operations run while ``torch.autocast`` is on."""
    return tuple(
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in ("cpu", "cuda")
    )
