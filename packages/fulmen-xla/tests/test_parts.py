"""What needs no torch_xla: names, choices and errors."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import threading
from multiprocessing.connection import Client

import pytest
import torch
from fulmen_xla import XLAAccelerator, XLAPrecision, XLAStrategy
from fulmen_xla.launcher import XLALauncher, host_state, outcome, set_host_state

from fulmen import ConfigurationError, FulmenError, PluginSet, Runtime
from fulmen.testing import quiet

INSTALLED = importlib.util.find_spec("torch_xla") is not None


class Four(XLAAccelerator):
    """As with four devices."""

    num_available = staticmethod(lambda: 4)


@pytest.mark.parametrize("name", ["xla", "tpu"])
def test_the_accelerator_is_found_by_name(name):
    assert type(PluginSet.discover().build("accelerator", name)) is XLAAccelerator


def test_strategy_and_precisions_are_found_by_name():
    plugins = PluginSet.discover()
    assert plugins.build("strategy", "xla?start_method=fork").start_method == "fork"
    for name in ("xla-bf16-mixed", "xla-bf16-true"):
        built = plugins.build("precision", name)
        assert (type(built), built.name) == (XLAPrecision, name)


@pytest.mark.skipif(INSTALLED, reason="torch_xla is installed")
def test_without_torch_xla_it_says_how_to_get_it():
    assert (XLAAccelerator.num_available(), XLAAccelerator.is_available()) == (0, False)
    with pytest.raises(ConfigurationError, match="accelerator 'xla' finds no device on this machine") as caught:
        Runtime(accelerator="tpu")
    assert str(caught.value).endswith(
        "; torch_xla is not installed: pip install torch~=2.9.0 torch_xla[tpu]~=2.9.0, or use 'auto'"
    )


def test_where_torch_xla_finds_no_tpu_the_processor_is_suggested(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert XLAAccelerator.advice() == "there is no TPU; PJRT_DEVICE=CPU tries things out on the processor"
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    monkeypatch.delenv("CPU_NUM_DEVICES", raising=False)
    assert XLAAccelerator.num_available() == 1
    monkeypatch.setenv("CPU_NUM_DEVICES", "4")
    assert XLAAccelerator.num_available() == 4
    assert "torch_xla" not in sys.modules or INSTALLED


@pytest.mark.parametrize(
    ("devices", "expected"), [("auto", [0, 1, 2, 3]), (1, [0]), ([2], [2]), (4, [0, 1, 2, 3]), ("3,", [3])]
)
def test_one_device_or_all(devices, expected):
    assert Four().parse_devices(devices) == expected


def test_some_devices_are_refused():
    with pytest.raises(ConfigurationError) as caught:
        Four().parse_devices(2)
    assert str(caught.value) == (
        "devices=2 asks for 2 of 4 XLA devices, and allowed are one or all; to use some, show only those to the program: "
        "TPU_VISIBLE_CHIPS, or CPU_NUM_DEVICES with PJRT_DEVICE=CPU"
    )


def test_other_devices_are_refused():
    with pytest.raises(ConfigurationError) as caught:
        quiet(accelerator="cpu", strategy="xla")
    assert str(caught.value) == (
        "strategy 'xla' needs accelerator='xla', and the accelerator is 'cpu'; leave strategy at 'auto'"
    )
    with pytest.raises(ConfigurationError) as caught:
        quiet(accelerator="cpu", precision="xla-bf16-true")
    assert str(caught.value) == ("precision 'xla-bf16-true' is for accelerator 'xla', and the device is 'cpu'; use 'bf16-true'")


def connected(count=4, **arguments):
    strategy = XLAStrategy(**arguments)
    strategy.connect(Four(), [torch.device("xla", index) for index in range(count)], 1, None)
    return strategy


def test_several_devices_are_launched_and_one_is_not():
    assert connected(1).launcher is None
    strategy = connected(4, start_method="fork")
    assert isinstance(strategy.launcher, XLALauncher) and strategy.launcher.is_interactive_compatible
    assert (strategy.world_size, strategy.global_rank, strategy.sampler_arguments()) == (1, 0, None)
    sent = pickle.loads(pickle.dumps(strategy))
    assert sent.launcher is None and sent._several


def test_wrong_arguments_say_what_is_allowed():
    with pytest.raises(ConfigurationError) as caught:
        XLAStrategy(start_method="thread")
    assert str(caught.value) == "start_method='thread' is not allowed; allowed: 'spawn', 'fork'"
    with pytest.raises(ConfigurationError) as caught:
        XLAPrecision("bf16")
    assert str(caught.value) == "name='bf16' is not allowed; allowed: 'xla-bf16-mixed', 'xla-bf16-true'"
    with pytest.raises(ConfigurationError) as caught:
        XLAStrategy().connect(Four(), [torch.device("xla", 0)], 2, None)
    assert str(caught.value) == (
        "num_nodes=2 is not allowed with strategy 'xla'; start the program on each host of the pod, and leave num_nodes at 1: "
        "torch_xla finds the others"
    )


# ---- What comes back from other processes


def test_the_first_error_of_a_rank_is_raised_before_that_of_the_launch():
    error, launch = ValueError("rank 1 failed"), RuntimeError("pool broken")
    with pytest.raises(ValueError, match="rank 1 failed") as caught:
        outcome([("result", 1), ("error", (error, "Traceback ..."))], launch)
    assert caught.value.__cause__ is launch
    if hasattr(error, "__notes__"):
        assert error.__notes__ == ["in another process:\nTraceback ..."]
    with pytest.raises(RuntimeError, match="pool broken"):
        outcome([], launch)
    with pytest.raises(FulmenError, match="ended without a result of rank 0"):
        outcome([], None)
    assert outcome([("result", [1])], None) == [1]


def test_new_processes_start_with_the_random_states_of_the_first():
    state = host_state()
    first = torch.rand(2)
    set_host_state(state)
    assert torch.equal(first, torch.rand(2))


def test_the_listener_ends_and_checks_the_key():
    from multiprocessing.connection import Listener

    from fulmen_xla.launcher import _receive, _send

    answers = []
    with Listener(authkey=b"right") as listener:
        receiver = threading.Thread(target=_receive, args=(listener, answers))
        receiver.start()
        with pytest.raises(Exception, match="digest"), Client(listener.address, authkey=b"wrong"):
            pass
        _send(listener.address, b"right", ("result", 3))
        _send(listener.address, b"right", ("end", None))
        receiver.join(timeout=20)
    assert not receiver.is_alive()
    assert answers == [("result", 3)]
