"""Moments at which several things come together: optimizers, means of an epoch, the stop in the middle of one."""

from __future__ import annotations

import os

import pytest
import torch
from fulmen_checkpoint import ModelCheckpoint
from torch import nn

import fulmen
from fulmen import Callback, ConfigurationError, read_checkpoint
from fulmen.testing import Regression, batches, quiet


class Two(fulmen.Module):
    """Two optimizers, which both step in each batch."""

    def __init__(self):
        super().__init__()
        self.parts, self.automatic_optimization = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)]), False

    def training_step(self, batch, batch_idx):
        for optimizer, part in zip(self.optimizers(), self.parts, strict=True):
            optimizer.zero_grad()
            self.manual_backward(part(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), 0.1) for part in self.parts]


class Means(Regression):
    """Logs a mean of the training, and one of the validation that falls."""

    def __init__(self, on_step=False):
        super().__init__()
        self.on_step = on_step

    def training_step(self, batch, batch_idx):
        self.log("train", float(self.trainer.progress.batches), on_step=self.on_step, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val", -float(self.trainer.progress.batches))


class Stop(Callback):
    """Asks for a stop after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == self.step


def train(module, *callbacks, data=4, path=None, recovery=False, **options):
    trainer = quiet(**{"max_epochs": 2, "callbacks": list(callbacks), "enable_checkpointing": True, **options})
    if not recovery:
        trainer._given_callbacks = [each for each in trainer._given_callbacks if type(each).__name__ != "RecoveryCheckpoint"]
    trainer.fit(module, batches(data), batches(1), ckpt_path=path)
    return trainer


def steps(folder):
    return sorted(int(path.stem.partition("step=")[2]) for path in folder.iterdir() if "step=" in path.name)


# ---- Steps


@pytest.mark.filterwarnings(r"ignore:\[no-validation-step\]")
def test_each_step_of_each_optimizer_counts(tmp_path):
    for every, expected in ((2, [2, 4, 6, 8, 10, 12, 14, 16]), (3, [4, 6, 10, 12, 16]), (6, [6, 12])):
        train(Two(), ModelCheckpoint(tmp_path / str(every), save_top_k=-1, every_n_train_steps=every))
        assert steps(tmp_path / str(every)) == expected
    for path in sorted((tmp_path / "3").iterdir())[:3]:  # a resume saves after the same steps
        again = tmp_path / f"again {path.stem}"
        with pytest.warns(fulmen.FulmenWarning, match="checkpoint-dirpath"):
            train(Two(), ModelCheckpoint(again, save_top_k=-1, every_n_train_steps=3), path=path)
        assert steps(again) == [step for step in [4, 6, 10, 12, 16] if step > read_checkpoint(path)["global_step"]]


@pytest.mark.parametrize("monitor", ["train", "train_step"])
def test_a_metric_of_step_and_epoch_is_that_of_the_step_between_two_epochs(tmp_path, monitor):
    callback = ModelCheckpoint(tmp_path, "{step}-{train}", monitor, every_n_train_steps=3, save_top_k=-1)
    train(Means(on_step=True), callback)
    assert sorted(os.listdir(tmp_path)) == ["step=3-train=2.0.ckpt", "step=6-train=5.0.ckpt"]
    assert [float(score) for score in callback.best_k_models.values()] == [2.0, 5.0]


@pytest.mark.parametrize(("monitor", "best"), [("step", 8), ("epoch", 6)])
def test_the_newest_by_number(tmp_path, monitor, best):
    callback = ModelCheckpoint(tmp_path, "{step}", monitor, mode="max", save_top_k=2, every_n_train_steps=2)
    train(Means(), callback)
    assert steps(tmp_path) == [6, 8] and callback.best_model_path == f"{tmp_path}/step={best}.ckpt"


# ---- Ends of epochs


@pytest.mark.parametrize("on_step", [True, False])
def test_a_name_has_the_means_of_the_epoch(tmp_path, on_step):
    train(Means(on_step), ModelCheckpoint(tmp_path, "{train}-{val}", "val", save_top_k=-1))
    assert sorted(os.listdir(tmp_path)) == ["train=1.5-val=-4.0.ckpt", "train=5.5-val=-8.0.ckpt"]


def test_between_two_validations_of_an_epoch_its_means_are_unknown(tmp_path):
    train(Means(), ModelCheckpoint(tmp_path, "{train}-{val}", "val", save_top_k=-1), val_check_interval=2, max_epochs=1)
    assert sorted(os.listdir(tmp_path)) == ["train=1.5-val=-4.0.ckpt", "train=unknown-val=-2.0.ckpt"]


def test_where_the_end_of_an_epoch_is_saved(tmp_path):
    """Of an epoch whose length nobody knows too; and after validations where that is asked for."""
    seen = []

    class Watch(fulmen.Checkpoint):
        def on_validation_end(self, trainer, module):
            seen.append(len(list(tmp_path.rglob("*.ckpt"))))

    def stream():
        yield from batches(4)

    class Unknown:
        def __iter__(self):
            return stream()

    for index, (choice, data) in enumerate(((None, batches(4)), (None, Unknown()), (False, batches(4)), (True, batches(4)))):
        callback = ModelCheckpoint(tmp_path / str(index), "{val}", "val", save_on_train_epoch_end=choice)
        trainer = quiet(max_epochs=1, callbacks=[callback, Watch()], enable_checkpointing=True, num_sanity_val_steps=0)
        trainer._given_callbacks = trainer._given_callbacks[:2]
        trainer.fit(Means(), data, batches(1))
    assert seen == [0, 1, 3, 3]


# ---- A stop in the middle of an epoch


@pytest.mark.parametrize("options", [{}, {"monitor": "val"}, {"save_last": "link"}, {"asynchronous": True}])
@pytest.mark.parametrize("how", ["maximum", "request"])
def test_a_chain_of_stops_keeps_as_many_files_as_it_should(tmp_path, options, how):
    for step in (5, 10, 16):
        found = {"max_steps": step} if how == "maximum" else {"callbacks": [Stop(step)]}
        saving = ModelCheckpoint(tmp_path, "{step}", **{"save_last": True, **options})
        more = found.pop("callbacks", [])
        train(Means(), saving, *more, max_epochs=4, path=tmp_path / "last.ckpt" if step > 5 else None, **found)
        assert len(os.listdir(tmp_path)) == 2, os.listdir(tmp_path)
        assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == step
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "step=16.ckpt"]


@pytest.mark.parametrize("monitor", [None, "val"])
def test_the_same_with_the_newest_of_all(tmp_path, monitor):
    for step in (5, 10, 16):
        saving = ModelCheckpoint(tmp_path / "files", "{step}", monitor)
        options = {"recovery": True, "default_root_dir": tmp_path, "max_epochs": 4}
        train(Means(), saving, Stop(step), path="last" if step > 5 else None, **options)
        assert os.listdir(tmp_path / "files") == [f"step={step}.ckpt"]


class Patient(Callback):
    """Stops after three epochs whose value was no better than the best, as early stopping does."""

    def __init__(self):
        self.best, self.waited = float("-inf"), 0

    def on_validation_start(self, trainer, module):
        self.counts = trainer.phase == "validate" and trainer.progress.epoch_is_complete

    def on_validation_end(self, trainer, module):
        if self.counts:
            value = trainer.callback_metrics["val"].item()
            self.waited = 0 if value > self.best else self.waited + 1
            self.best = max(value, self.best)
            trainer.should_stop = self.waited == 3

    def state_dict(self):
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state):
        self.best, self.waited = state["best"], state["waited"]


def test_what_a_stop_saved_does_not_change_the_rest(tmp_path):
    """The extra validation and what is saved after it leave the training as it was."""

    def ends(folder, *callbacks, **options):
        torch.manual_seed(5)
        saving = ModelCheckpoint(folder, "{step}", "val", save_last=True)
        trainer = train(Means(), Patient(), saving, *callbacks, max_epochs=9, **options)
        return [trainer.global_step, *(value.tolist() for value in trainer.module.state_dict().values())]

    whole = ends(tmp_path / "whole")
    ends(tmp_path / "cut", Stop(6))
    assert ends(tmp_path / "cut", path=tmp_path / "cut" / "last.ckpt") == whole
    assert whole[0] == 16


# ---- What Lightning's class calls


def test_a_method_that_is_never_called_is_an_error():
    class Mine(ModelCheckpoint):
        def _save_checkpoint(self, trainer, filepath):
            pass

    with pytest.raises(ConfigurationError) as caught:
        Mine()
    assert str(caught.value) == (
        "Mine._save_checkpoint is never called: it overrides a method of Lightning's ModelCheckpoint. Override what fulmen "
        "calls: on_save_checkpoint to change what is in a file, on_train_epoch_end and on_validation_end for other moments, "
        "format_checkpoint_name for other names; a logger's after_save_checkpoint is told of each complete file"
    )


def test_a_name_of_ones_own(tmp_path):
    class Mine(ModelCheckpoint):
        def format_checkpoint_name(self, metrics, filename=None, ver=None):
            return "mine " + super().format_checkpoint_name(metrics, filename, ver)

    train(Means(), Mine(tmp_path, "{step}"))
    assert os.listdir(tmp_path) == ["mine step=8.ckpt"]
