"""Ctrl-C: the first is a request, the second raises, and the handler is as it was."""

import signal
import threading

import pytest

from pyro_vae.interrupt import InterruptGuard


def press():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler():
    """A handler of the test's own, so that "as it was" is something to see."""
    calls = []

    def handle(number, frame):
        calls.append(number)

    before = signal.signal(signal.SIGINT, handle)
    handle.calls = calls
    yield handle
    signal.signal(signal.SIGINT, before)


def test_first_interrupt_is_a_request_and_does_not_raise(handler):
    with InterruptGuard() as guard:
        assert guard.requested is False
        press()
        assert guard.requested is True
    assert handler.calls == []


def test_second_interrupt_raises_keyboard_interrupt(handler):
    guard = InterruptGuard()
    reached = []

    def press_twice():
        with guard:
            press()
            reached.append("after the first")
            press()
            reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert reached == ["after the first"]
    assert guard.requested is True
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_handler_is_as_it_was_afterwards_whatever_is_raised(handler, error):
    try:
        with InterruptGuard():
            assert signal.getsignal(signal.SIGINT) is not handler
            if error is not None:
                raise error
    except (KeyError, KeyboardInterrupt) as raised:
        assert type(raised) is error  # noqa: PT017 - the guard must not swallow it
    else:
        assert error is None
    assert signal.getsignal(signal.SIGINT) is handler
    press()
    assert handler.calls == [signal.SIGINT]


def test_ignored_interrupts_are_ignored_again_afterwards():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with InterruptGuard() as guard:
        press()
        assert guard.requested
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handler_that_python_did_not_install_becomes_the_default(monkeypatch):
    # signal.signal returns None for one that a program around Python has set in C.
    install = signal.signal
    monkeypatch.setattr(signal, "signal", lambda *args: install(*args) and None)
    with InterruptGuard() as guard:
        press()
    assert guard.requested
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_guards_nest_and_only_the_inner_one_is_asked(handler):
    with InterruptGuard() as outer:
        with InterruptGuard() as inner:
            press()
        assert (outer.requested, inner.requested) == (False, True)
        press()
        assert outer.requested
    assert signal.getsignal(signal.SIGINT) is handler


def test_guard_in_a_thread_leaves_the_handler_alone(handler):
    seen, errors = [], []

    def work():
        try:
            with InterruptGuard() as guard:
                seen.append(signal.getsignal(signal.SIGINT))
                seen.append(guard.requested)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert seen == [handler, False]
    assert signal.getsignal(signal.SIGINT) is handler
