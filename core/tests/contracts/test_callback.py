"""Callbacks do nothing until they are told to."""

from __future__ import annotations

import inspect

from fulmen import Callback, Checkpoint, ProgressBar


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
