"""A rank that fails ends all of them, and the caller hears why."""

from __future__ import annotations

import signal
import sys
import time

import pytest
from ddp_checks import AGENT, JOB, finished, free_port, slurm_variables
from ddp_job import Failing, samples
from fulmen_ddp.failures import RankError

from fulmen.testing import quiet

MESSAGES = {
    "raise": "ValueError: boom on rank 1",
    "kill": "rank 1 was ended by SIGKILL, as the kernel does when memory runs out",
    "hang": "imed out",
}


# ---- Forked ranks


def fit(how, **options):
    strategy = {"name": "ddp_fork", **options}
    quiet(max_epochs=2, accelerator="cpu", strategy=strategy, devices=2, limit_val_batches=0).fit(Failing(how), samples(96, 4))


def test_an_exception_is_raised_with_the_traceback_of_its_rank():
    with pytest.raises(ValueError, match="boom on rank 1") as error:
        fit("raise")
    assert "rank 1:\nTraceback" in str(error.value.__cause__)
    assert "in training_step" in str(error.value.__cause__)


def test_a_rank_that_is_killed():
    with pytest.raises(RankError) as error:
        fit("kill")
    assert str(error.value) == MESSAGES["kill"]


def test_a_rank_that_hangs_is_named_with_the_place_where_it_does():
    with pytest.raises(RuntimeError, match=MESSAGES["hang"]) as error:
        fit("hang", timeout_s=5)
    said = str(error.value.__cause__)
    assert "rank 1 was here:" in said
    assert said.rstrip().endswith("time.sleep(1000)")


def test_a_rank_that_is_stopped_has_nothing_to_say():
    with pytest.raises(RuntimeError, match=MESSAGES["hang"]) as error:
        fit("stop", timeout_s=5)
    assert str(error.value.__cause__).rstrip().endswith("no word from rank 1")


# ---- Programs


@pytest.mark.parametrize("how", MESSAGES)
def test_the_first_failure_reaches_the_caller(script, tmp_path, how):
    status, output = finished(script(JOB, "ddp", tmp_path, how))
    assert status == 1
    assert MESSAGES[how] in output
    if how == "raise":
        assert "in training_step" in output
        assert output.rstrip().splitlines()[-1].endswith(MESSAGES[how])
    if how == "hang":
        assert "rank 1 was here:" in output
        assert "time.sleep(1000)" in output


@pytest.mark.parametrize("how", MESSAGES)
def test_torchrun_shows_the_first_failure_as_the_root_cause(script, tmp_path, how):
    status, output = finished(script(AGENT, 2, 0, "ddp", tmp_path, how))
    assert status == 1
    cause = output.partition("Root Cause (first observed failure):")[2]
    if how == "raise":
        assert "in training_step" in cause
        assert MESSAGES[how] in cause
    elif how == "kill":
        assert "Signal 9 (SIGKILL)" in cause
    else:
        assert "rank 1 was here:" in cause
        assert "time.sleep(1000)" in cause


@pytest.mark.parametrize("how", MESSAGES)
def test_tasks_of_slurm_end_all_and_say_why(script, tmp_path, how):
    """Nobody but the ranks themselves is there to notice."""
    port = free_port()
    tasks = [script(JOB, "ddp", tmp_path, how, 2, **slurm_variables(rank, 2, port)) for rank in range(2)]
    (first, output), (second, said) = map(finished, tasks)
    assert first == 1
    assert second == {"raise": 1, "kill": -signal.SIGKILL, "hang": 1}[how]
    if how == "raise":
        assert output.rstrip().endswith("RankError: rank 1 failed: ValueError: boom on rank 1")
        assert "in training_step" in output
        assert said.rstrip().splitlines()[-1].endswith(MESSAGES[how])
    elif how == "kill":
        assert "no word from rank 1" in output
    else:
        assert "rank 1 was here:" in output
        assert "time.sleep(1000)" in output
        assert "rank 0 failed: RuntimeError" in said


# ---- The end of the program


@pytest.mark.skipif(sys.platform != "linux", reason="threads are looked up in /proc")
def test_no_thread_of_the_process_group_outlives_it(script, tmp_path):
    """It would need the interpreter when that has ended, and abort the process."""
    status, output = finished(script(JOB, "ddp", tmp_path, "threads"))
    assert status == 0, output
    for rank in range(2):
        names = (tmp_path / f"threads.{rank}").read_text()
        assert "python" in names
        assert "gloo" not in names


def test_a_rank_that_dies_after_its_work_is_told(script, tmp_path):
    status, output = finished(script(JOB, "ddp", tmp_path, "abort"))
    assert status == 0, output
    assert "[rank-ended] rank 1 was ended by SIGABRT, though no call of the trainer failed" in output


# ---- Signals


def wait_for(paths, seconds=90):
    until = time.monotonic() + seconds
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < until, "the training has not begun"
        time.sleep(0.05)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def check_gone(pids):
    until = time.monotonic() + 30
    while any(map(is_alive, pids)):
        assert time.monotonic() < until, pids
        time.sleep(0.05)


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_first_process_leaves_no_orphans(script, tmp_path, strategy, number):
    process, pids = script(JOB, strategy, tmp_path, "signal"), [tmp_path / "pid.0", tmp_path / "pid.1"]
    wait_for(pids)
    process.send_signal(number)
    status, output = finished(process)
    if number == signal.SIGINT:
        assert status == 0, output
        assert (tmp_path / "stopped").read_text() == "interrupted: stopped by Ctrl-C"
    else:
        assert status == -number, output
    check_gone([int(path.read_text()) for path in pids])


def test_ranks_that_do_not_stop_after_sigterm_are_killed(script, tmp_path):
    """They are given a moment, of 4 s in this job."""
    process, pids = script(JOB, "ddp_fork", tmp_path, "stuck"), [tmp_path / "pid.0", tmp_path / "pid.1"]
    wait_for(pids)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    assert all(is_alive(int(path.read_text())) for path in pids)
    status, output = finished(process)
    assert status == -signal.SIGTERM, output
    check_gone([int(path.read_text()) for path in pids])
