"""Ctrl-C and SIGTERM as requests to stop after the current step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["InterruptGuard"]

EXIT_OF_SIGTERM = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended."""


class InterruptGuard:
    """Defers the first Ctrl-C to a moment when nothing is half done; the second one raises.

    An interrupt inside an optimizer's step would leave some parameters updated and others not.
    SIGTERM, by which a batch system announces that it will end a job, is deferred likewise where
    that is asked for. Outside the main thread Python delivers no signals, and the guard does
    nothing.

    Args:
        terminate: Defer SIGTERM too; one that the process ignores stays ignored.

    Attributes:
        requested: Whether Ctrl-C was pressed, or SIGTERM came, since the guard was entered.
        terminated: Whether SIGTERM came.

    Example:
        >>> with InterruptGuard() as guard:
        ...     signal.raise_signal(signal.SIGINT)
        ...     guard.requested
        True
    """

    def __init__(self, *, terminate: bool = False) -> None:
        self.requested = False
        self.terminated = False
        self._handlers = {signal.SIGINT: self._interrupt}
        if terminate:
            self._handlers[signal.SIGTERM] = self._terminate
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "InterruptGuard":
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                previous = signal.getsignal(number)
                if number == signal.SIGTERM and previous == signal.SIG_IGN:
                    continue
                self._previous[number] = previous
                signal.signal(number, handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that Python did not install and cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def end(self) -> None:
        """End the process as SIGTERM asked, once everything is saved.

        A handler that was there before the guard is called; else the process exits with 143.

        Raises:
            SystemExit: Unless a handler decides otherwise.
        """
        handler = self._previous.get(signal.SIGTERM)
        if callable(handler):
            handler(signal.SIGTERM, None)
            return
        raise SystemExit(EXIT_OF_SIGTERM)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self.terminated:  # a second one will not wait
            raise SystemExit(EXIT_OF_SIGTERM)
        self.requested = self.terminated = True
