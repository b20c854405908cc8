"""Peers in processes of their own that run one at a time, in turns.

A worker imports, compiles and warms up once and then waits: of several workers only the one whose
turn it is computes. Both ends are here: :class:`Worker` and :func:`alternate` on the side of the
script, :class:`Channel` and :func:`serve` in the process of the peer. They exchange lines of JSON.

Only the standard library is imported, so that a peer may live in another environment.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Channel", "Worker", "Workers", "alternate", "serve"]

PAUSE = 0.05
"""Seconds between turns, in which the threads of the last peer fall asleep."""


class Worker:
    """The script's end of one peer.

    Args:
        name: Name in the table.
        module: Module of this folder that the process runs, as ``"peers.torch_steps"``.
        options: What the peer is told.
        python: The interpreter; this one unless given.
        environment: Environment variables beside those of this process.
        processes: How many processes make up the peer; more than one are started by ``torchrun``.

    Attributes:
        skipped: Why the peer does not take part, or None where it does.
        note: What the peer says of itself, as its version.
    """

    def __init__(
        self,
        name: str,
        module: str,
        options: Mapping[str, Any],
        *,
        python: str | os.PathLike[str] = sys.executable,
        environment: Mapping[str, str] | None = None,
        processes: int = 1,
    ) -> None:
        self.name = name
        self.skipped: str | None = None
        self.note = ""
        self._errors = tempfile.TemporaryFile()
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        launcher = torchrun if processes > 1 else []
        self._process = subprocess.Popen(
            [os.fspath(python), "-m", *launcher, module, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                **(environment or {}),
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
        )

    def wait_until_ready(self) -> None:
        """Wait for the peer to have imported and prepared what it needs."""
        message = self._read()
        self.note = message.get("note", "")

    def turn(self) -> dict[str, Any]:
        """Let the peer run once and return its figures; empty if it does not take part."""
        if self.skipped is not None or self._process.stdin is None:
            return {}
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            tail = self._errors.read().decode(errors="replace")[-6000:]
            raise RuntimeError(f"the process of {self.name!r} ended early:\n{tail}")
        message: dict[str, Any] = json.loads(line)
        self.skipped = message.get("skip")
        return {} if self.skipped is not None else message


class Workers:
    """Several workers, ended together when the ``with`` block is left."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def __enter__(self) -> Sequence[Worker]:
        return self._workers

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.close()


def alternate(
    workers: Sequence[Worker], *, rounds: int, warm_up: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Turns of all workers, round after round.

    Args:
        workers: They take turns in this order.
        rounds: Rounds that count.
        warm_up: Rounds before them that do not.

    Returns:
        The figures of each counted turn, by name. Peers that do not take part have no entry, and
        the reason is printed to standard error.
    """
    found: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
    for worker in workers:
        worker.wait_until_ready()
    for number in range(warm_up + rounds):
        for worker in workers:
            if worker.skipped is None:
                figures = worker.turn()
                time.sleep(PAUSE)
                if number >= warm_up and figures:
                    found[worker.name].append(figures)
    for worker in workers:
        if worker.skipped is not None:
            print(f"left out: {worker.name}: {worker.skipped}", file=sys.stderr)
    return {name: figures for name, figures in found.items() if figures}


class Channel:
    """The peer's end: it says when it is ready, waits for its turn, and reports."""

    def __init__(self) -> None:
        # Libraries print; whatever they write to standard output goes to standard error instead.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self, note: str = "") -> None:
        """Say that everything is prepared."""
        self.report(note=note)

    def wait(self) -> bool:
        """Wait for the next turn; False when there is none."""
        return bool(sys.stdin.readline())

    def skip(self, reason: str) -> None:
        """Say why this peer cannot take part."""
        self.report(skip=reason)

    def report(self, **figures: Any) -> None:
        """Hand over the figures of a turn."""
        self._out.write(json.dumps(figures) + "\n")
        self._out.flush()

    def repeat(self, turn: Callable[[], Mapping[str, Any]], note: str = "") -> None:
        """Be ready, and take turns for as long as there are any."""
        self.ready(note)
        while self.wait():
            self.report(**turn())


def serve(peer: Callable[[Channel, dict[str, Any]], None]) -> None:
    """Run a peer in this process, on as many cores as ``OMP_NUM_THREADS`` says.

    Args:
        peer: Called with the channel and with the options that the script gave.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if 0 < threads < len(cores):
        # Some libraries take every core that they see, whatever OMP_NUM_THREADS says.
        place = int(os.environ.get("LOCAL_RANK", "0")) * threads % len(cores)
        os.sched_setaffinity(0, (cores + cores)[place : place + threads])
    peer(Channel(), json.loads(sys.argv[1]))
