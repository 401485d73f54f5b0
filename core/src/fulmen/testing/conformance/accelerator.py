"""The suite for accelerators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import Accelerator, Callback, ConfigurationError, Runtime
from fulmen.testing.conformance.measure import DeviceReads, counted
from fulmen.testing.conformance.suite import Suite, only_if, process_is_left_as_it_was, through_a_file
from fulmen.testing.fakes import FailingModule, Failure
from fulmen.testing.training import Validated, batches, same_weights, without_dropout


class AcceleratorSuite(Suite):
    """Subclass it, give ``name`` and :meth:`make`. Tests that need a device are skipped where there is none."""

    kind = "accelerator"

    has_indices: bool = True
    """Whether devices are told apart by index, so that lists are taken, and more than there are is an error."""

    has_generator: bool = True
    """Whether the device has a random number generator of its own, which a resume has to restore."""

    is_exact: bool = True
    """Whether the same training gives the same weights bit for bit, twice and after a resume."""

    tolerance: float = 1e-4
    """How far weights may be from those of the same training on the processor (relative, and absolute near 0)."""

    def place(self, part: Any) -> dict[str, Any]:
        """The accelerator, with one device."""
        return {"accelerator": part, "devices": 1}

    @pytest.fixture
    def part(self, tmp_path: Path) -> Any:
        """A new accelerator where there is a device; elsewhere the test is skipped."""
        part = self.make(tmp_path)
        if not part.is_available():
            pytest.skip(f"no {self.name} device is available")
        return part

    def device(self, part: Accelerator) -> torch.device:
        """Its first device."""
        return part.devices(part.parse_devices(1))[0]

    @only_if("picklable")
    def test_a_new_process_can_train_with_it(self, tmp_path: Path, part: Any) -> None:  # type: ignore[override]
        """As for every part, where there is a device."""
        super().test_a_new_process_can_train_with_it(tmp_path)

    # ---- What there is

    def test_it_knows_what_there_is(self, tmp_path: Path) -> None:
        """Availability is asked of the class, before anything is chosen; it must not start the device."""
        part, started = self.make(tmp_path), torch.cuda.is_initialized()
        cls = type(part)
        assert part.name == self.name, f"it is registered as {self.name!r}, and its name is {part.name!r}"
        assert type(cls.is_available()) is bool
        assert type(cls.num_available()) is int and cls.num_available() >= 0
        assert cls.is_available() is (cls.num_available() > 0) or part.num_available() > 0
        assert torch.cuda.is_initialized() == started

    def test_where_there_is_none_it_says_so(self, tmp_path: Path) -> None:
        """Asking for a device that is not there is an error before anything runs."""
        if self.make(tmp_path).is_available():
            pytest.skip(f"a {self.name} device is available")
        with pytest.raises(ConfigurationError, match="finds no device on this machine"):
            Runtime(accelerator=self.make(tmp_path))

    def test_devices_are_chosen_as_people_write_them(self, part: Accelerator) -> None:
        """``"auto"``, a count as a number or text, and where devices have indices, lists of them and -1 for all."""
        every = part.parse_devices("auto")
        assert every and all(type(index) is int for index in every)
        assert part.parse_devices(1) == part.parse_devices("1") == every[:1]
        assert [type(device) for device in part.devices(every)] == [torch.device] * len(every)
        if self.has_indices:
            last = every[-1]
            assert part.parse_devices(-1) == part.parse_devices("-1") == part.parse_devices(len(every)) == every
            assert part.parse_devices([last]) == part.parse_devices(f"{last},") == [last]

    def test_wrong_devices_are_refused(self, part: Accelerator) -> None:
        """With an error that repeats the value and says what is allowed."""
        wrong: list[Any] = [0, -2, "many", True, []]
        if self.has_indices:
            count = len(part.parse_devices("auto"))
            wrong += [count + 1, [count], [0, 0], "0,0"]
        for devices in wrong:
            with pytest.raises(ConfigurationError) as caught:
                part.parse_devices(devices)
            assert repr(devices) in str(caught.value) and "allowed" in str(caught.value)

    # ---- Behaviour

    def test_it_trains_there_and_brings_the_module_back(self, tmp_path: Path, part: Accelerator) -> None:
        """Parameters and batches are on the device while the training runs, and the module is on the host afterwards."""
        seen: list[torch.device] = []
        module = Validated()

        class Look(Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                seen.extend([batch[0].device, next(module.parameters()).device, trainer.runtime.device])

        device = self.device(part)
        trainer = self.train(part, module, callbacks=[Look()])
        assert trainer.global_step == 16
        assert set(seen) == {device}
        assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}

    def test_it_computes_what_the_processor_computes(self, tmp_path: Path, part: Accelerator) -> None:
        """Without dropout, the weights after a training are those of the processor, within ``tolerance``."""
        here, there = without_dropout(Validated()), without_dropout(Validated())
        self.train(part, there)
        self.train("cpu", here)
        for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=self.tolerance, atol=self.tolerance)

    def test_setting_up_and_tearing_down_may_be_repeated(self, tmp_path: Path, part: Accelerator) -> None:
        """Also a teardown without a set-up, and twice: it runs after failures."""
        part.teardown()
        for _ in range(2):
            part.setup_device(self.device(part))
            part.synchronize(self.device(part))
            part.teardown()
            part.teardown()

    def test_switches_are_left_alone_unless_asked(self, tmp_path: Path, part: Accelerator) -> None:
        """``None`` leaves the backend as it is; every documented value is taken."""
        with process_is_left_as_it_was():
            part.configure(deterministic=None, benchmark=None)
        for deterministic in (True, "warn", False):
            self.train(self.make(tmp_path), max_epochs=1, deterministic=deterministic, benchmark=False)

    # ---- Cost

    def test_figures_are_numbers_read_without_waiting(self, part: Accelerator) -> None:
        """``stats`` is called at logging steps."""
        device = self.device(part)
        part.setup_device(device)
        stats: list[dict[str, float]] = []
        reads = DeviceReads()
        counted(reads, lambda: stats.append(part.stats(device)))
        part.teardown()
        assert all(isinstance(name, str) and type(value) in (int, float) for name, value in stats[0].items())
        assert reads.count == 0, f"it waits for the device: {reads.places}"

    # ---- State

    def test_random_state_is_plain_data_and_comes_back(self, part: Accelerator) -> None:
        """The device draws the same numbers again after its state is put back."""
        device = self.device(part)
        part.setup_device(device)
        state = through_a_file(part.random_state())
        first = torch.rand(4, device=device)
        part.set_random_state(state)
        if self.has_generator:
            assert state, "it has a generator, and random_state() is empty"
            assert torch.equal(first, torch.rand(4, device=device))
        part.teardown()

    @only_if("is_exact")
    def test_a_training_that_was_cut_and_resumed_equals_one_that_was_not(self, tmp_path: Path, part: Accelerator) -> None:
        """Bit for bit, with dropout on the device."""
        whole, _ = self.whole(tmp_path)
        resumed, _ = self.cut_and_resumed(tmp_path)
        assert whole.module and resumed.module and same_weights(whole.module, resumed.module)

    # ---- Failure

    def test_a_training_that_fails_frees_the_device(self, tmp_path: Path, part: Accelerator) -> None:
        """The error comes through, the module is on the host, and the next training works."""
        module = FailingModule(at=3)
        trainer = self.trainer(part)
        with pytest.raises(Failure):
            trainer.fit(module, batches(8), batches(2))
        assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
        trainer.fit(Validated(), batches(8), batches(2))
        assert trainer.status == "finished"
