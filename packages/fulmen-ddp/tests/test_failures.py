"""A rank that fails ends all of them, and the caller hears why."""

from __future__ import annotations

import signal
import time

import pytest
from ddp_checks import JOB, finished

MESSAGES = {
    "raise": "ValueError: boom on rank 1",
    "kill": "RankError: rank 1 was ended by SIGKILL, as the kernel does when memory runs out",
    "hang": "imed out",
}


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
@pytest.mark.parametrize("how", ["raise", "kill", "hang"])
def test_the_first_failure_reaches_the_caller(start, tmp_path, strategy, how):
    status, output = finished(start(JOB, strategy, tmp_path, how), timeout=60)
    assert status == 1
    assert MESSAGES[how] in output
    if how == "raise":
        assert "in training_step" in output
        assert output.rstrip().splitlines()[-1].endswith(MESSAGES[how])


def wait_for(paths, seconds=60):
    until = time.monotonic() + seconds
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < until, "the training has not begun"
        time.sleep(0.1)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_first_process_leaves_no_orphans(start, tmp_path, strategy, number):
    process = start(JOB, strategy, tmp_path, "signal")
    pids = [tmp_path / "pid.0", tmp_path / "pid.1"]
    wait_for(pids)
    process.send_signal(number)
    status, output = finished(process, timeout=60)
    if number == signal.SIGINT:
        assert status == 0, output
        assert (tmp_path / "stopped").read_text() == "interrupted: stopped by Ctrl-C"
    else:
        assert status == -number, output
    until = time.monotonic() + 20
    while any(is_alive(int(path.read_text())) for path in pids):
        assert time.monotonic() < until, [path.read_text() for path in pids]
        time.sleep(0.1)
