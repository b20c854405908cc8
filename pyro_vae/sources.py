"""From what a user passes as data to checked tensors and batches on a device."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from pyro_vae.batches import Batches, LoaderBatches, TensorBatches, first, stacked
from pyro_vae.datasets import CheckedArray, checked_rows
from pyro_vae.rows import per_datum_parts

__all__ = ["DataSource", "resolve_device"]

logger = logging.getLogger(__name__)


class DataSource:
    """Reads data for one pair of programs: checks them, casts them, moves them.

    Args:
        programs: Their ``prepare`` checks the data where they have one, as a VAE does.
        device: Where the batches go.

    Attributes:
        columns: Names of the features of the first table read; later ones are matched to them.
    """

    def __init__(self, programs: Any, device: torch.device) -> None:
        self._programs = programs
        self._device = device
        self._told = False
        self._per_datum = per_datum_parts(programs)
        self.columns: tuple[str, ...] | None = getattr(programs, "columns", None)

    def batches(self, x: Any, *, batch_size: int, seed: int) -> Batches:
        """Training batches of x; the data are checked before the first one is handed out."""
        dataset = x.dataset if isinstance(x, DataLoader) else x
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                "x must have a length; got an IterableDataset. Read it into an array, or wrap it "
                "in a Dataset that knows its number of rows."
            )
        if isinstance(x, DataLoader):
            if self._per_datum:
                raise ValueError(
                    "x must be an array or a Dataset in memory for a guide with parameters for "
                    "each datum, which has to know the rows of a batch; got a DataLoader."
                )
            return LoaderBatches(x, prepare=self._prepared_and_looked_at())
        if isinstance(x, TorchDataset):
            rows = stacked(x)
            if rows is None:
                return self.batches(
                    DataLoader(x, batch_size=batch_size, shuffle=True), batch_size=0, seed=seed
                )
            x = rows
        tensor = self.tensor(x, name="x")
        normalized = _normalizes_over_the_batch(self._programs)
        if normalized and len(tensor) == 1:
            raise ValueError(
                "x must have at least two rows where a network normalizes over the batch; got 1. "
                "Use another normalization than BatchNorm."
            )
        for part in self._per_datum:
            if part.num_rows != len(tensor):
                raise ValueError(
                    f"x must be the {part.num_rows} rows that {type(part).__name__} has "
                    f"parameters for; got {len(tensor)} rows."
                )
        self._look_at(tensor)
        return TensorBatches(tensor, batch_size=batch_size, seed=seed, merge_single=normalized)

    def tensor(self, x: Any, *, name: str) -> Tensor:
        """All of x as one checked tensor on the device."""
        if isinstance(x, DataLoader):
            with torch.device("cpu"):
                return torch.cat([self.tensor(first(rows), name=name) for rows in x])
        if isinstance(x, TorchDataset):
            x = stacked(x)
            if x is None:
                raise ValueError(f"{name} must fit in memory; got a Dataset that is too large.")
        prepare = getattr(self._programs, "prepare", None)
        if prepare is not None:
            checked: CheckedArray = prepare(x, columns=self.columns, name=name)
        else:
            dtype = _dtype(self._programs)
            checked = checked_rows(x, dtype=dtype, columns=self.columns, name=name)
        self._tell(checked, name)
        self.columns = self.columns or checked.columns
        return checked.tensor.to(self._device)

    def _look_at(self, x: Tensor) -> None:
        """Let the programs warn of data that they cannot describe."""
        check = getattr(self._programs, "check_data", None)
        if check is not None:
            check(x)

    def _prepared_and_looked_at(self) -> Callable[[Any], Tensor]:
        is_first = True

        def prepare(rows: Any) -> Tensor:
            nonlocal is_first
            x = self.tensor(rows, name="x")
            if is_first:
                self._look_at(x)
            is_first = False
            return x

        return prepare

    def _tell(self, checked: CheckedArray, name: str) -> None:
        target = str(checked.tensor.dtype).removeprefix("torch.")
        if checked.source_dtype != target and not self._told:
            self._told = True
            logger.warning(
                "%s was cast from %s to %s, the type of the programs' parameters.",
                name,
                checked.source_dtype,
                target,
            )


def resolve_device(programs: Any, device: torch.device | str) -> torch.device:
    """The device to train on.

    "auto" is the module's own device if it is not the CPU, else a GPU where there is one.

    Raises:
        RuntimeError: If a GPU is asked for and there is none.
    """
    if device == "auto":
        reference = _reference(programs)
        if reference is not None and reference.device.type != "cpu":
            return reference.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"device must be available; got {device!r}, and torch finds no GPU. "
            "Pass device='cpu' or device='auto'."
        )
    return resolved


def _reference(programs: Any) -> Tensor | None:
    if not isinstance(programs, nn.Module):
        return None
    tensors = [*programs.parameters(), *programs.buffers()]
    return next((t for t in tensors if t.is_floating_point()), None)


def _dtype(programs: Any) -> torch.dtype:
    reference = _reference(programs)
    return torch.get_default_dtype() if reference is None else reference.dtype


def _normalizes_over_the_batch(programs: Any) -> bool:
    norms = nn.modules.batchnorm._BatchNorm
    return isinstance(programs, nn.Module) and any(
        isinstance(m, norms) for m in programs.modules()
    )
