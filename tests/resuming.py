"""Fits that are stopped at a step and resumed, and what tells two fits apart to the last bit."""

import hashlib
import signal

import torch

import pyro_vae as pv
from pyro_vae import optim
from pyro_vae.checkpoint import as_module, named_tensors
from pyro_vae.checkpoint.state_file import digest_file, read_state, write_state


class Crash(Exception):
    """Ends a fit in the middle of a step, as a fault would."""


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def crash():
    raise Crash


class At:
    """A schedule that does something when a step begins, and in words is the schedule itself.

    A fit asks its schedule once before each step, compiled or not.
    """

    def __init__(self, step, act, schedule=optim.cosine):
        self.step, self.act, self.schedule = step, act, schedule
        self.num_calls = 0

    def __call__(self, progress):
        self.num_calls += 1
        if self.num_calls == self.step:
            self.act()
        return self.schedule(progress)

    def __repr__(self):
        return repr(self.schedule)


class Plain(At):
    """The schedule alone, under the same name."""

    def __init__(self, schedule=optim.cosine):
        super().__init__(0, crash, schedule)


def fingerprint(fit):
    """A sha256 of all parameters, all buffers, and the history but for its durations."""
    found = hashlib.sha256()
    for name, tensor in sorted(named_tensors(as_module(fit.vae)).items()):
        values = tensor.detach().cpu().contiguous()
        found.update(repr((name, tuple(values.shape), values.dtype)).encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in fit.rows]
    found.update(repr(rows).encode())
    found.update(repr((fit.best_epoch, fit.num_skipped, fit.stopped_early)).encode())
    return found.hexdigest()


OPTIONS = {"epochs": 3, "batch_size": 5, "learning_rate": 0.02, "progress": False, "seed": 3}


def run(case, *, schedule=None, weights=0, **options):
    """One fit of a case: a function to vae, x and options of the fit.

    Args:
        case: It.
        schedule: In place of its own.
        weights: Seed of the weights before the fit.
        options: More of the fit.
    """
    torch.manual_seed(weights)
    vae, x, own = case()
    own = {**OPTIONS, "schedule": optim.cosine, **own}
    own["schedule"] = Plain(own["schedule"]) if schedule is None else schedule(own["schedule"])
    return pv.fit(vae, x, **own, **options)


def at(step, act):
    """To be given to :func:`run` as the schedule."""
    return lambda schedule: At(step, act, schedule)


def change_state(directory, change):
    """Rewrite the last state of a run directory, and leave no other."""
    for name in ("state-previous.pt", "state-best.pt"):
        (directory / name).unlink(missing_ok=True)
        digest_file(directory / name).unlink(missing_ok=True)
    content, _ = read_state(directory / "state-last.pt")
    del content["format"]
    change(content)
    write_state(content, directory / "state-last.pt", before=None)
