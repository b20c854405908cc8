"""States and weights to and from disk. Files are data: nothing in them is ever executed."""

from .errors import CheckpointError as CheckpointError
from .state_files import StateFiles as StateFiles
from .tensors import as_module as as_module
from .tensors import buffers_kept as buffers_kept
from .tensors import copied_into as copied_into
from .tensors import named_tensors as named_tensors
from .training_state import TrainingState as TrainingState
from .weights import load_weights as load_weights
from .weights import save_weights as save_weights

__all__ = [
    "CheckpointError",
    "StateFiles",
    "TrainingState",
    "as_module",
    "buffers_kept",
    "copied_into",
    "load_weights",
    "named_tensors",
    "save_weights",
]
