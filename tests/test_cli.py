"""The command line, from words to figures and files; each figure against one made by hand."""

import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY, ran, run
from conftest import MAX_Z
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae import datasets, families, fit_epochs
from pyro_vae.commands import reading
from pyro_vae.run_directory import RunDirectory
from pyro_vae.seeding import seeded

FILES = [
    "config.toml",
    "environment.json",
    "history.png",
    "latent.png",
    "metrics.jsonl",
    "plane.png",
    "reconstructions.png",
    "report.txt",
    "samples.png",
    "state-best.pt",
    "state-best.pt.sha256",
    "state-last.pt",
    "state-last.pt.sha256",
    "state-previous.pt",
    "state-previous.pt.sha256",
    "summary.csv",
    "weights.safetensors",
]


@pytest.fixture(autouse=True)
def _shell(tmp_path, monkeypatch):
    """A directory of its own and torch's own default type, as a command has them."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # conftest puts it back


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory that this file's fits share."""
    return tmp_path_factory.mktemp("work")


class Fit(NamedTuple):
    path: Path
    printed: str

    @property
    def config(self):
        return tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))

    @property
    def weights(self):
        return load_file(self.path / "weights.safetensors")


@pytest.fixture(scope="module")
def digits_fit(work):
    """A fit without --out, so it finds its directory itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        printed = ran("fit", *TINY)
    return Fit(work / "runs" / "digits-k2-diagonal", printed)


@pytest.fixture(scope="module")
def digits():
    """Training and held-out rows, as numpy arrays in raw units."""
    train, held_out = datasets.digits(dtype=torch.float64).split(held_out=0.2, seed=0)
    return train.raw.numpy(), held_out.raw.numpy()


def reloaded(fit, **settings):
    """The fitted VAE by the library's own front door and torch.load alone."""
    vae = pv.gaussian_vae(**{"features": 64, "latent_dim": 2, "hidden": (16,), **settings})
    vae.load_state_dict(fit.weights)
    return vae.to(torch.float64).eval()


def figures(text, label):
    """Figures and standard errors, ``value ± error``, on the line that begins with a label."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(label))
    pairs = re.findall(r"(-?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)", line.partition(label)[2])
    return [(printed(value), printed(error)) for value, error in pairs]


def printed(text):
    """A printed number, equal to all numbers that it may have been rounded from."""
    decimals = len(text.partition(".")[2])
    return pytest.approx(float(text), rel=0, abs=0.51 * 10**-decimals)


def mean_and_error(values):
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def principal_axes(x):
    """Mean, eigenvalues by falling size, and eigenvectors of the covariance."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    return x.mean(0), values[::-1], vectors[:, ::-1]


# --- fit ---------------------------------------------------------------------------------------


def test_fit_prints_the_exact_log_density_of_probabilistic_pca(digits_fit, digits):
    train, held_out = (raw / 16 for raw in digits)
    mean, values, vectors = principal_axes(train)
    c = values[2:].mean()
    loadings = vectors[:, :2] * np.sqrt(values[:2] - c)
    covariance = loadings @ loadings.T + c * np.eye(64)
    log_p = [
        -0.5
        * (
            64 * math.log(2 * math.pi)
            + np.linalg.slogdet(covariance)[1]
            + ((x - mean) * np.linalg.solve(covariance, (x - mean).T).T).sum(1)
        )
        for x in (train, held_out)
    ]
    label = "probabilistic PCA, k = 2: log p(x)"
    assert figures(digits_fit.printed, label) == list(map(mean_and_error, log_p))
    elbo = figures(digits_fit.printed, "ELBO")[1][0].expected
    gain = figures(digits_fit.printed, "held-out ELBO less probabilistic PCA's")[0]
    assert gain[0].expected == pytest.approx(elbo - log_p[1].mean(), abs=0.02)


def test_fit_prints_the_kl_of_the_fitted_guide(digits_fit, digits):
    vae = reloaded(digits_fit)
    for index, raw in enumerate(digits):
        with torch.no_grad():
            q = vae.encode(torch.from_numpy(raw / 16))
        mu, sd = q.mean.numpy(), q.variance.sqrt().numpy()
        kl = (0.5 * (mu**2 + sd**2 - 1) - np.log(sd)).sum(1)
        assert figures(digits_fit.printed, "KL(q(z|x) || p(z))")[index] == mean_and_error(kl)


def test_fit_prints_elbo_expected_log_likelihood_and_squared_distance(digits_fit, digits):
    vae = reloaded(digits_fit)
    c = vae.p_x_given_z.variance.item()
    distances = figures(digits_fit.printed, "mean of E_q|x - f(z)|^2 / n")
    for index, raw in enumerate(digits):
        x = torch.from_numpy(raw / 16)
        with torch.no_grad():
            q = vae.encode(x)
            z = q.mean + q.variance.sqrt() * torch.randn(16, len(x), 2, dtype=x.dtype)
            distance = (x - vae.decode(z)).square().mean(-1)
        # Both estimates have 16 draws a datum, hence the factor of two.
        mcse = math.sqrt(2 * (distance.var(0) / 16).sum().item()) / len(x)
        value = distances[index][0].expected
        assert abs(value - distance.mean().item()) < MAX_Z * mcse + 1e-5
        # The same draws made all figures, so these agree but for what rounding took.
        log_likelihood = figures(digits_fit.printed, "E_q log p(x|z)")[index][0].expected
        at_distance = -32 * value / c - 32 * math.log(2 * math.pi * c)
        rounding = distances[index][0].abs * 32 / c + 0.006
        assert log_likelihood == pytest.approx(at_distance, abs=rounding)
        kl = figures(digits_fit.printed, "KL(q(z|x) || p(z))")[index][0].expected
        elbo = figures(digits_fit.printed, "ELBO")[index][0].expected
        assert elbo == pytest.approx(log_likelihood - kl, abs=0.011)


def test_fit_prints_the_learned_variance(digits_fit):
    c = 1e-6 + math.exp(digits_fit.weights["p_x_given_z.log_excess"].item())
    assert abs(c - 0.1) > 1e-3  # it moved
    line = f"c = {c:.4g} in squared units of x, so C = 1/(2c) = {1 / (2 * c):.4g}"
    assert line in digits_fit.printed.splitlines()


def test_fit_leaves_every_promised_file_and_no_other(digits_fit):
    assert sorted(path.name for path in digits_fit.path.iterdir()) == FILES
    for path in digits_fit.path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert path.stat().st_size > 5000


def test_fit_prints_the_report_that_it_leaves(digits_fit):
    report = (digits_fit.path / "report.txt").read_text(encoding="utf-8")
    place = f"everything is in {Path('runs', 'digits-k2-diagonal')}\n"
    assert digits_fit.printed == report + place


def test_fit_leaves_a_history_and_a_summary_that_agree_with_the_report(digits_fit):
    history = RunDirectory(digits_fit.path).history()
    assert history["epoch"].tolist() == [1, 2]
    assert (
        history["elbo"] - history["expected_log_likelihood"] + history["kl"]
    ).abs().max() < 1e-4
    summary = pd.read_csv(digits_fit.path / "summary.csv")
    assert summary["data"].unique().tolist() == ["train", "held out"]
    elbo = summary[summary["term"] == "elbo"]
    assert figures(digits_fit.printed, "ELBO") == list(zip(elbo["mean"], elbo["se"], strict=True))


def test_fit_leaves_settings_that_read_back(digits_fit):
    assert digits_fit.config == {
        "format": 1,
        "data": {
            "source": "digits",
            "download": False,
            "raw": False,
            "standardize": False,
            "held_out": 0.2,
            "split_seed": 0,
            "num_train": 1438,
            "num_held_out": 359,
            "event_shape": [64],
            "image_shape": [8, 8],
            "scaling": {"shift": 0.0, "scale": 16.0},
        },
        "model": {
            "latent_dim": 2,
            "hidden": [16],
            "networks": "mlp",
            "prior": "standard",
            "likelihood": "gaussian",
            "family": "diagonal",
            "variance": 0.1,
            "learn_variance": True,
            "variance_per_feature": False,
            "variance_of_z": False,
            "dtype": "float32",
        },
        "fit": {
            "epochs": 2,
            "batch_size": 128,
            "learning_rate": 0.003,
            "objective": "trace",
            "kl_weight": 1.0,
            "compile": False,
            "checkpoint_seconds": 60.0,
            "seed": 0,
            "device": "auto",
        },
    }


def test_second_fit_without_out_gets_another_directory_and_equal_weights(
    digits_fit, work, monkeypatch
):
    monkeypatch.chdir(work)
    before = contents(digits_fit.path)
    assert ran("fit", *TINY).endswith("everything is in runs/digits-k2-diagonal-2\n")
    assert contents(digits_fit.path) == before
    again = contents(work / "runs" / "digits-k2-diagonal-2")
    assert sorted(again) == FILES
    for name in (
        "config.toml",
        "summary.csv",
        "weights.safetensors",
    ):  # bitwise, as the seed is the same
        assert again[name] == before[name]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_fit_refuses_a_directory_that_is_not_empty_and_changes_nothing_in_it(digits_fit):
    before = contents(digits_fit.path)
    answer = run("fit", *TINY, "--out", digits_fit.path)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err == (
        "pyro-vae fit: out must be new or empty, since a run is never written over; got "
        f"{digits_fit.path}. Name another.\n"
    )
    assert contents(digits_fit.path) == before


@pytest.fixture(scope="module")
def full_fit(work):
    """A full covariance, one learned variance for each feature, in float64."""
    words = ("--family", "full", "--variance-per-feature", "--dtype", "float64", "--seed", 3)
    with pytest.warns(UserWarning, match=r"3 feature\(s\) are constant \(0, 32, 39\)"):
        return Fit(work / "full", ran("fit", *TINY, *words, "--out", work / "full"))


def test_full_family_is_fitted_with_its_covariance(full_fit):
    assert "q(z|x) = N(g(x), h(x))" in full_fit.printed
    # Mean 2, lower triangle 3.
    assert full_fit.weights["q_z_given_x.encoder.layers.2.weight"].shape == (5, 16)
    vae = reloaded(full_fit, family=families.FullCovarianceNormal, variance=torch.full((64,), 0.1))
    x = datasets.digits(dtype=torch.float64).split(held_out=0.2, seed=3)[1].x
    with torch.no_grad():
        q = vae.encode(x)
    h = q.covariance_matrix
    kl = 0.5 * (
        h.diagonal(dim1=-2, dim2=-1).sum(-1) + q.mean.square().sum(-1) - 2 - torch.logdet(h)
    )
    printed_kl = figures(full_fit.printed, "KL(q(z|x) || p(z))")[1]
    assert printed_kl == mean_and_error(kl.numpy())


def test_variance_per_feature_is_learned_for_each_feature(full_fit):
    c = 1e-6 + full_fit.weights["p_x_given_z.log_excess"].exp()
    assert (c.shape, c.dtype) == ((64,), torch.float64)
    assert len(c.unique()) > 50
    line = f"c between {c.min():.4g} and {c.max():.4g}, one for each feature"
    assert line in full_fit.printed.splitlines()


# --- info, sample, reconstruct -----------------------------------------------------------------


def test_info_prints_report_settings_versions_and_files(digits_fit):
    printed_info = ran("info", digits_fit.path)
    lines = printed_info.splitlines()
    assert lines[0] == str(digits_fit.path)
    assert (digits_fit.path / "report.txt").read_text(encoding="utf-8") in printed_info
    (model,) = (line for line in lines if line.startswith("model"))
    assert "latent_dim = 2, hidden = [16], networks = mlp, prior = standard" in model
    (fit,) = (line for line in lines if line.startswith("fit "))
    assert "epochs = 2, batch_size = 128, learning_rate = 0.003, objective = trace" in fit
    assert f"torch {torch.__version__.split('+')[0]}" in printed_info
    assert "threads, 1 processes, seed 0" in printed_info
    assert re.search(r"x: 1438 rows of \(64,\), float32, sha256 [0-9a-f]{64}\n", printed_info)
    assert lines[-1] == f"files   {', '.join(FILES)}"


def test_info_of_a_fit_that_did_not_finish_says_so(tmp_path, digits_fit):
    shutil.copytree(digits_fit.path, tmp_path / "run")
    (tmp_path / "run" / "report.txt").unlink()
    goes_on = "The fit did not finish. 2 epochs are done: pyro-vae fit --resume run goes on."
    assert goes_on in ran("info", "run")


@pytest.mark.parametrize("mean", [False, True], ids=["draws", "means"])
def test_sample_writes_values_in_raw_units(digits_fit, mean):
    ran("sample", digits_fit.path, "--num", 5, "--out", "x.npy", *(["--mean"] if mean else []))
    values = np.load("x.npy")
    assert values.shape == (5, 64)
    vae = reloaded(digits_fit).to(torch.float32)
    with seeded(0, "sample"):
        expected = 16 * vae.sample(5, mean=mean)
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert 4 < np.abs(values).max() < 40  # of gray levels up to 16, and noise


def test_sample_gives_equal_values_for_equal_seeds_alone(digits_fit):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)
        ran("sample", digits_fit.path, "--num", 3, "--seed", seed, "--out", f"{name}.npy")
    a, b, c = (Path(f"{name}.npy").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_sample_prints_what_it_drew_and_draws_a_picture_by_default(tmp_path, digits_fit):
    shutil.copytree(digits_fit.path, tmp_path / "run")
    assert ran("sample", "run", "--num", 9) == (
        "9 draws from p(x|z), z from the prior, seed 0: run/samples-new.png\n"
    )
    assert (tmp_path / "run" / "samples-new.png").read_bytes().startswith(b"\x89PNG")


def reconstruction_error(printed_text):
    """Rows in words, and the mean squared error with its standard error."""
    line = printed_text.splitlines()[0]
    words = line.partition(" over ")[2].partition(":")[0]
    return words, figures(line, "mean squared error per feature")[0]


def test_reconstruct_prints_the_mean_squared_error_of_the_held_out_rows(digits_fit, digits):
    answer = ran("reconstruct", digits_fit.path, "--out", "r.npy")
    x = torch.from_numpy(digits[1] / 16)
    means = reloaded(digits_fit).reconstruct(x).detach()
    errors = (means - x).square().mean(1).numpy()
    assert reconstruction_error(answer) == ("359 held-out rows", mean_and_error(errors))
    np.testing.assert_allclose(np.load("r.npy"), 16 * means.numpy(), rtol=1e-4, atol=1e-4)


def test_reconstruct_draws_a_picture_by_default(tmp_path, digits_fit):
    shutil.copytree(digits_fit.path, tmp_path / "run")
    assert ran("reconstruct", "run").splitlines()[1] == "run/reconstructions-new.png"
    assert (tmp_path / "run" / "reconstructions-new.png").read_bytes().startswith(b"\x89PNG")


# --- a user's own files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    """Three features in unlike units, and a label in words."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 1))
    x = z @ [[2.0, -1.0, 0.5]] + 0.3 * rng.normal(size=(60, 3))
    made = pd.DataFrame(x * [1.0, 100.0, 0.01] + [5.0, 0.0, -3.0], columns=["a", "b", "c"])
    return made.assign(kind=np.where(z[:, 0] > 0, "high", "low"))


@pytest.fixture(scope="module")
def csv_fit(work, table):
    """A table with labels, standardized, at a fixed variance."""
    table.to_csv(work / "table.csv", index=False)
    words = ("--data", work / "table.csv", "--labels", "kind", "--standardize", "--held-out", 0.25)
    model = ("--latent-dim", 1, "--fixed-variance", "--variance", 0.2)
    return Fit(work / "csv", ran("fit", *TINY, *words, *model, "--out", work / "csv"))


def split(x, *, num_held_out, seed=0):
    """The rows to learn from, and those held out."""
    order = np.random.default_rng(seed).permutation(len(x))
    return x[order[num_held_out:]], x[order[:num_held_out]]


def test_csv_is_standardized_by_its_training_rows_alone(csv_fit, table):
    x = table[["a", "b", "c"]].to_numpy()
    train, _ = split(x, num_held_out=15)
    scaling = csv_fit.config["data"]["scaling"]
    assert scaling["shift"] == pytest.approx(train.mean(0).tolist(), rel=1e-5)
    assert scaling["scale"] == pytest.approx(train.std(0).tolist(), rel=1e-5)
    assert scaling["scale"] != pytest.approx(x.std(0).tolist(), rel=1e-3)


def test_csv_labels_are_counted_and_columns_kept(csv_fit):
    assert "table: 45 rows of (3,), " in csv_fit.printed
    assert "labels 2 classes; 15 held out" in csv_fit.printed
    assert csv_fit.config["data"]["columns"] == ["a", "b", "c"]
    assert csv_fit.config["data"]["labels"] == "kind"


def test_fixed_variance_is_kept(csv_fit):
    assert "c = 0.2 in squared units of x, so C = 1/(2c) = 2.5" in csv_fit.printed.splitlines()
    assert not [name for name in csv_fit.weights if "log_excess" in name]


def test_dimensions_beyond_a_plane_are_drawn_without_it(csv_fit):
    assert sorted(p.name for p in csv_fit.path.iterdir()) == [f for f in FILES if f != "plane.png"]


def test_patience_judges_by_a_tenth_of_the_training_rows(tmp_path, table):
    table[["a", "b", "c"]].to_csv("table.csv", index=False)
    words = ("--data", "table.csv", "--latent-dim", 1, "--epochs", 40, "--batch-size", 7)
    stop = ("--patience", 1, "--learning-rate", 3, "--clip-norm", 1e6)
    printed_text = ran("fit", *TINY, *words, *stop, "--out", "run")
    fit = Fit(tmp_path / "run", printed_text)
    history = RunDirectory(fit.path).history()
    best = int(history["validation_elbo"].idxmax()) + 1
    assert len(history) == best + 1  # patience ran out at once
    assert f"highest validation ELBO after epoch {best}, weights of epoch {best}" in printed_text
    assert len(history) < 40
    # The weights kept are the best epoch's, judged at five of the 48 training rows: by the KL,
    # which has no noise.
    rows, _ = split(table[["a", "b", "c"]].to_numpy(), num_held_out=12)
    _, validation = split(rows, num_held_out=5)
    vae = reloaded(fit, features=3, latent_dim=1)
    q = vae.encode(validation)
    kl = 0.5 * (q.mean.square() + q.variance - 1 - q.variance.log()).sum(-1).mean()
    assert history["validation_kl"][best - 1] == pytest.approx(kl.item(), rel=1e-4)


def csv_errors(csv_fit, rows):
    """Squared errors of raw rows in model units, by hand."""
    scaling = csv_fit.config["data"]["scaling"]
    x = torch.from_numpy((rows - scaling["shift"]) / scaling["scale"])
    vae = reloaded(csv_fit, features=3, latent_dim=1, variance=0.2, learn_variance=False)
    means = vae.reconstruct(x).detach()
    return (means - x).square().mean(1).numpy(), means.numpy()


def test_reconstruct_reads_the_run_s_own_scaling(csv_fit, table):
    answer = ran("reconstruct", csv_fit.path, "--out", "r.csv")
    _, held_out = split(table[["a", "b", "c"]].to_numpy(), num_held_out=15)
    errors, means = csv_errors(csv_fit, held_out)
    assert reconstruction_error(answer) == ("15 held-out rows", mean_and_error(errors))
    written = pd.read_csv("r.csv")
    assert written.columns.tolist() == ["a", "b", "c"]
    scaling = csv_fit.config["data"]["scaling"]
    raw = means * scaling["scale"] + scaling["shift"]
    np.testing.assert_allclose(written.to_numpy(), raw, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [["a", "b", "c"], ["c", "a", "b"], ["b", "other", "c", "a"]])
def test_reconstruct_matches_the_columns_of_another_file_by_name(csv_fit, table, columns):
    table.assign(other=1e9)[columns].to_csv("new.csv", index=False)
    answer = ran("reconstruct", csv_fit.path, "--file", "new.csv", "--out", "r.npy")
    errors, _ = csv_errors(csv_fit, table[["a", "b", "c"]].to_numpy())
    assert reconstruction_error(answer) == ("60 rows of new.csv", mean_and_error(errors))


def test_reconstruct_of_a_single_row_has_no_standard_error(csv_fit, table):
    table[["a", "b", "c"]][:1].to_csv("one.csv", index=False)
    answer = ran("reconstruct", csv_fit.path, "--file", "one.csv", "--out", "r.npy")
    errors, _ = csv_errors(csv_fit, table[["a", "b", "c"]].to_numpy()[:1])
    line = f"mean squared error per feature over 1 rows of one.csv: {errors[0]:.3f}"
    assert answer.splitlines()[0] == line


@pytest.fixture(scope="module")
def npz_fit(work, table):
    """One array of several, integer labels, divided by a number, affine networks."""
    x = table[["a", "b", "c"]].to_numpy()
    np.savez(work / "arrays.npz", points=x, others=x[:5], marks=np.arange(60) % 4)
    words = ("--data", work / "arrays.npz", "--key", "points", "--labels", "marks", "--divide", 50)
    model = ("--epochs", 1, "--hidden", "--latent-dim", 3, "--quiet")
    return Fit(work / "npz", ran("fit", *words, *model, "--out", work / "npz"))


def test_npz_takes_the_array_the_labels_and_the_divisor_asked_for(npz_fit):
    assert npz_fit.printed.startswith(
        "arrays: 48 rows of (3,), x = raw / 50, labels 4 classes; 12"
    )
    assert npz_fit.config["data"]["scaling"] == {"shift": 0.0, "scale": 50.0}
    assert npz_fit.config["model"]["hidden"] == []
    assert npz_fit.weights["q_z_given_x.encoder.layers.0.weight"].shape == (6, 3)


def test_fit_without_fewer_dimensions_than_features_says_that_there_is_no_reference(npz_fit):
    assert "probabilistic PCA needs fewer dimensions than features" in npz_fit.printed
    assert ": log p(x)" not in npz_fit.printed


def test_reconstruct_of_a_csv_by_a_run_on_npz_needs_no_key(npz_fit, table):
    table[["a", "b", "c"]].to_csv("new.csv", index=False)
    printed_text = ran("reconstruct", npz_fit.path, "--file", "new.csv", "--out", "r.npy")
    assert reconstruction_error(printed_text)[0] == "60 rows of new.csv"


# --- images ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conv_fit(work):
    """Convolutions on standardized digits, which takes the scaling through a reshape."""
    words = ("--networks", "conv", "--standardize", "--epochs", 1, "--quiet", "--out")
    with pytest.warns(UserWarning, match="constant columns 0, 32, 39, centered with scale 1"):
        return Fit(work / "conv", ran("fit", *words, work / "conv"))


def test_conv_networks_take_digits_as_images(conv_fit):
    assert "digits: 1438 rows of (1, 8, 8)" in conv_fit.printed
    assert conv_fit.config["data"]["event_shape"] == [1, 8, 8]
    weights = conv_fit.weights
    assert weights["q_z_given_x.encoder.convolutions.0.weight"].shape == (32, 1, 4, 4)
    assert weights["p_x_given_z.decoder.convolutions.3.weight"].shape == (32, 1, 4, 4)


def test_conv_run_reads_its_standardized_digits_back(conv_fit, digits):
    answer = ran("reconstruct", conv_fit.path, "--out", "r.npy")
    train, held_out = digits
    scale = np.where(train.std(0) > 0, train.std(0), 1.0)
    x = (held_out - train.mean(0)) / scale
    raw = np.load("r.npy")
    assert raw.shape == (359, 1, 8, 8)
    means = (raw.reshape(359, 64) - train.mean(0)) / scale
    errors = ((means - x) ** 2).mean(1)
    assert reconstruction_error(answer) == ("359 held-out rows", mean_and_error(errors))
    assert errors.mean() < (x**2).mean()  # better than the mean of the data


def test_conv_run_samples_images(conv_fit):
    ran("sample", conv_fit.path, "--num", 4, "--out", "x.npy")
    assert np.load("x.npy").shape == (4, 1, 8, 8)


def idx(array):
    """MNIST's file format: two zeros, the type, the number of dimensions, their sizes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_image_set_is_standardized_by_its_training_part_and_judged_on_its_test_part(tmp_path):
    rng = np.random.default_rng(0)
    parts = {"train": rng.integers(0, 256, (30, 4, 5)), "t10k": rng.integers(90, 256, (12, 4, 5))}
    folder = tmp_path / "root" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, images in parts.items():
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(len(images)) % 10))
    printed_text = ran("fit", *TINY, "--data", "mnist", "--root", "root", "--standardize")
    assert printed_text.startswith("mnist train: 30 rows of (20,), x = (raw - shift) / scale")
    fit = Fit(tmp_path / "runs" / "mnist-k2-diagonal", printed_text)
    train = parts["train"].reshape(30, 20)
    assert fit.config["data"]["num_held_out"] == 12
    assert fit.config["data"]["image_shape"] == [4, 5]
    scaling = fit.config["data"]["scaling"]
    assert scaling["shift"] == pytest.approx(train.mean(0).tolist(), rel=1e-5)
    assert scaling["scale"] == pytest.approx(train.std(0).tolist(), rel=1e-5)
    answer = ran("reconstruct", fit.path, "--out", "r.npy")
    x = (parts["t10k"].reshape(12, 20) - train.mean(0)) / train.std(0)
    means = (np.load("r.npy") - train.mean(0)) / train.std(0)
    errors = ((means - x) ** 2).mean(1)
    assert reconstruction_error(answer) == ("12 held-out rows", mean_and_error(errors))


# --- baselines ---------------------------------------------------------------------------------


def test_baselines_prints_a_table_whose_pca_is_pca(digits):
    answer = ran("baselines", *TINY, "--latent-dims", 2, 7, 2, "--out", "table.csv")
    train, held_out = (raw / 16 for raw in digits)
    mean, _, vectors = principal_axes(train)
    table = pd.read_csv("table.csv")
    assert table["k"].tolist() == [2] * 4 + [7] * 4  # each k once
    assert table["model"].tolist() == ["PCA", "linear AE", "AE", "VAE"] * 2
    for k in (2, 7):
        axes = vectors[:, :k]
        r = held_out - mean
        expected = mean_and_error(((r - r @ axes @ axes.T) ** 2).mean(1))
        row = table[(table["k"] == k) & (table["model"] == "PCA")].iloc[0]
        assert (row["mse"], row["se"]) == pytest.approx(expected, rel=1e-5)
        cells = figures(answer, str(k))
        assert cells[0] == expected
        others = table[table["k"] == k]
        assert cells == list(zip(others["mse"], others["se"], strict=True))
        # After two epochs the others are far from their optimum, which PCA is for the first.
        assert (others["mse"] > 1.05 * expected[0]).tolist() == [False, True, True, True]
    header = next(line for line in answer.splitlines() if line.startswith("model"))
    assert header.split() == ["model", "PCA", "linear", "AE", "AE", "VAE"]


def test_baselines_print_their_table_even_if_it_cannot_be_written(tmp_path, table):
    table[["a", "b", "c"]].to_csv("table.csv", index=False)
    words = ("--data", "table.csv", "--latent-dims", 1, "--out", "nowhere/table.csv")
    answer = run("baselines", *TINY, *words)
    assert answer.status == 2
    assert "held-out mean squared error per feature" in answer.out
    assert re.fullmatch("pyro-vae baselines: .*nowhere.*\n", answer.err)


# --- errors and interruptions ------------------------------------------------------------------


def test_ctrl_c_ends_a_fit_with_everything_written(tmp_path, monkeypatch, table):
    table[["a", "b", "c"]].to_csv("table.csv", index=False)
    evaluate = fit_epochs.evaluate

    def evaluate_and_press(*args, **options):
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(fit_epochs, "evaluate", evaluate)
        return evaluate(*args, **options)

    monkeypatch.setattr(fit_epochs, "evaluate", evaluate_and_press)
    words = ("--data", "table.csv", "--latent-dim", 1, "--epochs", 50)
    printed_text = ran("fit", *TINY, *words, "--out", "run")
    goes_on = "Ctrl-C ended the fit early; pyro-vae fit --resume run goes on"
    assert goes_on in printed_text.splitlines()
    assert printed_text.splitlines()[-2].startswith("1 epochs in ")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [name for name in FILES if name != "plane.png"]
    # And it does go on, to the weights of a fit that was left alone.
    assert "resumed after 1 full epochs" in ran("fit", "--resume", "run", "--quiet").splitlines()
    ran("fit", *TINY, *words, "--out", "whole")
    assert contents("run")["weights.safetensors"] == contents("whole")["weights.safetensors"]


def test_resume_with_other_settings_needs_override(tmp_path, digits_fit):
    shutil.copytree(digits_fit.path, tmp_path / "run")
    answer = run("fit", "--resume", "run", "--epochs", 3, "--quiet")
    assert answer.status == 2
    assert "got others: epochs (2 there, 3 here)" in answer.err
    printed_text = ran("fit", "--resume", "run", "--epochs", 3, "--override", "--quiet")
    assert printed_text.splitlines()[-2].startswith("3 epochs in ")
    assert RunDirectory("run").config()["fit"]["epochs"] == 3
    assert "resumed after epoch 2 by pyro-vae" in ran("info", "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "nowhere"], "config must be a TOML file; got nowhere"),
        (["--resume", "nowhere", "--out", "x"], "out must be left out with --resume"),
        (["--override"], "override must come with --resume RUN"),
    ],
)
def test_resume_of_what_is_no_run_is_refused(words, message):
    answer = run("fit", *words)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err


def test_ctrl_c_elsewhere_is_said_in_a_word(monkeypatch, digits_fit):
    def interrupted(run, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, "rebuild", interrupted)
    answer = run("sample", digits_fit.path)
    assert answer == (130, "", "pyro-vae sample: interrupted\n")


IMAGE_SETS = "digits, mnist, fashion_mnist, kmnist, emnist, celeba"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "fit --family ful",
            "--family: must be one of isotropic, .*full, .*; got 'ful'.*mean 'full'?",
        ),
        ("fit --networks convolution", "--networks: must be one of mlp, conv; got 'convolution'."),
        ("fit --dtype float46", "must be one of float32, float64; got 'float46'.*'float64'?"),
        ("fit --data digit", f"data must be one of {IMAGE_SETS}, or a .*'digit'.*mean 'digits'?"),
        ("fit --data fashion-mnist", "got 'fashion-mnist'. Did you mean 'fashion_mnist'?"),
        ("fit --data none.csv", "path must be a file; got none.csv, no such file"),
        ("fit --data table.xlsx", "path must end in .npy, .npz, .csv; got 'table.xlsx'"),
        ("fit --data mnist --root empty", "MNIST must be in empty/MNIST/raw; got no train-images"),
        ("fit --data table.csv --labels knd", "labels must be one of the columns .*got 'knd'"),
        ("fit --data table.csv", "must have numeric columns only; got 'kind'"),
        ("fit --data table.csv --labels kind --key x", "key must be left out but for .npz files"),
        (
            "fit --data table.csv --labels kind --networks conv",
            "networks must be mlp for data that are no images; got conv for table",
        ),
        (
            "fit --data table.csv --labels kind --latent-dim 4",
            "latent-dim must not exceed the number of features, 3; got 4",
        ),
        ("fit --epochs 0", "--epochs: must be a positive integer; got '0'"),
        ("fit --hidden 16 x", "--hidden: must be a positive integer; got 'x'"),
        ("fit --variance nan", "--variance: must be a positive number; got 'nan'"),
        ("fit --learning-rate inf", "--learning-rate: must be a positive number; got 'inf'"),
        ("fit --held-out 1", "--held-out: must lie between 0 and 1; got '1'"),
        ("fit --fixed-variance --variance-per-feature", "not allowed with argument"),
        ("fit --divide 2 --standardize", "not allowed with argument"),
        ("fit --device cudda", "cudda"),
        ("baselines --latent-dims 2 64", "less than the number of features, 64, .* got \\[64\\]"),
        ("sample nowhere", "run must be a directory that 'pyro-vae fit' wrote; nowhere has no"),
        ("info table.csv", "run must be a directory that 'pyro-vae fit' wrote; table.csv has no"),
        ("sample RUN --out x.jpg", "out must end in .png, .npy or .csv; got x.jpg"),
        ("sample RUN --num 0", "--num: must be a positive integer; got '0'"),
        ("reconstruct RUN --file wide.csv", "must have event shape \\(64,\\); got \\(3,\\)"),
        ("smaple RUN", "invalid choice: 'smaple'"),
    ],
)
def test_error_is_one_line_with_status_2_and_leaves_nothing(
    tmp_path, digits_fit, table, words, message
):
    table.to_csv("table.csv", index=False)
    table[["a", "b", "c"]].to_csv("wide.csv", index=False)
    before = set(tmp_path.rglob("*"))
    run_before = contents(digits_fit.path)
    answer = run(*words.replace("RUN", str(digits_fit.path)).split())
    assert answer.status == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert re.search(message, answer.err.splitlines()[-1])
    assert set(tmp_path.rglob("*")) == before
    assert contents(digits_fit.path) == run_before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.safetensors", b"not weights", "path must be a file of weights; .* is damaged"),
        (
            "weights.safetensors",
            None,
            "path must be a file of weights; got .*, which is not there",
        ),
        ("config.toml", b"format = 1\n[", "config.toml of run is damaged"),
        ("config.toml", b"format = 7\n", "run must be of format 1; run has format 7"),
    ],
)
def test_damaged_run_is_refused_in_one_line(tmp_path, digits_fit, name, content, message):
    shutil.copytree(digits_fit.path, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    if content is not None:
        (tmp_path / "run" / name).write_bytes(content)
    answer = run("sample", "run", "--out", "x.npy")
    assert (answer.status, answer.out) == (2, "")
    assert re.fullmatch(f"pyro-vae sample: {message}.*\n", answer.err)
    assert not (tmp_path / "x.npy").exists()


def test_weights_of_another_model_are_refused(tmp_path, digits_fit):
    shutil.copytree(digits_fit.path, tmp_path / "run")
    settings = RunDirectory("run").config()
    settings["model"]["hidden"] = [17]
    RunDirectory("run").write_config(settings)
    answer = run("sample", "run")
    assert answer.status == 2
    assert "path must hold weights of this module's shapes" in answer.err
    assert "(16, 64), not (17, 64)" in answer.err


WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "pyro", "numpy", "pandas", "matplotlib", "sklearn", "xarray", "tqdm"):
    sys.modules[name] = None  # importing it raises ImportError
sys.argv[0] = "pyro-vae"
runpy.run_module("pyro_vae", run_name="__main__")
"""


@pytest.mark.parametrize(
    "words", [["--help"], ["fit", "--help"], ["baselines", "--help"]], ids=str
)
def test_help_answers_without_torch(words):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words],
        env={**os.environ, "PYTHONPATH": str(Path(pv.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: pyro-vae {' '.join(words[:-1])}".rstrip())
