"""``pyro-vae diagnose`` and ``compare``: from runs to verdicts, pages and exit statuses."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY, ran, run
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae import datasets, diagnostics
from pyro_vae.commands import comparing_runs
from pyro_vae.commands.data_choice import load
from pyro_vae.commands.model_choice import rebuild
from pyro_vae.diagnosis import diagnosing
from pyro_vae.run_directory import RunDirectory

SMALL = ("--num-data", 30, "--num-samples", 50)
EVIL = "<b>&'x"


@pytest.fixture(autouse=True)
def _shell(tmp_path, monkeypatch):
    """A directory of its own and torch's own default type, as a command has them."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # conftest puts it back


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def fitted(path, *words):
    """A run at ``path``, fitted once for this file."""
    if not path.exists():
        torch.set_default_dtype(torch.float32)
        assert run("fit", *TINY, "--out", path, *words).status == 0
    return path


@pytest.fixture
def digits(work):
    return fitted(work / "digits")


@pytest.fixture
def ledger_alone(monkeypatch):
    """One question, where the others are beside the point."""
    question, answer = next(iter(diagnosing.QUESTIONS.items()))
    monkeypatch.setattr(diagnosing, "QUESTIONS", {question: answer})


def test_diagnose_prints_a_verdict_a_question_and_leaves_one_page(digits):
    before = {path.name for path in digits.iterdir()}
    out = ran("diagnose", digits, *SMALL, "--quick")
    for question in diagnosing.QUESTIONS:
        assert (question in out) == (question not in diagnosing.SLOW)
    assert {path.name for path in digits.iterdir()} - before == {"diagnosis.html"}
    page = (digits / "diagnosis.html").read_text("utf-8")
    assert "failed" not in re.sub("<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#q)', page)
    (digits / "diagnosis.html").unlink()


def test_diagnose_judges_the_held_out_rows_of_the_run(digits, ledger_alone):
    out = ran("diagnose", digits, "--num-data", 1000, "--seed", 3, "--out", "page.html")
    config = RunDirectory(digits).config()
    _, held_out = datasets.digits(dtype=torch.float32).split(held_out=0.2, seed=0)
    vae = rebuild(RunDirectory(digits), config)
    terms = diagnostics.elbo_terms(vae, held_out.x, seed=3)
    assert f"diagnosed on {len(held_out)} held-out rows" in out
    shown = float(re.search(r"ELBO: (-?[\d.]+) ±", out).group(1))
    assert shown == pytest.approx(float(terms["elbo"].mean()), abs=0.1)


def test_diagnose_reads_other_rows_in_the_units_of_the_run(digits, ledger_alone, tmp_path):
    raw = datasets.digits().raw[:40].numpy()
    np.save("rows.npy", raw)
    out = ran("diagnose", digits, "--file", "rows.npy", "--out", "other.html")
    assert "diagnosed on 40 rows of rows.npy" in out
    assert (tmp_path / "other.html").exists()
    assert not (digits / "diagnosis.html").exists()
    vae = rebuild(RunDirectory(digits), RunDirectory(digits).config())
    terms = diagnostics.elbo_terms(vae, torch.tensor(raw / 16, dtype=torch.float32))
    shown = float(re.search(r"ELBO: (-?[\d.]+) ±", out).group(1))
    assert shown == pytest.approx(float(terms["elbo"].mean()), abs=0.1)


def test_names_of_files_and_columns_are_escaped(tmp_path):
    columns = [f"{EVIL}{j}" for j in range(3)]
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=columns)
    table.to_csv(f"{EVIL}.csv", index=False)
    ran("fit", *TINY, "--data", f"{EVIL}.csv", "--out", f"run {EVIL}", "--standardize")
    ran("diagnose", f"run {EVIL}", *SMALL, "--quick", "--out", "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert EVIL not in page
    assert "run &lt;b&gt;&amp;&#x27;x" in page  # the directory
    assert "&lt;b&gt;&amp;&#x27;x2" in page  # a column


def test_unexpected_error_gives_status_1_and_a_page_that_says_so(digits, tmp_path, monkeypatch):
    def answer(study, question):
        raise RuntimeError(f"disk on fire {EVIL}")

    monkeypatch.setattr(diagnosing, "QUESTIONS", {"Is it fine?": answer})
    answered = run("diagnose", digits, "--out", "page.html")
    assert answered.status == 1
    assert "failed: RuntimeError: disk on fire" in answered.out
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "failed: RuntimeError: disk on fire &lt;b&gt;" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "page.pdf"), r"out must end in \.html"),
        (("--out", "no/such/page.html"), "out must lie in a folder that exists"),
        (("--file", "missing.npy"), "missing.npy"),
        (("--num-data", "0"), "must be a positive integer"),
    ],
)
def test_diagnose_refuses_what_cannot_work(digits, words, message):
    answered = run("diagnose", digits, *words)
    assert answered.status == 2
    assert re.search(message, answered.err)


def test_diagnose_of_no_run_says_what_a_run_is():
    answered = run("diagnose", "nowhere")
    assert answered.status == 2
    assert "run must be a directory that 'pyro-vae fit' wrote" in answered.err


def test_compare_shows_paired_differences(digits, work, tmp_path):
    other = fitted(work / "full", "--family", "full")
    out = ran("compare", digits, other, *SMALL)
    page = (digits / "comparison.html").read_text("utf-8")
    assert list(tmp_path.iterdir()) == []
    assert out.endswith(f"tables and pictures are in {digits / 'comparison.html'}\n")
    data = RunDirectory(digits).config()
    _, held_out = datasets.digits(dtype=torch.float32).split(held_out=0.2, seed=0)
    vaes = {
        path.name: rebuild(RunDirectory(path), data | RunDirectory(path).config())
        for path in (digits, other)
    }
    order = torch.randperm(
        len(held_out), generator=pv.seeding.generator(0, "rows of x"), device="cpu"
    )
    rows = held_out.subset(order[:30].sort().values)
    table = pv.compare(vaes, rows.x, num_samples=50, gap_rows=0)
    (line,) = (line for line in out.splitlines() if line.startswith("full  "))
    shown = [float(number) for number in re.findall(r"(-?[\d.]+) ±", line)]
    expected = table.loc["full", ["elbo", "elbo_difference", "log_evidence"]]
    np.testing.assert_allclose(shown[:3], expected.astype(float), atol=0.06)
    assert page.count("<section") == 3
    assert "Bernoulli" not in page
    for question in ("Which describes", "Can their log p(x)", "Whose fault"):
        assert re.search(
            rf"^{re.escape(question)}.*\?  \S (good|doubtful|bad|no verdict)$", out, re.M
        )
    again = ran("compare", digits, other, *SMALL)
    assert again == out[:-1] + ", in place of the file that was there\n"


RUNS = {
    "digits": (),
    "seed1": ("--seed", 1),
    "half": ("--held-out", 0.5),
    "raw": ("--raw",),
    "counts": ("--likelihood", "poisson", "--raw"),
    "levels": ("--likelihood", "discretized_logistic:17"),
}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("digits", "seed1", "seed of the split 0 for digits and 1 for seed1"),
        ("digits", "half", "held_out 0.2 for digits and 0.5 for half"),
        ("digits", "raw", "data in the same units"),
        ("raw", "counts", "of one kind; got 'raw': density, 'counts': probability"),
        ("digits", "levels", "of one kind; got 'digits': density, 'levels': probability"),
    ],
)
def test_compare_refuses_what_is_not_comparable(work, tmp_path, first, second, message):
    runs = [fitted(work / name, *RUNS[name]) for name in (first, second)]
    for path in runs:
        (path / "comparison.html").unlink(missing_ok=True)
    answered = run("compare", *runs, *SMALL)
    assert answered.status == 2
    assert re.search(message, answered.err), answered.err
    assert list(tmp_path.iterdir()) == []
    assert not any((path / "comparison.html").exists() for path in runs)


def test_fits_of_two_seeds_are_compared_as_the_refusal_says(digits, work, monkeypatch):
    monkeypatch.setattr(comparing_runs, "GAP_ROWS", 0)
    refusal = run("compare", digits, fitted(work / "seed1", "--seed", 1), *SMALL).err
    (words,) = re.findall(r"pyro-vae (fit --config \S+ --split-seed 0)\.$", refusal)
    ran(*words.split(), "--quiet", "--out", "again")
    config = RunDirectory("again").config()
    assert (config["fit"]["seed"], config["data"]["split_seed"]) == (1, 0)
    held_out = [load(RunDirectory(path).config())[1].x for path in (digits, "again")]
    assert torch.equal(*held_out)
    weights = [load_file(f"{path}/weights.safetensors") for path in (digits, "again")]
    assert not all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert "ELBO of again less that of digits" in html_text(digits, "again")


def html_text(*runs):
    ran("compare", *runs, *SMALL, "--out", "page.html")
    return Path("page.html").read_text("utf-8")


def older(path, copy):
    """A run as it was before there was a seed of the split."""
    shutil.copytree(path, copy)
    text = (copy / "config.toml").read_text("utf-8")
    assert text.count("split_seed") == 1
    text = re.sub("^# sha256.*\n|split_seed.*\n", "", text, flags=re.MULTILINE)
    (copy / "config.toml").write_text(text, encoding="utf-8")
    return copy


def test_runs_from_before_split_seed_hold_out_the_rows_of_their_seed(work, tmp_path):
    path = fitted(work / "seed1", "--seed", 1)
    config = RunDirectory(older(path, tmp_path / "old")).config()
    expected = datasets.digits(dtype=torch.float32).split(held_out=0.2, seed=1)[1]
    assert torch.equal(load(config)[1].x, expected.x)
    assert torch.equal(load(RunDirectory(path).config())[1].x, expected.x)


def test_data_with_a_test_set_need_no_split_seed():
    data = {"source": "mnist", "held_out": 0.2}
    configs = {
        name: {"data": {**data, "split_seed": seed}, "fit": {"seed": seed}}
        for name, seed in (("a", 0), ("b", 1))
    }
    runs = {name: RunDirectory(name) for name in configs}
    comparing_runs._check_same_rows(runs, configs)
    for config in configs.values():
        config["data"]["source"] = "digits"
    with pytest.raises(ValueError, match="seed of the split 0 for a and 1 for b"):
        comparing_runs._check_same_rows(runs, configs)


def test_split_seed_is_a_natural_number():
    answered = run("fit", *TINY, "--split-seed", -1)
    assert answered.status == 2
    assert "--split-seed: must be 0 or a positive integer; got '-1'" in answered.err


def test_run_whose_history_has_no_seconds_is_compared(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing_runs, "GAP_ROWS", 0)
    shutil.copytree(digits, tmp_path / "untimed")
    history = RunDirectory(digits).history().drop(columns="seconds")
    RunDirectory(tmp_path / "untimed").write_history(history.to_dict("records"))
    out = ran("compare", digits, "untimed", *SMALL, "--out", "page.html")
    assert re.search(r"^untimed .*  –$", out, re.MULTILINE)


def test_compare_wants_two_different_runs(digits):
    assert "at least two runs" in run("compare", digits).err
    assert "runs must differ" in run("compare", digits, digits).err


def test_runs_of_one_name_go_by_their_paths(digits, work, monkeypatch):
    monkeypatch.setattr(comparing_runs, "GAP_ROWS", 0)
    twin = work / "twin" / "digits"
    if not twin.exists():
        shutil.copytree(digits, twin)
    out = ran("compare", digits, twin, *SMALL)
    assert re.search(rf"^{re.escape(str(twin))} ", out, re.MULTILINE)
    assert "not to be told from" in out
