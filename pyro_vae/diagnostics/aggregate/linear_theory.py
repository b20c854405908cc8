"""The best linear VAE at a given variance: what theory says of any data."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.arguments import finite_number, positive_integer
from pyro_vae.diagnostics.passes import no_stand_in

__all__ = ["LinearTheory", "linear_theory"]

ROWS_AT_A_TIME = 1024


class LinearTheory(NamedTuple):
    r"""The linear VAE with the largest ELBO at variance c, in closed form.

    Attributes:
        variance: c, in squared units of x.
        eigenvalues: :math:`\lambda_j` of the data's covariance, divisor N, descending, on the CPU.
        variances: Variance of the mean of each of k latent directions,
            :math:`(1 - c / \lambda_j)_+`.
        kl: Their KL, :math:`\tfrac12 (\log \lambda_j / c)_+`, in nats.
        elbo: Mean ELBO over the data, in nats per datum.
    """

    variance: float
    eigenvalues: Tensor
    variances: Tensor
    kl: Tensor
    elbo: float

    def num_active(self, threshold: float = 0.0) -> int:
        """Number of directions whose variance exceeds the threshold."""
        return int((self.variances > threshold).sum())


def linear_theory(x: Tensor, latent_dim: int, *, variance: float) -> LinearTheory:
    r"""What the best VAE with a linear decoder, N(0, I) as prior and this variance does with x.

    It is reverse water-filling over :math:`\{j \le k : \lambda_j > c\}`, the active directions:

    .. math:: -\text{ELBO} = \tfrac n2 \log 2\pi c + \tfrac12 \sum_{\text{active}}
              \Big(\log\frac{\lambda_j}{c} + 1\Big) + \frac1{2c} \sum_{\text{inactive}} \lambda_j

    Args:
        x: Data, ``(N, *event_shape)``.
        latent_dim: k.
        variance: c.

    Raises:
        ValueError: If ``latent_dim`` or ``variance`` is not positive, or a value of x is missing.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> theory = linear_theory(x, 2, variance=1.0)  # eigenvalues 9/2 and 1/2
        >>> theory.num_active(), [round(v, 4) for v in theory.variances.tolist()]
        (1, [0.7778, 0.0])

    References:
        Tipping and Bishop (1999), Probabilistic principal component analysis, section 3.2 and
        appendix A. https://doi.org/10.1111/1467-9868.00196
    """
    latent_dim = positive_integer(latent_dim, "latent_dim")
    c = finite_number(variance, "variance", "positive and finite", above=0)
    if bool(x.isnan().any()):
        raise ValueError(
            f"x must be complete for its eigenvalues; got {int(x.isnan().sum())} missing values. "
            f"{no_stand_in()}"
        )
    rows = x.reshape(len(x), -1)
    eigenvalues = _eigenvalues(rows)
    num_features = rows.shape[1]
    kept = eigenvalues.new_zeros(latent_dim)
    kept[: len(eigenvalues)] = eigenvalues[:latent_dim]
    active = kept > c
    kl = torch.where(active, 0.5 * (kept / c).clamp(min=1).log(), 0.0)
    rest = eigenvalues.sum() - kept[active].sum()
    loss = kl.sum() + 0.5 * active.sum() + 0.5 * rest / c
    return LinearTheory(
        variance=c,
        eigenvalues=eigenvalues,
        variances=torch.where(active, 1 - c / kept.clamp(min=c), 0.0),
        kl=kl,
        elbo=-float(loss) - 0.5 * num_features * math.log(2 * math.pi * c),
    )


def _eigenvalues(rows: Tensor) -> Tensor:
    """All n eigenvalues of the covariance, descending, in double precision, on the CPU."""
    num_data, num_features = rows.shape
    # As one sum in double precision it would take a copy of the data.
    mean: Tensor = sum(piece.double().sum(0) for piece in rows.split(ROWS_AT_A_TIME)) / num_data
    if num_data < num_features:  # the Gram matrix is smaller, and has those that are not 0
        square = rows.new_zeros(num_data, num_data, dtype=torch.float64)
        columns = zip(rows.split(ROWS_AT_A_TIME, 1), mean.split(ROWS_AT_A_TIME), strict=True)
        for piece, of_piece in columns:
            centered = piece.double() - of_piece
            square += centered @ centered.mT
    else:
        square = rows.new_zeros(num_features, num_features, dtype=torch.float64)
        for piece in rows.split(ROWS_AT_A_TIME):
            centered = piece.double() - mean
            square += centered.mT @ centered
    some = torch.linalg.eigvalsh(square).flip(0).clamp(min=0).cpu() / num_data
    eigenvalues = some.new_zeros(num_features)
    eigenvalues[: len(some)] = some
    return eigenvalues
