"""Ctrl-C and SIGTERM: the step is finished, the state is saved, handlers are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from fulmen import Callback, FulmenWarning, Trainer
from fulmen.callbacks import RecoveryCheckpoint
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
from fulmen import Callback, FulmenWarning, Trainer
from fulmen.callbacks import RecoveryCheckpoint
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


class Send(Callback):
    """Sends a signal to this process in the middle of step 3."""

    def __init__(self, number):
        self.number = number

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 2:
            os.kill(os.getpid(), self.number)


posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@posix
def test_sigusr2_saves_and_the_training_goes_on(tmp_path):
    class Steps(RecoveryCheckpoint):
        def save(self, trainer):
            steps.append(trainer.global_step)
            super().save(trainer)

    steps, before = [], signal.getsignal(signal.SIGUSR2)
    saver = Steps(tmp_path, every_seconds=None)
    trainer = quiet(max_epochs=1, callbacks=[saver, Send(signal.SIGUSR2)], enable_checkpointing=True)
    trainer.fit(Regression(), batches())
    assert steps[0] == 3
    assert (trainer.global_step, trainer.interrupted) == (8, False)
    assert signal.getsignal(signal.SIGUSR2) is before


@posix
def test_sigusr2_says_so_where_nothing_saves():
    with pytest.warns(FulmenWarning) as caught:
        quiet(max_epochs=1, callbacks=Send(signal.SIGUSR2)).fit(Regression(), batches())
    assert [str(each.message) for each in caught] == [
        "[nothing-saves] SIGUSR2 asks for a checkpoint, and this trainer has no callback that saves one"
    ]


@posix
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_signal_that_the_program_handles_is_left_to_it(name):
    received, number = [], getattr(signal, name)
    before = signal.signal(number, lambda number, frame: received.append(number))
    try:
        trainer = quiet(max_epochs=1, callbacks=Send(number))
        trainer.fit(Regression(), batches())
    finally:
        signal.signal(number, before)
    assert (received, trainer.global_step) == ([number], 8)


QUEUED = """
import os, signal, sys
from pathlib import Path
from fulmen import Callback, ClusterEnvironment, Trainer
from fulmen.testing import QUIET, Regression, batches

class Scheduler(ClusterEnvironment):
    creates_processes_externally, main_address, main_port = False, "localhost", 1
    detect = staticmethod(lambda: False)
    world_size = lambda self: 1
    global_rank = local_rank = node_rank = lambda self: 0

    def requeue(self):
        print("queued again with", [path.name for path in Path(sys.argv[1]).rglob("*.ckpt")], flush=True)
        return True

class Press(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 3:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))

options = {**QUIET, "enable_checkpointing": True, "default_root_dir": sys.argv[1], "plugins": [Scheduler()]}
Trainer(**options, max_epochs=2, callbacks=Press()).fit(Regression(), batches())
"""


@posix
@pytest.mark.parametrize(("name", "says"), [("SIGUSR1", "queued again with ['epoch=0-step=4.ckpt']\n"), ("SIGTERM", "")])
def test_sigusr1_has_the_job_queued_again_when_its_state_is_on_the_disk(tmp_path, name, says):
    done = subprocess.run([sys.executable, "-c", QUEUED, tmp_path, name], capture_output=True, text=True, check=False)
    assert done.returncode == -getattr(signal, name), done.stderr
    assert done.stdout.endswith(says)
    assert ("queued" in done.stdout) is bool(says)


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
