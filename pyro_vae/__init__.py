"""Variational autoencoders as what they are: variational inference in Pyro.

Names are imported on first use, so that ``import pyro_vae`` and the command line's ``--help`` do
not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae import (
        baselines,
        datasets,
        diagnostics,
        distributions,
        families,
        guides,
        likelihoods,
        networks,
        objectives,
        optim,
        plots,
        priors,
    )
    from pyro_vae.checkpoint import CheckpointError
    from pyro_vae.comparison import compare
    from pyro_vae.compiled_svi import CompiledSVI
    from pyro_vae.diagnosis import diagnose
    from pyro_vae.export import to_arviz
    from pyro_vae.fit_result import FitResult
    from pyro_vae.imputation import impute
    from pyro_vae.ready_made import bernoulli_vae, gaussian_vae, make_vae
    from pyro_vae.run_directory import RunDirectory
    from pyro_vae.training import fit
    from pyro_vae.vae import VAE

__all__ = [
    "VAE",
    "CheckpointError",
    "CompiledSVI",
    "FitResult",
    "RunDirectory",
    "baselines",
    "bernoulli_vae",
    "compare",
    "datasets",
    "diagnose",
    "diagnostics",
    "distributions",
    "families",
    "fit",
    "gaussian_vae",
    "guides",
    "impute",
    "likelihoods",
    "make_vae",
    "networks",
    "objectives",
    "optim",
    "plots",
    "priors",
    "to_arviz",
]

__version__ = "0.1.0"

_HOMES = {
    "VAE": "pyro_vae.vae",
    "CheckpointError": "pyro_vae.checkpoint",
    "CompiledSVI": "pyro_vae.compiled_svi",
    "FitResult": "pyro_vae.fit_result",
    "RunDirectory": "pyro_vae.run_directory",
    "bernoulli_vae": "pyro_vae.ready_made",
    "compare": "pyro_vae.comparison",
    "diagnose": "pyro_vae.diagnosis",
    "fit": "pyro_vae.training",
    "gaussian_vae": "pyro_vae.ready_made",
    "impute": "pyro_vae.imputation",
    "make_vae": "pyro_vae.ready_made",
    "to_arviz": "pyro_vae.export",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in __all__:
        value = importlib.import_module(f"pyro_vae.{name}")
    else:
        raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
