"""One checkpoint to continue from: when it is written, which one is kept, and what a failure leaves."""

from __future__ import annotations

import pytest
import torch

from fulmen import Callback, Checkpoint, CheckpointError, ConfigurationError, FulmenWarning, Logger, Trainer
from fulmen.builtin.recovery import RecoveryCheckpoint
from fulmen.storage import verify_checkpoint
from fulmen.testing import QUIET, Regression, Validated, batches, quiet, same_weights


class Watching(RecoveryCheckpoint):
    """Notes the files that are there after each save."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = []

    def save(self, trainer):
        super().save(trainer)
        self.seen.append(sorted(path.name for path in self.folders(trainer)[-1].glob("*")))


def fitted(callback, data=4, module=None, path=None, **options):
    options = {"max_epochs": 2, "enable_checkpointing": True, **options}
    trainer = quiet(callbacks=callback if isinstance(callback, list) else [callback], **options)
    trainer.fit(module or Regression(), batches(data), ckpt_path=path)
    return trainer


def test_the_end_of_each_epoch_is_saved_and_one_file_kept(tmp_path):
    callback = Watching(tmp_path)
    fitted(callback)
    assert callback.seen == [["epoch=0-step=4.ckpt"], ["epoch=1-step=8.ckpt"]]
    assert callback.last_model_path == f"{tmp_path}/epoch=1-step=8.ckpt"
    assert verify_checkpoint(callback.last_model_path) is None


def test_every_n_steps(tmp_path):
    callback = Watching(tmp_path, every_n_steps=3)
    fitted(callback, data=5, max_epochs=1)
    assert callback.seen == [["epoch=0-step=3.ckpt"], ["epoch=0-step=5.ckpt"]]
    callback = Watching(tmp_path / "accumulated", every_n_steps=1)
    fitted(callback, data=4, max_epochs=1, accumulate_grad_batches=2)
    assert callback.seen == [["epoch=0-step=1.ckpt"], ["epoch=0-step=2.ckpt"], ["epoch=0-step=2.ckpt"]]


def test_by_time(tmp_path):
    callback = Watching(tmp_path, every_seconds=1e-9)
    fitted(callback, data=3, max_epochs=1)
    assert [names[0] for names in callback.seen] == [
        *("epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "epoch=0-step=3.ckpt"),
        "epoch=0-step=3.ckpt",
    ]
    callback = Watching(tmp_path / "never", every_seconds=None)
    fitted(callback, data=3, max_epochs=1)
    assert callback.seen == [["epoch=0-step=3.ckpt"]]


def test_a_stop_is_saved_where_it_happens(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.global_step == 2

    callback = Watching(tmp_path)
    torch.manual_seed(2)
    fitted([callback, Stop()])
    assert callback.seen[0] == ["epoch=0-step=2.ckpt"]
    torch.manual_seed(2)
    whole = Regression()
    quiet(max_epochs=1).fit(whole, batches(4))
    resumed = Regression()
    torch.manual_seed(99)
    fitted(Watching(tmp_path), module=resumed, path="last", max_epochs=1)
    assert same_weights(resumed, whole)


def test_a_failure_leaves_the_earlier_file(tmp_path):
    class Breaking(Callback):
        def on_save_checkpoint(self, trainer, module, checkpoint):
            if trainer.current_epoch == 1:
                checkpoint["extra"] = object()

    callback = Watching(tmp_path)
    with pytest.raises(CheckpointError, match=r"extra is a builtins\.object, which a checkpoint cannot hold"):
        fitted([callback, Breaking()])
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0-step=4.ckpt"]
    assert callback.last_model_path == f"{tmp_path}/epoch=0-step=4.ckpt"
    assert verify_checkpoint(callback.last_model_path) is None


def test_the_file_of_another_saver_is_neither_replaced_nor_removed(tmp_path):
    class Other(Checkpoint):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                self.best_model_path = f"{tmp_path}/epoch=0-step=4.ckpt"
                trainer.save_checkpoint(self.best_model_path)

    callback, other = Watching(tmp_path), Other()
    fitted([other, callback])
    assert callback.seen == [
        ["epoch=0-step=4-recovery.ckpt", "epoch=0-step=4.ckpt"],
        ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"],
    ]
    assert other.holds(f"{tmp_path}/epoch=0-step=4.ckpt") and not other.holds(f"{tmp_path}/epoch=1-step=8.ckpt")


def test_a_folder_that_cannot_be_made_stops_the_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not save"):
        fitted(RecoveryCheckpoint(tmp_path / "file" / "folder"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_behind_a_url():
    callback = RecoveryCheckpoint("memory://fulmen/recovery")
    trainer = fitted(callback)
    assert callback.last_model_path == "memory://fulmen/recovery/epoch=1-step=8.ckpt"
    assert callback.folders(trainer) == []
    import fsspec

    assert [path["name"] for path in fsspec.filesystem("memory").ls("/fulmen/recovery")] == [
        "/fulmen/recovery/epoch=1-step=8.ckpt"
    ]


def test_without_a_folder_it_goes_beside_the_metrics(tmp_path):
    trainer = Trainer(**{**QUIET, "logger": None, "enable_checkpointing": True}, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(Regression(), batches(2))
    (path,) = tmp_path.rglob("*.ckpt")
    assert str(path) == f"{trainer.log_dir}/checkpoints/epoch=0-step=2.ckpt"
    again = Trainer(**{**QUIET, "logger": None, "enable_checkpointing": True}, max_epochs=2, default_root_dir=tmp_path)
    again.fit(Regression(), batches(2), ckpt_path="last")
    assert again.global_step == 4
    (newest,) = tmp_path.rglob("*.ckpt")
    assert newest.name == "epoch=1-step=4.ckpt"


def test_the_file_knows_its_own_name(tmp_path):
    fitted(RecoveryCheckpoint(tmp_path), max_epochs=1)
    found = torch.load(tmp_path / "epoch=0-step=4.ckpt", weights_only=True)
    assert found["callbacks"] == {"RecoveryCheckpoint": {"last_model_path": f"{tmp_path}/epoch=0-step=4.ckpt"}}


def test_a_resumed_training_replaces_the_file_it_came_from(tmp_path):
    fitted(RecoveryCheckpoint(tmp_path), max_epochs=1)
    fitted(RecoveryCheckpoint(tmp_path), path="last")
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=1-step=8.ckpt"]


def test_a_new_training_leaves_the_file_of_an_earlier_one(tmp_path):
    callback = RecoveryCheckpoint(tmp_path)
    trainer = fitted(callback, max_epochs=1)
    trainer.fit(Regression(), batches(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0-step=3.ckpt", "epoch=0-step=4.ckpt"]


def test_the_file_of_another_module_is_not_taken(tmp_path):
    fitted(RecoveryCheckpoint(tmp_path), max_epochs=1)
    trainer = quiet(max_epochs=1, enable_checkpointing=True, callbacks=RecoveryCheckpoint(tmp_path))
    with pytest.warns(FulmenWarning) as caught:
        trainer.fit(Validated(), batches(2), batches(1), ckpt_path="last")
    assert [str(warning.message) for warning in caught] == [
        f"[no-checkpoint] ckpt_path='last': there is none of a Validated in {tmp_path}; starting from the beginning"
    ]


def test_loggers_are_told_of_each_file(tmp_path):
    class Told(Logger):
        name, version = "told", None

        def __init__(self):
            self.paths = []

        def log_metrics(self, metrics, step):
            pass

        def after_save_checkpoint(self, callback, path):
            verify_checkpoint(path)
            self.paths.append((type(callback).__name__, path))

    logger = Told()
    fitted(RecoveryCheckpoint(tmp_path), logger=logger)
    assert logger.paths == [
        ("RecoveryCheckpoint", f"{tmp_path}/epoch={epoch}-step={step}.ckpt") for epoch, step in ((0, 4), (1, 8))
    ]


WRONG = [
    ({"every_seconds": 0}, "every_seconds=0 is not allowed; allowed: seconds above 0, or None"),
    ({"every_seconds": -1.5}, "every_seconds=-1.5 is not allowed; allowed: seconds above 0, or None"),
    ({"every_n_steps": 0}, "every_n_steps=0 is not allowed; allowed: a whole number from 1, or None"),
    ({"every_n_steps": 1.5}, "every_n_steps=1.5 is not allowed; allowed: a whole number from 1, or None"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_say_which_are_right(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        RecoveryCheckpoint(**arguments)
    assert str(caught.value) == message


def test_it_is_given_by_name(tmp_path):
    trainer = quiet(enable_checkpointing=True, callbacks=f"recovery?every_n_steps=5&dirpath={tmp_path}")
    (callback,) = trainer.checkpoint_callbacks
    assert (callback.every_n_steps, callback.dirpath, callback.every_seconds) == (5, str(tmp_path), 600.0)
    (default,) = quiet(enable_checkpointing=True).checkpoint_callbacks
    assert (type(default), default.every_n_steps) == (RecoveryCheckpoint, None)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_means_of_an_epoch_that_a_maximum_cut_short_are_those_of_the_whole(tmp_path, steps):
    def run(folder, ckpt_path=None, **options):
        saver = RecoveryCheckpoint(tmp_path / folder)
        trainer = quiet(max_epochs=1, enable_checkpointing=True, callbacks=saver, **options)
        trainer.fit(Validated(), batches(6), batches(1), ckpt_path=ckpt_path)
        return trainer

    whole = run("whole")
    run("cut", max_steps=steps)
    resumed = run("cut", "last")
    assert resumed.callback_metrics["train_loss_epoch"] == whole.callback_metrics["train_loss_epoch"]
    assert resumed.callback_metrics["val_loss"] == whole.callback_metrics["val_loss"]
