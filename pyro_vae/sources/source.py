"""What a user passes as data, checked, cast and moved."""

import logging
from collections.abc import Callable
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
from pyro_vae.program_module import ProgramModule
from pyro_vae.rows import per_datum_parts

from .device import floating_type, normalizes_over_the_batch
from .lazy_rows import LazyRows
from .missing import (
    MaskedPiece,
    check_any_observed,
    declares_missing,
    entries_of,
    masked_pieces,
)
from .pieces import entries, in_pieces, looked_at, mapped
from .scan import Sample
from .whole import checked_file, checked_whole

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
        self._declared = False
        self.columns: tuple[str, ...] | None = getattr(programs, "columns", None)

    def batches(
        self,
        x: Any,
        *,
        batch_size: int,
        seed: int,
        num_data: int | None = None,
        part: Part | None = None,
        mask: Any = None,
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
            mask: Which entries of x were observed, an array of its shape; or "nan" where NaN says
                what is missing. With one, or a ``numpy.ma`` array, programs that have a
                ``declare_missing`` are told, and all data read by this source may have NaN.

        Raises:
            ValueError: If the data are not usable, or ``num_data`` is missing or does not fit, or
                the mask does not, or the programs take no missing values.
            TypeError: If x is not numeric, or has no length and is no IterableDataset.
        """
        was_missing = self.missing
        if declares_missing(x, mask):
            entries_of(mask, x)
            if hasattr(self._programs, "declare_missing"):
                self._programs.declare_missing()
            self._declared = True
        try:
            return self._batches(
                x, batch_size=batch_size, seed=seed, num_data=num_data, part=part, mask=mask
            )
        except BaseException:
            if self.missing and not was_missing:
                self._declared = False
                if isinstance(self._programs, ProgramModule):
                    self._programs.missing = False
            raise

    @property
    def missing(self) -> bool:
        """Whether NaN in data is a missing value."""
        return self._declared or getattr(self._programs, "missing", False) is True

    def _batches(
        self,
        x: Any,
        *,
        batch_size: int,
        seed: int,
        num_data: int | None,
        part: Part | None,
        mask: Any,
    ) -> Batches:
        if self._normalizes and batch_size == 1 and not isinstance(x, DataLoader):
            raise ValueError(
                "batch_size must be at least 2 where a network normalizes over the batch; got 1. "
                "Use another normalization than BatchNorm, or larger batches."
            )
        common: dict[str, Any] = {"seed": seed, "merge_single": self._normalizes, "part": part}
        dataset: Any = x.dataset if isinstance(x, DataLoader) else x
        if isinstance(dataset, IterableDataset):
            entries_of(mask, x, type(x).__name__)
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
            entries_of(mask, x, "DataLoader")
            return LoaderBatches(x, prepare=self._prepared_and_looked_at(), **common)
        if isinstance(x, TorchDataset):
            rows = stacked(x)
            if rows is None:
                entries_of(mask, x, "torch Dataset that does not fit in memory")
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
            entries_of(mask, x, "file that is mapped into memory")
            self._check_length(len(data))
            gather, sample, is_plain = self._checked_file(data, name="x")
            if len(sample.x) == len(data):
                check_any_observed(sample.x)
            self._look_at(sample.x.to(self._device))
            return GatheredBatches(
                gather,
                len(data),
                device=self._device,
                batch_size=batch_size,
                ahead=is_plain,
                **common,
            )
        tensor = self.tensor(x, name="x", mask=mask)
        self._check_length(len(tensor))
        check_any_observed(tensor)
        self._look_at(looked_at(tensor))
        return TensorBatches(tensor, batch_size=batch_size, **common)

    def rows(self, x: Any, *, name: str, mask: Any = None) -> Tensor:
        """All of x, checked: a tensor on the device if x is in memory.

        Otherwise it is a :class:`LazyRows`, which reads a piece at a time and stands for a tensor
        where rows are taken in pieces. With missing values it has NaN.
        """
        data = mapped(x, name)
        if data is not None:
            entries_of(mask, x, "file that is mapped into memory")
            gather, sample, _ = self._checked_file(data, name=name)
            numbers = torch.arange(len(data), device="cpu")
            return cast(
                "Tensor", LazyRows(gather, like=sample.x.to(self._device), numbers=numbers)
            )
        return self.tensor(x, name=name, mask=mask)

    def tensor(self, x: Any, *, name: str, mask: Any = None) -> Tensor:
        """All of x as one checked tensor on the device, with NaN where values are missing."""
        mask = entries_of(mask, x, "DataLoader" if isinstance(x, DataLoader) else None)
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
            checked = self._checked(x, name, mask)
            self._tell(checked, name)
            self.columns = self.columns or checked.columns
            return checked.tensor.to(self._device)
        if mask is not None:
            pieces = masked_pieces(pieces, mask, x)
        whole, last = checked_whole(
            x,
            pieces,
            lambda piece: self._checked(piece, name),
            name=name,
            missing=self.missing and mask is None,
        )
        self._tell(last, name)
        self.columns = self.columns or last.columns
        return whole.to(self._device)

    def _checked(self, x: Any, name: str, mask: Any = None) -> CheckedArray:
        if isinstance(x, MaskedPiece):
            x, mask = x.x, x.observed
        prepare = getattr(self._programs, "prepare", None)
        options: dict[str, Any] = {"columns": self.columns, "name": name}
        if mask is not None and isinstance(self._programs, ProgramModule):
            return self._programs.prepare(x, mask=mask, **options)
        if prepare is None or mask is not None:
            dtype = floating_type(self._programs)
            x = checked_rows(x, dtype=dtype, missing=self.missing, mask=mask, **options)
        if prepare is None:
            return cast("CheckedArray", x)
        checked: CheckedArray = prepare(x if mask is None else x.tensor, **options)
        return checked

    def _checked_file(
        self, data: MappedDataset, *, name: str
    ) -> tuple[Callable[[Tensor], Tensor], Sample, bool]:
        """Check all of a file; how to read rows of it from then on, and a sample of them.

        Programs with a ``prepare`` of their own, which changes more than the type, have it applied
        to what is read, and not in another thread.
        """
        found = checked_file(
            data, lambda piece: self._checked(piece, name), name=name, missing=self.missing
        )
        self._tell(found.last, name)
        if found.is_plain:
            dtype = found.last.tensor.dtype
            return lambda rows: data.read(rows).to(dtype), found.sample, True
        return lambda rows: self._checked(data.read(rows), name).tensor, found.sample, False

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
            check(x, *(() if self.columns is None else (self.columns,)))

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
