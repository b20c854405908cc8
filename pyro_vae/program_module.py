"""What a VAE and an autoencoder share: they read a user's data, and Pyro knows them by a name."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.datasets import CheckedArray, check_gray_levels, checked_rows

__all__ = ["ProgramModule", "missing_only_if_accepted"]


class ProgramModule(nn.Module):
    """A module with Pyro programs ``model(x)`` and ``guide(x)``, and one event shape for x.

    Its programs call ``pyro.module`` with names that begin with ``store_name``. Pyro's parameter
    store answers a name that it knows with the tensors it already holds, so two instances with the
    same names would not train independently: the second would not train at all.

    Attributes:
        columns: Names of the features where :func:`pyro_vae.fit` was given a DataFrame, else None.
        missing: Whether NaN in x is a missing value.
        store_name: Unique to this instance; a copy gets its own.
    """

    missing: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.columns: tuple[str, ...] | None = None
        self.store_name = _new_store_name()

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating parameter or buffer; data are cast to it."""
        return self._reference().dtype

    @property
    def device(self) -> torch.device:
        """Where the first floating parameter or buffer lives; data are moved there."""
        return self._reference().device

    def declare_missing(self) -> None:
        """Take NaN in x for a missing value from now on.

        Raises:
            ValueError: If this module's programs know no missing values.
        """
        raise ValueError(
            f"x must be complete for {type(self).__name__}; got missing values. Impute them, or "
            "use a VAE, which takes them as they are."
        )

    def prepare(
        self,
        x: Any,
        *,
        columns: Sequence[str] | None = None,
        name: str = "x",
        mask: Any = None,
    ) -> CheckedArray:
        """Checked data, ``(N, *event_shape)``, as a tensor of this module's dtype on its device.

        Args:
            x: Tensor, array, DataFrame or :class:`~pyro_vae.datasets.Dataset`.
            columns: Names of the features in this module's order, by which those of a table are
                matched; ``self.columns`` unless given.
            name: What error messages call the data.
            mask: Which entries were observed, where not all are or are NaN: see
                :func:`~pyro_vae.datasets.observed_entries`. Only where values may be missing.

        Returns:
            The tensor has NaN where x is missing.

        Raises:
            ValueError: If x has no rows, another event shape, or holds infinity, or NaN while
                ``missing`` is False; or if x holds raw 8-bit gray levels and the model is a
                density over real numbers; or if the mask does not fit.
            TypeError: If x is not numeric.
        """
        checked = checked_rows(
            x,
            event_shape=self.event_shape,
            dtype=self.dtype,
            columns=self.columns if columns is None else columns,
            name=name,
            missing=self.missing,
            mask=mask,
        )
        if not self._counts:
            check_gray_levels(checked, name)
        return replace(checked, tensor=checked.tensor.to(self.device))

    @property
    def _counts(self) -> bool:
        """Whether x is discrete, so that raw integers are its natural unit."""
        return False

    def _reference(self) -> Tensor:
        tensors = chain(self.parameters(), self.buffers())
        return next((t for t in tensors if t.is_floating_point()), torch.zeros((), device="cpu"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy a name of its own."""
        super().__setstate__(state)
        self.store_name = _new_store_name()


@contextmanager
def missing_only_if_accepted(programs: object) -> Iterator[None]:
    """Leave a module without missing values, as it was, where the block refuses the data.

    Args:
        programs: Any; what is no :class:`ProgramModule` is left alone.

    Example:
        >>> module = ProgramModule()
        >>> with missing_only_if_accepted(module):
        ...     module.missing = True
        >>> module.missing
        True
    """
    before = programs.missing if isinstance(programs, ProgramModule) else False
    try:
        yield
    except BaseException:
        if isinstance(programs, ProgramModule):
            programs.missing = before
        raise


def _new_store_name() -> str:
    # Not from a random state of torch, numpy or Python: making a module changes none of them.
    return uuid.uuid4().hex[:12]
