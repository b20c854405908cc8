"""Rows with missing values: what is said, averaged and drawn of them."""

import math

from torch import Tensor

from pyro_vae.datasets import Dataset
from pyro_vae.report import standard_error

__all__ = ["complete_rows", "num_observed", "observed_in_words", "ratio_and_error"]

FEWEST_PICTURED = 10
"""Complete rows from which on pictures are drawn of them alone."""


def complete_rows(x: Tensor, what: str = "held-out rows") -> tuple[Tensor | None, str]:
    """The rows that a picture of data and reconstructions can show, and which they are.

    Args:
        x: Data with NaN where missing, ``(N, *event_shape)``.
        what: What to call the rows.

    Returns:
        The rows without missing values, None for fewer than ten of them while others have some;
        and how many they are, in words, empty for all.

    Example:
        >>> import torch
        >>> complete_rows(torch.zeros(1, 2))
        (tensor([[0., 0.]]), '')
        >>> complete_rows(torch.tensor([[0.0], [torch.nan]]))
        (None, '1 of 2 held-out rows without missing values')
    """
    is_complete = ~x.isnan().reshape(len(x), -1).any(1)
    count = int(is_complete.sum())
    if count == len(x):
        return x, ""
    words = f"{count} of {len(x)} {what} without missing values"
    return (None if count < FEWEST_PICTURED else x[is_complete]), words


def observed_in_words(parts: list[Dataset]) -> list[str]:
    """Of what the ELBO is one, where values are missing.

    Example:
        >>> import torch
        >>> gaps = Dataset("gaps", torch.tensor([[0.0, torch.nan], [1.0, 2.0]]), missing=True)
        >>> observed_in_words([gaps, gaps])
        ['the ELBO bounds log p of the observed values alone, 1.50 of 2 in a row on average (held
        out 1.50)']
    """
    if not any(part.num_missing for part in parts):
        return []
    means = [1.0 * (part.x.numel() - part.num_missing) / len(part) for part in parts]
    return [
        f"the ELBO bounds log p of the observed values alone, {means[0]:.2f} of "
        f"{parts[0].num_features} in a row on average (held out {means[1]:.2f})"
    ]


def num_observed(x: Tensor) -> Tensor:
    """Number of observed values of each row, in float64 on the CPU.

    Example:
        >>> import torch
        >>> num_observed(torch.tensor([[0.0, torch.nan], [1.0, 2.0]]))
        tensor([1., 2.], dtype=torch.float64)
    """
    return (~x.isnan()).reshape(len(x), -1).sum(1).double().cpu()


def ratio_and_error(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    r"""The mean of all values of all rows, and its standard error where rows are independent.

    .. math:: R = \frac{\sum_i s_i}{\sum_i n_i}, \qquad
              \text{se} = \frac{\operatorname{se}(s_i - R n_i)}{\bar n}

    Args:
        sums: Sum of the values of each row.
        counts: Number of values of each row.

    Returns:
        The two, NaN where nothing was counted.

    Example:
        >>> import torch
        >>> ratio_and_error(torch.tensor([2.0, 6.0]), torch.tensor([2.0, 2.0]))
        (2.0, 1.0)
    """
    sums, counts = sums.double().cpu(), counts.double().cpu()
    if float(counts.sum()) == 0:
        return math.nan, math.nan
    ratio = float(sums.sum() / counts.sum())
    return ratio, standard_error((sums - ratio * counts).numpy()) / float(counts.mean())
