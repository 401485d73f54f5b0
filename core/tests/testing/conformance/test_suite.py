"""What the suites share: no test is lost, and what is counted is what happens."""

from __future__ import annotations

import re

import pytest
import torch

from fulmen.testing.conformance import CallbackSuite, LoggerSuite, suite
from fulmen.testing.conformance.measure import Calls, DeviceReads, Lines, Traffic, counted, full_disk

# ---- No test is lost


@pytest.mark.parametrize(
    ("base", "body", "error"),
    [
        (
            LoggerSuite,
            {"test_rows_arrive": None},
            "Mine.test_rows_arrive would replace a standard test; set keeps_rows = False where it does not apply",
        ),
        (
            CallbackSuite,
            {"test_it_leaves_the_training_as_it_is": lambda self: None},
            "Mine.test_it_leaves_the_training_as_it_is would replace a standard test; "
            "set changes_training = True where it does not apply",
        ),
        (
            CallbackSuite,
            {"test_every_hook_of_it_exists": None},
            "Mine.test_every_hook_of_it_exists would replace a standard test; give yours another name",
        ),
        (
            CallbackSuite,
            {"change_training": True},
            "Mine has no flag 'change_training'; did you mean 'changes_training'?; "
            "flags are: changes_training, picklable, reads_device, state_is_exact",
        ),
    ],
)
def test_standard_tests_cannot_be_replaced_and_flags_cannot_be_misspelled(base, body, error):
    with pytest.raises(TypeError, match=re.escape(error)):
        type("Mine", (base,), body)


def test_tests_and_helpers_of_ones_own_are_welcome():
    class Mine(LoggerSuite):
        url = "http://localhost"
        _started = False

        def test_something_else(self):
            pass

    assert Mine.test_rows_arrive is LoggerSuite.test_rows_arrive


def test_a_flag_that_is_off_skips_with_its_name(tmp_path):
    class TestMine(LoggerSuite):
        keeps_rows = False

    with pytest.raises(pytest.skip.Exception, match=r"^TestMine.keeps_rows is False$"):
        TestMine().test_rows_arrive(tmp_path)


@pytest.mark.parametrize("method", ["make", "read_back", "read_hyperparams"])
def test_what_a_subclass_has_to_give_is_said(tmp_path, method):
    arguments = {"make": [tmp_path]}.get(method, [None, tmp_path])
    with pytest.raises(NotImplementedError, match=rf"Mine needs: def {method}\(self, "):
        getattr(type("Mine", (LoggerSuite,), {})(), method)(*arguments)


# ---- Counting


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda t: t.item(), "item"),
        (float, "__float__"),
        (int, "__int__"),
        (bool, "__bool__"),
        (lambda t: [1, 2][t.long()], "__index__"),
        (lambda t: t.tolist(), "tolist"),
        (lambda t: t.cpu(), "cpu"),
        (lambda t: t.to("cpu"), "to"),
        (lambda t: t.to(device=torch.device("cpu")), "to"),
        (lambda t: t.numpy(), "numpy"),
        (lambda t: f"{t}", "__format__"),
        (repr, "__repr__"),
        (lambda t: torch.equal(t, t), "equal"),
        (lambda t: t.reshape(1).nonzero(), "nonzero"),
    ],
)
def test_what_waits_for_the_device_is_counted_with_its_place(read, name):
    tensor, reads = torch.ones(()), DeviceReads()
    assert counted(reads, lambda: read(tensor)) == 1
    assert reads.places[0].startswith(f"{name} at test_suite.py:")


@pytest.mark.parametrize(
    "work",
    [
        lambda t: t * 2 + t.mean(),
        lambda t: t.detach().clone().float(),
        lambda t: t.to(torch.float64),
        lambda t: t.to("cpu", non_blocking=True),
        lambda t: t.requires_grad_().square().sum().backward(),
    ],
)
def test_what_does_not_wait_is_not_counted(work):
    assert counted(DeviceReads(), lambda: work(torch.ones(3))) == 0


def test_calls_lines_and_bytes(tmp_path):
    def loop(count):
        total = 0
        for value in range(count):
            total += value
        return total

    assert counted(Lines(), lambda: loop(1000)) - counted(Lines(), lambda: loop(100)) == pytest.approx(1800, abs=20)
    calls = counted(Calls(), lambda: [len("") for _ in range(100)]) - counted(Calls(), lambda: [len("") for _ in range(10)])
    assert calls == 90
    if Traffic.PATH.exists():
        assert counted(Traffic(), lambda: (tmp_path / "x").write_bytes(bytes(10**6))) >= 10**6


def test_a_full_disk_is_one(tmp_path):
    pytest.importorskip("resource")
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        (tmp_path / "x").write_bytes(bytes(200))
    (tmp_path / "x").write_bytes(bytes(200))


def test_states_are_compared_bit_for_bit():
    one = {"a": [1, torch.ones(2)], "b": (float("nan"), "x")}
    assert suite.same(one, {"a": [1, torch.ones(2)], "b": (float("nan"), "x")})
    for other in ({}, {"a": [1, torch.zeros(2)], "b": one["b"]}, {"a": [2, torch.ones(2)], "b": one["b"]}, {**one, "c": 1}):
        assert not suite.same(one, other)


def test_switches_that_are_left_changed_are_named():
    def change():
        with suite.process_is_left_as_it_was():
            torch.set_default_dtype(torch.float64)

    try:
        with pytest.raises(AssertionError, match="default dtype"):
            change()
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_new_process_that_fails_shows_why():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        suite.new_python("-c", "1 / 0")
