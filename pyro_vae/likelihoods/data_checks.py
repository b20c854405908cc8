"""What is wrong with data, in words: values outside a support, constant features."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "as_written",
    "constant_features",
    "continuous_alternative",
    "outside",
    "rescaled",
    "warn_of_features",
]


def outside(x: Tensor, inside: Tensor, columns: Sequence[str] | None, *, whole: bool) -> str:
    """The range of x, how many values lie outside the support, and where the first is.

    Args:
        x: Data, ``(N, *event_shape)``.
        inside: Which values lie in the support; not all of them.
        columns: Names of the features, where they have any.
        whole: Whether only whole numbers belong there, so that it is said how many are none.

    Example:
        >>> x = torch.tensor([[0.0, 1.5], [-2.0, 1.0]])
        >>> outside(x, (x >= 0) & (x == x.round()), None, whole=True)
        'got values in [-2, 1.5], 2 of them outside (1 not whole), the first at row 0, column 1'
    """
    index: list[int] = (~inside).nonzero()[0].tolist()
    if len(index) == 2:
        column = index[1] if columns is None else repr(columns[index[1]])
        where = f"row {index[0]}, column {column}"
    else:
        where = f"row {index[0]}" if len(index) == 1 else f"index {tuple(index)}"
    x = x[~x.isnan()]
    num_broken = int((x != x.round()).sum())
    broken = f" ({num_broken} not whole)" if whole and num_broken else ""
    return (
        f"got values in [{as_written(x.min())}, {as_written(x.max())}], {int((~inside).sum())} of "
        f"them outside{broken}, the first at {where}"
    )


def as_written(value: Tensor) -> str:
    """A number with the fewest digits that tell it from others of its type.

    Example:
        >>> as_written(torch.tensor(0.1)), as_written(torch.tensor(16.0))
        ('0.1', '16')
    """
    wide = value.detach().cpu()
    if wide.dtype not in {torch.float32, torch.float64}:
        wide = wide.double()
    return str(wide.numpy()[()]).removesuffix(".0")


def rescaled(x: Tensor, name: str) -> str:
    """An expression that maps x onto [0, 1].

    Example:
        >>> rescaled(torch.tensor([0.0, 16.0]), "x"), rescaled(torch.tensor([-1.0, 3.0]), "x")
        ('x / 16', '(x + 1) / 4')
    """
    low, high = x.min(), x.max()
    if low >= 0:
        return f"{name} / {as_written(high)}"
    spread = as_written(high - low) if high > low else "1"
    return f"({name} + {as_written(-low)}) / {spread}"


def continuous_alternative(x: Tensor) -> str:
    """The likelihood whose support these numbers, beyond [0, 1], look like.

    Example:
        >>> continuous_alternative(torch.tensor([0.0, 16.0]))
        'likelihoods.Poisson for counts'
    """
    if x.min() >= 0 and bool((x == x.round()).all()):
        return "likelihoods.Poisson for counts"
    if x.min() > 0:
        return "likelihoods.LogNormal for positive numbers"
    return "likelihoods.Gaussian for real numbers"


def constant_features(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which features have one value in all rows where they are observed, and their lowest value.

    Args:
        x: Data with NaN where missing, ``(N, *event_shape)``.

    Returns:
        Both flattened; a feature that is never observed is not constant.

    Example:
        >>> nan = float("nan")
        >>> constant_features(torch.tensor([[1.0, nan, 3.0], [2.0, 5.0, 3.0], [nan, nan, 3.0]]))
        (tensor([False,  True,  True]), tensor([1., 5., 3.]))
    """
    rows = x.reshape(len(x), -1)
    missing = rows.isnan()
    lowest = rows.masked_fill(missing, torch.inf).amin(0)
    return lowest == rows.masked_fill(missing, -torch.inf).amax(0), lowest


def warn_of_features(marked: Tensor, columns: Sequence[str] | None, what: str) -> None:
    """Warn that some features ``what``, by name or number, if there are any.

    Args:
        marked: Which features, flattened.
        columns: Names of the features, where they have any.
        what: The predicate with its consequence, after "3 feature(s)"; "{names}" is replaced.
    """
    names = [str(columns[j]) if columns else str(j) for j in marked.nonzero().flatten().tolist()]
    if names:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        warnings.warn(
            f"{len(names)} feature(s) {what.format(names=shown)}", UserWarning, stacklevel=3
        )
