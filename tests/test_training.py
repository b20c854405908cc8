import copy
import math
import random
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import linear_vae, small_vae
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae import datasets, families, guides, likelihoods, optim, priors
from pyro_vae.diagnostics import elbo_summary, elbo_terms

DIAGONAL, FULL = families.DiagonalNormal, families.FullCovarianceNormal
QUIET = {"progress": False}


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def fitted(vae, x, **options):
    return pv.fit(vae, x, **{"epochs": 2, "batch_size": 4, **QUIET, **options})


@pytest.mark.parametrize("family", [DIAGONAL, FULL])
def test_linear_vae_reaches_the_maximum_of_the_likelihood(family):
    x = datasets.linear_gaussian(400, features=6, latent_dim=2, variance=0.2, seed=5).x
    best = datasets.LinearGaussian.maximum_likelihood(x, 2).log_prob(x).mean().item()
    vae = pv.gaussian_vae(features=6, latent_dim=2, hidden=(), variance=0.5, family=family)
    pv.fit(vae, x, epochs=300, batch_size=200, learning_rate=0.05, **QUIET)
    elbo = elbo_summary(elbo_terms(vae, x, num_samples=100)).loc["elbo"]
    assert best - 0.02 < elbo["mean"] < best + 3 * elbo["mcse"]


def test_one_step_is_one_step_of_pyros_svi():
    x = torch.randn(4, 6)
    vae = small_vae(family=DIAGONAL)
    other = copy.deepcopy(vae)
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    pv.fit(vae, x, epochs=1, batch_size=4, optimizer=sgd, schedule=optim.constant, **QUIET)
    # The same by hand: the same order of rows and noise, the gradient of the sum over the batch.
    from pyro_vae.seeding import generator, seeded

    rows = x[torch.randperm(4, generator=generator(0, "order", 0))]
    with seeded(0, "noise", 0):
        loss = Trace_ELBO().differentiable_loss(other.model, other.guide, rows)
    loss.backward()
    with torch.no_grad():
        for p in other.parameters():
            p -= 0.1 * p.grad / 4
    torch.testing.assert_close(parameters(vae), parameters(other), rtol=0, atol=1e-14)


def test_history_is_the_elbo_at_the_end_of_each_epoch():
    x, held_out = torch.randn(10, 6), torch.randn(7, 6)
    vae = small_vae(family=FULL)
    fit = fitted(vae, x, validation=held_out, epochs=3)
    history = fit.history
    assert list(history["epoch"]) == [1, 2, 3]
    for prefix in ("", "validation_"):
        difference = history[f"{prefix}expected_log_likelihood"] - history[f"{prefix}kl"]
        np.testing.assert_allclose(history[f"{prefix}elbo"], difference, atol=1e-12)
    # The KL is analytic: an independent computation at the final parameters must agree.
    for data, prefix in ((x, ""), (held_out, "validation_")):
        q = vae.encode(data)
        trace = q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
        kl = 0.5 * (trace + q.mean.square().sum(-1) - 3 - torch.logdet(q.covariance_matrix))
        assert abs(history[f"{prefix}kl"].iloc[-1] - kl.mean().item()) < 1e-10


def test_reported_elbo_is_the_bound_whatever_is_trained():
    x = torch.randn(10, 6)
    vae = small_vae(family=DIAGONAL)
    still = lambda params: torch.optim.SGD(params, lr=1e-300)  # noqa: E731
    rows = [
        fitted(copy.deepcopy(vae), x, optimizer=still, **options).history.iloc[-1]
        for options in ({}, {"kl_weight": 0.0}, {"kl_weight": 5.0}, {"elbo": RenyiELBO(alpha=0.5)})
    ]
    for row in rows[1:]:
        for name in ("elbo", "expected_log_likelihood", "kl"):
            assert row[name] == rows[0][name]
        assert row["loss"] != rows[0]["loss"]


def test_weight_of_the_kl_moves_the_optimum_to_another_variance():
    # FORMULAS (d): beta at variance c0 has the optima of the ELBO at variance beta c0.
    x = datasets.linear_gaussian(300, features=5, latent_dim=1, variance=0.1, seed=6).x
    kls = []
    for variance, weight in ((0.1, 4.0), (0.4, 1.0)):
        torch.manual_seed(1)
        vae = pv.gaussian_vae(
            features=5, latent_dim=1, hidden=(), variance=variance, learn_variance=False
        )
        fit = pv.fit(
            vae, x, epochs=300, batch_size=150, learning_rate=0.05, kl_weight=weight, **QUIET
        )
        kls.append(fit.history["kl"].iloc[-1])
    eigenvalue = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).max().item()
    expected = 0.5 * math.log(eigenvalue / 0.4)
    np.testing.assert_allclose(kls, expected, atol=0.02)


def test_two_fits_are_independent_of_each_other():
    x = torch.randn(10, 6)
    first, second = small_vae(family=DIAGONAL), small_vae(family=DIAGONAL)
    alone = copy.deepcopy(second)
    fitted(alone, x)
    fitted(first, x)
    before = parameters(first)
    fitted(second, x)
    assert torch.equal(parameters(second), parameters(alone))
    assert torch.equal(parameters(first), before)


def test_fit_is_a_function_of_its_seed_alone():
    x = torch.randn(10, 6)
    vae = small_vae(family=DIAGONAL)
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(global_seed)
        copied = copy.deepcopy(vae)
        history = fitted(copied, x, seed=seed).history.drop(columns="seconds")
        results.append((parameters(copied), history))
    assert torch.equal(results[0][0], results[1][0])
    pd.testing.assert_frame_equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_watching_a_fit_does_not_change_it():
    x = torch.randn(10, 6)
    vae = small_vae(family=DIAGONAL)
    plain, watched = copy.deepcopy(vae), copy.deepcopy(vae)
    fitted(plain, x)
    fitted(watched, x, validation=x, callbacks=[lambda fit: torch.randn(3), lambda fit: None])
    assert torch.equal(parameters(plain), parameters(watched))


def test_fit_leaves_the_world_as_it_was():
    pyro.param("mine", torch.tensor(2.0), constraint=dist.constraints.positive)
    torch.distributions.Distribution.set_default_validate_args(False)
    pyro_setting = pyro.infer.util.is_validation_enabled()
    handler = signal.getsignal(signal.SIGINT)
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    filters, grad, threads = (
        list(warnings.filters),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
    try:
        fitted(small_vae(family=DIAGONAL), torch.randn(10, 6).requires_grad_(False))
        assert torch.distributions.Distribution._validate_args is False
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert pyro.param("mine").item() == pytest.approx(2.0, abs=1e-15)
    assert pyro.infer.util.is_validation_enabled() == pyro_setting
    assert signal.getsignal(signal.SIGINT) is handler
    assert list(warnings.filters) == filters
    assert torch.is_grad_enabled() == grad
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float64
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_fit_leaves_the_random_state_of_torch_alone():
    vae, x = small_vae(family=DIAGONAL), torch.randn(10, 6)
    state = torch.get_rng_state()
    fitted(vae, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments_are_validated_in_the_first_step_and_not_in_the_others():
    seen = []

    class Watched(pv.VAE):
        def guide(self, x):
            seen.append(torch.distributions.Distribution._validate_args)
            return super().guide(x)

    vae = small_vae(family=DIAGONAL)
    watched = Watched(prior=vae.p_z, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    fitted(watched, torch.randn(12, 6), epochs=1)
    assert seen[0] is True
    assert seen[1:3] == [False, False]


@pytest.mark.parametrize(("num_data", "batch_size"), [(1, 128), (5, 4), (3, 128), (9, 1)])
def test_every_number_of_rows_and_batch_size_trains(num_data, batch_size):
    vae, x = small_vae(family=FULL), torch.randn(num_data, 6)
    before = parameters(vae)
    fit = fitted(vae, x, batch_size=batch_size)
    assert (parameters(vae) != before).all()
    assert fit.num_skipped == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(">f8"),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: x.numpy()[::-1][::-1],
        lambda x: x.tolist(),
        lambda x: pd.DataFrame(x.numpy(), columns=list("abcdef")),
        lambda x: datasets.Dataset("mine", x),
        lambda x: TensorDataset(x, torch.arange(len(x))),
        lambda x: [(row, 0) for row in x] and _Rows(x),
        lambda x: x.clone().requires_grad_(),
    ],
)
def test_every_kind_of_data_trains_the_same(make):
    x = torch.randn(10, 6)
    vae = small_vae(family=DIAGONAL)
    expected = copy.deepcopy(vae)
    fitted(expected, x)
    untouched = x.clone()
    fitted(vae, make(x))
    assert torch.equal(parameters(vae), parameters(expected))
    assert torch.equal(x, untouched)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], index


def test_data_loader_brings_its_own_batches():
    x = torch.randn(10, 6)
    vae = small_vae(family=DIAGONAL)
    seen = []

    class Watched(pv.VAE):
        def model(self, x):
            seen.append(x)
            return super().model(x)

    watched = Watched(prior=vae.p_z, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    fitted(watched, DataLoader(TensorDataset(x), batch_size=4), epochs=1)
    for rows, expected in zip(seen, x.split(4), strict=False):
        assert torch.equal(rows, expected)


def test_columns_of_a_table_are_remembered():
    frame = pd.DataFrame(torch.randn(10, 6).numpy(), columns=list("abcdef"))
    vae = small_vae(family=DIAGONAL)
    fitted(vae, frame)
    assert vae.columns == tuple("abcdef")
    expected = vae.encode(frame.to_numpy()).mean
    torch.testing.assert_close(vae.encode(frame[list("fedcba")]).mean, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_cast_is_said_once(dtype, caplog):
    fitted(small_vae(family=DIAGONAL), (torch.randn(10, 6) > 0).to(dtype))
    name = str(dtype).removeprefix("torch.")
    assert caplog.messages == [
        f"x was cast from {name} to float64, the type of the programs' parameters."
    ]


def test_early_stopping_puts_the_best_parameters_back():
    torch.manual_seed(2)
    x, held_out = torch.randn(8, 6), torch.randn(50, 6)
    vae = small_vae(family=DIAGONAL, variance=0.5, learn_variance=True)
    fit = fitted(
        vae,
        x,
        validation=held_out,
        epochs=400,
        patience=5,
        learning_rate=0.05,
        schedule=optim.constant,
    )
    history = fit.history
    assert fit.stopped_early
    assert fit.best_epoch == history["validation_elbo"].idxmax() + 1
    assert len(history) == fit.best_epoch + 5
    from pyro_vae.evaluation import evaluate

    assert evaluate(vae, held_out, seed=0)["elbo"] == history["validation_elbo"].max()


def test_callback_sees_the_history_and_can_end_the_fit():
    lengths = []

    def stop_after_two(fit):
        lengths.append(len(fit.history))
        return len(fit.history) == 2

    fit = fitted(
        small_vae(family=DIAGONAL), torch.randn(8, 6), epochs=9, callbacks=[stop_after_two]
    )
    assert lengths == [1, 2]
    assert fit.stopped_early
    assert not fit.interrupted


def test_first_interrupt_ends_the_fit_after_a_whole_step():
    vae = small_vae(family=DIAGONAL)
    calls = []

    class Interrupted(pv.VAE):
        def model(self, x):
            calls.append(1)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGINT)
            return super().model(x)

    interrupted = Interrupted(prior=vae.p_z, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    other = copy.deepcopy(vae)
    fit = fitted(interrupted, torch.randn(20, 6), epochs=9, schedule=optim.constant)
    assert fit.interrupted
    assert len(fit.history) == 1
    # Exactly two of the five steps of the first epoch were taken, both whole.
    torch.manual_seed(0)
    assert len(calls) == 3  # two steps and the evaluation
    assert not torch.equal(parameters(interrupted), parameters(other))


def test_second_interrupt_raises():
    vae = small_vae(family=DIAGONAL)

    class Interrupted(pv.VAE):
        def model(self, x):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return super().model(x)

    interrupted = Interrupted(prior=vae.p_z, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    with pytest.raises(KeyboardInterrupt):
        fitted(interrupted, torch.randn(20, 6))
    assert all(p.grad is None for p in interrupted.parameters())


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_gradient_that_is_not_finite_never_reaches_a_parameter():
    vae = small_vae(family=DIAGONAL)

    class Broken(pv.VAE):
        def model(self, x):
            z = super().model(x)
            if len(calls) >= 3:
                pyro.factor("broken", self.p_x_given_z.decoder.layers[0].weight.sum() * math.nan)
            calls.append(1)
            return z

    calls = []
    broken = Broken(prior=vae.p_z, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    with pytest.raises(FloatingPointError, match="10 steps in a row where it is not"):
        fitted(broken, torch.randn(100, 6), epochs=1)
    assert parameters(broken).isfinite().all()


def test_last_batch_of_one_row_is_merged_where_batches_are_normalized():
    encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    vae = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(nn.Linear(2, 6), event_shape=(6,)),
        guide=guides.AmortizedGuide(families.DiagonalNormal(2), encoder),
    )
    fitted(vae, torch.randn(9, 6))
    assert encoder[0].num_batches_tracked == 4  # two epochs of 4 + 5 rows
    with pytest.raises(ValueError, match="at least two rows"):
        fitted(vae, torch.randn(1, 6))


class Conjugate(nn.Module):
    """Programs that a user wrote: no VAE, no part of ours."""

    def __init__(self):
        super().__init__()
        self.g = nn.Linear(1, 1)
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.g(x).squeeze(-1), self.log_scale.exp()))


@pytest.mark.parametrize("elbo", [None, Trace_ELBO(num_particles=2), TraceMeanField_ELBO()])
def test_programs_that_a_user_wrote_find_the_posterior(elbo):
    programs, x = Conjugate(), torch.randn(200, 1) * 2**0.5
    pv.fit(programs, x, epochs=60, batch_size=50, learning_rate=0.05, elbo=elbo, **QUIET)
    # p(z|x) = N(x/2, 1/2).
    assert abs(programs.g.weight.item() - 0.5) < 0.02
    assert abs(programs.g.bias.item()) < 0.02
    assert abs(programs.log_scale.exp().item() - 0.5**0.5) < 0.02


def test_subclass_with_another_model_is_fitted_by_it():
    class Shifted(pv.VAE):
        def model(self, x):
            pyro.module(f"{self.store_name}.p_x_given_z", self.p_x_given_z)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_full((2,), 3.0), 1.0).to_event(1))
                return pyro.sample("x", self.p_x_given_z(z), obs=x)

    truth = datasets.linear_gaussian(9, features=5, latent_dim=2, variance=3.0, seed=7).truth
    made = families.FullCovarianceNormal(2)
    base = linear_vae(truth, guide=guides.AmortizedGuide(made, nn.Linear(5, made.num_params)))
    vae = Shifted(prior=base.p_z, likelihood=base.p_x_given_z, guide=base.q_z_given_x)
    vae.p_x_given_z.requires_grad_(False)  # a frozen part stays as it is, without a warning
    x, _ = truth.simulate(300, seed=1)
    shifted = x + truth.weight.sum(-1) * 3
    pv.fit(vae, shifted, epochs=300, batch_size=150, learning_rate=0.05, **QUIET)
    expected = truth.posterior(x).mean + 3
    assert (truth.posterior(shifted).mean - expected).abs().mean() > 0.5  # the base's answer
    assert (vae.encode(shifted).mean - expected).abs().mean() < 0.1
    assert torch.equal(vae.p_x_given_z.decoder.weight, truth.weight)


def unregistered(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be a positive integer; got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer; got 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a positive integer"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive and finite; got 0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be positive"),
        ({"kl_weight": -1.0}, ValueError, "kl_weight must be finite and not negative; got -1"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be positive"),
        ({"patience": 3}, ValueError, "patience must come with validation data"),
        ({"seed": 0.5}, ValueError, "seed must be an integer"),
        ({"elbo": Trace_ELBO}, TypeError, "elbo must be an instance of pyro.infer.ELBO"),
        ({"validation": np.zeros((3, 5))}, ValueError, r"validation must have event shape \(6,\)"),
        ({"x": np.zeros((3, 5))}, ValueError, r"x must have event shape \(6,\).*got \(5,\)"),
        ({"x": np.zeros((0, 6))}, ValueError, "no rows"),
        ({"x": np.full((3, 6), np.nan)}, ValueError, "x must not contain NaN; got 18"),
        ({"x": np.full((3, 6), np.inf)}, ValueError, "inf"),
        ({"x": [["a"] * 6]}, TypeError, "x must"),
        ({"x": np.full((3, 6), 200, np.uint8)}, ValueError, "x must be scaled"),
        ({"x": pd.DataFrame({c: ["u", "v"] for c in "abcdef"})}, TypeError, "column"),
        ({"vae": nn.Linear(2, 2)}, TypeError, r"vae must have a model\(x\)"),
        (
            {"vae": SimpleNamespace(model=unregistered, guide=unregistered)},
            ValueError,
            "vae must register its parameters with Pyro",
        ),
    ],
)
def test_fit_refuses_what_it_cannot_use(options, error, message):
    vae = small_vae(family=DIAGONAL)
    before = parameters(vae)
    arguments = {"vae": vae, "x": torch.randn(8, 6), **options}
    with pytest.raises(error, match=message):
        fitted(arguments.pop("vae"), arguments.pop("x"), **arguments)
    assert torch.equal(parameters(vae), before)


def test_fit_refuses_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="device must be available; got 'cuda'"):
        fitted(small_vae(family=DIAGONAL), torch.randn(8, 6), device="cuda")


def test_fit_refuses_parameters_that_would_be_lost():
    class Loose(Conjugate):
        def guide(self, x):
            pyro.param("loose", torch.tensor(1.0))
            super().guide(x)

    with pytest.raises(ValueError, match=r"pyro.param sites \['loose'\]"):
        fitted(Loose(), torch.randn(8, 1))


def test_parameters_that_svi_does_not_see_are_named():
    class Forgetful(Conjugate):
        def guide(self, x):
            pyro.module("g", self.g)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.g(x).squeeze(-1), self.log_scale.exp()))

    with pytest.warns(UserWarning, match=r"1 parameter\(s\) of vae are not trained.*log_scale"):
        fitted(Forgetful(), torch.randn(8, 1))


def test_weights_that_are_not_contiguous_are_named():
    programs = Conjugate()
    programs.g = nn.Linear(3, 1)
    programs.g.weight = nn.Parameter(torch.randn(3, 2).mT[:1])
    vae = small_vae(family=DIAGONAL)
    layer = vae.q_z_given_x.encoder.layers[0]
    layer.weight = nn.Parameter(torch.randn(6, 8).mT)
    with pytest.warns(UserWarning, match="not contiguous in memory: q_z_given_x.encoder.layers.0"):
        fitted(vae, torch.randn(8, 6))


def test_clipping_bounds_the_step():
    x = torch.randn(8, 6) * 100
    vae = small_vae(family=DIAGONAL, variance=1e-3)
    before = parameters(vae)
    sgd = lambda params: torch.optim.SGD(params, lr=1.0)  # noqa: E731
    fitted(vae, x, epochs=1, batch_size=8, optimizer=sgd, schedule=optim.constant, clip_norm=0.25)
    assert abs((parameters(vae) - before).norm().item() - 0.25) < 1e-12


def test_schedule_multiplies_the_learning_rate_from_the_first_step_to_the_last():
    seen = []

    def schedule(progress):
        seen.append(progress)
        return 0.0

    vae = small_vae(family=DIAGONAL)
    before = parameters(vae)
    fitted(vae, torch.randn(8, 6), schedule=schedule)
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert torch.equal(parameters(vae), before)


class Images(nn.Module):
    """A user's decoder whose layers take exactly one batch dimension."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Unflatten(1, (2, 2, 2)),
            nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Flatten(1),
        )  # fmt: skip

    def forward(self, z):
        return self.layers(z)


def test_networks_that_take_one_batch_dimension_are_fitted_and_evaluated():
    made = families.FullCovarianceNormal(2)
    vae = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(Images(), event_shape=(16,)),
        guide=guides.AmortizedGuide(made, nn.Linear(16, made.num_params)),
    )
    x = torch.randn(9, 16)
    fit = fitted(vae, x, validation=x)
    assert np.isfinite(fit.history["validation_elbo"]).all()
    assert vae.log_importance_weights(x, num_samples=3).shape == (3, 9)


def test_columns_are_those_of_the_training_data():
    frame = pd.DataFrame(torch.randn(10, 6).numpy(), columns=list("abcdef"))
    vae = small_vae(family=DIAGONAL)
    expected = copy.deepcopy(vae)
    fitted(expected, frame.to_numpy(), validation=frame.to_numpy())
    fit = fitted(vae, frame, validation=frame[list("fedcba")])
    assert vae.columns == tuple("abcdef")
    assert torch.equal(parameters(vae), parameters(expected))
    data = torch.tensor(frame.to_numpy().copy()).flip(1)
    reversed_data = datasets.Dataset("reversed", data, columns=tuple("fedcba"))
    torch.testing.assert_close(vae.encode(reversed_data).mean, vae.encode(frame).mean)
    assert fit.history["validation_elbo"].iloc[-1] == fit.history["elbo"].iloc[-1]


def test_diagnostics_do_not_change_the_columns():
    vae = small_vae(family=DIAGONAL)
    elbo_terms(vae, pd.DataFrame(torch.randn(10, 6).numpy(), columns=list("abcdef")))
    assert vae.columns is None


def test_parameters_of_plain_objects_that_would_be_lost_are_refused():
    def model(x):
        scale = pyro.param("scale", x.new_ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    with pytest.raises(ValueError, match=r"pyro.param sites \['scale'\]"):
        fitted(SimpleNamespace(model=model, guide=lambda x: None), torch.randn(8))


def test_interrupt_in_a_callback_ends_the_fit():
    press = [lambda fit: signal.raise_signal(signal.SIGINT)]
    fit = fitted(small_vae(family=DIAGONAL), torch.randn(8, 6), epochs=9, callbacks=press)
    assert fit.interrupted
    assert len(fit.history) == 1


def test_patience_keeps_the_best_parameters_even_if_it_is_not_used_up():
    from pyro_vae.evaluation import evaluate

    x, held_out = torch.randn(8, 6), torch.randn(50, 6)
    vae = small_vae(family=DIAGONAL, variance=0.5, learn_variance=True)
    options = {"epochs": 60, "patience": 59, "learning_rate": 0.1, "schedule": optim.constant}
    fit = fitted(vae, x, validation=held_out, **options)
    assert fit.best_epoch < 60
    best = fit.history["validation_elbo"].max()
    assert evaluate(vae, held_out, seed=0)["elbo"] == best


def test_run_directory_holds_the_fit(tmp_path):
    import tomllib

    from safetensors.torch import load_file

    from pyro_vae.run_directory import RunDirectory

    vae, x = small_vae(family=DIAGONAL), torch.randn(8, 6)
    fit = fitted(vae, x, run_dir=tmp_path / "run", seed=4)
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(weights[name], t) for name, t in vae.state_dict().items())
    history = RunDirectory(tmp_path / "run").history()
    pd.testing.assert_frame_equal(history, fit.history, check_exact=True)
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["fit"]["seed"] == 4
    assert config["fit"]["elbo"] == "Trace_ELBO"
    environment = RunDirectory(tmp_path / "run").environment()
    assert environment["seed"] == 4
    assert environment["data"]["x"].startswith("8 rows of (6,), float64, sha256 ")
    with pytest.raises(FileExistsError, match="new or empty"):
        fitted(vae, x, run_dir=tmp_path / "run")


def test_loader_is_read_where_the_default_device_holds_no_numbers():
    vae, x = small_vae(family=DIAGONAL), torch.randn(8, 6)
    loader = DataLoader(TensorDataset(x), batch_size=4)
    with torch.device("meta"):
        fit = fitted(vae, loader, validation=loader)
    assert fit.history["elbo"].iloc[-1] == fit.history["validation_elbo"].iloc[-1]


def test_raw_gray_levels_are_refused_in_a_data_set_too():
    levels = torch.full((4, 6), 200, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"uint8 values in \[200, 200\]"):
        datasets.Dataset("gray", levels)
