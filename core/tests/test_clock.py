"""Alarms between steps."""

from __future__ import annotations

import math
from time import monotonic

from fulmen.clock import Clock


def test_without_alarms_no_time_is_read():
    assert Clock().next_due is None


def test_alarms_ring_when_they_are_due_and_then_again():
    clock, rung = Clock(), []
    start = monotonic()
    clock.every(10, lambda: rung.append("ten"))
    clock.every(1000, lambda: rung.append("thousand"))
    assert start + 10 <= clock.next_due <= monotonic() + 10
    clock.ring(start)
    assert rung == []
    clock.ring(clock.next_due)
    assert rung == ["ten"]
    assert clock.next_due > start + 10
    clock.ring(monotonic() + 1001)
    assert sorted(rung) == ["ten", "ten", "thousand"]


def test_an_alarm_can_be_cancelled():
    clock, rung = Clock(), []
    alarm = clock.every(10, lambda: rung.append(1))
    clock.cancel(alarm)
    clock.ring(monotonic() + 11)
    assert (rung, clock.next_due) == ([], None)


def test_ranks_ring_what_one_of_them_found_due():
    """Rank 0 looks at the time; the others ring the same alarms, whatever their clocks say."""
    rung = []
    clock = Clock()
    assert clock.due(monotonic()) == 0
    clock.every(1000, lambda: rung.append("a"))
    clock.every(10, lambda: rung.append("b"))
    assert clock.due(monotonic()) == 0
    assert (clock.due(monotonic() + 11), clock.due(monotonic() + 1001)) == (2, 3)
    clock.ring_alarms(2)
    assert rung == ["b"]
    clock.ring_alarms(3)
    assert rung == ["b", "a", "b"]


def test_an_alarm_rings_when_it_is_told_to():
    clock, rung = Clock(), []
    silent = clock.every(math.inf, lambda: rung.append("silent"))
    regular = clock.every(1000, lambda: rung.append("regular"))
    regular.ring_in(math.inf)
    assert clock.next_due is None
    silent.ring_in(0)
    clock.ring(monotonic())
    assert (rung, clock.next_due) == (["silent"], None)  # once
    regular.ring_in(5)
    assert clock.next_due <= monotonic() + 5


def test_an_action_says_when_its_alarm_rings_next():
    clock = Clock()
    alarm = clock.every(1000, lambda: alarm.ring_in(7))
    clock.ring(monotonic() + 1001)
    assert clock.next_due <= monotonic() + 7
    other = Clock()
    other.every(1000, lambda: None)
    other.ring(monotonic() + 1001)
    assert monotonic() + 900 < other.next_due
