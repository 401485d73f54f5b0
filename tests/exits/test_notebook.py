"""A training in a notebook: interrupting the kernel ends the cell normally, and the next cell goes on."""

from __future__ import annotations

import sys
import time

import pytest
from jupyter_client import KernelManager

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

TRAINING = """
import time
from fulmen import Callback, Trainer
from fulmen.testing import QUIET, Regression, batches

class Slow(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        print("step", trainer.global_step, flush=True)
        time.sleep(0.2 if slow else 0)

def train():
    options = {**QUIET, "enable_checkpointing": True, "default_root_dir": "."}
    trainer = Trainer(**options, max_epochs=5, callbacks=Slow())
    trainer.fit(Regression(), batches(), ckpt_path="last")
    return trainer

slow = True
"""


class Notebook:
    def __init__(self, client):
        self.client = client

    def run(self, code, on_output=lambda text: None):
        """What a cell prints, and its value; an exception in it is an error."""
        number, printed, value = self.client.execute(code), "", None
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != number:
                continue
            if kind == "stream":
                printed += content["text"]
                on_output(printed)
            elif kind == "execute_result":
                value = content["data"]["text/plain"]
            elif kind == "error":
                raise AssertionError("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return printed, value


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of Jupyter
def test_an_interrupted_cell_ends_normally_and_the_next_one_goes_on(tmp_path):
    manager = KernelManager(kernel_name="python3")
    manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        notebook, interrupted = Notebook(client), []

        def interrupt(printed):
            if "step 3" in printed and not interrupted:
                interrupted.append(time.monotonic())
                manager.interrupt_kernel()

        notebook.run(TRAINING)
        printed, _ = notebook.run("trainer = train()", interrupt)
        assert interrupted
        done = printed.count("step ")
        _, value = notebook.run("trainer.interrupted, trainer.stop_reason, trainer.global_step")
        assert value == f"(True, 'stopped by Ctrl-C', {done})"
        notebook.run("import signal; before = signal.getsignal(signal.SIGINT); slow = False")
        printed, _ = notebook.run("trainer = train()")
        assert "continuing from" in printed
        _, value = notebook.run("trainer.interrupted, trainer.global_step, signal.getsignal(signal.SIGINT) is before")
        assert value == "(False, 40, True)"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
