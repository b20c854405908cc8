"""Tables with empty cells on the command line: fit, read back, judge, impute."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY, ran, run

import pyro_vae as pv
from pyro_vae import datasets, networks
from pyro_vae.commands import incomplete
from pyro_vae.commands.data_choice import load
from pyro_vae.commands.model_choice import rebuild
from pyro_vae.datasets import Scaling
from pyro_vae.diagnosis import diagnosing
from pyro_vae.report import mean_and_error
from pyro_vae.run_directory import RunDirectory

SMALL = ("--num-data", 30, "--num-samples", 50)
COLUMNS = ["height", "weight", "dose"]


@pytest.fixture(autouse=True)
def _shell(tmp_path, monkeypatch):
    """A directory of its own and torch's own default type, as a command has them."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # conftest puts it back


def table_with_gaps(rows=80, share=0.2):
    """Three columns that hang together, a group beside them, and gaps in all but the group."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 1))
    x = z * [10.0, 5.0, 1.0] + rng.normal(size=(rows, 3)) * [3.0, 2.0, 0.3] + [170.0, 60.0, 7.0]
    table = pd.DataFrame(x, columns=COLUMNS).round(2).mask(rng.random((rows, 3)) < share)
    return table.assign(group=np.where(z[:, 0] > 0, "a", "b"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("work")
    # More digits than numbers need, so that a cell that is written anew shows.
    table_with_gaps().to_csv(path / "table.csv", index=False, float_format="%.4f")
    return path


@pytest.fixture
def fitted(work):
    """A run with missing values and its table, fitted once for this file."""
    if not (work / "run").exists():
        words = ("--data", work / "table.csv", "--labels", "group", "--standardize", "--missing")
        answer = run("fit", *TINY, *words, "--out", work / "run")
        assert answer.status == 0, answer.err
        (work / "said.txt").write_text(answer.out)
    return work


def of_run(path):
    directory = RunDirectory(path)
    return rebuild(directory, directory.config()), directory.config()


def test_gaps_without_missing_are_an_error_that_names_the_option(work):
    answer = run("fit", *TINY, "--data", work / "table.csv", "--labels", "group", "--out", "run")
    gaps = int(table_with_gaps()[COLUMNS].isna().sum().sum())
    assert answer.status == 2
    assert f"must not contain NaN; got {gaps}, the first at row" in answer.err
    assert "'pyro-vae fit --missing'" in answer.err


def test_the_report_counts_what_is_missing_and_leaves_the_reference_out(fitted):
    said = (fitted / "said.txt").read_text()
    _, config = of_run(fitted / "run")
    train, held_out = load(config)
    for part in (train, held_out):
        gaps = int(part.x.isnan().sum())
        assert gaps > 0
        assert f"{gaps} of {3 * len(part)} values missing" in said
    assert "probabilistic PCA needs complete rows: no reference" in said
    assert "the ELBO bounds log p of the observed values alone" in said
    assert "nan" not in said.split()
    pictures = {path.stem for path in (fitted / "run").glob("*.png")}
    complete = int((~held_out.x.isnan()).all(1).sum())
    assert pictures >= {"history", "samples", "latent", "plane"}
    assert ("reconstructions" in pictures) == (complete >= incomplete.FEWEST_PICTURED)
    assert f"{complete} of {len(held_out)} held-out rows without missing values" in said


def test_the_scaling_is_that_of_the_observed_values_of_the_training_rows(fitted):
    _, config = of_run(fitted / "run")
    assert config["data"]["missing"] is True
    train, _ = datasets.from_file(
        fitted / "table.csv", labels="group", dtype=torch.float64, missing=True
    ).split(held_out=0.2, seed=0)
    means = np.nanmean(train.x.numpy(), 0)
    assert np.allclose(config["data"]["scaling"]["shift"], means, rtol=1e-6)
    sds = np.nanstd(train.x.numpy(), 0)
    assert np.allclose(config["data"]["scaling"]["scale"], sds, rtol=1e-5)


def test_a_run_is_read_back_with_its_mask_and_its_weights(fitted):
    vae, config = of_run(fitted / "run")
    assert vae.missing
    assert isinstance(vae.q_z_given_x.encoder, networks.WithMask)
    _, held_out = load(config)
    terms = pv.diagnostics.elbo_terms(vae, held_out.x)
    summary = pd.read_csv(fitted / "run" / "summary.csv")
    of_held_out = summary[(summary["data"] == "held out") & (summary["term"] == "elbo")]
    assert float(of_held_out["mean"].iloc[0]) == pytest.approx(float(terms["elbo"].mean()))


def test_info_sample_and_reconstruct_answer(fitted):
    assert "missing = True" in ran("info", fitted / "run")
    ran("sample", fitted / "run", "--num", 3, "--out", "draws.csv")
    assert not pd.read_csv("draws.csv").isna().any().any()
    out = ran("reconstruct", fitted / "run", "--file", fitted / "table.csv", "--out", "means.csv")
    vae, config = of_run(fitted / "run")
    scaling = Scaling.from_dict(config["data"]["scaling"])
    raw = torch.tensor(table_with_gaps()[COLUMNS].to_numpy(), dtype=torch.float32)
    x = scaling.apply(raw)
    means = vae.reconstruct(x)
    error = float((means - x).square()[~x.isnan()].mean())
    assert f"({int(x.isnan().sum())} are missing)" in out
    assert float(re.search(r": ([\d.]+) ±", out).group(1)) == pytest.approx(error, abs=5e-3)
    assert np.allclose(pd.read_csv("means.csv"), scaling.invert(means), rtol=1e-5)


def test_reconstruct_draws_complete_rows_or_says_that_there_are_none(fitted):
    table = table_with_gaps()
    table[table[COLUMNS].isna().any(axis=1)].to_csv("gaps.csv", index=False)
    out = ran("reconstruct", fitted / "run", "--file", "gaps.csv", "--out", "no.png")
    assert "no picture of only 0 of " in out
    assert not Path("no.png").exists()
    table.to_csv("some.csv", index=False)
    out = ran("reconstruct", fitted / "run", "--file", "some.csv", "--out", "some.png")
    assert re.search(r"some\.png, of \d+ of 80 rows of some\.csv without missing values", out)


NEED_COMPLETE_ROWS = (
    "Is the latent space regular?",
    "Does the model describe the data?",
    "Does it describe each feature?",
)


def test_diagnose_leaves_out_what_needs_complete_rows(fitted, monkeypatch):
    first = "What is the ELBO made of?"
    asked = {q: diagnosing.QUESTIONS[q] for q in (first, *NEED_COMPLETE_ROWS)}
    monkeypatch.setattr(diagnosing, "QUESTIONS", asked)
    out = ran("diagnose", fitted / "run", *SMALL, "--quick", "--out", "page.html")
    for question in NEED_COMPLETE_ROWS:
        assert re.search(rf"{re.escape(question)} +does not apply +x must be complete", out)
    assert re.search(r"ELBO: -?[\d.]+ ± [\d.]+ nats per datum", out)


@pytest.mark.slow  # all questions, simulations and Markov chains
def test_no_question_breaks_down_over_missing_values(fitted):
    out = ran("diagnose", fitted / "run", *SMALL, "--out", "page.html")
    assert out.count("x must be complete") == len(NEED_COMPLETE_ROWS)
    assert "They lack what rows of your data lack" in Path("page.html").read_text()


def test_compare_takes_runs_with_missing_values(fitted):
    ran("fit", "--config", fitted / "run", "--seed", 5, "--split-seed", 0, "--quiet", "--out", "b")
    few = ("--num-data", 4, "--num-samples", 50, "--out", "page.html")
    out = ran("compare", fitted / "run", "b", *few)
    assert "nats per datum, 4 held-out rows" in out
    assert "nan" not in out.split()


def test_a_resumed_run_keeps_its_missing_values(fitted, tmp_path):
    answer = run("fit", "--resume", fitted / "run", "--quiet")
    assert answer.status == 0, answer.err
    assert "values missing" in answer.out


def test_impute_fills_empty_cells_by_posterior_means_and_leaves_all_others(fitted):
    out = ran("impute", fitted / "run", "--seed", 3, "--out", "filled.csv")
    table = table_with_gaps()
    gaps = table[COLUMNS].isna().to_numpy()
    given, filled = (
        pd.read_csv(path, dtype=str, keep_default_na=False)
        for path in (fitted / "table.csv", "filled.csv")
    )
    assert list(filled.columns) == list(given.columns)
    assert (filled["group"] == given["group"]).all()
    same = (filled[COLUMNS] == given[COLUMNS]).to_numpy()
    assert (same == ~gaps).all()
    vae, config = of_run(fitted / "run")
    scaling = Scaling.from_dict(config["data"]["scaling"])
    raw = torch.tensor(table[COLUMNS].to_numpy(), dtype=torch.float32)
    found = pv.impute(vae, scaling.apply(raw), num_draws=1, seed=3)
    means = scaling.invert(torch.from_numpy(found["mean"].values)).numpy()
    assert np.allclose(filled[COLUMNS].astype(float).to_numpy()[gaps], means[gaps], rtol=1e-6)
    rows = gaps.any(1)
    assert f"{gaps.sum()} of {gaps.size} values imputed, in {rows.sum()} of 80 rows of" in out
    khat = found["pareto_khat"].values[rows]
    above = int((khat > found.attrs["khat_threshold"]).sum())
    words = f"for {above} of these {rows.sum()} rows" if above else "for none of these"
    assert words in out


def test_impute_writes_draws_moments_and_khat(fitted):
    table = table_with_gaps().head(20)[["dose", "weight", "height"]]  # by name, in another order
    table.to_csv("new.csv", index=False, na_rep="NA")
    words = ("--file", "new.csv", "--num-draws", 200, "--out", "new.npz")
    ran("impute", fitted / "run", *words)
    with np.load("new.npz", allow_pickle=False) as found:
        assert list(found["columns"]) == COLUMNS
        given, gaps = table[COLUMNS].to_numpy(), table[COLUMNS].isna().to_numpy()
        assert (found["missing"] == gaps).all()
        assert (found["mean"][~gaps] == given[~gaps]).all()
        assert (found["sd"][~gaps] == 0).all()
        assert (found["sd"][gaps] > 0).all()
        assert found["draws"].shape == (200, 20, 3)
        assert found["pareto_khat"].shape == found["ess"].shape == (20,)
        sd = found["draws"].std(0)[gaps]
        assert np.median(sd / found["sd"][gaps]) == pytest.approx(1.0, abs=0.1)
        error = np.hypot(sd / np.sqrt(200), found["mean_mcse"][gaps])
        z = (found["draws"].mean(0)[gaps] - found["mean"][gaps]) / error
        # The draws are of a resample of the same z, and so a little farther apart than this.
        assert np.abs(z).max() < 6


def test_a_run_on_complete_data_imputes_other_rows():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3)).round(3)
    np.save("whole.npy", x)
    ran("fit", *TINY, "--data", "whole.npy", "--out", "run")
    x[::4, 1] = np.nan
    np.save("gaps.npy", x)
    out = ran("impute", "run", "--file", "gaps.npy", "--out", "filled.csv")
    assert "fitted without --missing" in out
    filled = pd.read_csv("filled.csv").to_numpy()
    assert (filled[~np.isnan(x)] == x[~np.isnan(x)]).all()
    assert np.isfinite(filled).all()
    assert "no value is missing in whole.npy" in ran("impute", "run", "--out", "same.csv")
    assert (pd.read_csv("same.csv").to_numpy() == np.load("whole.npy")).all()


def test_a_missing_class_is_the_most_frequent_one():
    rng = np.random.default_rng(2)
    first = rng.integers(0, 3, size=(90, 1))
    table = pd.DataFrame(np.repeat(first, 3, 1), columns=COLUMNS).astype(float)
    table.mask(rng.random((90, 3)) < 0.2).to_csv("classes.csv", index=False)
    words = ("--data", "classes.csv", "--raw", "--likelihood", "categorical:3", "--missing")
    ran("fit", *TINY, *words, "--out", "run")
    assert "the most frequent of 50 draws" in ran(
        "impute", "run", "--num-draws", 50, "--out", "filled.csv"
    )
    assert set(np.unique(pd.read_csv("filled.csv").to_numpy())) <= {0.0, 1.0, 2.0}


@pytest.mark.parametrize(
    "words",
    [("--prior", "vamp:3"), ("--family", "flow:1", "--patience", 1)],
)
def test_other_parts_know_missing_values_too(work, words):
    given = ("--data", work / "table.csv", "--labels", "group", "--standardize", "--missing")
    answer = run("fit", *TINY, *given, *words, "--out", "run")
    assert answer.status == 0, answer.err
    assert "nan" not in answer.out.split()
    ran("impute", "run", "--out", "filled.csv")
    assert not pd.read_csv("filled.csv").isna().any().any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "--data", "digits", "--missing"), "missing must go with a .npy, .npz or .csv"),
        (("impute", "RUN", "--out", "x.txt"), r"out must end in \.csv or \.npz; got x\.txt"),
        (("impute", "RUN", "--out", "no/x.csv"), "out must lie in a folder that exists"),
        (("impute", "RUN", "--out", "TABLE"), "out must be another file than the data"),
        (("impute", "RUN", "--file", "no.csv", "--out", "x.csv"), "path must be a file"),
        (("impute", "RUN", "--num-draws", 0, "--out", "x.csv"), "num-draws"),
    ],
)
def test_errors_say_what_to_do(fitted, words, message):
    places = {"RUN": fitted / "run", "TABLE": fitted / "table.csv"}
    before = (fitted / "table.csv").read_bytes()
    answer = run(*[places.get(word, word) for word in words])
    assert answer.status == 2
    assert re.search(message, answer.err), answer.err
    assert (fitted / "table.csv").read_bytes() == before


def test_impute_on_complete_data_of_the_package_asks_for_a_file():
    ran("fit", *TINY, "--out", "run")
    answer = run("impute", "run", "--out", "x.csv")
    assert answer.status == 2
    assert "file must be given for a run on digits" in answer.err


def test_mean_of_rows_with_few_values_weights_values_and_not_rows():
    counts = torch.tensor([1.0, 3.0, 0.0])
    assert incomplete.ratio_and_error(torch.tensor([4.0, 0.0, 0.0]), counts)[0] == 1.0
    rng = np.random.default_rng(0)
    of_rows = torch.from_numpy(rng.normal(size=50))
    same = torch.full((50,), 4.0)
    assert incomplete.ratio_and_error(4 * of_rows, same) == pytest.approx(mean_and_error(of_rows))


def test_error_of_such_a_mean_is_its_spread_over_data_sets():
    rng = np.random.default_rng(3)
    ratios, errors = [], []
    for _ in range(400):
        counts = rng.integers(0, 5, size=60)
        sums = np.array([rng.normal(1.0, 1.0, size=n).sum() for n in counts])
        ratio, error = incomplete.ratio_and_error(torch.from_numpy(sums), torch.tensor(counts))
        ratios.append(ratio)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.15)
