"""A module's state to and from disk. Files are data: nothing in them is ever executed."""

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_vae.files import replaced_file

__all__ = ["CheckpointError", "load_weights", "save_weights"]


class CheckpointError(RuntimeError):
    """A file that cannot be read as the state that was asked for; the message says why."""


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Write a module's parameters and buffers; an existing file is replaced as a whole or not.

    The file loads with ``torch.load(path, weights_only=True)``.

    Args:
        module: Any module.
        path: File to write.

    Raises:
        OSError: If the disk is full or the path cannot be written; an old file is then as it was.
    """
    # In memory first: torch tells of a full disk as a RuntimeError about positions in the file,
    # and gives the archive the name of the temporary file, so that equal weights differ.
    content = io.BytesIO()
    torch.save({name: t.detach().cpu() for name, t in module.state_dict().items()}, content)
    with replaced_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Read what :func:`save_weights` wrote into a module of the same make, in place.

    Args:
        module: Its tensors keep their identity, type and device.
        path: File to read.

    Raises:
        CheckpointError: If the file is not there, is damaged, would execute code, or belongs to
            another module; the module is then unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "weights.pt"
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
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file makes the readers raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"path must be a file of weights; {path} is damaged, or not one: {reason}"
        ) from error
    if not isinstance(state, dict) or not all(torch.is_tensor(t) for t in state.values()):
        raise CheckpointError(f"path must hold a module's weights; {path} holds something else.")
    own = module.state_dict()
    if state.keys() != own.keys():
        raise CheckpointError(
            f"path must hold this module's weights; {path} lacks {sorted(own.keys() - state)} and "
            f"has {sorted(state.keys() - own)} besides."
        )
    wrong = [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        shapes = [f"{n}: {tuple(state[n].shape)}, not {tuple(own[n].shape)}" for n in wrong]
        raise CheckpointError(f"path must hold weights of this module's shapes; got {shapes}.")
    unlike = [name for name in own if not _is_copyable(state[name], own[name])]
    if unlike:
        kinds = [f"{n}: {state[n].layout} {state[n].dtype} on {state[n].device}" for n in unlike]
        raise CheckpointError(f"path must hold dense numbers of this module's kind; got {kinds}.")
    module.load_state_dict(state)


def _is_copyable(source: Tensor, target: Tensor) -> bool:
    """Whether ``source`` holds numbers that a copy into ``target`` takes over as they are."""
    both_floating = source.is_floating_point() and target.is_floating_point()
    same_kind = source.dtype == target.dtype or both_floating
    return same_kind and source.layout == torch.strided and not source.is_meta


def _check_sums(path: Path) -> None:
    """Raise BadZipFile if an entry differs from its checksum, which torch does not compare."""
    with zipfile.ZipFile(path) as archive:
        # Of an entry that is marked as a folder torch reads no content, but whatever is in memory.
        folders = [info.filename for info in archive.infolist() if info.external_attr & 0x10]
        damaged = archive.testzip() or next(iter(folders), None)
    if damaged is not None:
        raise zipfile.BadZipFile(f"entry {damaged} differs from its checksum")
