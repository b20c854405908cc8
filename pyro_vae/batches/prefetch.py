"""Items made in a thread of their own, a little ahead of their use."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["moved", "pinned", "prefetched"]

Item = TypeVar("Item")

END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetched(items: Iterable[Item], *, depth: int = 2) -> Generator[Item, None, None]:
    """The items of an iterable, in their order, made ahead by one thread.

    An error in the thread is raised here, at the item where it happened, with its own traceback.
    The thread ends with the generator: at its end, at an error, and when it is closed; it is
    waited for.

    Args:
        items: Is iterated in the thread. It must not draw from a global random state, which the
            steps that run meanwhile draw from too.
        depth: How many items may wait for their use.

    Example:
        >>> list(prefetched(i * i for i in range(4)))
        [0, 1, 4, 9]
    """
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()
    slots = threading.Semaphore(depth)
    is_left = threading.Event()

    def work() -> None:
        iterator = None
        try:
            iterator = iter(items)
            while True:
                slots.acquire()
                if is_left.is_set():
                    break
                made.put(next(iterator, END))
        except BaseException as error:  # noqa: BLE001 - raised again where the items are used
            made.put(_Failure(error))
        finally:
            close = getattr(iterator, "close", None)
            if callable(close):
                close()

    thread = threading.Thread(target=work, name="pyro_vae prefetch", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not END:
            if isinstance(item, _Failure):
                raise item.error
            slots.release()
            yield item
    finally:
        is_left.set()
        slots.release()
        thread.join()


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """A tensor in memory from which a GPU copies on its own, if ``device`` is one; else x.

    The GPU's side has not been run for want of one.

    Example:
        >>> x = torch.zeros(3)
        >>> pinned(x, torch.device("cpu")) is x
        True
    """
    return x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x


def moved(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for the copy if it is a GPU and x is pinned.

    Later work in the same stream waits for the copy. The GPU's side has not been run for want of
    one.

    Example:
        >>> moved(torch.zeros(3), torch.device("cpu")).device.type
        'cpu'
    """
    return x.to(device, non_blocking=device.type == "cuda")
