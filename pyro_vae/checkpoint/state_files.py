"""The states that a run directory holds: the last one, the one before it, and the best."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.files import UNFINISHED

from .errors import CheckpointError
from .state_file import digest_file, read_state, write_digest, write_state

__all__ = ["StateFiles"]

LAST, PREVIOUS, BEST = "state-last.pt", "state-previous.pt", "state-best.pt"


class StateFiles:
    """``state-last.pt``, ``state-previous.pt`` and ``state-best.pt`` in one directory.

    Each has its ``.sha256`` beside it. At every moment one of the first two is whole.

    Args:
        directory: Where they are.

    Example:
        >>> import tempfile
        >>> files = StateFiles(tempfile.mkdtemp())
        >>> for epoch in (1, 2):
        ...     files.save({"epoch": epoch})
        >>> files.load()["epoch"]
        2
        >>> sorted(path.name for path in files.directory.iterdir() if path.suffix == ".pt")
        ['state-last.pt', 'state-previous.pt']
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        # Digests of what is there, as far as this object knows.
        self._digests: dict[str, str] = {}

    @property
    def exist(self) -> bool:
        """Whether there is a state, whole or damaged."""
        return any((self.directory / name).exists() for name in (LAST, PREVIOUS))

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the last state; the one that was the last becomes the previous one.

        Raises:
            OSError: If the disk is full or the directory cannot be written; what was the last
                state is still there.
        """
        last = self.directory / LAST
        if LAST in self._digests and last.exists():
            self._keep_as_previous(last)
        self._digests[LAST] = write_state(content, last, before=self._digests.get(LAST))

    def save_best(self, content: Mapping[str, Any]) -> None:
        """Write the best state.

        Raises:
            OSError: If the disk is full or the directory cannot be written.
        """
        path = self.directory / BEST
        self._digests[BEST] = write_state(content, path, before=self._digests.get(BEST))

    def best_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the best epoch, by name.

        Raises:
            CheckpointError: If there are none, or the file is damaged.
        """
        path = self.directory / BEST
        tensors = read_state(path)[0].get("tensors")
        if not isinstance(tensors, dict) or not all(
            isinstance(each, Tensor) for each in tensors.values()
        ):
            raise CheckpointError(f"path must hold the weights of the best epoch; got {path}.")
        return tensors

    def load(self) -> dict[str, Any]:
        """The last state, or the previous one where the last is damaged, with a warning.

        Raises:
            CheckpointError: If neither can be read: what is wrong with both.
        """
        try:
            content, self._digests[LAST] = read_state(self.directory / LAST)
        except CheckpointError as error:
            try:
                content, self._digests[PREVIOUS] = read_state(self.directory / PREVIOUS)
            except CheckpointError as other:
                raise CheckpointError(f"{error} Nor is there a previous state: {other}") from error
            warnings.warn(
                f"{error} The fit goes on from the state before it, {PREVIOUS}.",
                UserWarning,
                stacklevel=2,
            )
        return content

    def _keep_as_previous(self, last: Path) -> None:
        previous = self.directory / PREVIOUS
        digest = self._digests[LAST]
        write_digest(previous, digest, before=self._digests.get(PREVIOUS))
        # A second name for the file, so that the last state is there all the time.
        second = self.directory / f"{UNFINISHED}{PREVIOUS}"
        second.unlink(missing_ok=True)
        try:
            os.link(last, second)
        except OSError:  # a file system without links
            second.write_bytes(last.read_bytes())
        try:
            second.replace(previous)
        finally:
            second.unlink(missing_ok=True)
        self._digests[PREVIOUS] = digest

    def remove(self) -> None:
        """Delete all states, as before a fit that starts anew."""
        for name in (LAST, PREVIOUS, BEST):
            for path in (self.directory / name, digest_file(self.directory / name)):
                path.unlink(missing_ok=True)
        self._digests.clear()
