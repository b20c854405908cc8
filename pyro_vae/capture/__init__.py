"""Functions of tensors as graphs: written down once, compiled, and run without their Python."""

from .arguments import Arguments as Arguments
from .compiler import compiled as compiled
from .graph import Captured as Captured
from .graph import NotCapturable as NotCapturable
from .graph import capture as capture
from .program_state import modules_of as modules_of
from .state import is_capturing as is_capturing
from .table import Graph as Graph
from .table import GraphTable as GraphTable
from .table import Programs as Programs
from .unchanged import Unchanged as Unchanged

__all__ = [
    "Arguments",
    "Captured",
    "Graph",
    "GraphTable",
    "NotCapturable",
    "Programs",
    "Unchanged",
    "capture",
    "compiled",
    "is_capturing",
    "modules_of",
]
