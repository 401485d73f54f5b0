"""Saving in a thread: what is written is the state of its moment, one at a time, and no failure is lost."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from fulmen_checkpoint import ModelCheckpoint
from fulmen_checkpoint.places import LocalPlace

from fulmen import Callback, CheckpointError, read_checkpoint
from fulmen.testing import Validated, batches, quiet, same_weights

VALUES = [5.0, 4.0, 3.0, 2.0]


class Slow:
    """Lets a save take its time: it waits until it is told to go on."""

    def __init__(self, monkeypatch):
        self.go, self.started, self.threads, self.most = threading.Event(), threading.Event(), [], 0
        write = LocalPlace.write

        def wait(place, payload, path):
            self.threads.append(threading.current_thread().name)
            self.started.set()
            assert self.go.wait(60)
            write(place, payload, path)

        monkeypatch.setattr(LocalPlace, "write", wait)


def same(first, second):
    """Whether two checkpoints are equal, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_a_file_holds_the_state_of_its_moment(tmp_path, fit, monkeypatch):
    """Training goes on, in place, while the file is being written."""
    slow = Slow(monkeypatch)

    class Later(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 5:
                assert slow.started.is_set()
                slow.go.set()

    torch.manual_seed(5)
    callback = ModelCheckpoint(tmp_path / "thread", "{step}", every_n_train_steps=3, asynchronous=True, save_top_k=-1)
    fit([callback, Later()], data=8, max_epochs=1)
    monkeypatch.undo()
    torch.manual_seed(5)
    fit(
        [ModelCheckpoint(tmp_path / "here", "{step}", every_n_train_steps=3, save_top_k=-1), Callback()],
        data=8,
        max_epochs=1,
    )
    for name in ("step=3.ckpt", "step=6.ckpt"):
        found, expected = read_checkpoint(tmp_path / "thread" / name), read_checkpoint(tmp_path / "here" / name)
        for checkpoint in (found, expected):
            checkpoint.pop("callbacks"), checkpoint.pop("run"), checkpoint.pop("loops")
        assert same(found, expected), name


def test_back_pressure_and_the_newest_state_before_the_end(tmp_path, fit, monkeypatch):
    slow, order = Slow(monkeypatch), []

    class Tell(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            order.append((trainer.global_step, len(slow.threads)))
            if trainer.global_step == 2:
                threading.Timer(1.0, slow.go.set).start()  # the second save waits for it

    callback = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_last=True, asynchronous=True)
    trainer = fit([callback, Tell()], data=4, max_epochs=1)
    assert order[:2] == [(1, 0), (2, 1)] and len(slow.threads) == 4
    assert set(slow.threads) == {"fulmen-writer"}
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    assert trainer.writer.blocked_seconds > 0.05
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fulmen-writer")]


@pytest.mark.parametrize("at", [2, 4], ids=["at the next step", "at the end"])
def test_a_failure_is_raised(tmp_path, fit, monkeypatch, at, names):
    write, steps = LocalPlace.write, []

    def fail(place, payload, path):
        if payload["global_step"] == at:
            raise CheckpointError(f"could not save {path}: no space")
        write(place, payload, path)

    class Wait(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            steps.append(trainer.global_step)
            until = time.monotonic() + 60
            while trainer.writer.busy and time.monotonic() < until:  # for the thread to fail meanwhile
                time.sleep(0.01)

    monkeypatch.setattr(LocalPlace, "write", fail)
    callback = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, asynchronous=True)
    with pytest.raises(CheckpointError) as caught:
        fit([callback, Wait()], data=4, max_epochs=1)
    assert str(caught.value) == f"could not save {tmp_path}/step={at}.ckpt: no space"
    assert steps in ([1, 2], [1, 2, 3]) if at == 2 else steps == [1, 2, 3, 4]  # the step of the save, or the next
    assert callback.best_model_path == ("" if at == 2 else f"{tmp_path}/step=2.ckpt")
    assert at == 2 or names(tmp_path) == ["step=2.ckpt"]


def test_any_exception_of_the_thread_is_raised_as_what_it_means(tmp_path, fit, monkeypatch):
    def fail(place, payload, path):
        raise MemoryError("too much")

    monkeypatch.setattr(LocalPlace, "write", fail)
    for asynchronous in (False, True):
        with pytest.raises(CheckpointError) as caught:
            fit(ModelCheckpoint(tmp_path, "{step}", asynchronous=asynchronous), VALUES)
        assert str(caught.value) == f"could not save {tmp_path}/step=2.ckpt: MemoryError: too much"


def test_what_is_being_written_is_finished_where_the_training_fails(tmp_path, fit, monkeypatch, names):
    slow = Slow(monkeypatch)

    class Break(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                threading.Timer(0.1, slow.go.set).start()
                raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fit([ModelCheckpoint(tmp_path, "{step}", "score", asynchronous=True), Break()], VALUES)
    assert names(tmp_path) == ["step=2.ckpt"] and read_checkpoint(tmp_path / "step=2.ckpt")["global_step"] == 2


def test_it_trains_the_same(tmp_path):
    modules = [Validated(), Validated()]
    saving = ModelCheckpoint(tmp_path, monitor="val_loss", every_n_train_steps=2, asynchronous=True, save_last=True)
    for module, callbacks in zip(modules, ([], [saving]), strict=True):
        torch.manual_seed(3)
        trainer = quiet(max_epochs=2, callbacks=callbacks, enable_checkpointing=bool(callbacks), default_root_dir=tmp_path)
        trainer.fit(module, batches(8), batches(2))
    assert same_weights(*modules)


def test_it_adds_nothing_to_a_step(tmp_path):
    assert "on_train_batch_end" not in vars(ModelCheckpoint(asynchronous=True))
    assert ModelCheckpoint.on_train_batch_end is Callback.on_train_batch_end


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("weights_only", [False, True])
def test_the_recovery_checkpoint_leaves_out_what_is_saved_here(tmp_path, names, asynchronous, weights_only):
    """Only where this file is one to continue from."""
    options = {"filename": "{step}", "save_last": True, "save_weights_only": weights_only, "asynchronous": asynchronous}

    def fit(max_epochs, path=None):
        callbacks = [ModelCheckpoint(tmp_path / "best", **options), {"name": "recovery", "dirpath": tmp_path / "recovery"}]
        trainer = quiet(max_epochs=max_epochs, enable_checkpointing=True, callbacks=callbacks)
        trainer.fit(Validated(), batches(4), batches(1), ckpt_path=path)
        return trainer

    assert fit(2).global_step == 8
    assert names(tmp_path / "best") == ["last.ckpt", "step=8.ckpt"]
    assert (tmp_path / "recovery").exists() == weights_only
    if not weights_only:
        assert fit(3, "last").global_step == 12


@pytest.mark.gpu
def test_on_a_gpu_files_are_of_their_moment(tmp_path):
    callback = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1, asynchronous=True)
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer = quiet(max_epochs=1, accelerator="cuda", devices=1, callbacks=callback, **options)
    trainer.fit(Validated(), batches(8), batches(1))
    assert [read_checkpoint(tmp_path / f"step={step}.ckpt")["global_step"] for step in (3, 6)] == [3, 6]
