from __future__ import annotations

import subprocess
import sys

import pytest

from fulmen import Callback, FulmenWarning
from fulmen.testing import (
    FailingCallback,
    FailingLogger,
    FailingModule,
    Failure,
    FakeAccelerator,
    RecordingCallback,
    RecordingLogger,
    Validated,
    batches,
    quiet,
    without_dropout,
)


def test_the_kit_does_not_need_pytest():
    """A package may use it in examples; only ``fulmen.testing.conformance`` is for pytest."""
    code = "import sys, fulmen.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_recording_logger_keeps_everything():
    logger = RecordingLogger()
    quiet(max_epochs=1, logger=logger, log_every_n_steps=4).fit(Validated(), batches(8), batches(2))
    assert [row["step"] for row in logger.rows if "train_loss_step" in row] == [3, 7]
    assert logger.hyperparams["lr"] == 0.1
    assert logger.statuses == ["success"]
    assert logger.config


def test_a_recording_callback_keeps_the_order_of_hooks():
    callback = RecordingCallback()
    quiet(max_epochs=1, callbacks=callback).fit(Validated(), batches(1), batches(1))
    assert callback.calls[:3] == ["setup", "on_fit_start", "on_sanity_check_start"]
    assert callback.calls[-3:] == ["on_train_end", "on_fit_end", "teardown"]
    step = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
    first = callback.calls.index("on_train_batch_start")
    assert callback.calls[first : first + 6] == ["on_train_batch_start", *step, "on_train_batch_end"]


def test_a_recording_callback_can_run_last():
    calls = []

    class First(Callback):
        def on_fit_start(self, trainer, module):
            calls.append("first")

    last = RecordingCallback(runs_last=True)
    last.on_fit_start = lambda *arguments: calls.append("last")
    quiet(max_epochs=1, callbacks=[last, First()]).fit(Validated(), batches(1), batches(1))
    assert calls == ["first", "last"]


def test_a_failing_logger_fails_from_a_row_on():
    logger = FailingLogger(after=1)
    with pytest.warns(FulmenWarning, match="No space left on device"):
        quiet(max_epochs=1, logger=logger, log_every_n_steps=2).fit(Validated(), batches(8), batches(2))
    assert len(logger.rows) == 1


def test_a_failing_module_fails_at_a_batch():
    module, trainer = FailingModule(at=2), quiet(max_epochs=1)
    with pytest.raises(Failure, match="batch 2 fails, as asked"):
        trainer.fit(module, batches(8), batches(2))
    assert trainer.global_step == 2
    quiet(max_epochs=1).fit(FailingModule(at=2, rank=1), batches(8), batches(2))  # not on this rank


def test_a_failing_callback_fails_in_its_hook():
    with pytest.raises(Failure, match="on_train_epoch_end fails, as asked"):
        quiet(max_epochs=1, callbacks=FailingCallback("on_train_epoch_end")).fit(Validated(), batches(2), batches(2))


def test_a_fake_accelerator_has_devices_and_keeps_what_was_asked_of_it():
    accelerator = FakeAccelerator(count=3)
    assert accelerator.parse_devices("auto") == [0, 1, 2]
    quiet(max_epochs=1, accelerator=accelerator, devices=[2]).fit(Validated(), batches(2), batches(2))
    assert accelerator.calls == ["setup_device", "teardown"]


def test_without_dropout_training_and_evaluation_agree():
    module, (x, _) = without_dropout(Validated()), batches(1)[0]
    assert module.train()(x).equal(module.eval()(x))
    assert not Validated().train()(x).equal(Validated().eval()(x))
