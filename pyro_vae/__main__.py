"""``python -m pyro_vae``."""

import os
import sys

from pyro_vae.cli import main

if __name__ == "__main__":
    status = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # All is written and the group is closed. Python's own end takes threads of the backends
        # apart while they may still run, which now and then aborts a process that has done well,
        # and torchrun then counts the job as failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
