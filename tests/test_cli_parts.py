"""Every part by its name on the command line, and configurations that are fitted again."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, ran, run
from safetensors.torch import load_file

from pyro_vae import cli, datasets, families, kinds, likelihoods, objectives, priors
from pyro_vae.autoregressive import AffineStep, SplineStep
from pyro_vae.commands import fitting, model_choice, training_choice
from pyro_vae.commands.model_choice import rebuild
from pyro_vae.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def _shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # conftest puts it back


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of a small fit's time, and test_cli.py looks at them."""
    monkeypatch.setattr(fitting, "_draw", lambda *_: None)


@pytest.fixture
def rows(tmp_path):
    """Numbers, counts and shares, each in a file of its own."""
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(80, 4))
    np.save("numbers.npy", numbers)
    np.save("counts.npy", generator.poisson(3.0, size=(80, 4)).astype(float))
    np.save("shares.npy", 1 / (1 + np.exp(-numbers)))
    np.save("bits.npy", (numbers > 0).astype(float))


def config(run_name):
    return tomllib.loads((RunDirectory(run_name).path / "config.toml").read_text("utf-8"))


def test_every_name_has_its_part():
    for names, tables in (
        (kinds.PRIORS, (model_choice.PRIOR_OF, model_choice.PRIOR_WORDS)),
        (kinds.LIKELIHOODS, (model_choice.LIKELIHOOD_OF, model_choice.LIKELIHOOD_WORDS)),
        (kinds.FAMILIES, (model_choice.FAMILY_OF, model_choice.FAMILY_WORDS)),
        (kinds.OBJECTIVES, (training_choice.OBJECTIVE_OF,)),
    ):
        assert all(set(table) == set(names) for table in tables)
    with_numbers = {*model_choice.WITH_VARIANCE, *model_choice.WITH_SCALE}
    assert with_numbers | model_choice.DENSITIES <= set(kinds.LIKELIHOODS)


@pytest.mark.parametrize(
    ("words", "part", "expected"),
    [
        ("--prior normal", "p_z", priors.Normal),
        ("--prior mixture:3", "p_z", priors.GaussianMixture),
        ("--prior vamp:5", "p_z", priors.VampPrior),
        ("--prior flow:1", "p_z", priors.FlowPrior),
        ("--prior spline:1", "p_z", priors.FlowPrior),
        ("--prior student:3", "p_z", priors.StudentT),
        ("--prior laplace", "p_z", priors.Laplace),
        ("--family isotropic", "family", families.IsotropicNormal),
        ("--family lowrank:1", "family", families.LowRankNormal),
        ("--family full", "family", families.FullCovarianceNormal),
        ("--family flow:1", "family", families.Flow),
        ("--family spline:1", "family", families.Flow),
        ("--likelihood laplace", "p_x_given_z", likelihoods.Laplace),
        ("--likelihood student:5", "p_x_given_z", likelihoods.StudentT),
        ("--data shares.npy --likelihood lognormal", "p_x_given_z", likelihoods.LogNormal),
        ("--data bits.npy --likelihood bernoulli", "p_x_given_z", likelihoods.Bernoulli),
        ("--data shares.npy --likelihood beta", "p_x_given_z", likelihoods.Beta),
        (
            "--data shares.npy --likelihood continuous-bernoulli",
            "p_x_given_z",
            likelihoods.ContinuousBernoulli,
        ),
        (
            "--data bits.npy --likelihood categorical:3",
            "p_x_given_z",
            likelihoods.Categorical,
        ),
        ("--data counts.npy --likelihood poisson", "p_x_given_z", likelihoods.Poisson),
        (
            "--data counts.npy --likelihood negative_binomial",
            "p_x_given_z",
            likelihoods.NegativeBinomial,
        ),
        (
            "--data counts.npy --likelihood zero_inflated_poisson",
            "p_x_given_z",
            likelihoods.ZeroInflatedPoisson,
        ),
        (
            "--data bits.npy --likelihood discretized_logistic:2",
            "p_x_given_z",
            likelihoods.DiscretizedLogistic,
        ),
    ],
)
def test_part_is_fitted_and_read_back(rows, no_pictures, words, part, expected):
    data = [] if "--data" in words else ["--data", "numbers.npy"]
    printed = ran("fit", *data, *words.split(), *TINY, "--out", "run")
    run_directory = RunDirectory("run")
    vae = rebuild(run_directory, run_directory.config())
    found = vae.q_z_given_x.family if part == "family" else getattr(vae, part)
    assert type(found) is expected
    if expected in {families.Flow, priors.FlowPrior}:
        step = AffineStep if "flow" in words else SplineStep
        assert {type(s) for s in found.steps} == {step}
    # The weights are those of the fit, and draws lie where the likelihood says.
    weights = load_file(run_directory.file("weights.safetensors"))
    for name, value in vae.state_dict().items():
        assert torch.equal(value, weights[name])
    ran("sample", "run", "--num", 20, "--out", "draws.npy")
    vae.prepare(np.load("draws.npy"))
    is_density = config("run")["model"]["likelihood"].partition(":")[0] in model_choice.DENSITIES
    assert ("probabilistic PCA, k = 2" in printed) == is_density
    assert ("no density of x" in printed) != is_density


def test_all_three_parts_are_named_in_the_run_and_its_report(rows):
    words = "--prior mixture:3 --likelihood bernoulli --family lowrank:1 --data bits.npy"
    printed = ran("fit", *words.split(), *TINY)
    assert "p(z) = mixture of 3 normals, learned, k = 2" in printed
    assert "p(x|z) = Bernoulli(sigmoid f(z)), n = 4" in printed
    assert "q(z|x) = N(g(x), h(x)), diagonal plus rank 1" in printed
    assert "everything is in runs/bits-k2-lowrank1-mixture3-bernoulli" in printed
    model = config("runs/bits-k2-lowrank1-mixture3-bernoulli")["model"]
    assert (model["prior"], model["family"]) == ("mixture:3", "lowrank:1")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--likelihood gaussian", 0.3),
        ("--likelihood laplace", (0.3 / 2) ** 0.5),
        ("--likelihood student:5", 0.3**0.5),
        ("--likelihood discretized_logistic:2 --data bits.npy", (3 * 0.3) ** 0.5 / np.pi),
    ],
)
def test_variance_starts_where_it_is_said_whatever_carries_it(rows, no_pictures, words, expected):
    data = [] if "--data" in words else ["--data", "numbers.npy"]
    kept = ("--variance", 0.3, "--fixed-variance", "--out", "run")
    ran("fit", *data, *words.split(), *TINY, *kept)
    likelihood = rebuild(RunDirectory("run"), config("run")).p_x_given_z
    value = likelihood.variance if "gaussian" in words else likelihood.scale
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_variance_can_be_a_function_of_z(rows):
    ran("fit", "--data", "numbers.npy", "--variance-of-z", *TINY, "--out", "run")
    likelihood = rebuild(RunDirectory("run"), config("run")).p_x_given_z
    c = likelihood.variance_at(torch.tensor([[0.0, 0.0], [3.0, -3.0]]))
    assert c.shape == (2, 4)
    assert (c[0] != c[1]).all()


def options_of(words):
    """What a fit is told by these words."""
    options = cli._parser().parse_args(["fit", *words.split()])
    return training_choice.training_options(fitting._settings(options)["fit"])


def test_objectives_and_weights_of_the_kl_reach_fit():
    for name in kinds.OBJECTIVES:
        made = options_of(f"--objective {name}")["elbo"]
        assert type(made) is type(training_choice.OBJECTIVE_OF[name](2))
    for name, gradient in (
        ("iwae", "plain"),
        ("stl", "sticking_the_landing"),
        ("dreg", "doubly_reparametrized"),
    ):
        made = options_of(f"--objective {name}:7")["elbo"]
        assert (made.num_particles, made.gradient) == (7, gradient)
    assert options_of("--kl-weight 0.25")["kl_weight"] == 0.25
    warmup = options_of("--kl-warmup 0.5")["kl_weight"]
    assert [warmup(t) for t in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    bits = options_of("--free-bits 0.1")
    assert isinstance(bits["kl_weight"], objectives.FreeBits)
    assert "elbo" not in bits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prior mixtrue:3", "--prior: must be one of .*got 'mixtrue:3'. Did you mean 'mixture'"),
        ("--likelihood bernouli", "got 'bernouli'. Did you mean 'bernoulli'"),
        ("--family diagonla", "got 'diagonla'. Did you mean 'diagonal'"),
        ("--objective iwea", "got 'iwea'. Did you mean 'iwae'"),
        ("--prior mixture:0", "must have a positive integer after mixture:; got 'mixture:0'"),
        ("--prior mixture:2.5", "must have a positive integer after mixture:"),
        ("--prior student:x", "must have a positive number after student:; got 'student:x'"),
        ("--prior laplace:2", "must be 'laplace' without a number; got 'laplace:2'"),
        ("--likelihood bernoulli --fixed-variance", "fixed-variance must go with a likelihood"),
        ("--likelihood bernoulli --variance 0.3", "variance must go with a likelihood"),
        ("--likelihood normal", "got 'normal'. Did you mean 'gaussian'"),
        ("--prior gaussian", "got 'gaussian'. Did you mean 'normal'"),
        ("--family full-covariance", "got 'full-covariance'. Did you mean 'full'"),
        ("--likelihood poisson", "x must hold counts .*Poisson"),
        ("--free-bits 0.1 --objective iwae", "free-bits must go with the objective trace"),
        ("--kl-weight -1", "--kl-weight: must be 0 or a positive number; got '-1'"),
        ("--kl-weight 1 --kl-warmup 0.5", "not allowed with argument"),
        ("--prior vamp:5000", "pseudo|components"),
    ],
)
def test_wrong_name_or_number_is_told_in_one_line_and_leaves_nothing(tmp_path, words, message):
    answer = run("fit", *words.split(), "--quiet")
    assert (answer.status, answer.out) == (2, "")
    assert re.search(message, answer.err.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []


def test_command_of_the_readme_runs():
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    (command,) = re.findall(r"`pyro-vae (fit --prior [^`]+)`", text)
    with pytest.warns(UserWarning, match="lowrank:4|density") as told:
        printed = ran(*command.split(), *TINY)
    messages = "".join(str(warning.message) for warning in told)
    assert "lowrank:4 has rank 2 in 2 latent dimensions" in messages
    assert "not a normalized density" in messages
    assert "KL averaged over draws" in printed


def test_report_says_what_was_maximized(rows, no_pictures):
    words = "--data numbers.npy --objective dreg:2 --kl-weight 0.5"
    printed = ran("fit", *words.split(), *TINY)
    assert "trained with the objective dreg:2 and a KL weight of 0.5; the ELBO above" in printed
    assert "trained with" not in ran("fit", "--data", "numbers.npy", *TINY)


# --- configurations ----------------------------------------------------------------------------


def test_run_is_fitted_again_from_its_configuration(rows, no_pictures):
    words = "--data shares.npy --prior vamp:3 --likelihood beta --family flow:1 --kl-warmup 0.5"
    ran("fit", *words.split(), "--seed", 4, "--standardize", *TINY, "--likelihood", "laplace",
        "--fixed-variance", "--out", "first")  # fmt: skip
    ran("fit", "--config", "first", "--quiet", "--out", "second")
    ran("fit", "--config", "first/config.toml", "--quiet", "--out", "third", "--seed", 5)
    assert config("first") == config("second")
    assert config("third") == {
        **config("first"), "fit": {**config("first")["fit"], "seed": 5},
    }  # fmt: skip
    weights = [
        load_file(RunDirectory(name).file("weights.safetensors"))
        for name in ("first", "second", "third")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("first", "second", "section", "expected"),
    [
        ("--kl-warmup 0.5", "--kl-weight 0.5", "fit", {"kl_weight": 0.5}),
        ("", "--kl-warmup 0.5", "fit", {"kl_warmup": 0.5}),
        ("--free-bits 0.1", "--kl-warmup 0.5", "fit", {"kl_warmup": 0.5}),
        ("--raw", "--divide 2", "data", {"divide": 2.0, "raw": False}),
        ("--standardize", "--no-standardize", "data", {"standardize": False}),
        (
            "--fixed-variance",
            "--variance-per-feature",
            "model",
            {"learn_variance": True, "variance_per_feature": True},
        ),
        ("--fixed-variance", "--no-fixed-variance", "model", {"learn_variance": True}),
        ("--hidden 7 5", "--hidden 9", "model", {"hidden": [9]}),
        ("--seed 3", "--latent-dim 3", "fit", {"seed": 3}),
    ],
)
def test_command_line_overrules_a_configuration(
    rows, no_pictures, first, second, section, expected
):
    ran("fit", "--data", "numbers.npy", *TINY, *first.split(), "--out", "first")
    ran("fit", "--config", "first", "--quiet", *second.split(), "--out", "second")
    found = config("second")[section]
    assert {key: found.get(key) for key in expected} == expected
    others = {"kl_weight", "kl_warmup", "free_bits"} & set(found)
    assert len(others) == 1 if section == "fit" else not others


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nlatent_dmi = 3\n", "got 'latent_dmi'. Did you mean 'latent_dim'"),
        ("[modle]\nlatent_dim = 3\n", r"must have the sections data, model, fit; got \['modle'\]"),
        ("[model]\nprior = 'mixtrue'\n", "--prior: .*got 'mixtrue'. Did you mean 'mixture'"),
        ("[model]\nlatent_dim = -3\n", "--latent-dim: must be a positive integer; got '-3'"),
        ("[model\n", "config must be a TOML file; got c.toml"),
        (None, "config must be a TOML file; got c.toml"),
    ],
)
def test_configuration_that_is_none_is_told_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    answer = run("fit", "--config", "c.toml")
    assert (answer.status, answer.out) == (2, "")
    assert re.search(message, answer.err.splitlines()[-1])
    assert not (tmp_path / "runs").exists()


def test_gray_pixels_under_bernoulli_are_told_in_one_line():
    with pytest.warns(UserWarning, match="not a normalized density"):
        ran("fit", "--likelihood", "bernoulli", *TINY)


def test_raw_digits_are_counts():
    ran("fit", "--raw", "--likelihood", "poisson", *TINY, "--out", "run")
    assert config("run")["data"]["scaling"] == {"shift": 0.0, "scale": 1.0}
    vae = rebuild(RunDirectory("run"), config("run"))
    vae.prepare(datasets.digits().raw)
