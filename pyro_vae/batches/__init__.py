"""Batches of data for training: from a tensor, a file, a torch DataLoader, or a stream."""

from .batch import Batch as Batch
from .batch import Batches as Batches
from .batch import Part as Part
from .batch import digest as digest
from .gathered import GatheredBatches as GatheredBatches
from .in_memory import TensorBatches as TensorBatches
from .loaders import LoaderBatches as LoaderBatches
from .prefetch import prefetched as prefetched
from .streams import StreamBatches as StreamBatches
from .torch_data import as_row as as_row
from .torch_data import first as first
from .torch_data import stacked as stacked

__all__ = [
    "Batch",
    "Batches",
    "GatheredBatches",
    "LoaderBatches",
    "Part",
    "StreamBatches",
    "TensorBatches",
    "as_row",
    "digest",
    "first",
    "prefetched",
    "stacked",
]
