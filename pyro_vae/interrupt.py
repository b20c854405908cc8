"""Ctrl-C as a request to stop after the current step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["InterruptGuard"]


class InterruptGuard:
    """Defers the first Ctrl-C to a moment when nothing is half done; the second one raises.

    An interrupt inside an optimizer's step would leave some parameters updated and others not.
    Outside the main thread Python delivers no signals, and the guard does nothing.

    Attributes:
        requested: Whether Ctrl-C was pressed since the guard was entered.

    Example:
        >>> with InterruptGuard() as guard:
        ...     signal.raise_signal(signal.SIGINT)
        ...     guard.requested
        True
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> "InterruptGuard":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._installed:
            # None stands for a handler that Python did not install and cannot put back.
            previous = signal.SIG_DFL if self._previous is None else self._previous
            signal.signal(signal.SIGINT, previous)
            self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
