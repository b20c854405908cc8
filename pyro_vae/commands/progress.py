"""Whether a command shows its progress."""

import sys
from argparse import Namespace

__all__ = ["shows_progress"]


def shows_progress(options: Namespace) -> bool:
    """A bar for a person at a terminal, none in a log file or with ``--quiet``."""
    return not options.quiet and sys.stderr.isatty()
