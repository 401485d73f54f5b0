"""The suite for profilers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fulmen.testing.conformance.measure import Calls, DeviceReads, Lines, counted
from fulmen.testing.conformance.suite import Suite, only_if, unless
from fulmen.testing.fakes import FailingModule, Failure
from fulmen.testing.training import Validated, same_weights


class ProfilerSuite(Suite):
    """Subclass it, give ``name`` and :meth:`make`."""

    kind = "profiler"

    names_actions: bool = True
    """Whether ``summary`` shows the names of actions. Off for those that show what the actions consist of."""

    synchronizes: bool = False
    """Whether it waits for the device, to measure what the device does."""

    most_calls_per_action: int = 40
    """Function calls for one action, its start and stop together."""

    # ---- Behaviour

    def test_it_measures_blocks_functions_and_iterators(self, tmp_path: Path) -> None:
        """Results pass through, exceptions too, and nothing stays open."""
        part = self.make(tmp_path)
        with part.profile("block"), part.profile("inside"):
            pass
        assert part.wrap("function", lambda value: value + 1)(1) == 2
        assert list(part.iterate("values", iter([1, 2]))) == [1, 2]
        with pytest.raises(Failure), part.profile("failing"):
            raise Failure
        with part.profile("failing"):
            pass
        text = part.summary()
        assert isinstance(text, str)
        if self.names_actions:
            missing = [name for name in ("block", "inside", "function", "values", "failing") if name not in text]
            assert not missing, f"the summary does not show {missing}:\n{text}"
        part.teardown()

    def test_before_anything_it_has_a_summary(self, tmp_path: Path) -> None:
        """A run may fail before its first action."""
        part = self.make(tmp_path)
        assert isinstance(part.summary(), str)
        part.teardown()

    @only_if("names_actions")
    def test_a_training_is_measured(self, tmp_path: Path) -> None:
        """The user's steps are among the actions."""
        part = self.make(tmp_path)
        self.train(part)
        text = part.summary()
        assert "training_step" in text and "validation_step" in text, text

    def test_it_changes_nothing(self, tmp_path: Path) -> None:
        """The weights are, bit for bit, those of a training without it."""
        with_it, without = Validated(), Validated()
        self.train(self.make(tmp_path), with_it)
        self.train(None, without)
        assert same_weights(with_it, without)

    # ---- Cost

    def actions(self, part: Any, count: int) -> None:
        """``count`` actions."""
        for _ in range(count):
            part.start("action")
            part.stop("action")

    def test_an_action_costs_few_calls_however_many_there_were(self, tmp_path: Path) -> None:
        """Neither calls nor lines grow with the actions before."""
        part = self.make(tmp_path)
        self.actions(part, 10)
        early = counted(Lines(), lambda: self.actions(part, 100))
        calls = counted(Calls(), lambda: self.actions(part, 100)) / 100
        self.actions(part, 2000)
        late = counted(Lines(), lambda: self.actions(part, 100))
        part.teardown()
        assert calls <= self.most_calls_per_action, f"an action costs {calls:.1f} calls; see most_calls_per_action"
        assert late <= 1.2 * early + 100, f"100 actions run {early} lines at first, and {late} after 2,000"

    @unless("synchronizes")
    def test_it_never_waits_for_the_device(self, tmp_path: Path) -> None:
        """No ``.item()``, ``synchronize`` or the like."""
        part, reads = self.make(tmp_path), DeviceReads()
        counted(reads, lambda: self.actions(part, 10))
        part.teardown()
        assert reads.count == 0, f"it waits for the device: {reads.places}"

    # ---- Failure

    def test_a_training_that_fails_is_closed(self, tmp_path: Path) -> None:
        """The error comes through, the summary shows what was measured until then, and the next training works."""
        part = self.make(tmp_path)
        with pytest.raises(Failure) as caught:
            self.train(part, FailingModule(at=3))
        assert getattr(caught.value, "__notes__", []) == []
        if self.names_actions:
            assert "training_step" in part.summary()
        part.teardown()
        self.train(part, max_epochs=1)
