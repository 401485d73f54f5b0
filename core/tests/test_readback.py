"""Scalars come back from a device in the order given, and nothing waits for them."""

from __future__ import annotations

import pytest
import torch

from fulmen.readback import Readback, _queued


def test_values_come_back_as_plain_numbers_in_order():
    values = {"b": torch.tensor(1.5), "n": 2, "a": torch.tensor([3]), "f": 0.1, "t": torch.tensor(True)}
    found = Readback(values)
    assert found.ready
    assert found.result() == {"b": 1.5, "n": 2.0, "a": 3.0, "f": 0.1, "t": 1.0}
    assert list(found.result()) == list(values)
    assert {type(value) for value in found.result().values()} == {float}


def test_nothing_is_a_result_too():
    assert Readback({}).ready
    assert Readback({}).result() == {}


def test_a_value_that_changes_afterwards_does_not_show():
    value = torch.tensor(1.0)
    found = Readback({"a": value})
    value.zero_()
    assert found.result() == {"a": 1.0}


def test_double_precision_is_kept():
    tenth = torch.tensor(0.1, dtype=torch.float64)
    assert Readback({"a": tenth}).result() == {"a": 0.1}
    assert Readback({"a": tenth, "b": torch.tensor(0.5)}).result() == {"a": 0.1, "b": 0.5}
    assert Readback({"a": torch.tensor(2**24 + 1)}).result() == {"a": 2.0**24 + 1}


def test_a_device_without_events_is_waited_for():
    copy, event = _queued(torch.tensor([1.0, 2.0]))  # the processor has none
    assert event is None
    assert copy.tolist() == [1.0, 2.0]


@pytest.mark.gpu
def test_reading_back_does_not_wait():
    device = torch.device("cuda", 0)
    value = torch.full((), 3.0, device=device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(500_000_000)  # cycles: longer than the lines below take
        found = Readback({"a": value, "b": 1})
        assert not found.ready
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.result() == {"a": 3.0, "b": 1.0}
