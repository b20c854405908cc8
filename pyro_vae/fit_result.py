"""What a fit leaves behind, besides the trained parameters."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

__all__ = ["FitResult"]


@dataclass
class FitResult:
    """A fit, finished or partial; its parameters are in ``vae`` itself.

    Attributes:
        vae: The fitted programs, in evaluation mode where they are a module.
        seed: Seed of the order of the data and of all noise.
        rows: What ``history`` is made of, one entry an epoch.
        interrupted: Whether Ctrl-C (or SIGTERM) ended the fit: the parameters are those after its
            last full step.
        stopped_early: Whether ``patience`` or a callback ended it.
        best_epoch: Epoch with the highest validation ELBO (training ELBO without validation data).
        num_skipped: Steps left out because their gradient was not finite.
        seconds: Duration of the fit, with what came before it was resumed.
        resumed_after: Full epochs that were done when it was resumed; None if it was not.

    Example:
        >>> fit = FitResult(vae=None, seed=0, rows=[{"epoch": 1, "elbo": -2.5}])
        >>> fit.history["elbo"].iloc[-1].item()
        -2.5
    """

    vae: Any = field(repr=False)
    seed: int
    rows: list[dict[str, float]] = field(default_factory=list, repr=False)
    interrupted: bool = False
    stopped_early: bool = False
    best_epoch: int | None = None
    num_skipped: int = 0
    seconds: float = 0.0
    resumed_after: int | None = None

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch, all densities in nats per datum.

        ``elbo``, ``expected_log_likelihood`` and ``kl`` are evaluated at the end of the epoch, on
        the training data or on a fixed random part of them, with KL weight 1 and in evaluation
        mode; ``elbo_se`` is the standard error of that mean over data and draws. With validation
        data the same columns stand with the prefix ``validation_``. ``loss`` is what SVI
        minimized, averaged over the epoch's steps.
        """
        return pd.DataFrame(self.rows)
