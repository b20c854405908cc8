"""What a fit says in words: a few lines of text, every figure with its standard error."""

import math

import pandas as pd
from torch import Tensor

__all__ = ["fit_report", "mean_and_error", "with_error"]

LABELS = {
    "elbo": "ELBO",
    "expected_log_likelihood": "  E_q log p(x|z)",
    "kl": "  - KL(q(z|x) || p(z))",
}


def with_error(value: float, error: float) -> str:
    """A figure with its standard error, both to the error's second digit.

    Example:
        >>> with_error(12.3456, 0.0789)
        '12.346 ± 0.079'
        >>> with_error(-1234.5, 21.0)
        '-1234 ± 21'
    """
    if not math.isfinite(error) or error == 0:
        return f"{value:.3f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values and its standard error.

    Example:
        >>> import torch
        >>> mean_and_error(torch.tensor([1.0, 3.0]))
        (2.0, 1.0)
    """
    values = values.double()
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def fit_report(
    *,
    heading: list[str],
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    reference: dict[str, tuple[float, float]],
    variance: str,
    closing: list[str],
) -> str:
    """The report of one fit as plain text.

    Args:
        heading: Lines that say what was fitted to what.
        train: What ``diagnostics.elbo_summary`` says of training data.
        held_out: The same of held-out data.
        reference: Rows beside the ELBO: name to value and standard error on the held-out data.
        variance: The observation variance in words.
        closing: Lines at the end.
    """
    width = max(map(len, [*LABELS.values(), *reference])) + 2
    columns = [
        [with_error(table["mean"][term], table["se"][term]) for term in LABELS]
        for table in (train, held_out)
    ]
    lines = [*heading, "", f"{'nats per datum':{width}}{'train':>20}{'held out':>20}"]
    for label, at_train, at_held_out in zip(LABELS.values(), *columns, strict=True):
        lines.append(f"{label:{width}}{at_train:>20}{at_held_out:>20}")
    for name, (value, error) in reference.items():
        lines.append(f"{name:{width}}{'':>20}{with_error(value, error):>20}")
    noise = max(train["mcse"].max(), held_out["mcse"].max())
    lines += [
        f"(± one standard error over data; Monte Carlo error at most {noise:.2g})",
        "",
        variance,
        *closing,
    ]
    return "\n".join(lines) + "\n"
