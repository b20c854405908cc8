"""Processes that end in the middle: by SIGKILL, by SIGTERM, by a full disk."""

import contextlib
import os
import random
import signal
import time

import pytest
from killer import Killer

from pyro_vae.checkpoint import StateFiles

OFTEN = {"checkpoint_epochs": 1, "checkpoint_seconds": 0.01}
NUM_STEPS = 8 * 12


@pytest.fixture(scope="module")
def killer():
    made = Killer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(killer):
    """The fit that nothing disturbs."""
    killer.start(run_dir=None)
    killer.said("begun")
    begun = time.perf_counter()
    said = killer.end()
    assert said["status"] == 0
    return said["fingerprint"], time.perf_counter() - begun


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def place(path):
    """Where a killed fit stands: epoch and batch, or None before its first state."""
    files = StateFiles(path)
    if not files.exist:
        return None
    state = files.load()
    return state["epoch"], state["batch"]


def weights(path):
    """Seed of the weights that a process starts from: others where they come from a state."""
    return 0 if place(path) is None else 1


def test_sigkill_while_files_are_written_leaves_a_fit_that_goes_on(killer, whole, tmp_path):
    places, path = [], tmp_path / "run"
    for num_writes in (2, 4, 9, 17, 30, 51, 10**9):
        said = killer.run(
            run_dir=str(path),
            resume=True,
            kill_at_write=num_writes,
            weights=weights(path),
            **OFTEN,
        )
        places.append(place(path))
        if said["status"] == 0:
            break
        assert said["status"] == -signal.SIGKILL
    assert said["status"] == 0
    assert said["fingerprint"] == whole[0]
    assert None in places  # killed before the first state
    assert len({each for each in places if each is not None}) >= 4


def test_sigkill_at_a_random_moment_leaves_a_fit_that_goes_on(killer, whole, tmp_path):
    places = killed_until_done(killer, whole, tmp_path / "run", random.Random(0), most_kills=2)
    print("killed at (epoch, batch):", places)


def killed_until_done(killer, whole, path, moments, *, most_kills):
    """Fit, with SIGKILL at random moments and resumptions; where the kills found it."""
    fingerprint, seconds = whole
    places = []
    while True:
        process = killer.start(run_dir=str(path), resume=True, weights=weights(path), **OFTEN)
        if len(places) < most_kills:
            killer.said("begun")
            time.sleep(moments.uniform(0, 0.7 * seconds))
            with contextlib.suppress(ProcessLookupError):  # it came to its end before
                os.kill(process, signal.SIGKILL)
        said = killer.end()
        if said["status"] == 0:
            assert said["fingerprint"] == fingerprint
            return places
        assert said["status"] == -signal.SIGKILL
        places.append(place(path))


@pytest.mark.slow  # some thirty processes
def test_twenty_sigkills_leave_fits_that_go_on(killer, whole, tmp_path):
    moments, places = random.Random(1), []
    while sum(map(len, places)) < 20:
        path = tmp_path / str(len(places))
        places.append(killed_until_done(killer, whole, path, moments, most_kills=20))
    print("killed at (epoch, batch):", places)
    # Kills come before the first state, at the end of epochs, and in their middle.
    flat = [each for part in places for each in part]
    assert any(each is not None and each[1] > 0 for each in flat)


def terminated(killer, path, step, **options):
    return killer.run(
        run_dir=str(path),
        signals=[signal.SIGTERM],
        at_step=step,
        checkpoint_seconds=None,
        **options,
    )


def test_sigterm_ends_with_143_and_a_state_in_the_middle_of_an_epoch(killer, whole, tmp_path):
    said = terminated(killer, tmp_path, 19)
    assert said == {"begun": True, "status": 143}
    assert place(tmp_path) == (2, 3)
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    said = killer.run(run_dir=str(tmp_path), resume=True, weights=1)
    assert (said["status"], said["fingerprint"]) == (0, whole[0])


def test_sigterm_at_the_end_of_an_epoch_and_of_the_fit_ends_with_143(killer, whole, tmp_path):
    for step, expected in ((24, (3, 0)), (NUM_STEPS, (12, 0))):
        path = tmp_path / str(step)
        assert terminated(killer, path, step)["status"] == 143
        assert place(path) == expected
        said = killer.run(run_dir=str(path), resume=True, weights=1)
        assert (said["status"], said["fingerprint"]) == (0, whole[0])


def test_second_sigterm_ends_at_once(killer, whole, tmp_path):
    said = killer.run(
        run_dir=str(tmp_path),
        signals=[signal.SIGTERM, signal.SIGTERM],
        at_step=19,
        checkpoint_epochs=1,
        checkpoint_seconds=None,
    )
    assert said == {"begun": True, "status": 143}
    assert place(tmp_path) == (2, 0)  # that of the last epoch: nothing was saved any more
    said = killer.run(run_dir=str(tmp_path), resume=True, weights=1)
    assert said["fingerprint"] == whole[0]


def test_handler_of_sigterm_that_is_there_is_called_once_all_is_saved(killer, whole, tmp_path):
    said = terminated(killer, tmp_path, 19, handles="says")
    # It does not end the process, so that the fit returns as after Ctrl-C.
    assert said["handled"]
    assert said["interrupted"]
    assert said["is_usable"]
    assert said["restored"]
    assert said["status"] == 0
    assert place(tmp_path) == (2, 3)
    said = killer.run(run_dir=str(tmp_path), resume=True, weights=1)
    assert said["fingerprint"] == whole[0]


def test_ignored_sigterm_stays_ignored(killer, whole, tmp_path):
    said = terminated(killer, tmp_path, 19, handles="ignores")
    assert (said["status"], said["fingerprint"], said["restored"]) == (0, whole[0], True)


def test_without_a_directory_sigterm_is_what_it_is_without_a_fit(killer):
    said = killer.run(run_dir=None, signals=[signal.SIGTERM], at_step=19)
    assert said == {"begun": True, "status": -signal.SIGTERM}


def test_full_disk_leaves_the_last_state_and_a_usable_vae(killer, whole, tmp_path):
    said = killer.run(
        run_dir=str(tmp_path),
        at_step=19,
        bytes_left=5000,
        checkpoint_epochs=1,
        checkpoint_seconds=None,
    )
    assert said["status"] == 0
    assert said["kind"] == "OSError"
    path = tmp_path / "state-last.pt"
    size = path.stat().st_size
    assert "[Errno 27]" in said["error"]
    # Of an epoch that is the best so far, the state is written that keeps it.
    path = next(p for p in (path, tmp_path / "state-best.pt") if str(p) in said["error"])
    size = path.stat().st_size
    needed = int(said["error"].partition("] ")[2].partition(" bytes")[0])
    assert abs(needed - size) < 0.1 * size
    assert said["is_usable"]
    assert said["fingerprint"] != whole[0]
    assert place(tmp_path) == (2, 0)
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    # With space again, it goes on.
    said = killer.run(run_dir=str(tmp_path), resume=True, weights=1)
    assert (said["status"], said["fingerprint"]) == (0, whole[0])


def test_full_disk_at_a_line_of_the_history_is_named_too(killer, whole, tmp_path):
    said = killer.run(run_dir=str(tmp_path), at_step=19, bytes_left=300, checkpoint_seconds=None)
    assert (said["status"], said["kind"]) == (0, "OSError")
    assert "bytes must fit where they are to be written; got 'File too large'" in said["error"]
    assert str(tmp_path / "metrics.jsonl") in said["error"]
    assert said["is_usable"]
    said = killer.run(run_dir=str(tmp_path), resume=True, weights=1)
    assert (said["status"], said["fingerprint"]) == (0, whole[0])
