"""The per-datum guide: free parameters for each datum, and no encoder."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.families import Family
from pyro_vae.modes import evaluation_mode

from .amortized import AmortizedGuide
from .guide import FamilyGuide, check_family

__all__ = ["PerDatumGuide"]


class PerDatumGuide(FamilyGuide):
    r"""Guide with free parameters for each of N data: :math:`q_i(z)`, not :math:`q(z \mid x_i)`.

    The bound that it reaches lacks the amortization gap: what an :class:`AmortizedGuide` of the
    same family misses besides is the encoder's. It knows its data by their row numbers, so it is
    good for the N data that it was fitted to, in their order, and for no others.

    :func:`pyro_vae.fit` and the diagnostics tell it which rows a batch holds. By hand, x must be
    all N rows, or ``with guide.at_rows(index):`` must say which.

    Args:
        family: Unconstrained parameters to a distribution over z.
        num_data: Number N of data.

    Attributes:
        num_data: The same.
        table: The parameters, ``(N, family.num_params)``, which start at
            ``family.start_params()``.

    Raises:
        TypeError: If ``family`` declares no ``event_shape``.
        ValueError: If ``num_data`` is not a positive integer.

    Example:
        >>> from pyro_vae.families import DiagonalNormal
        >>> guide, x = PerDatumGuide(DiagonalNormal(2), 5), torch.zeros(5, 3)
        >>> guide(x).batch_shape
        torch.Size([5])
        >>> with guide.at_rows([4, 0]):
        ...     guide(x[[4, 0]]).batch_shape
        torch.Size([2])

    References:
        Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders,
        section 3. https://arxiv.org/abs/1801.03558
    """

    takes_missing = True
    """Whatever x holds, its row number alone is looked at."""

    def __init__(self, family: Family, num_data: int) -> None:
        super().__init__(family)
        self.num_data = positive_integer(num_data, "num_data")
        start = family.start_params().to(torch.get_default_dtype())
        self.table = nn.Parameter(start.repeat(self.num_data, 1))
        self._rows: Tensor | None = None

    @classmethod
    def from_amortized(cls, guide: AmortizedGuide, x: Tensor) -> "PerDatumGuide":
        """A guide that starts from an encoder's answer for each row of x.

        Args:
            guide: Its family is copied.
            x: Data, ``(N, *event_shape)``, of the encoder's type and on its device.

        Example:
            >>> from pyro_vae.families import DiagonalNormal
            >>> guide, x = AmortizedGuide(DiagonalNormal(2), nn.Linear(3, 4)), torch.ones(5, 3)
            >>> torch.equal(PerDatumGuide.from_amortized(guide, x)(x).mean, guide(x).mean)
            True
        """
        with torch.no_grad(), evaluation_mode(guide):
            table = guide.params(x)
        new = cls(copy.deepcopy(guide.family), len(x))
        new.table = nn.Parameter(table.clone())
        return new

    @property
    def num_rows(self) -> int:
        """Number of rows that x must have now."""
        return self.num_data if self._rows is None else len(self._rows)

    @contextmanager
    def at_rows(self, index: Any) -> Iterator[None]:
        """Say which of the data come next, while the block lasts.

        Args:
            index: Their row numbers, counted among the rows of an enclosing ``at_rows`` where
                there is one; a row may occur more than once.

        Raises:
            ValueError: If there is no such row.
        """
        rows = torch.as_tensor(index, dtype=torch.int64, device=self.table.device)
        lowest, highest = (int(rows.min()), int(rows.max())) if rows.numel() else (0, 0)
        if rows.dim() != 1 or not 0 <= lowest <= highest < self.num_rows:
            raise ValueError(
                f"index must hold row numbers from 0 to {self.num_rows - 1}; got "
                f"{lowest if lowest < 0 else highest}."
            )
        outer = self._rows
        self._rows = rows if outer is None else outer[rows]
        try:
            yield
        finally:
            self._rows = outer

    def params(self, x: Tensor) -> Tensor:
        """The parameters of the rows that x is, ``(N, num_params)``.

        Raises:
            ValueError: If x has another number of rows.
        """
        if len(x) != self.num_rows:
            raise ValueError(
                f"x must be the {self.num_rows} rows whose parameters a PerDatumGuide holds, in "
                f"their order; got {len(x)} rows. Say which with guide.at_rows(index); data that "
                "it was not made for need an AmortizedGuide, or a PerDatumGuide of their own."
            )
        return self.table if self._rows is None else self.table.index_select(0, self._rows)

    def with_family(self, family: Family) -> "PerDatumGuide":
        """A guide in a larger family that starts as this one.

        Args:
            family: A family that contains this guide's.

        Raises:
            ValueError: If it does not.
        """
        check_family(family)
        matrix, shift = (t.to(self.table) for t in family.embedding(self.family))
        new = PerDatumGuide(family, self.num_data)
        new.table = nn.Parameter(self.table.detach() @ matrix.mT + shift)
        return new

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"num_data={self.num_data}"
