"""A log evidence that the user gives, in place of one that is sought."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

__all__ = ["given_evidence", "insert_evidence"]


def insert_evidence(columns: dict[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Put a given log evidence, whose error is its own, into the columns."""
    columns |= given
    pairs = {"inference_gap": "elbo", "approximation_gap": "best_elbo"}
    if "family_best_elbo" in columns:
        pairs["family_approximation_gap"] = "family_best_elbo"
    for gap, elbo in pairs.items():
        values, errors = given["log_evidence"], given["log_evidence_mcse"]
        if columns[elbo].dim() == 2:
            values, errors = values.unsqueeze(1), errors.unsqueeze(1)
        columns[gap] = values - columns[elbo]
        columns[f"{gap}_mcse"] = torch.hypot(errors, columns[f"{elbo}_mcse"])


def given_evidence(log_evidence: Any, num_data: int) -> dict[str, Tensor]:
    """Log evidence, its error (0 where none is told), and k-hat where there is one."""
    found = {}
    if isinstance(log_evidence, xr.Dataset):
        names = {"log_evidence": "log_evidence", "pareto_khat": "pareto_khat"}
        names |= {"mcse": "log_evidence_mcse", "log_evidence_mcse": "log_evidence_mcse"}
        for theirs, ours in names.items():
            if theirs in log_evidence:
                found[ours] = np.asarray(log_evidence[theirs], dtype=np.float64)
    else:
        if isinstance(log_evidence, Tensor):
            log_evidence = log_evidence.detach().cpu()
        found["log_evidence"] = np.asarray(log_evidence, dtype=np.float64)
    values = found.get("log_evidence")
    if values is None or values.shape != (num_data,) or not np.isfinite(values).all():
        got = "none" if values is None else f"shape {values.shape}"
        if values is not None and values.shape == (num_data,):
            got = f"{(~np.isfinite(values)).sum()} that are not"
        raise ValueError(
            f"log_evidence must hold a finite log p(x) for each of {num_data} data, in nats; got "
            f"{got}. Pass what log_evidence, quadrature_log_evidence or ais_log_evidence returned "
            "for the same x, or leave it out."
        )
    found.setdefault("log_evidence_mcse", np.zeros(num_data))
    return {name: torch.from_numpy(values.copy()) for name, values in found.items()}
