"""Every file of a run, damaged in every way: one clear error, or the state before, never a lie."""

import json
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from command_line import run as command
from resuming import at, fingerprint, press_ctrl_c, run
from test_resume import with_validation

from pyro_vae.checkpoint import CheckpointError
from pyro_vae.run_directory import RunDirectory


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def flipped(content, share):
    """One bit changed, at a share of the length."""
    changed = bytearray(content)
    place = min(int(share * len(content)), len(content) - 1)
    changed[place] ^= 1 << (place % 7)
    return bytes(changed)


# From a file's content and its directory to other content.
DAMAGES = {
    "empty": lambda old, folder: b"",
    "first byte alone": lambda old, folder: old[:1],
    "half": lambda old, folder: old[: len(old) // 2],
    "without its end": lambda old, folder: old[:-2],
    "with more": lambda old, folder: old + b"\0\xff",
    "zeros": lambda old, folder: bytes(len(old)),
    "bit near the start": lambda old, folder: flipped(old, 0.02),
    "bit in the middle": lambda old, folder: flipped(old, 0.5),
    "bit near the end": lambda old, folder: flipped(old, 0.98),
    "text": lambda old, folder: b"these are \xff no words\n",
    "pickle": lambda old, folder: pickle.dumps(Bomb(folder / "marker")),
    "another file": lambda old, folder: next(
        content
        for name in ("config.toml", "weights.safetensors", "environment.json")
        if (content := (folder / name).read_bytes()) != old
    ),
    "newer": lambda old, folder: newer(old),
}


def newer(old):
    if old.startswith(b"PK"):
        import io

        file = io.BytesIO()
        torch.save({**torch.load(io.BytesIO(old), weights_only=True), "format": 2}, file)
        return file.getvalue()
    return old.replace(b"format = 1", b"format = 2").replace(b'{"', b'{"format": 2, "')


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A fit that was stopped in an epoch, and the fingerprint that it would have had."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        run(with_validation, schedule=at(8, press_ctrl_c), run_dir=path, checkpoint_epochs=1)
        whole = fingerprint(run(with_validation))
    finally:
        torch.set_default_dtype(before)
    return path, whole


STATES = [
    f"state-{which}.pt{end}" for which in ("last", "previous", "best") for end in ("", ".sha256")
]
FILES = [*STATES, "config.toml", "environment.json", "metrics.jsonl", "weights.safetensors"]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


def damaged(source, folder, name, damage):
    """A copy of a directory with one file damaged; None where that changes nothing."""
    shutil.copytree(source, folder)
    old = (folder / name).read_bytes()
    new = DAMAGES[damage](old, folder)
    (folder / name).write_bytes(new)
    return None if new == old else folder / name


def test_directory_holds_these_files(stopped):
    assert sorted(FILES) == sorted(path.name for path in stopped[0].iterdir())


def resumed(path):
    """The fingerprint of a fit, or its error."""
    try:
        return fingerprint(run(with_validation, weights=1, run_dir=path, resume=True))
    except CheckpointError as error:
        return error


@pytest.mark.parametrize("name", FILES)
def test_resume_from_a_damaged_directory_is_right_or_raises(name, stopped, tmp_path):
    source, whole = stopped
    answers = []
    for damage in DAMAGES:
        path = tmp_path / damage
        if damaged(source, path, name, damage) is None:
            continue
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            answer = resumed(path)
            if isinstance(answer, CheckpointError):
                assert name in str(answer)
                answers.append(["raised"])
                continue
            assert answer == whole, damage
            ours = [str(t.message) for t in told if "resume" in str(t.message)]
            assert all(name.removesuffix(".sha256") in message for message in ours)
            answers.append(ours)
        assert not (path / "marker").exists()
    # Only what goes on in the file is needed, and each damage of the last state is seen.
    if name == "state-last.pt":
        assert all(len(told) == 1 for told in answers)
    if name.startswith(("state-previous", "state-best", "metrics", "weights", "config")):
        assert not any(answers)


def test_both_states_damaged_raise_and_name_both(stopped, tmp_path):
    for damage in DAMAGES:
        path = tmp_path / damage
        damaged(stopped[0], path, "state-last.pt", damage)
        old = (path / "state-previous.pt").read_bytes()
        (path / "state-previous.pt").write_bytes(DAMAGES[damage](old, path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of a pickle protocol
            with pytest.raises(CheckpointError, match="state-last.pt .*state-previous.pt"):
                run(with_validation, run_dir=path, resume=True)


def test_swapped_states_are_told(stopped, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(stopped[0], path)
    (path / "state-best.pt").replace(path / "state-last.pt")
    with pytest.warns(UserWarning, match="state-last.pt differs from its sha256"):
        fit = run(with_validation, weights=1, run_dir=path, resume=True)
    assert fingerprint(fit) == stopped[1]
    # With its digest too it is a whole file, and not what it should be.
    path = tmp_path / "both"
    shutil.copytree(stopped[0], path)
    for end in ("", ".sha256"):
        (path / f"state-best.pt{end}").replace(path / f"state-last.pt{end}")
    with pytest.raises(CheckpointError, match="resume must find a whole state; .* has nothing as"):
        run(with_validation, run_dir=path, resume=True)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of the command line."""
    path = tmp_path_factory.mktemp("fitted") / "run"
    answer = command(
        "fit", "--epochs", 2, "--hidden", 8, "--quiet", "--patience", 2, "--dtype", "float64",
        "--device", "cpu", "--out", path,
    )  # fmt: skip
    assert answer.status == 0, answer.err
    return path


def numbers(path, out):
    return command("sample", path, "--num", 3, "--out", out), out.exists() and np.load(out)


@pytest.mark.slow  # two commands for each of 13 damages of each file
def test_commands_answer_damage_in_one_line_or_are_right(fitted, tmp_path):
    _, expected = numbers(fitted, tmp_path / "expected.npy")
    statuses = {}
    for name in sorted(path.name for path in fitted.iterdir() if path.suffix != ".png"):
        for damage in DAMAGES:
            path = tmp_path / f"{name} {damage}"
            if damaged(fitted, path, name, damage) is None:
                continue
            answer, found = numbers(path, tmp_path / f"{name} {damage}.npy")
            statuses[name, damage] = answer.status
            one_line_or_right(answer, name)
            if answer.status == 0 and name != "config.toml":
                np.testing.assert_array_equal(found, expected)
            one_line_or_right(command("info", path), name)
            assert not (path / "marker").exists()
    assert all(statuses["weights.safetensors", d] == 2 for d in DAMAGES if d != "newer")
    assert statuses["config.toml", "newer"] == 2
    assert not any(status for (name, _), status in statuses.items() if name.startswith("state"))


def one_line_or_right(answer, name):
    assert answer.status in {0, 2}
    assert "Traceback" not in answer.err
    assert len(answer.err.splitlines()) == (answer.status == 2)
    if answer.status == 2:
        assert name in answer.err or "run must be of format 1" in answer.err, answer.err


def read_back(path, what):
    try:
        return getattr(RunDirectory(path), what)()
    except CheckpointError as error:
        return error


@pytest.mark.parametrize("read", ["config", "environment", "history", "report"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_files_of_text_read_as_they_are_or_raise(read, damage, fitted, tmp_path):
    names = {"config": "config.toml", "environment": "environment.json",
             "history": "metrics.jsonl", "report": "report.txt"}  # fmt: skip
    damaged(fitted, tmp_path / "run", names[read], damage)
    answer = read_back(tmp_path / "run", read)
    assert answer is not None
    if read in {"config", "environment"}:  # which hold a digest
        whole = getattr(RunDirectory(fitted), read)()
        assert isinstance(answer, CheckpointError) or answer == whole
    if isinstance(answer, CheckpointError):
        assert names[read] in str(answer) or "format" in str(answer)


def test_state_that_holds_what_no_fit_writes_raises(stopped, tmp_path):
    # Whole files with right digests, as a stranger could make them.
    from pyro_vae.checkpoint.state_file import read_state, write_state

    def other_shape(state):
        name = "q_z_given_x.encoder.0.weight"
        state["tensors"][name] = state["tensors"][name][:3]

    def no_tensor(state):
        del state["tensors"]["q_z_given_x.encoder.0.weight"]

    def other_kind(state):
        state["optimizer"]["kind"] = "SGD"

    def odd_moments(state):
        each = next(iter(state["optimizer"]["of_each"].values()))
        each["exp_avg"] = each["exp_avg"].flatten()[:1]

    def thin_moments(state):
        each = next(iter(state["optimizer"]["of_each"].values()))
        each["exp_avg"] = each["exp_avg"].to_sparse()

    def no_count(state):
        each = next(iter(state["optimizer"]["of_each"].values()))
        each["step"] = each["step"].new_zeros(0)

    def no_kind(state):
        del state["optimizer"]["kind"]

    def negative_batch(state):
        state["batch"] = -1

    def negative_epoch(state):
        state["epoch"] = -5

    def random_of_another_size(state):
        state["random"] = {"cpu": state["random"]["cpu"][:, :100].clone()}

    def words_for_rows(state):
        state["rows"] = ["epoch"]

    def no_sums(state):
        state["sums"] = []

    def words_for_a_number(state):
        state["seconds"] = "1"

    changes = [
        other_shape, no_tensor, other_kind, odd_moments, thin_moments, no_count, no_kind,
        negative_batch, negative_epoch, random_of_another_size, words_for_rows, no_sums,
        words_for_a_number,
    ]  # fmt: skip
    for change in changes:
        path = tmp_path / change.__name__
        shutil.copytree(stopped[0], path)
        content, _ = read_state(path / "state-last.pt")
        del content["format"]
        change(content)
        write_state(content, path / "state-last.pt", before=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of a sparse tensor
            with pytest.raises((CheckpointError, ValueError)) as raised:
                run(with_validation, weights=1, run_dir=path, resume=True)
        assert len(str(raised.value)) > 20, change.__name__


def test_metrics_of_an_unfinished_line_are_the_epochs_before(stopped, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(stopped[0], path)
    whole = RunDirectory(path).history()
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 9})[:-4])
    assert RunDirectory(path).history().equals(whole)
    (path / "metrics.jsonl").unlink()
    assert RunDirectory(path).history() is None
