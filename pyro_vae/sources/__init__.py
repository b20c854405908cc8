"""From what a user passes as data to checked tensors and batches on a device."""

from .device import resolve_device as resolve_device
from .lazy_rows import LazyRows as LazyRows
from .source import DataSource as DataSource

__all__ = ["DataSource", "LazyRows", "resolve_device"]
