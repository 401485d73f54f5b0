"""The queue and its thread, without MLflow."""

from __future__ import annotations

import threading
import time

import pytest
from fulmen_mlflow import sender as module
from fulmen_mlflow.sender import Away, Command, Refused, Sender


class Destination:
    """Keeps what it gets; fails as told."""

    def __init__(self, *failures: Exception) -> None:
        self.batches: list[list[Command]] = []
        self.failures = list(failures)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, commands: list[Command]) -> None:
        self.gate.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(commands)

    @property
    def data(self) -> list:
        return [item for batch in self.batches for command in batch for item in command.data]


def row(step: int, count: int = 1) -> Command:
    return Command("metrics", [["loss", 0.5, 0, step]] * count)


def test_rows_that_wait_go_together_and_in_order():
    destination = Destination()
    sender = Sender(destination)
    for step in range(5):
        assert sender.put(row(step))
    sender.put(Command("status", ["FINISHED"]))
    assert sender.flush(10)
    assert [[command.kind for command in batch] for batch in destination.batches] == [["metrics"] * 5, ["status"]]
    assert [item[3] for item in destination.data[:-1]] == [0, 1, 2, 3, 4]
    assert sender.left() == []
    sender.close()


def test_a_request_has_at_most_1000_metrics():
    destination = Destination()
    sender = Sender(destination)
    for step in range(5):
        sender.put(row(step, 300))
    assert sender.flush(10)
    assert [sum(command.size for command in batch) for batch in destination.batches] == [900, 600]
    sender.close()


def test_a_destination_that_comes_back_gets_everything(monkeypatch):
    monkeypatch.setattr(module, "FIRST_RETRY_SECONDS", 0.01)
    destination = Destination(Away("gone"), Away("gone"))
    sender = Sender(destination, linger_seconds=0)
    sender.put(row(0))
    assert sender.flush(10, patient=True)
    assert sender.away_since is None
    assert [item[3] for item in destination.data] == [0]
    sender.close()


def test_nobody_waits_for_one_that_is_away_unless_patient():
    destination = Destination(*[Away("gone")] * 100)
    sender = Sender(destination, linger_seconds=0)
    sender.put(row(0))
    assert not sender.flush(60)  # returns as soon as it is known to be away
    assert sender.away_since is not None
    assert not sender.flush(0.01, patient=True)
    assert [command.data for command in sender.left()] == [row(0).data]
    sender.close()
    assert sender.left() == []


def test_a_wrong_command_is_dropped_and_kept_as_a_problem():
    destination = Destination(ValueError("bad"))
    sender = Sender(destination)
    sender.put(Command("tags", [["a", "b"]]))
    sender.put(row(1))
    assert sender.flush(10)
    assert [(kind, str(error)) for kind, error in sender.problems] == [("tags", "bad")]
    assert [item[3] for item in destination.data] == [1]
    sender.close()


def test_after_a_refusal_nothing_is_taken():
    sender = Sender(Destination(Refused("no such run")), linger_seconds=0)
    assert sender.put(row(0))
    assert not sender.flush(10)
    assert sender.refused and str(sender.reason) == "no such run"
    assert not sender.put(row(1))
    assert [command.data[0][3] for command in sender.left()] == [0]
    sender.close()


def test_the_queue_is_bounded_and_never_waits(monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    destination = Destination()
    destination.gate.clear()
    sender = Sender(destination)
    taken = [sender.put(row(step)) for step in range(12)]
    assert taken == [True] * 10 + [False] * 2
    destination.gate.set()
    assert sender.flush(10)
    assert sender.put(row(12))  # there is room again
    assert sender.flush(10)
    sender.close()


def test_closing_ends_the_thread_and_a_later_command_starts_another():
    destination = Destination()
    sender = Sender(destination)
    sender.put(row(0))
    sender.flush(10)
    thread = sender._thread
    sender.close()
    deadline = time.monotonic() + 10
    while thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not thread.is_alive()
    sender.put(row(1))
    assert sender.flush(10)
    assert [item[3] for item in destination.data] == [0, 1]
    sender.close()


@pytest.mark.parametrize(("kind", "size"), [("metrics", 3), ("tags", 1)])
def test_the_size_of_a_command(kind, size):
    assert Command(kind, [0, 0, 0]).size == size
