"""Ctrl-C and SIGTERM: the step is finished, the state is saved, handlers are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from fulmen import Callback, Trainer
from fulmen.testing import QUIET, Regression, batches, quiet


def test_ctrl_c_finishes_the_step_and_returns_with_the_reason(tmp_path):
    class Press(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)

        def on_train_end(self, trainer, module):
            ends.append(trainer.interrupted)

    ends, before = [], signal.getsignal(signal.SIGINT)
    trainer = Trainer(**{**QUIET, "enable_checkpointing": True}, max_epochs=2, callbacks=Press(), default_root_dir=tmp_path)
    trainer.fit(Regression(), batches())
    assert ends == [True]  # hooks know it too
    assert (trainer.global_step, trainer.interrupted, trainer.stop_reason) == (4, True, "stopped by Ctrl-C")
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["epoch=0-step=4.ckpt"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_interrupts():
    class Press(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        quiet(max_epochs=1, callbacks=Press()).fit(Regression(), batches())


SCRIPT = """
import os, signal, sys
from fulmen import Callback, Trainer
from fulmen.testing import QUIET, Regression, batches

class Press(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

options = {**QUIET, "enable_checkpointing": True, "default_root_dir": sys.argv[1]}
Trainer(**options, max_epochs=2, callbacks=Press()).fit(Regression(), batches())
print("not reached")
"""


def test_sigterm_saves_and_ends_the_process_with_the_status_that_schedulers_expect(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "not reached" not in done.stdout
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["epoch=0-step=4.ckpt"]


def test_a_sigterm_goes_on_to_the_handler_that_was_there():
    class Press(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        trainer = quiet(max_epochs=1, callbacks=Press())
        trainer.fit(Regression(), batches())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert (trainer.global_step, trainer.stop_reason) == (1, "stopped by SIGTERM")


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    trainer = quiet(max_epochs=1, callbacks=Look())
    thread = threading.Thread(target=trainer.fit, args=(Regression(), batches(1)))
    thread.start()
    thread.join()
    assert seen == [before]
    assert trainer.global_step == 1
