"""The report: every figure in its place, with its standard error."""

import math

import pandas as pd
import pytest
import torch

from pyro_vae.report import fit_report, mean_and_error, with_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 0.0789, "12.346 ± 0.079"),
        (-1234.5678, 21.4, "-1235 ± 21"),
        (-1234.5678, 2.14, "-1234.6 ± 2.1"),
        (0.5, 1.0, "0.5 ± 1.0"),
        (0.123456789, 0.00012345, "0.12346 ± 0.00012"),
        (100.0, 99.4, "100 ± 99"),
        (1e6, 12345.6, "1000000 ± 12346"),
        (-0.5, 0.9, "-0.50 ± 0.90"),
        (1.23456, 0.0, "1.235"),
        (1.23456, math.nan, "1.235"),
        (1.23456, math.inf, "1.235"),
        (math.nan, 0.1, "nan ± 0.10"),
    ],
)
def test_with_error_shows_both_to_the_second_digit_of_the_error(value, error, text):
    assert with_error(value, error) == text


def test_mean_and_error_are_those_of_independent_values():
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3) / 2, rel=1e-15)


def test_mean_and_error_of_float32_are_computed_in_float64():
    values = torch.tensor([1e8, 1e8 + 8, 1e8 + 16], dtype=torch.float32)
    assert mean_and_error(values) == pytest.approx((1e8 + 8, 8 / math.sqrt(3)), rel=1e-14)


def test_error_of_a_single_value_is_nan_without_a_warning():
    mean, error = mean_and_error(torch.tensor([2.5]))
    assert mean == 2.5
    assert math.isnan(error)


TERMS = ["elbo", "expected_log_likelihood", "kl"]


def summary(means, errors, mcses):
    return pd.DataFrame({"mean": means, "se": errors, "mcse": mcses}, index=TERMS)


def report(reference):
    return fit_report(
        heading=["digits: 10 rows", "p(z) = N(0, I)"],
        summaries={
            "train": summary([-61.25, -60.5, 0.75], [0.31, 0.32, 0.0042], [0.01, 0.011, 0.0]),
            "held out": summary([-63.5, -62.0, 1.5], [2.1, 2.2, 0.051], [0.02, 0.0234, 0.0]),
        },
        reference=reference,
        closing=["c = 0.1", "2 epochs", "end"],
    )


def test_fit_report_is_this_text():
    expected = """\
digits: 10 rows
p(z) = N(0, I)

nats per datum                       train            held out
ELBO                         -61.25 ± 0.31         -63.5 ± 2.1
  E_q log p(x|z)             -60.50 ± 0.32         -62.0 ± 2.2
  KL(q(z|x) || p(z))       0.7500 ± 0.0042       1.500 ± 0.051
PCA, exact                   -64.00 ± 0.30         -65.0 ± 1.2
(± one standard error over data; Monte Carlo error at most 0.023)

c = 0.1
2 epochs
end
"""
    assert report({"PCA, exact": [(-64.0, 0.3), (-65.0, 1.2)]}) == expected


def test_fit_report_columns_stay_aligned_beside_a_long_reference():
    name = "probabilistic PCA, k = 2, exact, and more"
    lines = report({name: [(-64.0, 0.3), (-65.0, 1.2)]}).splitlines()
    table = lines[3:8]
    assert table[-1].startswith(f"{name}  ")
    assert {len(line) for line in table} == {len(name) + 2 + 40}
    assert [line[-3:] for line in table] == ["out", "2.1", "2.2", "051", "1.2"]
    assert report({}).splitlines()[7].startswith("(±")
