"""Fits in processes of their own, which signals end.

As a script it is a server: it imports torch once, and forks a process for each fit.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from resuming import At, Plain, fingerprint
from torch import nn

import pyro_vae as pv
from pyro_vae import datasets, families, fit_checkpoints, guides, likelihoods, priors


class Killer:
    """Runs fits in processes of their own, one after the other."""

    def __init__(self):
        paths = [str(Path(pv.__file__).parents[1]), str(Path(__file__).parent)]
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, **options):
        """Start a fit, and return the number of its process."""
        print(json.dumps(options), file=self.server.stdin, flush=True)
        return self.said("pid")

    def said(self, key):
        """What comes under a key, sooner or later."""
        for line in self.server.stdout:
            said = json.loads(line)
            if key in said:
                return said[key]
        raise RuntimeError("the server of processes died")

    def end(self):
        """What the fit said, and its exit status: negative where a signal ended it."""
        said = {}
        while "status" not in said:
            said |= json.loads(self.server.stdout.readline())
        said.pop("pid", None)
        return said

    def run(self, **options):
        """A fit to its end."""
        self.start(**options)
        return self.end()

    def close(self):
        self.server.kill()
        self.server.wait()
        self.server.stdin.close()
        self.server.stdout.close()


def serve():
    torch.set_num_threads(1)
    fit(run_dir=None, epochs=1)  # what a first fit imports is imported once
    gc.freeze()  # or its next round would copy all memory into the fork
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            end_with(fit, json.loads(line))
        say(pid=process)
        _, status = os.waitpid(process, 0)
        say(status=os.waitstatus_to_exitcode(status))


def end_with(function, options):
    """Call a function and end the process as Python would, but for taking itself apart first."""
    status = 1
    try:
        function(**options)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def say(**what):
    print(json.dumps(what), flush=True)


def network(first, inner, last):
    return nn.Sequential(
        nn.Linear(first, inner),
        nn.BatchNorm1d(inner),
        nn.Tanh(),
        nn.Dropout(0.1),
        nn.Linear(inner, last),
    )


def send(*numbers):
    for number in numbers:
        signal.raise_signal(number)


def fit(
    *,
    run_dir,
    resume=False,
    signals=(),
    at_step=None,
    kill_at_write=None,
    handles=None,
    bytes_left=None,
    epochs=12,
    weights=0,
    **options,
):
    """A fit to the digits.

    Args:
        run_dir: Directory, or None.
        resume: As in fit.
        signals: Numbers of signals that the process sends itself.
        at_step: When.
        kill_at_write: How often the process waits for the disk before SIGKILL comes.
        handles: "says" for a handler of SIGTERM that is there before, "ignores" for none.
        bytes_left: Size that no file may exceed from ``at_step`` on.
        epochs: As in fit.
        weights: Seed of the weights before the fit.
        options: More of the fit.
    """
    torch.manual_seed(weights)
    x = datasets.digits(dtype=torch.float32).x[:900]
    vae = pv.VAE(
        prior=priors.StandardNormal(3),
        likelihood=likelihoods.Gaussian(network(3, 32, 64), event_shape=(64,), variance=0.1),
        guide=guides.AmortizedGuide(families.DiagonalNormal(3), network(64, 32, 6)),
    )
    if handles == "says":
        signal.signal(signal.SIGTERM, lambda *_: say(handled=True))
    if handles == "ignores":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kill_at_write is not None:
        kill_at(kill_at_write)
    schedule = Plain()
    if at_step is not None and bytes_left is not None:
        schedule = At(at_step, lambda: limit(bytes_left))
    elif at_step is not None:
        schedule = At(at_step, lambda: send(*signals))
    # Saving takes most of the time here, so that most kills come while something is written.
    fit_checkpoints.MOST_OF_THE_TIME = 10.0
    before = signal.getsignal(signal.SIGTERM)
    say(begun=True)
    try:
        result = pv.fit(
            vae, x, epochs=epochs, batch_size=128, schedule=schedule, progress=False,
            run_dir=run_dir, resume=resume, **options,
        )  # fmt: skip
    except OSError as error:
        say(error=str(error), kind=type(error).__name__)
        result = pv.fit_result.FitResult(vae=vae, seed=0)
    say(
        fingerprint=fingerprint(result),
        epochs=len(result.rows),
        interrupted=result.interrupted,
        is_usable=bool(vae.reconstruct(x[:5]).isfinite().all()),
        restored=signal.getsignal(signal.SIGTERM) == before,
    )


def kill_at(count):
    sync, left = os.fsync, [count]

    def mortal(handle):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = mortal


def limit(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


if __name__ == "__main__":
    serve()
