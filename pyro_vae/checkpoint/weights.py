"""A module's weights to and from disk. Files are data: nothing in them is ever executed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pyro_vae.files import write_whole
from pyro_vae.raw_bytes import raw_bytes

from .errors import CheckpointError, reason_of
from .tensors import copied_into

__all__ = ["load_weights", "save_weights"]

DIGEST = "sha256"
"""Key of the file's metadata under which the digest of names, types, shapes and numbers stands."""


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Write a module's parameters and buffers; an existing file is replaced as a whole or not.

    Extra state of a module's own is left out. The format is safetensors, which other programs
    read too, R among them. The file's metadata hold the sha256 of its content.

    Args:
        module: Any module.
        path: File to write.

    Raises:
        OSError: If the disk is full or the path cannot be written; an old file is then as it was.
    """
    # Copies where parts share memory: the format knows none that do.
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in sorted(module.state_dict().items())
        if isinstance(tensor, Tensor)
    }
    write_whole(path, save(state, metadata={DIGEST: _digest(state)}))


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Read what :func:`save_weights` wrote into a module of the same make, in place.

    Args:
        module: Its tensors keep their identity, type and device.
        path: File to read.

    Raises:
        CheckpointError: If the file is not there, is damaged, or belongs to another module; the
            module is then unchanged.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> saved, loaded = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> save_weights(saved, path)
        >>> load_weights(loaded, path)
        >>> torch.equal(saved.weight, loaded.weight)
        True
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"path must be a file of weights; got {path}, which is not there.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            known = (file.metadata() or {}).get(DIGEST)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged or foreign file makes the reader raise anything
        raise CheckpointError(
            f"path must be a file of weights; {path} is damaged, or not one: {reason_of(error)}"
        ) from error
    if known != _digest(state):
        raise CheckpointError(
            f"path must be a file of weights; {path} is damaged, or not one: its content differs "
            "from its sha256."
        )
    own = module.state_dict(keep_vars=True)
    copied_into({n: t for n, t in own.items() if isinstance(t, Tensor)}, state, str(path))


def _digest(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        numbers: Any = raw_bytes(tensor).numpy()
        digest.update(numbers)
    return digest.hexdigest()
