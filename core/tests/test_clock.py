"""Alarms between steps."""

from __future__ import annotations

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
