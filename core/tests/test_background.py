"""Writing beside the training: one copy, one thread, one job at a time, and no failure is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from time import monotonic

import pytest
import torch
from torch import nn

from fulmen import CheckpointError, FulmenWarning, read_checkpoint, write_checkpoint
from fulmen.background import BackgroundWriter, Staging
from fulmen.clock import Clock


class OneRank:
    """What the writer asks of a runtime."""

    is_global_zero, world_size = True, 1


class Gate:
    """A job that waits until it may go on, and keeps what it wrote."""

    def __init__(self):
        self.go, self.began, self.written, self.endings = threading.Event(), threading.Event(), [], []

    def write(self, payload):
        self.began.set()
        assert self.go.wait(60)
        self.written.append((payload["a"].clone(), threading.current_thread().name))


@pytest.fixture
def writer():
    made = BackgroundWriter(Clock(), OneRank())
    yield made
    made.close()


def start(writer, payload, write, endings, what="the file"):
    writer.start(payload, write, endings.append, what)


def ring(writer, clock):
    """What the loop does after a step."""
    if clock.next_due is not None and monotonic() >= clock.next_due:
        clock.ring(monotonic())


# ---- Jobs


def test_what_is_written_is_the_state_of_its_moment(writer):
    gate, weight = Gate(), torch.ones(4)
    start(writer, {"a": weight}, gate.write, gate.endings)
    assert gate.began.wait(60) and writer.busy
    weight.zero_()
    gate.go.set()
    writer.finish()
    ((value, thread),) = gate.written
    assert torch.equal(value, torch.ones(4)) and thread == "fulmen-writer"
    assert (gate.endings, writer.busy) == ([None], False)
    writer.finish()
    assert gate.endings == [None]


def test_a_save_waits_for_the_one_before(writer):
    first, second = Gate(), Gate()
    second.go.set()
    start(writer, {"a": torch.zeros(1)}, first.write, first.endings)
    threading.Timer(1.0, first.go.set).start()
    start(writer, {"a": torch.ones(1)}, second.write, second.endings)
    assert first.endings == [None] and first.written[0][0] == 0  # the copy was not overwritten before it was written
    writer.finish()
    assert second.endings == [None] and second.written[0][0] == 1
    assert writer.blocked_seconds > 0.1


@pytest.mark.parametrize("failure", [None, CheckpointError("no space"), MemoryError("too much")])
def test_the_loop_learns_of_an_end_after_the_step_that_goes_on(failure):
    clock, endings = Clock(), []
    writer, went_on = BackgroundWriter(clock, OneRank()), threading.Event()
    assert clock.next_due is None  # nothing is looked at while nothing is written

    def write(payload):
        assert went_on.wait(60)
        if failure is not None:
            raise failure

    start(writer, {}, write, endings)
    ring(writer, clock)
    assert (endings, clock.next_due) == ([], None)
    thread = writer._thread
    went_on.set()
    thread.join()
    assert clock.next_due is not None
    if failure is None:
        ring(writer, clock)
        assert endings == [None]
    else:
        with pytest.raises(CheckpointError) as caught:
            ring(writer, clock)
        described = isinstance(failure, MemoryError)
        assert str(caught.value) == ("could not save the file: MemoryError: too much" if described else "no space")
        assert endings == [caught.value] and caught.value.__cause__ is (failure if described else None)
    writer.close()
    assert len(endings) == 1


def test_an_end_that_was_noted_by_the_next_save_is_not_waited_for_again(writer):
    clock = writer._alarm.clock
    quick, slow = Gate(), Gate()
    quick.go.set()
    start(writer, {"a": torch.zeros(1)}, quick.write, quick.endings)
    writer._thread.join()  # the clock is to ring now
    start(writer, {"a": torch.zeros(1)}, slow.write, slow.endings)
    ring(writer, clock)
    assert slow.endings == [] and writer.busy
    slow.go.set()


def test_a_failure_that_nobody_asked_for_is_raised_at_the_end():
    writer, endings = BackgroundWriter(Clock(), OneRank()), []

    def fail(payload):
        raise OSError("gone")

    start(writer, {}, fail, endings)
    with pytest.raises(CheckpointError, match="could not save the file: OSError: gone"):
        writer.close()
    assert len(endings) == 1 and writer.staging.num_bytes == 0


def test_without_a_thread_it_is_written_at_once_and_not_copied(writer):
    seen, endings, payload = [], [], {"a": torch.zeros(2)}
    writer.write_now(payload, lambda found: seen.append((found is payload, threading.current_thread())), endings.append, "x")
    assert seen == [(True, threading.main_thread())] and endings == [None]

    def fail(payload):
        raise OSError("gone")

    with pytest.raises(CheckpointError, match="could not save x: OSError: gone"):
        writer.write_now(payload, fail, endings.append, "x")
    assert str(endings[1]) == "could not save x: OSError: gone" and writer.staging.num_bytes == 0


def test_where_memory_is_short_training_waits(writer, monkeypatch):
    def short(*arguments, **options):
        raise RuntimeError("you tried to allocate 8 bytes")

    seen, endings, payload = [], [], {"a": torch.zeros(2)}
    monkeypatch.setattr(torch, "empty_like", short)
    with pytest.warns(FulmenWarning) as caught:
        writer.start(payload, lambda found: seen.append(found is payload), endings.append, "x.ckpt")
    assert seen == [True] and not writer.busy
    assert [str(each.message) for each in caught] == [
        "[no-memory-for-copy] no copy of the state for x.ckpt: you tried to allocate 8 bytes. Training waits while it is "
        "written"
    ]
    writer.finish()
    assert endings == [None]


class TwoRanks:
    """One rank of two. What rank 0 shares, the other gets from a list."""

    world_size = 2

    def __init__(self, rank, shared):
        self.is_global_zero, self.shared = rank == 0, shared

    def broadcast(self, value):
        if self.is_global_zero:
            self.shared.append(value)
        return self.shared[-1]


def test_all_ranks_raise_what_failed_on_rank_0():
    shared, endings = [], []

    def fail(payload):
        raise OSError("gone")

    for rank in (0, 1):
        writer = BackgroundWriter(Clock(), TwoRanks(rank, shared))
        for save in (writer.start, writer.write_now):
            with pytest.raises(CheckpointError, match=r"could not save x\.ckpt: OSError: gone"):
                save({}, fail, endings.append, "x.ckpt"), writer.finish()
        writer.start({}, lambda payload: None, endings.append, "x.ckpt")
        writer.close()  # asks nobody
    assert [None if each is None else str(each) for each in endings] == [
        *2 * ["could not save x.ckpt: OSError: gone"],
        None,
    ] * 2
    assert len(shared) == 2


FORKS = """
import os, sys, threading
import torch
from torch.utils.data import DataLoader
from fulmen import write_checkpoint
from fulmen.background import BackgroundWriter
from fulmen.clock import Clock

class OneRank:
    is_global_zero, world_size = True, 1

folder, rounds = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
clock, endings = Clock(), []
writer = BackgroundWriter(clock, OneRank())
payload = {f"{i}": torch.randn(50) for i in range(300)} | {"big": torch.randn(1 << 20)}
stop = threading.Event()

def write(found):
    while not stop.is_set():  # so that a fork comes at any moment of it
        write_checkpoint(found, f"{folder}/x.ckpt")

for index in range(rounds):
    writer.finish()
    stop.clear()
    writer.start(payload, write, endings.append, "x")
    batches = iter(DataLoader(torch.arange(8), batch_size=2, num_workers=2, multiprocessing_context="fork"))
    assert writer.busy
    stop.set()
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    del batches
writer.close()
print(endings.count(None))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_workers_that_are_forked_while_the_thread_writes_come_to_their_end(tmp_path):
    rounds = 12
    command = [sys.executable, "-W", "error", "-c", FORKS, str(tmp_path), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # a deadlock ends here
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == rounds
    assert read_checkpoint(tmp_path / "x.ckpt")["big"].shape == (1 << 20,)


# ---- Copies


def test_copies_are_reused_and_equal(tmp_path):
    tied = torch.randn(4, 6)
    payload = {
        "state": {
            "a": tied,
            "b": tied,
            "c": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "d": torch.empty(0),
        },
        "list": [torch.arange(3), (torch.tensor(2.5, dtype=torch.bfloat16), "text", None)],
        "size": torch.Size([1, 2]),
        "sparse": torch.eye(3).to_sparse(),
        "set": {1, 2},
    }
    staging = Staging()
    copied, events = staging.copy(payload)
    assert events == [] and staging.num_bytes >= tied.nbytes
    assert copied["state"]["a"] is copied["state"]["b"] and copied["state"]["a"].data_ptr() != tied.data_ptr()
    assert copied["state"]["c"].is_contiguous(memory_format=torch.channels_last)
    expected = tied.clone()
    tied.zero_()
    assert torch.equal(copied["state"]["a"], expected) and copied["list"][1][1:] == ("text", None)
    write_checkpoint(copied, tmp_path / "copy.ckpt")
    addresses = [each.data_ptr() for each in (copied["state"]["a"], copied["state"]["c"], copied["list"][0])]
    again, _ = staging.copy(payload)
    assert [each.data_ptr() for each in (again["state"]["a"], again["state"]["c"], again["list"][0])] == addresses
    assert torch.equal(again["state"]["a"], torch.zeros(4, 6)) and torch.equal(again["sparse"].to_dense(), torch.eye(3))


def test_buffers_outlive_checkpoints_that_have_no_use_for_them_and_then_go():
    staging, whole = Staging(), {"weights": torch.ones(8), "optimizer": torch.ones(32)}
    address = staging.copy(whole)[0]["optimizer"].data_ptr()
    for _ in range(7):
        staging.copy({"weights": torch.ones(8)})
    assert staging.num_bytes == 40 * 4 and staging.copy(whole)[0]["optimizer"].data_ptr() == address
    for _ in range(8):
        staging.copy({"weights": torch.ones(8)})
    assert staging.num_bytes == 8 * 4


def test_versions_of_modules_are_copied_too(tmp_path):
    """A state_dict carries them as an attribute; without them, loading takes the state for one of an older torch."""
    state = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).state_dict()
    write_checkpoint(Staging().copy({"state_dict": state})[0], tmp_path / "copy.ckpt")
    found = read_checkpoint(tmp_path / "copy.ckpt")["state_dict"]
    assert found._metadata == state._metadata and found._metadata["0"] == {"version": 2}


@pytest.mark.gpu
def test_on_a_gpu_the_copies_are_pinned_and_of_their_moment():
    weight, staging = torch.zeros(1 << 24, device="cuda"), Staging()
    for value in (1.0, 2.0):
        weight.fill_(value)
        copied, events = staging.copy({"weight": weight})
        weight.fill_(-1.0)  # the step after, queued behind the copy
        for event in events:
            event.synchronize()
        assert copied["weight"].is_pinned() and bool((copied["weight"] == value).all())
