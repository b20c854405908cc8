"""On what the bits of a result depend, besides the data, the settings and the seed."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

import pyro_vae
from pyro_vae.optim.processes import Processes

__all__ = ["decides_bits", "environment"]

PACKAGES = ("pyro-vae", "pyro-ppl", "torch", "numpy", "scikit-learn")


SETTINGS = ("processes", "threads", "deterministic", "matmul_precision")


def environment() -> dict[str, Any]:
    """Versions and settings of this process.

    Example:
        >>> environment()["packages"]["torch"] == torch.__version__
        True
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        # The build of torch, as +cpu, decides bits too.
        "packages": {name: _version(name) for name in PACKAGES}
        | {"torch": str(torch.__version__)},
        "processes": Processes.current().size,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def decides_bits(facts: Mapping[str, Any], device: torch.device) -> dict[str, str]:
    """What of an environment has to be equal for a fit to be repeated to the last bit.

    Args:
        facts: An :func:`environment`.
        device: Where the fit runs.

    Example:
        >>> decides_bits(environment(), torch.device("cpu"))["device"]
        'cpu'
    """
    found = {name: str(facts[name]) for name in SETTINGS}
    found |= {name: str(facts["packages"][name]) for name in ("pyro-vae", "pyro-ppl", "torch")}
    where = facts["gpu"] if device.type == "cuda" else facts["cpu_capability"]
    return {**found, "device": device.type, "kind of device": str(where)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # as in a checkout that is on the path
        return pyro_vae.__version__ if package == "pyro-vae" else None
