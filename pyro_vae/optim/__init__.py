"""One torch optimizer behind Pyro's interface, and learning-rate schedules."""

from .adam import adam as adam
from .distributed import DistributedOptim as DistributedOptim
from .graph_adam import GraphAdam as GraphAdam
from .one_torch import OneTorchOptim as OneTorchOptim
from .processes import Processes as Processes
from .processes import started as started
from .schedules import Schedule as Schedule
from .schedules import constant as constant
from .schedules import cosine as cosine
from .schedules import warmup as warmup

__all__ = [
    "DistributedOptim",
    "GraphAdam",
    "OneTorchOptim",
    "Processes",
    "Schedule",
    "adam",
    "constant",
    "cosine",
    "started",
    "warmup",
]
