"""A worker of ``scaling.py``: one fit or one evaluation, its time and its peak memory.

Under ``torchrun`` every process takes its part in the fit, and the first one reports.
"""

import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from workers import Channel, serve

import pyro_vae as pv
from peers.in_pyro import vae_of
from peers.problem import Size, data
from pyro_vae import diagnostics
from pyro_vae.optim.processes import started

__all__: list[str] = []

STATUS = Path("/proc/self/status")


def main(channel: Channel, options: dict[str, Any]) -> None:
    """One turn: the warm-up, then ``rounds`` runs that are timed."""
    size = Size(*options["size"])
    torch.manual_seed(0)
    x = torch.from_numpy(data(options["num_data"], size.features))
    vae = vae_of(size)
    with started(device="cpu") as processes:
        if processes.is_first:
            channel.ready()
            if not channel.wait():
                return
        warm_up(options)
        before = memory_so_far()
        if options["run"] == "fit":
            seconds = of_fit(vae, x, options)
        else:
            seconds = of_evidence(vae, x, options)
        peak = peak_memory() - before
        if processes.is_first:
            channel.report(seconds=statistics.median(seconds), every=seconds, peak=peak)
            channel.wait()


def warm_up(options: dict[str, Any]) -> None:
    """A small run: what libraries load when they are first used is not counted as memory."""
    size = Size(16, 8, 2)
    few = torch.from_numpy(data(32, size.features))
    run = of_fit if options["run"] == "fit" else of_evidence
    run(vae_of(size), few, {**options, "rounds": 1, "draws": 100, "batch": 16})


def of_fit(vae: pv.VAE, x: torch.Tensor, options: dict[str, Any]) -> list[float]:
    """Seconds of each epoch but the first, in which what is compiled is compiled."""
    settings: dict[str, Any] = {"compile": "required"} if options["compiled"] else {}
    fit = pv.fit(
        vae,
        x,
        epochs=options["rounds"] + 1,
        batch_size=options["batch"],
        schedule=pv.optim.constant,
        progress=False,
        **settings,
    )
    return [row["seconds"] for row in fit.rows[1:]]


def of_evidence(vae: pv.VAE, x: torch.Tensor, options: dict[str, Any]) -> list[float]:
    """Seconds of each evaluation."""
    seconds = []
    for _ in range(options["rounds"]):
        begun = time.perf_counter()
        diagnostics.log_evidence(vae, x, num_samples=options["draws"])
        seconds.append(time.perf_counter() - begun)
    return seconds


def memory_so_far() -> float:
    """Megabytes that the process holds now; the peak is counted anew from here on Linux."""
    if STATUS.is_file():
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return peak_memory()


def peak_memory() -> float:
    """Megabytes that the process held at most."""
    # A child's ru_maxrss begins with what its parent held when it was started.
    if STATUS.is_file():
        return _status("VmHWM")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _status(name: str) -> float:
    lines = STATUS.read_text().splitlines()
    found = next(line for line in lines if line.startswith(name))
    return int(found.split()[1]) / 2**10


if __name__ == "__main__":
    # Only the first process of several is spoken to.
    if os.environ.get("RANK", "0") != "0":
        sys.stdin = Path(os.devnull).open()
    serve(main)
