"""One torch optimizer behind Pyro's interface, and learning-rate schedules."""

from .adam import adam as adam
from .one_torch import OneTorchOptim as OneTorchOptim
from .schedules import Schedule as Schedule
from .schedules import constant as constant
from .schedules import cosine as cosine
from .schedules import warmup as warmup

__all__ = ["OneTorchOptim", "Schedule", "adam", "constant", "cosine", "warmup"]
