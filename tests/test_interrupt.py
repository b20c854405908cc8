"""Ctrl-C and SIGTERM: the first is a request, the second raises; handlers are as they were."""

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
    # signal.getsignal returns None for one that a program around Python has set in C.
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with InterruptGuard() as guard:
        press()
    monkeypatch.undo()
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


def terminate():
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def own_sigterm():
    """A handler of SIGTERM of the test's own; without it a mistake would end all tests."""
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append("called"))
    yield calls
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_left_alone_unless_it_is_asked_for(own_sigterm):
    before = signal.getsignal(signal.SIGTERM)
    with InterruptGuard() as guard:
        assert signal.getsignal(signal.SIGTERM) is before
        terminate()
    assert own_sigterm == ["called"]
    assert (guard.requested, guard.terminated) == (False, False)


def test_first_sigterm_is_a_request(own_sigterm):
    before = signal.getsignal(signal.SIGTERM)
    with InterruptGuard(terminate=True) as guard:
        terminate()
        assert (guard.requested, guard.terminated) == (True, True)
        assert own_sigterm == []
    assert signal.getsignal(signal.SIGTERM) is before
    terminate()
    assert own_sigterm == ["called"]


def test_end_calls_the_handler_that_was_there_and_returns(own_sigterm):
    with InterruptGuard(terminate=True) as guard:
        terminate()
        guard.end()
        assert own_sigterm == ["called"]


def test_end_exits_with_143_where_there_was_no_handler(own_sigterm):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def ended():
        with InterruptGuard(terminate=True) as guard:
            terminate()
            guard.end()

    with pytest.raises(SystemExit) as raised:
        ended()
    assert raised.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_second_sigterm_exits_at_once(own_sigterm):
    reached = []

    def ended():
        with InterruptGuard(terminate=True):
            terminate()
            reached.append("first")
            terminate()
            reached.append("second")

    with pytest.raises(SystemExit) as raised:
        ended()
    assert raised.value.code == 143
    assert reached == ["first"]


def test_ctrl_c_does_not_wait_for_a_sigterm_nor_the_other_way_round(own_sigterm):
    def ended():
        with InterruptGuard(terminate=True):
            terminate()
            press()

    with pytest.raises(KeyboardInterrupt):
        ended()
    with InterruptGuard(terminate=True) as guard:
        press()
        assert not guard.terminated
        terminate()
        assert guard.terminated


def test_ignored_sigterm_stays_ignored(own_sigterm):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with InterruptGuard(terminate=True) as guard:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        terminate()
    assert not guard.terminated
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
