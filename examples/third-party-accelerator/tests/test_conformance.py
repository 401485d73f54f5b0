"""The tests that fulmen's own accelerators pass, and what is special about this one."""

from __future__ import annotations

import pytest
import torch
from sliced_cpu import SlicedCPUAccelerator

from fulmen import Callback, ConfigurationError
from fulmen.testing import Regression, batches, quiet
from fulmen.testing.conformance import AcceleratorSuite


class TestSlicedCPU(AcceleratorSuite):
    name = "sliced-cpu"
    arguments = {"threads": 2}  # noqa: RUF012
    has_generator = False  # the processor's is kept by fulmen

    def make(self, folder):
        return SlicedCPUAccelerator()


def test_a_training_keeps_to_its_slice_and_gives_the_rest_back():
    seen, before = [], torch.get_num_threads()

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(torch.get_num_threads())

    quiet(max_epochs=1, accelerator="sliced-cpu?threads=2", devices=1, callbacks=Look()).fit(Regression(), batches(2))
    assert (seen, torch.get_num_threads()) == ([2, 2], before)


def test_the_environment_says_how_many_there_are(monkeypatch):
    monkeypatch.setenv("SLICED_CPU_COUNT", "3")
    assert SlicedCPUAccelerator().parse_devices("auto") == [0, 1, 2]
    monkeypatch.setenv("SLICED_CPU_COUNT", "0")
    assert not SlicedCPUAccelerator.is_available()
    monkeypatch.setenv("SLICED_CPU_COUNT", "many")
    with pytest.raises(ConfigurationError, match="SLICED_CPU_COUNT='many' must be a whole number from 0"):
        SlicedCPUAccelerator.num_available()
