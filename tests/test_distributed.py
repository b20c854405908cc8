"""Two processes do what one does: gradients, parameters, evaluation, fits, and the command."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import linear_vae
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from ranks import Ranks
from torch import nn

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.datasets import LinearGaussian
from pyro_vae.evaluation import evaluate
from pyro_vae.interrupt import InterruptGuard
from pyro_vae.objectives import ImportanceWeighted_ELBO
from pyro_vae.optim import OneTorchOptim, adam
from pyro_vae.optim.distributed import DistributedOptim
from pyro_vae.optim.processes import Processes, started
from pyro_vae.seeding import generator, seeded

TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def ranks():
    """Two processes; they live as long as this file, since each start takes seconds."""
    pool = Ranks(2)
    yield pool
    pool.close()


class RowNoise(dist.Normal):
    """A normal whose draws have a noise that is given: that of one process and of two is alike."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape, _instance=None):
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return RowNoise(loc, scale, self.noise.expand(batch_shape))

    def rsample(self, sample_shape=()):
        return (self.loc + self.scale * self.noise).expand(self._extended_shape(sample_shape))


class Programs(nn.Module):
    """Model and guide with noise that is a function of the row.

    ``rare`` has a gradient in batches that hold a row with a large first value, ``idle`` never.
    """

    def __init__(self, seed=0, *, normalizes=False):
        super().__init__()
        with seeded(seed, "weights"):
            self.encoder = nn.Sequential(
                nn.Linear(4, 5), nn.BatchNorm1d(5) if normalizes else nn.Tanh(), nn.Linear(5, 4)
            )
            self.decoder = nn.Linear(2, 4)
            self.rare = nn.Parameter(torch.full((4,), 0.3))
            self.idle = nn.Parameter(torch.ones(1))

    def model(self, x):
        pyro.module("programs", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            loc = self.decoder(z)
            if (x[:, 0] > 3).any():
                loc = loc + self.rare * (x[:, :1] > 3)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("programs", self)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            noise = torch.sin(1000 * x[:, :2])
            return pyro.sample("z", RowNoise(loc, log_scale.exp(), noise).to_event(1))


def data(num_data=8):
    x = torch.randn(num_data, 4, generator=generator(1, "data"), dtype=torch.float64)
    x[0, 0] = 5.0
    return x


def arrays(programs):
    """Copies of all parameters and buffers."""
    return {k: v.detach().clone().numpy() for k, v in programs.state_dict().items()}


OBJECTIVES = {
    "elbo": lambda: Trace_ELBO(),
    "mean field": lambda: TraceMeanField_ELBO(),
    "renyi": lambda: RenyiELBO(alpha=0.0, num_particles=2),
    "importance weighted": lambda: ImportanceWeighted_ELBO(2),
}


class SeenSGD(torch.optim.SGD):
    """Keeps the gradients that it is handed, with the parameters' places."""

    def step(self):
        self.seen = [
            None if p.grad is None else p.grad.clone() for p in self.param_groups[0]["params"]
        ]
        return super().step()


def steps_of(optim, batches, objective):
    """Parameters after each step; a batch without rows is one of the other process."""
    programs = Programs()
    svi = SVI(programs.model, programs.guide, optim, OBJECTIVES[objective]())
    found = []
    for x in batches:
        optim.num_data = len(x)
        if len(x):
            svi.step(x)
        else:
            optim.take_part()
        found.append((arrays(programs), optim.num_data, optim.num_skipped))
    return found


def own_steps(splits, objective, clip_norm):
    """Some Adam steps in which this process has its share of each batch's first rows."""
    rank, x = Processes.current().rank, data()
    batches = [x[: sum(sizes)].split(sizes)[rank] for sizes in splits]
    optim = DistributedOptim(adam(0.05), clip_norm=clip_norm)
    return steps_of(optim, batches, objective)


def assert_same(ours, theirs, tolerance=TOLERANCE):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=tolerance, err_msg=name)


def assert_bitwise(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "splits",
    [
        [(4, 4)] * 6,
        [(5, 3), (7, 1), (3, 5), (1, 7)] * 2,
        [(4, 4), (1, 0), (7, 1), (0, 1), (5, 0)],
    ],
    ids=["even", "uneven", "empty"],
)
def test_adam_steps_of_two_processes_are_those_of_one_on_the_whole_batch(ranks, splits, objective):
    both = ranks(own_steps, splits, objective, None)
    alone = steps_of(OneTorchOptim(adam(0.05)), [data()[: sum(s)] for s in splits], objective)
    for one, first, second in zip(alone, *both, strict=True):
        assert_same(first[0], one[0])
        assert_bitwise(first[0], second[0])
        assert first[1:] == second[1:] == one[1:]
    # The steps were steps.
    assert abs(alone[0][0]["rare"] - alone[-1][0]["rare"]).max() > 0.01
    assert alone[-1][0]["idle"] == 1.0


def test_clipping_is_by_the_norm_of_the_whole_gradient(ranks):
    splits = [(5, 3), (7, 1), (4, 4)]
    both = ranks(own_steps, splits, "elbo", 0.5)
    batches = [data()[: sum(s)] for s in splits]
    alone = steps_of(OneTorchOptim(adam(0.05), clip_norm=0.5), batches, "elbo")
    free = steps_of(OneTorchOptim(adam(0.05)), batches, "elbo")
    assert_same(both[0][-1][0], alone[-1][0])
    assert_same(both[1][-1][0], alone[-1][0])
    assert abs(free[-1][0]["decoder.weight"] - alone[-1][0]["decoder.weight"]).max() > 1e-4


def gradient_of(optim_type, x):
    programs = Programs()
    seen = []

    def make(params):
        seen.append(SeenSGD(params, lr=0.1))
        return seen[0]

    optim = optim_type(make)
    optim.num_data = len(x)
    SVI(programs.model, programs.guide, optim, Trace_ELBO()).step(x)
    return [None if grad is None else grad.numpy() for grad in seen[0].seen]


def own_gradient(sizes):
    return gradient_of(DistributedOptim, data().split(sizes)[Processes.current().rank])


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3), (7, 1)], ids=str)
def test_gradient_of_two_processes_is_that_of_one_on_the_whole_batch(ranks, sizes):
    alone = gradient_of(OneTorchOptim, data())
    assert sum(grad is None for grad in alone) == 1  # "idle", which has none anywhere
    for found in ranks(own_gradient, sizes):
        for ours, theirs in zip(found, alone, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def noisy_steps():
    """Steps with noise of each process's own."""
    processes, programs = Processes.current(), pv.gaussian_vae(features=4, latent_dim=2)
    processes.broadcast(programs.state_dict().values())
    optim = DistributedOptim(adam(0.05))
    svi = SVI(programs.model, programs.guide, optim, Trace_ELBO())
    x = data()[5:] if processes.rank else data()[:5]
    with seeded(0, "noise", 0, *processes.noise):
        draw = torch.rand(()).item()
        for _ in range(10):
            optim.num_data = len(x)
            svi.step(x)
    return arrays(programs), draw


def test_processes_stay_bitwise_equal_under_noise_of_their_own(ranks):
    (first, one_draw), (second, other_draw) = ranks(noisy_steps)
    assert_bitwise(first, second)
    assert one_draw != other_draw


def steps_past_a_bad_row():
    """The second process has a row that is not finite in the second of three steps."""
    rank, x = Processes.current().rank, data()
    bad = x.clone()
    bad[7, 1] = math.inf
    with pyro.validation_enabled(False):
        optim = DistributedOptim(adam(0.05))
        return steps_of(optim, [b.split((5, 3))[rank] for b in (x, bad, x)], "elbo")


def test_gradient_that_is_not_finite_on_one_process_is_skipped_by_both(ranks):
    both = ranks(steps_past_a_bad_row)
    alone = steps_of(OneTorchOptim(adam(0.05)), [data(), data()], "elbo")
    for found in both:
        assert [skipped for *_, skipped in found] == [0, 1, 1]
        assert_bitwise(found[0][0], found[1][0])
        assert_same(found[2][0], alone[1][0])


def step_from_different_starts():
    optim = DistributedOptim(adam(0.05))
    programs = Programs(seed=Processes.current().rank)
    SVI(programs.model, programs.guide, optim, Trace_ELBO()).step(data())


def step_of_different_programs():
    optim = DistributedOptim(adam(0.05))
    programs = Programs(normalizes=Processes.current().rank == 1)
    SVI(programs.model, programs.guide, optim, Trace_ELBO()).step(data())


def step_without_rows():
    DistributedOptim(adam(0.05)).take_part()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (step_from_different_starts, r"parameters must be equal .* Call Processes"),
        (step_of_different_programs, r"programs must register the same .* on process"),
        (step_without_rows, r"the first batch must have rows for every process; got none"),
    ],
)
def test_what_cannot_be_one_fit_is_refused_by_both_processes(ranks, function, message):
    for error in ranks(function):
        assert isinstance(error, RuntimeError)
        pytest.raises(RuntimeError, throw, error).match(message)


def throw(error):
    raise error


def broadcast_kinds():
    rank = Processes.current().rank
    tensors = [
        torch.tensor([rank == 0, False]),
        torch.arange(3) + rank,
        torch.full((), 1.5 - rank),
        torch.zeros(0),
        torch.full((2, 3), 2.0 + rank, dtype=torch.float32).t(),
        torch.ones(1).expand(4),  # could not be written to
        torch.tensor([1.0, math.nan])[rank : rank + 1],
    ]
    same = Processes.current().agree([torch.ones(2)]), Processes.current().agree(tensors[:2])
    Processes.current().broadcast(tensors)
    return [t.numpy() for t in tensors], same


def test_broadcast_gives_the_first_process_s_tensors_of_any_type(ranks):
    for tensors, same in ranks(broadcast_kinds):
        assert same == (True, False)
        expected = [[True, False], [0, 1, 2], 1.5, [], np.full((3, 2), 2.0), np.ones(4), [1.0]]
        for tensor, values in zip(tensors, expected, strict=True):
            np.testing.assert_array_equal(tensor, values)


def answers_together():
    processes = Processes.current()
    flags = [processes.any(flag) for flag in (False, processes.rank == 1, True)]
    kept = torch.tensor([1.0 + processes.rank])
    total = processes.sum(kept)
    with processes.first_ahead():
        moment = time.monotonic()
        time.sleep(0.2)
    return flags, kept.item(), total.item(), moment, os.environ.get("GLOO_SOCKET_IFNAME")


def test_sums_and_flags_are_of_all_and_the_first_goes_ahead(ranks):
    (flags, kept, total, moment, interface), second = ranks(answers_together)
    assert flags == second[0] == [False, True, True]
    assert (kept, second[1]) == (1.0, 2.0)
    assert total == second[2] == 3.0
    assert second[3] >= moment + 0.2
    assert interface in {"lo", "lo0"}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_data", [1, 2, 3, 7, 8, 11])
def test_parts_are_all_rows_once_and_none_is_a_lone_row(size, num_data):
    parts = [Processes(rank, size).part(torch.arange(num_data)) for rank in range(size)]
    assert torch.equal(torch.cat(parts), torch.arange(num_data))
    lengths = [len(part) for part in parts if len(part)]
    assert max(lengths) - min(lengths) <= 1
    assert num_data == 1 or min(lengths) >= 2
    assert len(lengths) == size or num_data < 2 * size


TRUTH = LinearGaussian(
    torch.tensor([[1.0, 0.2], [0.5, -1.0], [0.3, 0.4], [2.0, 1.0]], dtype=torch.float64),
    torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64),
    variance=0.7,
)


def own_evaluation(sizes):
    processes, vae = Processes.current(), linear_vae(TRUTH)
    x = data(sum(sizes)).split(sizes)[processes.rank]
    return evaluate(vae, x, seed=3, processes=processes)


@pytest.mark.parametrize("sizes", [(6, 6), (7, 4), (5, 0), (1, 0)], ids=str)
def test_evaluation_by_two_processes_is_that_of_one(ranks, sizes):
    # At the exact posterior a draw's log weight is log p(x), whatever the noise.
    x = data(sum(sizes))
    log_p = TRUTH.log_prob(x)
    first, second = ranks(own_evaluation, sizes)
    alone = evaluate(linear_vae(TRUTH), x, seed=3)
    assert repr(first) == repr(second)
    assert alone["elbo"] == pytest.approx(log_p.mean().item(), abs=TOLERANCE)
    if len(x) > 1:
        standard_error = (log_p.std() / math.sqrt(len(x))).item()
        assert alone["elbo_se"] == pytest.approx(standard_error, abs=TOLERANCE)
    for name, value in alone.items():
        assert first[name] == pytest.approx(value, abs=TOLERANCE, nan_ok=True)


def own_fit(num_data, run_dir, interrupts_after, normalizes):
    programs = Programs(seed=Processes.current().rank, normalizes=normalizes)
    epochs_seen = []

    def callback(result):
        epochs_seen.append(len(result.rows))
        if len(result.rows) == interrupts_after and Processes.current().rank == 1:
            signal.raise_signal(signal.SIGINT)

    fit = pv.fit(
        programs,
        data(num_data),
        validation=data(5),
        epochs=4,
        batch_size=8,
        learning_rate=0.05,
        progress=False,
        device="cpu",
        run_dir=run_dir and f"{run_dir}-{Processes.current().rank}",
        callbacks=[callback],
    )
    history = fit.history.drop(columns="seconds").to_numpy()
    return arrays(programs), history, fit.interrupted, epochs_seen


@pytest.mark.parametrize("num_data", [16, 21, 17], ids=["even", "uneven", "empty"])
def test_fit_by_two_processes_is_that_of_one(ranks, num_data):
    alone, history, *_ = own_fit(num_data, None, None, False)
    for found, found_history, *_ in ranks(own_fit, num_data, None, None, False):
        assert_same(found, alone, tolerance=1e-11)
        np.testing.assert_allclose(found_history, history, rtol=0, atol=1e-10)


def test_processes_end_a_fit_with_the_same_buffers_and_the_same_history(ranks):
    (first, history, *_), (second, other, *_) = ranks(own_fit, 21, None, None, True)
    assert first["encoder.1.num_batches_tracked"] == 12
    assert_bitwise(first, second)
    assert history.tobytes() == other.tobytes()


def test_one_process_writes(ranks, tmp_path):
    answers = ranks(own_fit, 16, str(tmp_path / "run"), None, False)
    assert not any(isinstance(answer, Exception) for answer in answers), answers
    (run,) = tmp_path.iterdir()
    assert run.name == "run-0"
    assert {"config.toml", "weights.safetensors", "metrics.jsonl"} <= {
        path.name for path in run.iterdir()
    }


def test_ctrl_c_at_one_process_ends_the_fit_of_both_alike(ranks):
    (first, _, *first_end), (second, _, *second_end) = ranks(own_fit, 16, None, 2, False)
    assert first_end == second_end == [True, [1, 2]]
    assert_bitwise(first, second)


def fit_of_own_rows():
    pv.fit(Programs(), data(16)[Processes.current().rank :: 2], epochs=1, progress=False)


def fit_with_own_seed():
    rank = Processes.current().rank
    pv.fit(Programs(), data(16), epochs=1, seed=rank, progress=False)


def fit_with_tiny_batches():
    pv.fit(Programs(), data(16), epochs=1, batch_size=3, progress=False)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fit_of_own_rows, "fit must be called with the same data and settings"),
        (fit_with_own_seed, "fit must be called with the same data and settings"),
        (fit_with_tiny_batches, "batch_size must be at least 4 for 2 processes"),
    ],
)
def test_calls_that_are_no_one_fit_are_refused_by_both_processes(ranks, function, message):
    for error in ranks(function):
        assert isinstance(error, ValueError)
        pytest.raises(ValueError, throw, error).match(message)


def fit_into(path):
    pv.fit(Programs(), data(16), epochs=1, run_dir=path, progress=False)


def test_an_error_of_the_first_process_alone_ends_both(ranks, tmp_path):
    (tmp_path / "something").touch()
    first, second = ranks(fit_into, str(tmp_path))
    assert isinstance(first, FileExistsError)
    assert isinstance(second, RuntimeError)
    pytest.raises(RuntimeError, throw, second).match("run_dir must serve every process")


def ctrl_c_before_a_step():
    """Interrupt one process between two steps of an epoch."""
    processes, programs = Processes.current(), Programs()
    optim = DistributedOptim(adam(0.05))
    svi = SVI(programs.model, programs.guide, optim, Trace_ELBO())
    with InterruptGuard() as guard:
        for index in range(5):
            if index == 3 and processes.rank == 0:
                signal.raise_signal(signal.SIGINT)
            optim.num_data, optim.wants_stop = 8, guard.requested
            svi.step(data())
            if optim.wants_stop:
                return index
    return None


def test_wish_to_stop_reaches_every_process_in_the_same_step(ranks):
    assert ranks(ctrl_c_before_a_step) == [3, 3]


def die_in_a_step(how):
    """The second process goes in the middle of the third step; the first must be told."""
    programs, optim = Programs(), DistributedOptim(adam(0.05))
    svi = SVI(programs.model, programs.guide, optim, Trace_ELBO())
    for index in range(5):
        if index == 2 and Processes.current().rank == 1:
            os.kill(os.getpid(), how)
        optim.num_data = 8
        svi.step(data())


@pytest.mark.parametrize(
    ("how", "timeout"),
    [
        pytest.param(signal.SIGKILL, 40.0, id="killed"),
        # It waits for the timeout.
        pytest.param(signal.SIGSTOP, 8.0, id="hanging", marks=pytest.mark.slow),
    ],
)
def test_process_that_is_gone_ends_the_others_with_an_error_that_says_so(how, timeout):
    pool = Ranks(2, timeout=timeout)
    try:
        assert pool(math.sqrt, 4.0) == [2.0, 2.0]  # they are there
        for pipe in pool.pipes:
            pipe.send((die_in_a_step, (how,)))
        assert pool.pipes[0].poll(30), "the first process still waits"
        error = pool.pipes[0].recv()
        pytest.raises(RuntimeError, throw, error).match(
            r"all processes must take part to the end; got one that has ended or does not answer"
        )
    finally:
        pool.close()


def test_process_by_itself_is_a_group_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with started() as processes:
        assert processes == Processes.current() == Processes(0, 1)
        assert not torch.distributed.is_initialized()
    assert processes.is_first
    assert processes.noise == ()
    x = data()
    assert torch.equal(processes.part(x), x)
    assert (processes.any(True), processes.any(False)) == (True, False)
    found = steps_of(DistributedOptim(adam(0.05)), [x, x], "elbo")
    pyro.get_param_store().clear()
    assert_bitwise(found[-1][0], steps_of(OneTorchOptim(adam(0.05)), [x, x], "elbo")[-1][0])


def test_fewer_gpus_than_processes_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    for device, kind, message in [
        ("cuda", RuntimeError, r"got process 1 and \d GPU"),
        ("cuda:0", ValueError, "device must be 'cuda'"),
    ]:
        with pytest.raises(kind, match=message), started(device=device):
            pass


TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
    "-m", "pyro_vae",
]  # fmt: skip


def environment():
    root = str(Path(pv.__file__).parent.parent)
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "MPLBACKEND": "agg"}


def test_command_under_torchrun_leaves_one_run_directory_and_prints_once(tmp_path):
    words = ["fit", "--data", "digits", "--epochs", "2", "--hidden", "16", "--batch-size", "64"]
    answer = subprocess.run(
        [*TORCHRUN, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert {"config.toml", "weights.safetensors", "metrics.jsonl", "report.txt", "latent.png"} <= {
        path.name for path in run.iterdir()
    }
    assert answer.stdout.count("everything is in") == 1
    assert answer.stdout.count("by 2 processes") == 1
    assert "pyro-vae" not in answer.stderr


@pytest.mark.slow  # it waits for torchrun to start, fit for a while, and wind up
def test_killed_process_ends_torchrun_within_a_minute(tmp_path):
    words = ["fit", "--epochs", "100000", "--hidden", "16", "--out", "run"]
    job = subprocess.Popen(
        [*TORCHRUN, *words], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "config.toml").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(5)
        workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        _, stderr = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode != 0
    assert "Signal 9 (SIGKILL)" in stderr


def test_other_commands_are_refused_under_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["info", "run"]) == 2
    assert "pyro-vae info (process 1): info must be run by one process; got 2." in (
        capsys.readouterr().err
    )
