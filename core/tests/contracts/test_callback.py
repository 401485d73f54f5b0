"""Callbacks do nothing until they are told to."""

from __future__ import annotations

import inspect
import pickle
import threading

import pytest

from fulmen import Callback, Checkpoint, ModuleError, ProgressBar
from fulmen.testing import Regression, batches, quiet
from fulmen.testing.fakes import RecordingLogger


def test_a_callback_does_nothing_and_has_no_state():
    callback = Callback()
    assert (callback.state_key, callback.state_dict(), callback.load_state_dict({})) == ("Callback", {}, None)
    for name, method in inspect.getmembers(Callback, inspect.isfunction):
        if name.startswith("on_"):
            count = len(inspect.signature(method).parameters) - 1
            assert getattr(callback, name)(*range(count)) is None
    assert callback.setup(None, None, "fit") is callback.teardown(None, None, "fit") is None


def test_savers_run_last():
    assert (Callback.runs_last, Checkpoint.runs_last, ProgressBar.runs_last) == (False, True, False)
    assert (Checkpoint().best_model_path, Checkpoint().last_model_path, Checkpoint().folders(None)) == ("", "", [])


# ---- Logging


class Logging(Callback):
    """Logs in all ways; its second fit, of another trainer, takes place inside a hook of the first."""

    def __init__(self, inner=None):
        self.inner, self.fitted = inner, False

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.log("each", batch_idx)
        self.log_dict({"sum": 1.0, "other": 2.0}, False, True, False, True, "sum")

    def on_train_epoch_end(self, trainer, module):
        if self.inner is not None and not self.fitted:
            self.fitted = True
            self.inner.fit(Regression(), batches(2))
        pickle.loads(pickle.dumps(self))
        self.log("epochs", trainer.current_epoch)


def test_a_callback_logs_like_the_module():
    recorded, callback = RecordingLogger(), Logging()
    trainer = quiet(max_epochs=2, callbacks=callback, logger=recorded, log_every_n_steps=2)
    trainer.fit(Regression(), batches(4))
    assert [(row["step"], row["each"]) for row in recorded.rows if "each" in row] == [(1, 1), (3, 3), (5, 1), (7, 3)]
    assert [row["sum"] for row in recorded.rows if "sum" in row] == [4, 4]
    assert (trainer.callback_metrics["epochs"], trainer.callback_metrics["other"]) == (1, 8)
    assert vars(callback) == {"inner": None, "fitted": False}  # nothing is put into it that a pickle would carry


def test_callbacks_of_several_trainers_log_into_their_own_run():
    inner = quiet(max_epochs=1)
    callback = Logging(inner)
    inner.callbacks.append(callback)
    outer = quiet(max_epochs=1, callbacks=callback)
    outer.fit(Regression(), batches(4))
    assert [trainer.callback_metrics["sum"] for trainer in (inner, outer)] == [2, 4]
    assert outer.callback_metrics["epochs"] == 0


def test_a_callback_that_nobody_runs_cannot_log():
    callback = Logging()
    trainer = quiet(max_epochs=1, callbacks=callback)
    trainer.fit(Regression(), batches(2))
    with pytest.raises(ModuleError) as caught:
        callback.log("x", 1.0)
    assert str(caught.value) == (
        "Logging cannot log x: no trainer runs in this thread; log in the hooks of a callback that a trainer was given"
    )
    with pytest.raises(ModuleError, match="Logging cannot log a, b: no trainer runs"):
        callback.log_dict({"a": 1.0, "b": 2.0})


def test_nor_in_another_thread_or_at_another_moment():
    errors = []

    def tries(callback):
        try:
            callback.log("x", 1.0)
        except ModuleError as error:
            errors.append(str(error))

    class Early(Callback):
        def on_fit_start(self, trainer, module):
            tries(self)
            thread = threading.Thread(target=tries, args=(self,))
            thread.start()
            thread.join()

    quiet(max_epochs=1, callbacks=Early()).fit(Regression(), batches(1))
    assert errors[0].startswith("self.log('x') is not possible here") and "no trainer runs in this thread" in errors[1]
