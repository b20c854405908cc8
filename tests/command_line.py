"""The command line as a function, for the tests of its commands."""

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from pyro_vae.cli import main

TINY = ("--epochs", 2, "--hidden", 16, "--quiet")


class Answer(NamedTuple):
    status: int
    out: str
    err: str


def run(*words):
    """What one command answers."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's way
            status = stop.code
    return Answer(status, out.getvalue(), err.getvalue())


def ran(*words):
    """What a command prints that has to succeed."""
    answer = run(*words)
    assert (answer.status, answer.err) == (0, ""), answer.err
    return answer.out
