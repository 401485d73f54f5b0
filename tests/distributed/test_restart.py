"""Ranks fail; under torchrun's agent the run goes on by itself and ends as one that never failed, bit for bit."""

from __future__ import annotations

import os
import signal
import time

import pytest
from fleet import JOB, assert_same, finished, free_port, reports, wait_for, wait_for_port


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_a_rank_that_dies_or_raises(fleet, uninterrupted, how):
    folder, status, output = fleet.agent("run", 3, failures=[how])
    assert status == 0, output
    assert (folder / "failed.0").exists(), "nothing failed: this shows nothing"
    assert_same(reports(folder), uninterrupted)


def test_a_rank_that_hangs_is_noticed_in_the_time_that_was_set(fleet, uninterrupted):
    folder, status, output = fleet.agent("run", 3, failures=["hang"], timeout_s=10)
    assert status == 0, output
    assert "rank 1 was here:" in output
    assert_same(reports(folder), uninterrupted)


@pytest.mark.nightly
def test_several_failures_in_a_row(fleet, uninterrupted):
    folder, status, output = fleet.agent("run", 3, failures=["kill", "raise", "kill"])
    assert status == 0, output
    assert (folder / "failed.2").exists()
    assert_same(reports(folder), uninterrupted)


def test_the_work_since_the_last_checkpoint_is_what_is_repeated(fleet):
    folder, status, output = fleet.agent("run", 1, failures=["kill"])
    assert status == 0, output
    done = [int(line) for line in (folder / "batches.1").read_text().split()]
    assert done == [*range(1, 18), *range(16, 37)]  # killed after batch 17; saved after batch 15


@pytest.mark.nightly
def test_more_failures_than_restarts_end_the_run_with_the_first_traceback(fleet):
    folder, status, output = fleet.agent("run", 1, failures=["raise", "raise"])
    assert status == 1
    assert (folder / "failed.1").exists()
    assert "ValueError: the disk of this node is on fire" in output.partition("Root Cause (first observed failure):")[2]


def test_torchrun_itself_with_a_rank_that_is_stopped(fleet, uninterrupted):
    """As by a debugger, or a machine that swaps: no thread of it can say anything. The agent kills it."""
    folder, settings = fleet.settings("run", failures=["stop"], timeout_s=10)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 3]
    command += ["--shutdown-timeout", 1, "--monitor-interval", "0.1"]
    status, output = finished(fleet.start(*command, JOB, settings))
    assert status == 0, output
    assert "no word from rank 1" in output
    assert_same(reports(folder), uninterrupted)


NODE = ("--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 3, "--monitor-interval", "0.1", "--rdzv-backend", "c10d")
ALIVE = "keep_alive_interval=1,keep_alive_max_attempt=2,join_timeout=120,last_call_timeout=1"


@pytest.mark.nightly
def test_a_node_that_is_lost_and_comes_back(fleet, uninterrupted):
    """Two agents are two nodes. One is killed with its rank, and started again; the other has stayed."""
    folder, settings = fleet.settings("run", devices=1, num_nodes=2, failures=["wait"])
    port = free_port()
    agent = ["-m", "torch.distributed.run", *NODE, "--rdzv-id", "fleet", "--rdzv-conf", ALIVE, "--shutdown-timeout", 1]
    agent += ["--rdzv-endpoint", f"127.0.0.1:{port}", JOB, settings]
    share = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else an agent that comes later waits for an address for ever
    kept = fleet.start(*agent, **share)
    wait_for_port(port)  # it keeps the store in which nodes meet
    lost = fleet.start(*agent, **share, FLEET_FAILS="1")
    rank = int(wait_for(folder / "failed.0"))
    os.kill(lost.pid, signal.SIGKILL)
    time.sleep(4)  # torchrun takes the node for alive until then, and would wait for its answer
    os.kill(rank, signal.SIGKILL)
    back = fleet.start(*agent, **share)
    for process in (kept, back):
        status, output = finished(process)
        assert status == 0, output
    assert_same(reports(folder), uninterrupted)
