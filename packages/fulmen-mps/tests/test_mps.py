"""The accelerator of Macs. What needs one is marked."""

from __future__ import annotations

import sys

import pytest
import torch
from fulmen_mps import MPSAccelerator

from fulmen import ConfigurationError, PluginSet, Runtime
from fulmen.testing import Regression, Validated, batches, quiet

HERE = torch.backends.mps.is_available()


def test_it_is_found_by_name():
    built = PluginSet.discover().build("accelerator", "mps?memory_fraction=0.5")
    assert type(built) is MPSAccelerator
    assert built.memory_fraction == 0.5


def test_there_is_one_device_at_most():
    assert MPSAccelerator.num_available() == int(MPSAccelerator.is_available()) == int(HERE)
    assert MPSAccelerator().devices([0]) == [torch.device("mps", 0)]


class OnMac(MPSAccelerator):
    """As on a Mac, as far as no device is needed."""

    num_available = staticmethod(lambda: 1)


@pytest.mark.parametrize("devices", ["auto", -1, 1, "1", [0], "0,"])
def test_the_one_device_is_chosen(devices):
    assert OnMac().parse_devices(devices) == [0]


@pytest.mark.parametrize("devices", [2, [1], "0,1", 0])
def test_a_second_one_is_refused(devices):
    with pytest.raises(ConfigurationError) as caught:
        OnMac().parse_devices(devices)
    assert str(caught.value) == (
        f"devices={devices!r} does not fit accelerator 'mps', which has 1; allowed are 'auto' or -1 (all), a count from 1 to "
        "1, or a list of different indices below 1"
    )


@pytest.mark.skipif(HERE or sys.platform == "darwin", reason="this is a Mac")
def test_elsewhere_it_says_why_there_is_none():
    with pytest.raises(ConfigurationError, match="accelerator 'mps' finds no device on this machine") as caught:
        Runtime(accelerator="mps")
    assert str(caught.value).endswith(f"; it is for Macs, and this is {sys.platform}, or use 'auto'")


@pytest.mark.parametrize("fraction", [-0.1, 2.1, True, "half"])
def test_a_wrong_fraction_says_what_is_allowed(fraction):
    with pytest.raises(ConfigurationError) as caught:
        MPSAccelerator(fraction)
    assert (
        str(caught.value) == f"memory_fraction={fraction!r} is not allowed; allowed: a number from 0 (no limit) to 2, and None"
    )


def test_means_are_summed_in_single_precision(tmp_path):
    """The device has no doubles; metrics ask the accelerator."""

    class Host(OnMac):
        is_available = staticmethod(lambda: True)

        def devices(self, indices):
            return [torch.device("cpu") for _ in indices]

    trainer = quiet(accelerator=Host(), max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(Validated(), batches(3), batches(2))
    assert trainer.callback_metrics["train_loss_epoch"].dtype == torch.float32


def test_without_the_device_there_is_no_state():
    accelerator = MPSAccelerator()
    if not HERE:
        assert accelerator.random_state() == {}
    assert accelerator.set_random_state({}) is None
    assert accelerator.teardown() is None


@pytest.mark.hardware("mps")
def test_it_trains_there_as_on_the_processor(tmp_path):
    first, second = Regression(), Regression()
    for module in (first, second):
        module.net[2].p = 0.0
    quiet(accelerator="mps", max_epochs=1).fit(first, batches(20))
    quiet(accelerator="cpu", max_epochs=1).fit(second, batches(20))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.hardware("mps")
def test_figures_random_numbers_and_the_limit():
    accelerator, device = MPSAccelerator(memory_fraction=0.5), torch.device("mps", 0)
    accelerator.setup_device(device)
    kept = torch.ones(1000, device=device)
    stats = accelerator.stats(device)
    assert stats["memory_driver_bytes"] >= stats["memory_allocated_bytes"] >= 4 * kept.numel()
    state = accelerator.random_state()
    first = torch.rand(3, device=device)
    accelerator.set_random_state(state)
    assert torch.equal(first, torch.rand(3, device=device))
    with pytest.raises(RuntimeError, match="out of memory"):
        torch.empty(torch.mps.recommended_max_memory(), dtype=torch.uint8, device=device)
    accelerator.synchronize(device)
    MPSAccelerator(memory_fraction=0).setup_device(device)
    accelerator.teardown()
