"""What a VAE and an autoencoder share: they read a user's data, and Pyro knows them by a name."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.datasets import CheckedArray, check_gray_levels, checked_rows

__all__ = ["ProgramModule"]


class ProgramModule(nn.Module):
    """A module with Pyro programs ``model(x)`` and ``guide(x)``, and one event shape for x.

    Its programs call ``pyro.module`` with names that begin with ``store_name``. Pyro's parameter
    store answers a name that it knows with the tensors it already holds, so two instances with the
    same names would not train independently: the second would not train at all.

    Attributes:
        columns: Names of the features where :func:`pyro_vae.fit` was given a DataFrame, else None.
        store_name: Unique to this instance; a copy gets its own.
    """

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

    def prepare(
        self, x: Any, *, columns: Sequence[str] | None = None, name: str = "x"
    ) -> CheckedArray:
        """Checked data, ``(N, *event_shape)``, as a tensor of this module's dtype on its device.

        Args:
            x: Tensor, array, DataFrame or :class:`~pyro_vae.datasets.Dataset`.
            columns: Names of the features in this module's order, by which those of a table are
                matched; ``self.columns`` unless given.
            name: What error messages call the data.

        Raises:
            ValueError: If x has no rows, another event shape, or holds NaN or infinity; or if x
                holds raw 8-bit gray levels and the model is a density over real numbers.
            TypeError: If x is not numeric.
        """
        checked = checked_rows(
            x,
            event_shape=self.event_shape,
            dtype=self.dtype,
            columns=self.columns if columns is None else columns,
            name=name,
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


def _new_store_name() -> str:
    # Not from a random state of torch, numpy or Python: making a module changes none of them.
    return uuid.uuid4().hex[:12]
