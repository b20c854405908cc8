"""What a user passes as data, checked, cast and moved."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from pyro_vae.arguments import positive_integer
from pyro_vae.batches import (
    Batches,
    GatheredBatches,
    LoaderBatches,
    Part,
    StreamBatches,
    TensorBatches,
    as_row,
    first,
    stacked,
)
from pyro_vae.datasets import CheckedArray, MappedDataset, checked_rows
from pyro_vae.rows import per_datum_parts

from .device import floating_type, normalizes_over_the_batch
from .lazy_rows import LazyRows
from .pieces import entries, in_pieces, looked_at, mapped, own_tensor
from .scan import Sample, checked_pieces

__all__ = ["DataSource"]

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
        self._normalizes = normalizes_over_the_batch(programs)
        self.columns: tuple[str, ...] | None = getattr(programs, "columns", None)

    def batches(
        self,
        x: Any,
        *,
        batch_size: int,
        seed: int,
        num_data: int | None = None,
        part: Part | None = None,
    ) -> Batches:
        """Training batches of x; the data are checked before the first one is handed out.

        Those of a DataLoader or a stream, and of a torch Dataset that is too large for memory, are
        checked as they come.

        Args:
            x: Whatever :func:`pyro_vae.fit` takes.
            batch_size: Rows in a batch.
            seed: Seed of the order.
            num_data: Rows of an epoch of an IterableDataset, which has no length.
            part: From a batch's row numbers to those that this process takes; all unless given. A
                DataLoader or a stream must then bring all rows on every process, in one order.

        Raises:
            ValueError: If the data are not usable, or ``num_data`` is missing or does not fit.
            TypeError: If x is not numeric, or has no length and is no IterableDataset.
        """
        common: dict[str, Any] = {"seed": seed, "merge_single": self._normalizes, "part": part}
        dataset: Any = x.dataset if isinstance(x, DataLoader) else x
        if isinstance(dataset, IterableDataset):
            return self._stream(x, batch_size=batch_size, num_data=num_data, seed=seed, part=part)
        if num_data is not None and not hasattr(dataset, "__len__"):
            raise TypeError(
                "x must have a length or be an IterableDataset; got "
                f"{type(dataset).__name__}. Wrap what yields rows in a "
                "torch.utils.data.IterableDataset."
            )
        if num_data is not None and num_data != len(dataset):
            raise ValueError(
                f"num_data must be left out where x tells its length, {len(dataset)}; got "
                f"{num_data}."
            )
        if isinstance(x, DataLoader):
            self._refuse_per_datum("DataLoader")
            return LoaderBatches(x, prepare=self._prepared_and_looked_at(), **common)
        if isinstance(x, TorchDataset):
            rows = stacked(x)
            if rows is None:
                self._check_length(len(dataset))
                prepare = self._prepared_and_looked_at()
                return GatheredBatches(
                    lambda rows: prepare(entries(x, rows)),
                    len(dataset),
                    device=self._device,
                    batch_size=batch_size,
                    ahead=False,  # it may draw from the global random state
                    **common,
                )
            x = rows
        data = mapped(x, "x")
        if data is not None:
            self._check_length(len(data))
            gather, sample, is_plain = self._checked_file(data, name="x")
            self._look_at(sample.x.to(self._device))
            return GatheredBatches(
                gather,
                len(data),
                device=self._device,
                batch_size=batch_size,
                ahead=is_plain,
                **common,
            )
        tensor = self.tensor(x, name="x")
        self._check_length(len(tensor))
        self._look_at(looked_at(tensor))
        return TensorBatches(tensor, batch_size=batch_size, **common)

    def rows(self, x: Any, *, name: str) -> Tensor:
        """All of x, checked: a tensor on the device if x is in memory.

        Otherwise it is a :class:`LazyRows`, which reads a piece at a time and stands for a tensor
        where rows are taken in pieces.
        """
        data = mapped(x, name)
        if data is not None:
            gather, sample, _ = self._checked_file(data, name=name)
            numbers = torch.arange(len(data), device="cpu")
            return cast(
                "Tensor", LazyRows(gather, like=sample.x.to(self._device), numbers=numbers)
            )
        return self.tensor(x, name=name)

    def tensor(self, x: Any, *, name: str) -> Tensor:
        """All of x as one checked tensor on the device."""
        if isinstance(x, DataLoader):
            with torch.device("cpu"):
                return torch.cat([self.tensor(first(rows), name=name) for rows in x])
        if isinstance(x, IterableDataset):
            raise TypeError(
                f"{name} must have a length; got an IterableDataset. Read it into an array, or "
                "pass a DataLoader over it if it ends."
            )
        if isinstance(x, TorchDataset):
            x = stacked(x)
            if x is None:
                raise ValueError(f"{name} must fit in memory; got a Dataset that is too large.")
        pieces = in_pieces(x)
        if pieces is None:
            checked = self._checked(x, name)
            self._tell(checked, name)
            self.columns = self.columns or checked.columns
            return checked.tensor.to(self._device)
        return self._checked_in_pieces(x, pieces, name)

    def _checked(self, x: Any, name: str) -> CheckedArray:
        prepare = getattr(self._programs, "prepare", None)
        if prepare is not None:
            checked: CheckedArray = prepare(x, columns=self.columns, name=name)
            return checked
        dtype = floating_type(self._programs)
        return checked_rows(x, dtype=dtype, columns=self.columns, name=name)

    def _checked_in_pieces(
        self, x: Any, pieces: Iterator[tuple[Tensor, Any, Tensor]], name: str
    ) -> Tensor:
        """A tensor over x's own memory where nothing had to be changed, else a new one."""
        result: Tensor | None = None
        values_so_far: list[Tensor] = []
        start, num_data = 0, len(x)
        last: CheckedArray | None = None
        found = checked_pieces(
            pieces, lambda piece: self._checked(piece, name), num_data=num_data, name=name
        )
        for values, last in found:
            made = last.tensor
            is_own = made.dtype == values.dtype and made.device == values.device
            if result is None and not (is_own and torch.equal(made, values)):
                result = made.new_empty(num_data, *made.shape[1:])
                if values_so_far:
                    torch.cat(values_so_far, out=result[:start])
            if result is None:
                values_so_far.append(values)
            else:
                result[start : start + len(made)] = made
            start += len(made)
        if last is not None:
            self._tell(last, name)
            self.columns = self.columns or last.columns
        return (own_tensor(x) if result is None else result).to(self._device)

    def _checked_file(
        self, data: MappedDataset, *, name: str
    ) -> tuple[Callable[[Tensor], Tensor], Sample, bool]:
        """Check all of a file; how to read rows of it from then on, and a sample of them.

        Programs with a ``prepare`` of their own, which changes more than the type, have it applied
        to what is read, and not in another thread.
        """
        is_plain, sample = True, Sample(len(data))
        dtype = floating_type(self._programs)
        found = checked_pieces(
            ((numbers, x, x) for numbers, x in data.chunks()),
            lambda piece: self._checked(piece, name),
            num_data=len(data),
            name=name,
        )
        checked: CheckedArray | None = None
        for values, checked in found:
            made, dtype = checked.tensor, checked.tensor.dtype
            is_plain = is_plain and torch.equal(made, values.to(made.device, dtype))
            sample.add(made)
        if checked is not None:
            self._tell(checked, name)
        if is_plain:
            return lambda rows: data.read(rows).to(dtype), sample, True
        return lambda rows: self._checked(data.read(rows), name).tensor, sample, False

    def _stream(
        self, x: Any, *, batch_size: int, num_data: int | None, seed: int, part: Part | None
    ) -> Batches:
        dataset = x.dataset if isinstance(x, DataLoader) else x
        self._refuse_per_datum("IterableDataset")
        if num_data is None:
            if not hasattr(dataset, "__len__"):
                raise ValueError(
                    "num_data must be given for an IterableDataset, which has no length: the "
                    "number of rows that make an epoch; got None."
                )
            num_data = len(dataset)
        num_data = positive_integer(num_data, "num_data")
        self._check_length(num_data)
        yields_batches = isinstance(x, DataLoader) and x.batch_size is not None
        event_shape = getattr(self._programs, "event_shape", None)

        def as_rows(item: Any) -> Tensor:
            rows = as_row(first(item))
            is_row = event_shape is not None and rows.shape == tuple(event_shape)
            is_block = event_shape is not None and rows.shape[1:] == tuple(event_shape)
            if is_row or not (is_block or yields_batches):
                return rows[None]
            return rows

        return StreamBatches(
            x,
            as_rows=as_rows,
            num_data=num_data,
            batch_size=x.batch_size if yields_batches else batch_size,
            prepare=self._prepared_and_looked_at(),
            merge_single=self._normalizes,
            part=part,
            seed=seed,
        )

    def _refuse_per_datum(self, kind: str) -> None:
        if self._per_datum:
            raise ValueError(
                "x must be an array or a Dataset for a guide with parameters for each datum, "
                f"which has to know the rows of a batch; got a {kind}."
            )

    def _check_length(self, num_data: int) -> None:
        if self._normalizes and num_data == 1:
            raise ValueError(
                "x must have at least two rows where a network normalizes over the batch; got 1. "
                "Use another normalization than BatchNorm."
            )
        for part in self._per_datum:
            if part.num_rows != num_data:
                raise ValueError(
                    f"x must be the {part.num_rows} rows that {type(part).__name__} has "
                    f"parameters for; got {num_data} rows."
                )

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
