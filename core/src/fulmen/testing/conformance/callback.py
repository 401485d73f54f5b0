"""The suite for callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fulmen import Callback, Checkpoint
from fulmen.testing.conformance.measure import Between, Calls, DeviceReads, Lines
from fulmen.testing.conformance.suite import Suite, same, through_a_file, unless
from fulmen.testing.fakes import FailingModule, Failure, RecordingLogger
from fulmen.testing.training import Validated, batches, same_weights


class CallbackSuite(Suite):
    """Subclass it, give ``name`` and :meth:`make`.

    The module of these tests logs ``train_loss`` and ``val_loss``, and :attr:`loggers <fulmen.Trainer.loggers>` has one.
    """

    kind = "callback"

    changes_training: bool = False
    """Whether it is there to change weights, or when the training stops. Off: the weights must be those without it."""

    state_is_exact: bool = True
    """Whether its state after a resume equals that of a training which was never cut. Off where it measures time."""

    reads_device: bool = False
    """Whether it waits for the device between logging steps, by its nature, as its documentation says."""

    most_calls_per_step: int = 40
    """Function calls that it may add to a training step, those of C functions included."""

    def place(self, part: Any) -> dict[str, Any]:
        """Among the callbacks, with a logger beside it."""
        return {"callbacks": [part], "logger": RecordingLogger(), "enable_checkpointing": isinstance(part, Checkpoint)}

    # ---- Behaviour

    def test_every_hook_of_it_exists(self, tmp_path: Path) -> None:
        """A method ``on_...`` that fulmen never calls is a mistake in spelling."""
        hooks = {name for name in dir(Callback) if name.startswith("on_")}
        strange = [name for name in dir(self.make(tmp_path)) if name.startswith("on_") and name not in hooks]
        assert not strange, f"never called: {strange}"

    def test_it_takes_part_in_every_kind_of_run(self, tmp_path: Path) -> None:
        """Fit, validate, test and predict, one after the other in one trainer, and all of it in a fast development run."""
        for options in ({}, {"fast_dev_run": True}):
            part = self.make(tmp_path)
            trainer = self.trainer(part, max_epochs=1, log_every_n_steps=1, **options)
            module = Validated()
            trainer.fit(module, batches(4), batches(2))
            trainer.validate(module, batches(2))
            trainer.test(module, batches(2))
            assert trainer.predict(module, batches(2)) is not None
            trainer.fit(module, batches(4), batches(2))
            assert trainer.status == "finished"

    def test_without_validation_it_does_no_harm_or_says_what_it_needs(self, tmp_path: Path) -> None:
        """A training may have no validation: what a callback needs of it, it must ask for by name."""
        part = self.make(tmp_path)
        trainer = self.trainer(part, max_epochs=1, log_every_n_steps=1, limit_val_batches=0)
        text = "finished, without validation"
        try:
            trainer.fit(Validated(), batches(4))
        except Exception as error:  # noqa: BLE001 - any kind, if it explains itself
            text = str(error)
        assert "val" in text or "monitor" in text, f"unclear: {text}"

    @unless("changes_training")
    def test_it_leaves_the_training_as_it_is(self, tmp_path: Path) -> None:
        """The weights are, bit for bit, those of a training without it; it draws no random numbers."""
        with_it, without, bare = Validated(), Validated(), RecordingLogger()
        self.train(self.make(tmp_path), with_it)
        self.train(Callback(), without, logger=bare)
        assert same_weights(with_it, without), "the weights differ from those of a training without the callback"

    # ---- Cost

    def counted(self, counter: Any, part: Any, first: int, last: int) -> Any:
        """The counter after a training with ``part``, which ran from one batch to another, away from logging steps."""
        callbacks = [Between(counter, first, last)]
        self.train(part, max_epochs=1, data=batches(4) * (last // 4 + 1), callbacks=callbacks, log_every_n_steps=0)
        return counter

    def test_a_step_costs_few_calls(self, tmp_path: Path) -> None:
        """Counted over 40 steps, with the callback and without it."""
        part = self.counted(Calls(), self.make(tmp_path), 10, 50)
        added = (part.count - self.counted(Calls(), Callback(), 10, 50).count) / 40
        assert added <= self.most_calls_per_step, f"a step costs {added:.1f} more calls; most_calls_per_step allows less"

    def test_a_step_costs_the_same_after_many(self, tmp_path: Path) -> None:
        """Lines of Python per step do not grow with the steps before."""
        early, late = Lines(), Lines()
        callbacks = [Between(early, 20, 40), Between(late, 420, 440)]
        self.train(self.make(tmp_path), max_epochs=1, data=batches(4) * 111, callbacks=callbacks, log_every_n_steps=0)
        grown = (late.count - early.count) / 20
        assert grown <= 100, f"a step runs {grown:.0f} more lines after 400 steps: something goes over its history"

    @unless("reads_device")
    def test_it_never_waits_for_the_device(self, tmp_path: Path) -> None:
        """No ``.item()``, ``float(tensor)``, ``if tensor``, ``.cpu()`` or the like between logging steps."""
        reads = self.counted(DeviceReads(), self.make(tmp_path), 2, 10)
        without = self.counted(DeviceReads(), Callback(), 2, 10)
        more = [place for place in reads.places if place not in without.places]
        assert reads.count <= without.count, f"it waits for the device: {sorted(set(more))}"

    # ---- State

    def test_its_key_is_its_own(self, tmp_path: Path) -> None:
        """Two that are made alike have the same key, so that a resume finds the state."""
        one, other = self.make(tmp_path), self.make(tmp_path)
        assert isinstance(one.state_key, str) and one.state_key == other.state_key

    def test_its_state_is_plain_data_and_comes_back(self, tmp_path: Path) -> None:
        """A checkpoint can hold it, and a new callback takes it."""
        part = self.make(tmp_path)
        self.train(part)
        state = through_a_file(part.state_dict())
        other = self.make(tmp_path)
        if state:
            other.load_state_dict(state)
        assert same(through_a_file(other.state_dict()), state)

    def test_a_training_that_was_cut_and_resumed_equals_one_that_was_not(self, tmp_path: Path) -> None:
        """Weights bit for bit, and the callback's state."""
        folders = [tmp_path / "whole", tmp_path / "cut"]
        for folder in folders:
            folder.mkdir()
        whole, part = self.whole(folders[0])
        resumed, other = self.cut_and_resumed(folders[1])
        assert resumed.global_step == whole.global_step
        assert whole.module and resumed.module and same_weights(whole.module, resumed.module), "the weights differ"
        if self.state_is_exact:
            states = [without(folder, each.state_dict()) for folder, each in zip(folders, (part, other), strict=True)]
            assert same(*states), f"its state differs:\nuncut:   {states[0]}\nresumed: {states[1]}"

    # ---- Failure

    def test_a_training_that_fails_leaves_it_usable(self, tmp_path: Path) -> None:
        """The error comes through with nothing added; teardown again does no harm; the next fit works."""
        part = self.make(tmp_path)
        trainer = self.trainer(part, max_epochs=1)
        module = FailingModule(at=3)
        with pytest.raises(Failure) as caught:
            trainer.fit(module, batches(8), batches(2))
        assert getattr(caught.value, "__notes__", []) == [], "the callback failed while it was told of the failure"
        part.teardown(trainer, module, "fit")
        trainer.fit(Validated(), batches(8), batches(2))
        assert trainer.status == "finished"


def without(folder: Path, state: Any) -> Any:
    """``state`` with the folder cut out of its texts."""
    if isinstance(state, dict):
        return {without(folder, key): without(folder, value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [without(folder, value) for value in state]
    return state.replace(str(folder), "FOLDER") if isinstance(state, str) else state
