"""A run in another process reaches the objects of the caller."""

from __future__ import annotations

import csv
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch

import fulmen.builtin.plugin as some_plugin
from fulmen import Launcher, PluginSet
from fulmen.loggers import CSVLogger
from fulmen.testing import RecordingLogger, Validated, batches, quiet, same_weights


class InAnotherProcess(Launcher):
    """Sends everything to one new process, as strategies that start processes do."""

    is_interactive_compatible = False

    def __init__(self, strategy):
        self.strategy = strategy

    def launch(self, function, *args):
        self.strategy.launcher = None
        work = pickle.dumps((function, args))
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=answer, args=(work, theirs))
        process.start()
        theirs.close()  # else a process that fails is waited for for ever
        result = pickle.loads(ours.recv_bytes())
        process.join()
        self.strategy.launcher = self
        return result


def answer(work, connection):
    torch.set_num_threads(1)
    function, args = pickle.loads(work)
    connection.send_bytes(pickle.dumps(function(*args)))


def trainers(**options):
    here, there = (quiet(max_epochs=2, accelerator="cpu", **options) for _ in range(2))
    there.runtime.strategy.launcher = InAnotherProcess(there.runtime.strategy)
    return here, there


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_fit_in_another_process_ends_as_one_in_this(tmp_path):
    here, there = trainers()
    modules = [Validated(), Validated()]
    for trainer, module in zip((here, there), modules, strict=True):
        torch.manual_seed(1)
        trainer.fit(module, batches(4), batches(2))
    assert same_weights(*modules)
    assert not modules[1].losses  # what the training sets on the module stays there
    for name in ("global_step", "current_epoch", "status", "stop_reason", "callback_metrics", "progress_bar_metrics"):
        assert getattr(there, name) == getattr(here, name), name
    for trainer, name in ((here, "here"), (there, "there")):
        trainer.save_checkpoint(tmp_path / name)
    saved = [torch.load(tmp_path / name, weights_only=True) for name in ("here", "there")]
    assert saved[0]["loops"]["fit_loop"]["progress"] == saved[1]["loops"]["fit_loop"]["progress"]
    buffers = [each["optimizer_states"][0]["state"][0]["momentum_buffer"] for each in saved]
    assert torch.equal(*buffers)


def test_evaluations_return_their_results():
    here, there = trainers()
    module = Validated()
    for trainer in (here, there):
        trainer.fit(module, batches(2), batches(2))
    assert here.test(module, batches(2), verbose=False) == there.test(None, batches(2), verbose=False)
    assert there.run_id == there._fit_run.run_id
    ours, theirs = (trainer.predict(module, batches(2)) for trainer in (here, there))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_runs_in_other_processes_continue_one_record(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"by_hand": 1.0})
    _, trainer = trainers(logger=logger, log_every_n_steps=4)
    module = Validated()
    trainer.fit(module, batches(4), batches(2))
    logger.log_metrics({"by_hand": 2.0}, 100)
    trainer.test(module, batches(2), verbose=False)
    trainer.fit(module, batches(4), batches(2))
    logger.log_metrics({"by_hand": 3.0})
    logger.finalize("success")
    with open(Path(logger.log_dir, "metrics.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["by_hand"]) for row in rows if row["by_hand"]] == [("0", "1.0"), ("100", "2.0"), ("7", "3.0")]
    assert [row["step"] for row in rows if row["train_loss_step"]] == ["3", "7", "3", "7"]
    assert [path.name for path in Path(logger.log_dir).parent.iterdir()] == ["version_0"]
    assert trainer.log_dir == logger.log_dir


def test_a_launcher_that_takes_part_leaves_the_record_open():
    logger = RecordingLogger()
    _, trainer = trainers(logger=logger, log_every_n_steps=1)
    trainer.runtime.strategy.launcher.takes_part = True
    trainer.fit(Validated(), batches(2), batches(2))
    assert logger.statuses == []
    trainer.runtime.strategy.launcher.takes_part = False
    trainer.fit(Validated(), batches(2), batches(2))
    assert logger.statuses == ["interrupted"]


def test_plugins_are_found_anew_in_another_process():
    found = pickle.loads(pickle.dumps(PluginSet.discover([some_plugin])))
    assert some_plugin in found.given and "single_device" in found.names("strategy")
