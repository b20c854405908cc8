"""Reading ahead: the same items in the same order, errors with their place, no thread left."""

import threading
import traceback

import pytest
import torch

from pyro_vae.batches import prefetched
from pyro_vae.batches.prefetch import moved, pinned


def alive():
    return [t for t in threading.enumerate() if t.name == "pyro_vae prefetch"]


def test_prefetched_items_come_in_their_order():
    assert list(prefetched(iter(range(100)))) == list(range(100))
    assert list(prefetched([])) == []
    assert not alive()


def test_prefetched_reads_no_further_ahead_than_its_depth():
    made, may_go = [], threading.Event()

    def items():
        for i in range(50):
            made.append(i)
            yield i
        may_go.set()

    ahead = prefetched(items(), depth=2)
    for expected in range(50):
        assert next(ahead) == expected
        assert len(made) <= expected + 3  # this one, and two that wait
    assert list(ahead) == []
    assert may_go.is_set()


def test_prefetched_makes_the_next_item_while_this_one_is_used():
    has_made_next = threading.Event()

    def items():
        yield 0
        has_made_next.set()
        yield 1

    ahead = prefetched(items())
    assert next(ahead) == 0
    assert has_made_next.wait(timeout=20)  # nobody has asked for it
    ahead.close()


def test_prefetched_raises_at_the_item_with_the_traceback_of_the_thread():
    def broken_item(i):
        raise OSError(f"row {i} cannot be read")

    def items():
        yield from range(3)
        broken_item(3)

    ahead = prefetched(items())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="row 3 cannot be read") as caught:
        next(ahead)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "broken_item" in frames
    assert not alive()


@pytest.mark.parametrize("num_used", [0, 1, 5])
def test_prefetched_thread_ends_when_the_loop_is_left_early(num_used):
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    ahead = prefetched(items())
    for _ in range(num_used):
        next(ahead)
    ahead.close()
    assert not alive()
    assert closed == ([True] if num_used else [])  # not begun, nothing to close


def test_prefetched_thread_ends_when_the_loop_raises():
    def use():
        for i in prefetched(iter(range(1000))):
            if i == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert not alive()


def test_tensors_stay_where_they_are_without_a_gpu():
    x, cpu = torch.zeros(3), torch.device("cpu")
    assert pinned(x, cpu) is x
    assert moved(x, cpu) is x


def test_tensors_are_pinned_and_moved_without_waiting_for_a_gpu(monkeypatch):
    # No GPU here: what would be called of torch is watched instead.
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: calls.append("pinned") or x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: calls.append((a, k)) or x)
    device = torch.device("cuda", 0)
    moved(pinned(torch.zeros(3), device), device)
    assert calls == ["pinned", ((device,), {"non_blocking": True})]
