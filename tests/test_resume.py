"""A fit that was stopped and resumed is, to the last bit, the one that never was."""

import math
import random
import signal
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from pyro.infer import TraceMeanField_ELBO
from ranks import Ranks
from resuming import At, Crash, Plain, at, change_state, crash, fingerprint, press_ctrl_c, run
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae import (
    datasets,
    families,
    fit_checkpoints,
    guides,
    likelihoods,
    objectives,
    optim,
    priors,
)
from pyro_vae.checkpoint import CheckpointError, StateFiles
from pyro_vae.compiled_svi import CompiledSVI
from pyro_vae.optim import Processes

NUM_STEPS = 15  # 23 rows by 5, three times
X = torch.randn(23, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
HELD_OUT = torch.randn(9, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def noisy_vae(dtype=torch.float64):
    """With batch norm, dropout, and a learned variance."""
    family = families.DiagonalNormal(2)
    encoder = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4)
    )
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 6))
    vae = pv.VAE(
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Gaussian(decoder, event_shape=(6,), variance=0.5),
        guide=guides.AmortizedGuide(family, encoder),
    )
    return vae.to(dtype)


def noisy():
    return noisy_vae(), X, {}


def single_precision():
    return noisy_vae(torch.float32), X.float(), {}


def sgd(params):
    return torch.optim.SGD(params, lr=0.02, momentum=0.9)


def adamw(params):
    return torch.optim.AdamW(params, lr=0.02, amsgrad=True)


def rmsprop(params):
    return torch.optim.RMSprop(params, lr=0.01, centered=True)


def momentum_and_warmup():
    return noisy_vae(), X, {"optimizer": sgd, "schedule": optim.warmup(0.5)}


def weight_decay_and_clipping():
    return noisy_vae(), X, {"optimizer": adamw, "clip_norm": 0.5}


def two_groups(params):
    """In another order than that of the names, and two of one shape."""
    return torch.optim.Adam(
        [{"params": params[2:]}, {"params": params[:2], "lr": 1e-4}], lr=0.02, betas=(0.8, 0.9)
    )


def groups_of_parameters():
    return noisy_vae(), X, {"optimizer": two_groups}


def mean_squares():
    return noisy_vae(), X, {"optimizer": rmsprop, "schedule": optim.constant}


def warmed_up_kl():
    return noisy_vae(), X, {"kl_weight": objectives.kl_warmup(0.7)}


def free_bits():
    return noisy_vae(), X, {"kl_weight": objectives.FreeBits(0.3)}


def importance_weighted():
    return noisy_vae(), X, {"elbo": objectives.ImportanceWeighted_ELBO(3)}


def mean_field():
    return noisy_vae(), X, {"elbo": TraceMeanField_ELBO()}


def with_validation():
    return noisy_vae(), X, {"validation": HELD_OUT}


def patient():
    # Rises and falls, so that it stops by itself after the resumption.
    options = {"epochs": 12, "patience": 2, "schedule": optim.constant, "learning_rate": 0.1}
    return noisy_vae(), X, {**options, "validation": HELD_OUT}


def guide_alone():
    return noisy_vae(), X, {"train": "guide"}


def per_datum_guide():
    vae = small_vae(family=families.DiagonalNormal)
    return pv.VAE(
        prior=vae.p_z,
        likelihood=vae.p_x_given_z,
        guide=guides.PerDatumGuide(families.DiagonalNormal(3), len(X)),
    ), X, {}  # fmt: skip


def flows():
    vae = pv.gaussian_vae(
        features=6,
        latent_dim=2,
        hidden=(4,),
        family=lambda k: families.Flow(k, hidden=(4,), context_dim=3),
        prior=lambda k: priors.FlowPrior(k, hidden=(4,)),
    )
    return vae, X, {}


def shared_parameters():
    vae = noisy_vae()
    prior = priors.VampPrior(vae.q_z_given_x, X[:4], learn_weights=True)
    made = pv.VAE(prior=prior, likelihood=vae.p_x_given_z, guide=vae.q_z_given_x)
    return made, X, {}


def last_row_alone():
    return noisy_vae(), X[:21], {}


def loader_of_global_order():
    return noisy_vae(), DataLoader(TensorDataset(X), batch_size=5, shuffle=True), {}


def loader_of_own_order():
    order = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(X), batch_size=5, shuffle=True, generator=order)
    return noisy_vae(), loader, {}


def loader_of_a_sampler():
    order = torch.Generator().manual_seed(5)
    sampler = torch.utils.data.RandomSampler(X, replacement=True, generator=order)
    return noisy_vae(), DataLoader(TensorDataset(X), batch_size=5, sampler=sampler), {}


class Noised(Dataset):
    """Draws from the global random state, as augmentation does."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(6), index


def loader_that_draws():
    return noisy_vae(), DataLoader(Noised(), batch_size=5, shuffle=True), {}


def loader_of_workers():
    order = torch.Generator().manual_seed(5)
    loader = DataLoader(Noised(), batch_size=5, shuffle=True, num_workers=2, generator=order)
    return noisy_vae(), loader, {}


def torch_dataset():
    return noisy_vae(), Noised(), {}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


def whole_stream():
    return noisy_vae(), Stream(), {"num_data": len(X)}


class Own(nn.Module):
    """A user's own programs, with a network that is shared between the two."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 6))

    def model(self, x):
        pyro.module("own", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1).expand([len(x), 2]).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("own", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.3).to_event(1))


class Holder:
    """An object that is no module, and holds some."""

    def __init__(self):
        self.parts = Own()

    def model(self, x):
        return self.parts.model(x)

    def guide(self, x):
        return self.parts.guide(x)


def own_module():
    return Own(), X, {}


def plain_object():
    return Holder(), X, {}


CASES = [
    noisy, single_precision, momentum_and_warmup, weight_decay_and_clipping, mean_squares,
    groups_of_parameters,
    warmed_up_kl, free_bits, importance_weighted, mean_field, with_validation, patient,
    guide_alone, per_datum_guide, flows, shared_parameters, last_row_alone,
    loader_of_global_order, loader_of_own_order, loader_of_a_sampler, loader_that_draws,
    torch_dataset, whole_stream, own_module, plain_object,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """The process survives here, so that nothing has to last through a power cut."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def every_step_saves(monkeypatch):
    """The clock alone says when to save; what saving costs does not count."""
    monkeypatch.setattr(fit_checkpoints, "MOST_OF_THE_TIME", math.inf)
    return {"checkpoint_seconds": 1e-9}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_fit_stopped_by_ctrl_c_goes_on_as_if_it_had_not_been(case, tmp_path):
    whole = fingerprint(run(case))
    # The middle of an epoch, and its end; of one case also the first step, and a first of others.
    for step in (1, 3, 10, 11) if case is noisy else (3, 10):
        path = tmp_path / str(step)
        stopped = run(case, schedule=at(step, press_ctrl_c), run_dir=path)
        assert stopped.interrupted
        resumed = run(case, weights=1, run_dir=path, resume=True)
        assert not resumed.interrupted
        assert fingerprint(resumed) == whole, step


def test_ctrl_c_in_the_epoch_in_which_patience_ends_the_fit_leaves_it_ended(tmp_path):
    whole = run(patient)
    assert whole.stopped_early
    last = 5 * len(whole.rows)
    stopped = run(patient, schedule=at(last, press_ctrl_c), run_dir=tmp_path)
    assert stopped.interrupted
    assert stopped.stopped_early
    resumed = run(patient, weights=1, run_dir=tmp_path, resume=True)
    assert fingerprint(resumed) == fingerprint(whole)


@pytest.mark.parametrize(
    "case", [with_validation, loader_of_own_order], ids=lambda case: case.__name__
)
def test_fit_that_crashed_goes_on_from_its_last_step(case, tmp_path, every_step_saves):
    whole = fingerprint(run(case))
    for step in (1, 2, 5, 6, 8, NUM_STEPS):
        path = tmp_path / str(step)
        with pytest.raises(Crash):
            run(case, schedule=at(step, crash), run_dir=path, **every_step_saves)
        state = StateFiles(path).load()
        # The state after the last step of an epoch waits for the evaluation; both are saved then.
        assert state["epoch"] * 5 + state["batch"] == step - 1
        resumed = run(case, weights=1, run_dir=path, resume=True)
        assert fingerprint(resumed) == whole, step


def test_fit_without_a_cadence_goes_on_from_its_start(tmp_path):
    whole = fingerprint(run(noisy))
    with pytest.raises(Crash):
        run(noisy, schedule=at(14, crash), run_dir=tmp_path, checkpoint_seconds=None)
    assert StateFiles(tmp_path).load()["epoch"] == 0
    assert fingerprint(run(noisy, weights=1, run_dir=tmp_path, resume=True)) == whole


def test_epochs_between_states_are_those_asked_for(tmp_path):
    options = {"epochs": 6, "checkpoint_epochs": 2, "checkpoint_seconds": None}
    with pytest.raises(Crash):
        run(lambda: (*noisy()[:2], options), schedule=at(29, crash), run_dir=tmp_path)
    assert StateFiles(tmp_path).load()["epoch"] == 4
    whole = fingerprint(run(lambda: (*noisy()[:2], {"epochs": 6})))
    case = lambda: (*noisy()[:2], options)  # noqa: E731
    assert fingerprint(run(case, weights=1, run_dir=tmp_path, resume=True)) == whole


def test_fit_may_be_stopped_again_and_again(tmp_path):
    whole = fingerprint(run(with_validation))
    fit = run(with_validation, schedule=at(1, press_ctrl_c), run_dir=tmp_path)
    num_stops = 1
    while fit.interrupted:
        fit = run(
            with_validation,
            schedule=at(2, press_ctrl_c),
            weights=num_stops,
            run_dir=tmp_path,
            resume=True,
        )
        num_stops += 1
    assert num_stops == 9  # one step of the fifteen, seven times two, and what had no step left
    assert fingerprint(fit) == whole


def test_loader_with_workers_goes_on(tmp_path):
    whole = fingerprint(run(loader_of_workers))
    run(loader_of_workers, schedule=at(8, press_ctrl_c), run_dir=tmp_path)
    assert fingerprint(run(loader_of_workers, run_dir=tmp_path, resume=True)) == whole


def test_memory_mapped_data_go_on(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())

    def case():
        return noisy_vae(), datasets.memory_mapped(tmp_path / "x.npy"), {}

    whole = fingerprint(run(case))
    run(case, schedule=at(8, press_ctrl_c), run_dir=tmp_path / "run")
    assert fingerprint(run(case, weights=1, run_dir=tmp_path / "run", resume=True)) == whole


def test_stream_of_several_epochs_says_that_it_is_read_from_its_start(tmp_path, caplog):
    def case():
        return noisy_vae(), Stream(), {"num_data": 10}

    run(case, schedule=at(3, press_ctrl_c), run_dir=tmp_path)
    assert caplog.messages == []
    run(case, run_dir=tmp_path, resume=True)
    (message,) = (m for m in caplog.messages if "x is read from its start" in m)
    assert "only where an epoch is the whole stream" in message


# What a state must hold: each of these forgets a part of it.


def no_optimizer(state):
    state["optimizer"] = {}


def no_second_moments(state):
    for each in state["optimizer"]["of_each"].values():
        each["exp_avg_sq"].zero_()


def no_step_counts(state):
    for each in state["optimizer"]["of_each"].values():
        each["step"].zero_()


def no_random_state(state):
    state["random"] = {}


def no_averages(state):
    state["tensors"]["q_z_given_x.encoder.1.running_mean"].zero_()


def no_loss_so_far(state):
    state["sums"] = [0.0, 0.0]


def no_history(state):
    state["rows"] = []


def no_best(state):
    state["best"], state["best_elbo"], state["best_epoch"] = {}, -math.inf, 0


def no_batch(state):
    state["batch"] = 0


def no_order(state):
    state["batches"] = {"first rows": state["batches"]["first rows"]}


def no_evaluated_rows(state):
    state["batches"].pop("first rows")


def no_change(state):
    """So that it is not the rewriting that is seen."""


OF_EVERY_FIT = [
    no_change, no_optimizer, no_second_moments, no_step_counts, no_random_state, no_averages,
    no_loss_so_far, no_history, no_batch,
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "forget"),
    [(with_validation, forget) for forget in OF_EVERY_FIT]
    + [(loader_of_own_order, forget) for forget in (no_change, no_order, no_evaluated_rows)]
    + [(patient, forget) for forget in (no_change, no_best)],
    ids=lambda value: value.__name__,
)
def test_every_part_of_a_state_is_needed(case, forget, tmp_path):
    whole = fingerprint(run(case))
    step = 33 if case is patient else 8  # after the best epoch, the sixth
    run(case, schedule=at(step, press_ctrl_c), run_dir=tmp_path)
    change_state(tmp_path, forget)
    resumed = run(case, run_dir=tmp_path, resume=True)
    assert (fingerprint(resumed) == whole) == (forget is no_change)


def test_fit_that_is_done_takes_no_step_and_gives_its_result_again(tmp_path):
    for case, is_early in ((with_validation, False), (patient, True)):
        path = tmp_path / case.__name__
        done = run(case, run_dir=path)
        files = {f.name: f.read_bytes() for f in path.iterdir()}
        again = run(case, schedule=at(1, crash), weights=1, run_dir=path, resume=True)
        assert done.stopped_early == again.stopped_early == is_early
        assert fingerprint(again) == fingerprint(done)
        assert [row["seconds"] for row in again.rows] == [row["seconds"] for row in done.rows]
        assert {f.name: f.read_bytes() for f in path.iterdir()} == files


def test_resumed_after_a_callback_has_ended_it_a_fit_stays_ended(tmp_path):
    done = run(noisy, run_dir=tmp_path, callbacks=[lambda fit: len(fit.rows) == 2])
    again = run(noisy, schedule=at(1, crash), weights=1, run_dir=tmp_path, resume=True)
    assert again.stopped_early
    assert len(again.rows) == 2
    assert fingerprint(again) == fingerprint(done)


def test_resume_of_a_directory_without_a_state_begins_there(tmp_path, caplog):
    whole = fingerprint(run(noisy))
    for name in ("new", "empty"):
        path = tmp_path / name
        if name == "empty":
            path.mkdir()
            (path / ".pyro-vae-state-last-ab12.pt").write_bytes(
                b"half"
            )  # killed before the first state
        assert fingerprint(run(noisy, run_dir=path, resume=True)) == whole
        assert not list(path.glob(".*"))
    assert [m for m in caplog.messages if "holds no state yet" in m]


def test_resume_needs_a_directory_and_a_word_that_it_knows(tmp_path):
    with pytest.raises(ValueError, match="resume must come with the run_dir of a fit; got True"):
        run(noisy, resume=True)
    with pytest.raises(ValueError, match="resume must be True, False or 'override'; got 'yes'"):
        run(noisy, resume="yes", run_dir=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="run_dir must be new or empty"):
        run(noisy, resume=True, run_dir=tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("checkpoint_epochs", 0, "checkpoint_epochs must be a positive integer; got 0"),
        ("checkpoint_epochs", 1.5, "checkpoint_epochs must be a positive integer; got 1.5"),
        ("checkpoint_seconds", 0, "checkpoint_seconds must be positive or None; got 0"),
        ("checkpoint_seconds", math.nan, "checkpoint_seconds must be .*; got nan"),
        ("checkpoint_seconds", "1", "checkpoint_seconds must be .*; got '1'"),
    ],
)
def test_wrong_cadences_raise_before_there_is_a_directory(tmp_path, option, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(noisy, run_dir=tmp_path / "run", **{option: value})
    assert list(tmp_path.iterdir()) == []


# Another fit than the one in the directory.


def other_value():
    x = X.clone()
    x[7, 3] += 1e-12
    return noisy_vae(), x, {}


def fewer_rows():
    return noisy_vae(), X[:22], {}


def other_type():
    return noisy_vae(), X.float().double(), {}


def other_batches():
    return noisy_vae(), X, {"batch_size": 6}


def more_epochs():
    return noisy_vae(), X, {"epochs": 4}


def other_rate():
    return noisy_vae(), X, {"learning_rate": 0.01}


def other_optimizer():
    return noisy_vae(), X, {"optimizer": sgd}


def other_noise():
    return noisy_vae(), X, {"seed": 4}


def other_weight():
    return noisy_vae(), X, {"kl_weight": 0.5}


def new_validation():
    return noisy_vae(), X, {"validation": HELD_OUT}


def other_schedule():
    return noisy_vae(), X, {"schedule": optim.constant}


def other_clipping():
    return noisy_vae(), X, {"clip_norm": 3.0}


def other_objective():
    return noisy_vae(), X, {"elbo": TraceMeanField_ELBO()}


def other_prior():
    vae = noisy_vae()
    return (
        pv.VAE(prior=priors.Laplace(2), likelihood=vae.p_x_given_z, guide=vae.q_z_given_x),
        X,
        {},
    )


def other_dropout():
    vae = noisy_vae()
    vae.q_z_given_x.encoder[3].p = 0.4
    return vae, X, {}


def two_at_once():
    return noisy_vae(), X, {"batch_size": 6, "epochs": 4}


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        (other_value, ["x"]),
        (fewer_rows, ["x"]),
        (other_type, ["x"]),
        (other_batches, ["batch_size"]),
        (more_epochs, ["epochs"]),
        (other_rate, ["learning_rate"]),
        (other_optimizer, ["optimizer"]),
        (other_noise, ["seed"]),
        (other_weight, ["kl_weight"]),
        (new_validation, ["validation"]),
        (other_schedule, ["schedule"]),
        (other_clipping, ["clip_norm"]),
        (other_objective, ["elbo"]),
        (other_prior, ["model"]),
        (other_dropout, ["model"]),
        (two_at_once, ["epochs", "batch_size"]),
    ],
    ids=lambda value: getattr(value, "__name__", " "),
)
def test_other_data_or_settings_raise_and_are_named(other, keys, tmp_path):
    run(noisy, schedule=at(8, press_ctrl_c), run_dir=tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="resume must go on with the same data and") as raised:
        run(other, weights=1, run_dir=tmp_path, resume=True)
    _, _, named = str(raised.value).partition("got others: ")
    named, _, mend = named.partition(". Call fit as before")
    assert [each.partition(" (")[0] for each in named.split("; ")] == keys
    assert "resume='override'" in mend
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def fixed(variance):
    def case():
        vae = small_vae(family=families.DiagonalNormal, variance=variance, learn_variance=False)
        return vae, X, {}

    return case


def test_other_fixed_variance_raises_and_is_named(tmp_path):
    run(fixed(0.5), schedule=at(8, press_ctrl_c), run_dir=tmp_path)
    with pytest.raises(ValueError, match="resume must go on with the same data and") as raised:
        run(fixed(0.4), run_dir=tmp_path, resume=True)
    assert "variance" in str(raised.value)
    resumed = run(fixed(0.5), weights=1, run_dir=tmp_path, resume=True)
    assert fingerprint(resumed) == fingerprint(run(fixed(0.5)))


@pytest.mark.parametrize(
    "other", [more_epochs, other_value, other_rate, other_noise], ids=lambda case: case.__name__
)
def test_override_goes_on_with_what_is_said_now(other, tmp_path, caplog):
    run(noisy, schedule=at(8, press_ctrl_c), run_dir=tmp_path)
    resumed = run(other, weights=1, run_dir=tmp_path, resume="override")
    assert any("the fit goes on with other data or settings" in m for m in caplog.messages)
    assert len(resumed.rows) == (4 if other is more_epochs else 3)
    assert all(p.isfinite().all() for p in resumed.vae.parameters())
    # From now on these are the settings.
    run(other, weights=1, run_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume must go on"):
        run(noisy, run_dir=tmp_path, resume=True)


def test_override_takes_the_epochs_that_are_more(tmp_path):
    run(noisy, run_dir=tmp_path)
    with pytest.raises(ValueError, match="epochs must be more than the 3 that are done"):
        run(noisy, run_dir=tmp_path, resume="override")
    resumed = run(more_epochs, run_dir=tmp_path, resume="override")
    assert list(resumed.history["epoch"]) == [1, 2, 3, 4]


def test_other_number_of_threads_is_told(tmp_path):
    run(noisy, schedule=at(8, press_ctrl_c), run_dir=tmp_path)
    torch.set_num_threads(2)
    try:
        with pytest.warns(UserWarning, match=r"not bitwise .* threads \(1 there, 2 here\)"):
            run(noisy, run_dir=tmp_path, resume=True)
    finally:
        torch.set_num_threads(1)


def wider():
    vae = noisy_vae()
    vae.q_z_given_x.encoder[0] = nn.Linear(6, 9)
    vae.q_z_given_x.encoder[1] = nn.BatchNorm1d(9)
    vae.q_z_given_x.encoder[4] = nn.Linear(9, 4)
    return vae, X, {}


def deeper():
    vae = noisy_vae()
    vae.q_z_given_x.encoder.append(nn.Linear(4, 4))
    return vae, X, {}


@pytest.mark.parametrize("other", [wider, deeper], ids=lambda case: case.__name__)
def test_state_of_another_model_raises_and_leaves_this_one_as_it_is(other, tmp_path):
    run(noisy, schedule=at(8, press_ctrl_c), run_dir=tmp_path)
    with pytest.raises(ValueError, match="got others: model"):
        run(other, run_dir=tmp_path, resume=True)
    vae, x, _ = other()
    before = {n: t.clone() for n, t in vae.state_dict().items()}
    with pytest.raises(CheckpointError, match="Build model and guide as they were") as raised:
        run(lambda: (vae, x, {}), run_dir=tmp_path, resume="override")
    assert "q_z_given_x.encoder" in str(raised.value)
    assert all(torch.equal(before[n], t) for n, t in vae.state_dict().items())


def test_second_ctrl_c_raises_and_the_last_state_is_intact(tmp_path, every_step_saves):
    whole = fingerprint(run(noisy))

    def press_twice():
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        run(noisy, schedule=at(8, press_twice), run_dir=tmp_path, **every_step_saves)
    state = StateFiles(tmp_path).load()
    assert (state["epoch"], state["batch"]) == (1, 2)
    assert fingerprint(run(noisy, weights=1, run_dir=tmp_path, resume=True)) == whole


def test_interrupted_fit_is_usable_and_says_how_far_it_came(tmp_path):
    fit = run(with_validation, schedule=at(8, press_ctrl_c), run_dir=tmp_path)
    assert list(fit.history["epoch"]) == [1, 2]
    assert not fit.vae.training
    assert fit.vae.reconstruct(X).isfinite().all()
    again = noisy_vae()
    fit_weights = fit.vae.state_dict()
    pv.run_directory.RunDirectory(tmp_path).read_weights(again)
    assert all(torch.equal(fit_weights[n], t) for n, t in again.state_dict().items())
    resumed = run(with_validation, weights=1, run_dir=tmp_path, resume=True)
    assert resumed.resumed_after == 1
    # What was not a whole epoch is one now, and the file tells what the result does.
    history = pv.run_directory.RunDirectory(tmp_path).history()
    assert list(history["epoch"]) == [1, 2, 3]
    np.testing.assert_array_equal(history["elbo"], resumed.history["elbo"])


def world():
    """What a fit must leave as it finds it."""
    store = pyro.get_param_store()
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        [
            part.tolist() if isinstance(part, np.ndarray) else part
            for part in np.random.get_state()
        ],
        list(warnings.filters),
        warnings.showwarning,
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        {name: id(store._params[name]) for name in store},
        torch.distributions.Distribution._validate_args,
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("stop", [press_ctrl_c, crash])
def test_world_is_as_it_was(stop, resumes, tmp_path, every_step_saves):
    pyro.param("mine", torch.ones(2))
    vae, other = noisy_vae(), noisy_vae()
    if resumes:
        run(lambda: (vae, X, {}), schedule=at(3, press_ctrl_c), run_dir=tmp_path)
    options = {
        "epochs": 3, "batch_size": 5, "learning_rate": 0.02, "progress": False, "seed": 3,
        "run_dir": tmp_path, "resume": resumes, **every_step_saves,
    }  # fmt: skip
    before = world()
    try:
        pv.fit(other, X, schedule=At(5, stop), **options)
    except Crash:
        assert stop is crash
    assert world() == before
    pv.fit(other, X, schedule=Plain(), **{**options, "resume": True})
    assert world() == before


# Two processes.


@pytest.fixture(scope="module")
def ranks():
    made = Ranks(2)
    yield made
    made.close()


def whole_of_one_process(step, act, path, resume):
    """A fit by this process and the others."""

    def case():
        return noisy_vae(), X, {"validation": HELD_OUT, "device": "cpu"}

    rank = Processes.current().rank
    schedule = None
    if step is not None and rank == 1:  # one process alone is told
        schedule = at(step, press_ctrl_c if act == "ctrl-c" else crash)
    try:
        fit = run(
            case,
            schedule=schedule,
            weights=rank + (7 if resume else 0),
            run_dir=path if rank == 0 else None,
            resume=resume,
            checkpoint_epochs=1,
        )
    except Crash:
        return "crash"
    return fit.interrupted, fingerprint(fit)


def test_two_processes_go_on_as_if_they_had_not_been_stopped(ranks, tmp_path):
    whole = ranks(whole_of_one_process, None, None, None, False)
    assert whole[0] == whole[1]
    # The first step, the one before a batch that is too small for both, and the last of an epoch.
    for step in (1, 9, 10):
        path = str(tmp_path / str(step))
        stopped = ranks(whole_of_one_process, step, "ctrl-c", path, False)
        assert [interrupted for interrupted, _ in stopped] == [True, True]
        assert ranks(whole_of_one_process, None, None, path, True) == whole, step


def test_state_of_two_processes_is_no_state_of_one(ranks, tmp_path):
    path = str(tmp_path / "run")
    ranks(whole_of_one_process, 3, "ctrl-c", path, False)
    with pytest.warns(UserWarning, match=r"not bitwise .* processes \(2 there, 1 here\)"):
        interrupted, _ = whole_of_one_process(None, None, path, True)
    assert not interrupted


# Compiled fits.


def compiled():
    """So long that the smaller last batch gets a graph too, after twenty runs."""
    return noisy_vae(), X, {"compile": "required", "epochs": 23}


def no_graphs(state):
    assert state["graphs"]
    state["graphs"] = {}


@pytest.mark.slow  # compilers take seconds, a minute on a busy machine
def test_compiled_fit_goes_on_with_its_graphs(tmp_path):
    whole = fingerprint(run(compiled))
    for step in (1, 2, 3, 7, 60, 101, 104, 105, 108):
        path = tmp_path / str(step)
        run(compiled, schedule=at(step, press_ctrl_c), run_dir=path)
        assert fingerprint(run(compiled, weights=1, run_dir=path, resume=True)) == whole, step
    # What the state knows of the graphs is needed: at step 104 the second one is due.
    path = tmp_path / "without"
    run(compiled, schedule=at(104, press_ctrl_c), run_dir=path)
    change_state(path, no_graphs)
    assert fingerprint(run(compiled, run_dir=path, resume=True)) != whole


def test_compiled_fit_has_its_graph_when_the_whole_one_has(tmp_path, monkeypatch):
    """The same without a compiler: which steps are the graph's, and with which parameters."""
    taken = []
    launch = CompiledSVI.launch

    def watched(svi, *args):
        status = launch(svi, *args)
        taken.append((isinstance(status, torch.Tensor), len(args[0])))
        return status

    monkeypatch.setattr(CompiledSVI, "launch", watched)

    def case():
        elbo = objectives.CompiledTrace_ELBO(backend="eager", required=True)
        return noisy_vae(), X, {"compile": "required", "elbo": elbo}

    whole = fingerprint(run(case))
    steps_of_the_whole = list(taken)
    assert [is_graph for is_graph, _ in taken[:5]] == [False, False, True, True, False]
    # Before the first graph, where it is due, and after it.
    for step in (1, 2, 7):
        path = tmp_path / str(step)
        run(case, schedule=at(step, press_ctrl_c), run_dir=path)
        taken.clear()
        assert fingerprint(run(case, weights=1, run_dir=path, resume=True)) == whole
        assert taken == steps_of_the_whole[step:]
