"""The directory that a fit is kept in: who may use it, and what a refused fit leaves."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from command_line import TINY, ran
from command_line import run as command
from resuming import press_ctrl_c, run

import pyro_vae as pv
from pyro_vae.checkpoint.state_file import digests_beside, read_state
from pyro_vae.checkpoint.state_files import BEST, LAST, PREVIOUS
from pyro_vae.files import write_whole
from pyro_vae.run_directory import RunDirectory


def tiny():
    x = torch.arange(30.0).sin().reshape(10, 3)
    return pv.gaussian_vae(features=3, latent_dim=1, hidden=()), x, {}


def stopped_in(path):
    run(tiny, callbacks=[lambda fit: press_ctrl_c()], run_dir=path)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_run_directory_object_is_checked_like_its_path(tmp_path):
    path = tmp_path / "run"
    run(tiny, run_dir=path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = contents(path)
    for given in (
        RunDirectory(path),
        RunDirectory.continued(path),
        RunDirectory(tmp_path / "full"),
    ):
        with pytest.raises(FileExistsError, match="run_dir must be new or empty"):
            run(tiny, run_dir=given)
    with pytest.raises(FileExistsError, match="run_dir must be new or empty"):
        run(tiny, run_dir=RunDirectory(tmp_path / "full"), resume=True)
    assert contents(path) == before
    used = RunDirectory.create(tmp_path / "used")
    run(tiny, run_dir=used)
    with pytest.raises(FileExistsError, match="run_dir must be new or empty"):
        run(tiny, run_dir=used)
    assert len(run(tiny, run_dir=RunDirectory(path), resume=True).rows) == 3


@pytest.mark.parametrize(("wrong", "error"), [(3, TypeError), ("", ValueError)])
def test_run_dir_that_is_no_path_is_refused(wrong, error):
    with pytest.raises(error, match="run_dir must be a path; got"):
        run(tiny, run_dir=wrong)


HOLDER = """
    import sys
    from pyro_vae.run_directory import RunDirectory

    run = RunDirectory(sys.argv[1])
    run.lock()
    print("held", flush=True)
    input()
"""


def test_two_processes_do_not_fit_in_one_directory_and_a_killed_one_holds_nothing(tmp_path):
    path = tmp_path / "run"
    stopped_in(path)
    (path / ".pyro-vae-state-last-x.pt").write_text("that the other one is writing")
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), path],
        env={**os.environ, "PYTHONPATH": str(Path(pv.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        before = contents(path)
        with pytest.raises(RuntimeError, match="run_dir must be used by one fit at a time; got"):
            run(tiny, run_dir=path, resume=True)
        assert contents(path) == before
        holder.kill()
    assert (path / ".pyro-vae-lock").exists()
    assert len(run(tiny, run_dir=path, resume=True).rows) == 3
    assert not [name for name in contents(path) if name.startswith(".")]


def test_refused_fit_holds_no_lock(tmp_path):
    path = tmp_path / "run"
    run(tiny, run_dir=path)
    before = contents(path)
    with pytest.raises(ValueError, match="resume must go on with the same data and settings"):
        run(tiny, run_dir=path, resume=True, clip_norm=1.0)
    with pytest.raises(ValueError, match="epochs must be more than the 3 that are done"):
        run(tiny, run_dir=path, resume="override", clip_norm=1.0)
    assert contents(path) == before


def test_digest_beside_names_the_old_file_after_a_resumption(tmp_path):
    path = tmp_path / "run"
    stopped_in(path)
    found = {name: read_state(path / name)[1] for name in (BEST, LAST, PREVIOUS)}
    files = RunDirectory(path).states
    files.load()
    files.save({})
    files.save_best({})
    assert found[BEST] in digests_beside(path / BEST)
    assert found[LAST] in digests_beside(path / LAST)
    assert found[PREVIOUS] in digests_beside(path / PREVIOUS)


def test_digest_beside_names_the_old_file_after_two_crashes(tmp_path, monkeypatch):
    files = RunDirectory.create(tmp_path / "run").states
    files.save_best({"epoch": 1})
    for epoch in (2, 3):  # each ends between the digest and the file
        with monkeypatch.context() as patch:
            patch.setattr(
                "pyro_vae.checkpoint.state_file.write_whole",
                lambda path, data, write=write_whole: (
                    write(path, data) if path.suffix == ".sha256" else None
                ),
            )
            RunDirectory(tmp_path / "run").states.save_best({"epoch": epoch})
    assert read_state(tmp_path / "run" / BEST)[0]["epoch"] == 1


def test_finished_fit_says_that_nothing_is_left_to_do(tmp_path, caplog):
    run(tiny, run_dir=tmp_path / "run")
    assert not caplog.messages
    run(tiny, run_dir=tmp_path / "run", resume=True)
    assert "the fit in run_dir is finished: nothing is left to do" in caplog.text


def test_report_of_a_failure_goes_when_the_fit_ends_well(tmp_path):
    path = tmp_path / "run"
    stopped_in(path)
    directory = RunDirectory(path)
    directory.write_report("The fit ended in epoch 2, because")
    run(tiny, run_dir=path, resume=True)
    assert directory.report() == ""
    directory.write_report("mine")
    run(tiny, run_dir=path, resume=True)
    assert directory.report() == "mine"


def test_info_tells_a_finished_fit_from_one_that_was_stopped(tmp_path):
    finished, stopped = tmp_path / "finished", tmp_path / "it's stopped"
    run(tiny, run_dir=finished)
    stopped_in(stopped)
    assert "did not finish" not in ran("info", finished)
    said = ran("info", stopped)
    assert "did not finish" in said
    assert "resume=True" in said
    assert "pyro-vae fit --resume" not in said


def test_command_does_not_resume_what_python_began(tmp_path):
    stopped_in(tmp_path / "run")
    before = contents(tmp_path / "run")
    answer = command("fit", "--resume", tmp_path / "run", "--quiet")
    assert answer.status == 2
    assert answer.err.startswith("pyro-vae fit: resume must name a run that 'pyro-vae fit' began")
    assert contents(tmp_path / "run") == before


def test_command_that_is_refused_leaves_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran("fit", *TINY, "--out", "run")
    before = contents(tmp_path / "run")
    answer = command("fit", "--resume", "run", "--override", "--learning-rate", 0.5, "--quiet")
    assert answer.status == 2
    assert "epochs must be more than" in answer.err
    assert contents(tmp_path / "run") == before
