"""The processes that share one fit: the only place that knows of more than one."""

import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_vae.raw_bytes import raw_bytes, same_bits

__all__ = ["Processes", "started"]

LEAST_ROWS = 2
"""Rows in a part of a batch: with one row a network that normalizes over them could not run."""

LONGEST_WAIT = 50.0
"""Seconds for an answer of the other processes: a dead one is to end the job within a minute."""

LONGEST_HEAD_START = timedelta(hours=1)
"""For what one process does before the others, as a download."""


@dataclass(frozen=True)
class Processes:
    """This process and the others of its group; one by itself is a group of one.

    Every method but :meth:`part` has to be called by all processes of the group, in the same
    order and with tensors of the same shapes, and gives the same on all of them.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.

    Example:
        >>> processes = Processes.current()
        >>> processes.is_first, processes.size, processes.sum(torch.tensor([3.0]))
        (True, 1, tensor([3.]))
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """The group that ``torch.distributed`` has, else a group of one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def noise(self) -> tuple[int, ...]:
        """What :func:`pyro_vae.seeding.seeded` needs to give each process noise of its own."""
        return (self.rank,) if self.size > 1 else ()

    def part(self, rows: Tensor) -> Tensor:
        """This process's part of some rows: parts in turn, as even as can be, perhaps empty.

        No part but a single row has fewer than two rows, so that networks may normalize over them.

        Args:
            rows: Rows, or their numbers, ``(N, ...)``: the same on every process.

        Example:
            >>> [Processes(rank, 3).part(torch.arange(8)).tolist() for rank in range(3)]
            [[0, 1, 2], [3, 4, 5], [6, 7]]
            >>> [Processes(rank, 3).part(torch.arange(5)).tolist() for rank in range(3)]
            [[0, 1, 2], [3, 4], []]
        """
        num_parts = min(self.size, max(1, len(rows) // LEAST_ROWS))
        return rows.tensor_split(num_parts)[self.rank] if self.rank < num_parts else rows[:0]

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of the tensors that the processes hold, bitwise the same on each.

        Raises:
            RuntimeError: If a process has ended or does not answer.
        """
        return self.sum_(tensor.detach().clone(memory_format=torch.contiguous_format))

    def sum_(self, tensor: Tensor) -> Tensor:
        """:meth:`sum` that may use the tensor's own memory."""
        if self.size == 1:
            return tensor
        total = tensor.to(_meeting_place(tensor))
        with _explained():
            dist.all_reduce(total)
        return total.to(tensor.device)

    def every(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, ``(size, *shape)``, bitwise the same on each.

        Args:
            tensor: Of whole numbers up to 2**31, of one shape on all processes.

        Example:
            >>> Processes().every(torch.tensor([3, 4], dtype=torch.uint8))
            tensor([[3, 4]], dtype=torch.uint8)
        """
        own = tensor.new_zeros(self.size, *tensor.shape, dtype=torch.int32)
        own[self.rank] = tensor
        return self.sum_(own).to(tensor.dtype)

    def first_says(self, data: bytes | None) -> bytes:
        """The bytes that the first process has.

        Args:
            data: They; what the others pass is not read.

        Example:
            >>> Processes().first_says(b"state")
            b'state'
        """
        data = data or b""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)], device="cpu")
        self.broadcast([length])
        content = torch.zeros(int(length), dtype=torch.uint8, device="cpu")
        if self.is_first:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.broadcast([content])
        return content.numpy().tobytes()

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - as the built-in any
        """Whether the flag is up on any process."""
        return self.size > 1 and bool(self.sum(torch.tensor([flag], device="cpu").int())) or flag

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place.

        Args:
            tensors: Parameters and buffers, in the same order on each process.

        Raises:
            RuntimeError: If a process has ended or does not answer.
        """
        own = list(tensors)
        with torch.no_grad():
            for tensor, firsts in zip(own, self._of_first(own), strict=True):
                # What is right is not touched: an expanded buffer could not be written to.
                if not same_bits(tensor, firsts):
                    tensor.copy_(firsts)

    def agree(self, tensors: Iterable[Tensor]) -> bool:
        """Whether tensors are bitwise the same on every process."""
        own = list(tensors)
        differ = any(
            not same_bits(tensor, firsts)
            for tensor, firsts in zip(own, self._of_first(own), strict=True)
        )
        return not self.any(differ)

    def same(self, text: str) -> bool:
        """Whether a text is the same on every process.

        Example:
            >>> Processes().same("batch_size=128")
            True
        """
        digest = hashlib.sha256(text.encode()).digest()
        return self.agree([torch.tensor(list(digest), dtype=torch.uint8, device="cpu")])

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """Let an error in the block, on one process, end it on all of them.

        Args:
            name: What the others say is at fault.

        Raises:
            RuntimeError: If another process has an error in its block; one's own is raised as it
                is.

        Example:
            >>> with Processes().together("run_dir"):
            ...     pass
        """
        try:
            yield
        except Exception:
            self.any(True)  # noqa: FBT003
            raise
        if self.any(False):  # noqa: FBT003
            raise RuntimeError(
                f"{name} must serve every process; got an error on another one, which tells it."
            )

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """Let the first process through the block before the others: they find its files there.

        Example:
            >>> with Processes.current().first_ahead():
            ...     pass  # download what is not there yet
        """
        if self.size == 1:
            yield
            return
        group = dist.new_group(backend="gloo", timeout=LONGEST_HEAD_START)
        try:
            if self.is_first:
                yield
            with _explained():
                dist.barrier(group)  # type: ignore[arg-type]  # every process is in it
            if not self.is_first:
                yield
        finally:
            dist.destroy_process_group(group)

    def _of_first(self, tensors: list[Tensor]) -> list[Tensor]:
        """The first process's values of tensors, as one message."""
        if self.size == 1 or not tensors:
            return tensors
        own = [raw_bytes(tensor) for tensor in tensors]
        place = _meeting_place(own[0])
        message = torch.cat([values.to(place) for values in own])
        with _explained():
            dist.broadcast(message, 0)
        return [
            values.to(tensor.device).clone().view(tensor.dtype).view(tensor.shape)
            for tensor, values in zip(tensors, message.split([len(v) for v in own]), strict=True)
        ]


@contextmanager
def started(
    *, device: torch.device | str = "auto", timeout: float = LONGEST_WAIT
) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, as a group while the block lasts.

    Opens ``torch.distributed`` where torchrun's environment variables tell of more than one
    process, and closes it again; else, and where it is open already, there is nothing to do. With
    GPUs the backend is nccl and process r of a machine has GPU r as its current device (this part
    could not be tried on the machine where it was written); on the CPU it is gloo.

    The connections of gloo and nccl are neither authenticated nor encrypted: whoever reaches their
    ports can read and change the fit. Start one machine's processes by ``torchrun --standalone``:
    gloo then listens on the loopback interface alone (unless ``GLOO_SOCKET_IFNAME`` names
    another). torchrun's own store listens on all interfaces even so, and processes on several
    machines have to; keep their ports behind a firewall.

    Args:
        device: As :func:`pyro_vae.fit` takes it; "auto" means a GPU where there is one.
        timeout: Seconds to wait for an answer of the other processes: no one may be so long at
            something that it does alone.

    Raises:
        ValueError: If several processes are to share one GPU.
        RuntimeError: If a machine has fewer GPUs than processes, or a process does not come.

    Example:
        >>> with started() as processes:  # not under torchrun
        ...     processes.size
        1
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized() or "RANK" not in os.environ:
        yield Processes.current()
        return
    number = int(os.environ.get("LOCAL_RANK", "0"))
    wanted = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = wanted if device == "auto" else torch.device(device)
    with ExitStack() as stack:
        if wanted.type == "cuda":
            if wanted.index is not None:
                raise ValueError(
                    f"device must be 'cuda' where each process has a GPU of its own; got {wanted}."
                )
            if number >= torch.cuda.device_count():
                raise RuntimeError(
                    f"device must be the CPU for more processes than GPUs; got process {number} "
                    f"and {torch.cuda.device_count()} GPU(s). Start fewer, or pass device='cpu'."
                )
            stack.enter_context(torch.cuda.device(number))
        stack.enter_context(_gloo_on_loopback(only_here=_all_on_this_machine(size)))
        with _explained():
            dist.init_process_group(
                "nccl" if wanted.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout)
            )
        stack.callback(dist.destroy_process_group)
        yield Processes.current()


@contextmanager
def _explained() -> Iterator[None]:
    """Say what an error of the backend means to the user."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "all processes must take part to the end; got one that has ended or does not answer "
            f"({str(error).strip().splitlines()[0]}). Its own error tells why; start the job anew."
        ) from error


def _meeting_place(tensor: Tensor) -> torch.device:
    """Where the backend takes tensors: nccl knows none on the CPU."""
    if dist.get_backend() == "nccl" and tensor.device.type == "cpu":
        return torch.device("cuda", torch.cuda.current_device())
    return tensor.device


def _all_on_this_machine(size: int) -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == str(size)


@contextmanager
def _gloo_on_loopback(*, only_here: bool) -> Iterator[None]:
    """Keep gloo's connections inside the machine where all processes are on it."""
    name = "GLOO_SOCKET_IFNAME"
    loopback = next((n for _, n in socket.if_nameindex() if n in {"lo", "lo0"}), None)
    if not only_here or name in os.environ or loopback is None:
        yield
        return
    os.environ[name] = loopback
    try:
        yield
    finally:
        del os.environ[name]
