"""One checkpoint to continue from: when it is written, which one is kept, and what a failure leaves."""

from __future__ import annotations

import math
import re
import threading

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, Checkpoint, CheckpointError, ConfigurationError, FulmenWarning, Logger, Trainer
from fulmen.builtin import recovery
from fulmen.builtin.recovery import RecoveryCheckpoint, duration
from fulmen.storage import read_checkpoint, verify_checkpoint, write_checkpoint
from fulmen.testing import QUIET, Regression, Validated, batches, quiet, same_weights


class Watching(RecoveryCheckpoint):
    """Notes the files that are there after each save."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = []

    def save(self, trainer):
        super().save(trainer)
        trainer.writer.finish()
        self.seen.append(sorted(path.name for path in self.folders(trainer)[-1].glob("*")))


@pytest.fixture(autouse=True)
def whatever_it_costs(monkeypatch):
    """Where a test is not about the cost of a save, the speed of the machine does not matter."""
    monkeypatch.setattr(recovery, "FREE", math.inf)


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
        ["epoch=0-step=4.ckpt", "epoch=1-step=8-recovery.ckpt"],
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


def test_a_training_goes_on_from_the_newest_behind_a_url(capsys):
    url = "memory://fulmen/going-on"
    fitted(RecoveryCheckpoint(url))
    trainer = quiet(max_epochs=3, callbacks=RecoveryCheckpoint(url), enable_checkpointing=True)
    trainer.fit(Regression(), batches(4), ckpt_path="last")
    assert trainer.global_step == 12
    assert f"continuing from {url}/epoch=1-step=8.ckpt, epoch 2, step 8" in capsys.readouterr().out
    assert RecoveryCheckpoint("memory://fulmen/nothing").elsewhere(trainer) == []
    with pytest.raises(CheckpointError, match=r"^cannot use nowhere://x: "):
        RecoveryCheckpoint("nowhere://x").elsewhere(trainer)


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
    assert found["callbacks"]["RecoveryCheckpoint"]["last_model_path"] == f"{tmp_path}/epoch=0-step=4.ckpt"


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
    ({"max_cost": 0}, "max_cost=0 is not allowed; allowed: a share above 0 and up to 1, or None"),
    ({"max_cost": 2}, "max_cost=2 is not allowed; allowed: a share above 0 and up to 1, or None"),
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


# ---- Off the step path


class Held:
    """Lets each save wait until it may go on."""

    def __init__(self, monkeypatch):
        self.go, self.began, self.threads = threading.Event(), threading.Event(), []

        def write(payload, path):
            self.threads.append(threading.current_thread().name)
            self.began.set()
            assert self.go.wait(60)
            write_checkpoint(payload, path)

        monkeypatch.setattr(recovery, "write_checkpoint", write)


class AtStep(Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action, self.steps = step, action, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append(trainer.global_step)
        if trainer.global_step == self.step:
            self.action()


def test_training_goes_on_while_it_is_written(tmp_path, monkeypatch):
    held = Held(monkeypatch)

    def a_step_later():
        assert held.began.wait(60) and list(tmp_path.glob("*.ckpt")) == []
        held.go.set()

    torch.manual_seed(1)
    fitted([AtStep(3, a_step_later), RecoveryCheckpoint(tmp_path / "thread", every_n_steps=2)], data=5, max_epochs=1)
    assert set(held.threads) == {"fulmen-writer"}
    del held.threads[:]
    torch.manual_seed(1)
    fitted(RecoveryCheckpoint(tmp_path / "here", every_n_steps=2, asynchronous=False), data=5, max_epochs=1)
    assert set(held.threads) == {"MainThread"}
    one, other = (read_checkpoint(tmp_path / where / "epoch=0-step=5.ckpt") for where in ("thread", "here"))
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in other["state_dict"])
    assert one["loops"]["fit_loop"]["progress"] == other["loops"]["fit_loop"]["progress"]


def test_the_state_is_that_of_its_step(tmp_path, monkeypatch):
    """Training changes the weights in place while the file is being written."""
    held, kept = Held(monkeypatch), []

    class Keep(RecoveryCheckpoint):
        def save(self, trainer):
            super().save(trainer)
            kept.append({name: value.clone() for name, value in trainer.module.state_dict().items()})

    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fitted([AtStep(3, held.go.set), Stop(), Keep(tmp_path, every_n_steps=2)], data=8, max_epochs=1)
    (path,) = tmp_path.iterdir()
    assert path.name == "epoch=0-step=2.ckpt"  # complete before fit raised
    found = read_checkpoint(path)["state_dict"]
    assert len(kept) == 1 and all(torch.equal(found[name], value) for name, value in kept[0].items())


def test_by_time_it_rather_saves_later_than_waits(tmp_path, monkeypatch):
    held = Held(monkeypatch)
    at_step = AtStep(4, held.go.set)
    fitted([at_step, RecoveryCheckpoint(tmp_path, every_seconds=1e-9)], data=6, max_epochs=1)
    assert at_step.steps == [1, 2, 3, 4, 5, 6]  # the first save, after step 1, held nobody up
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0-step=6.ckpt"]


def test_workers_are_forked_while_it_is_written(tmp_path):
    data = DataLoader(TensorDataset(torch.randn(24, 3), torch.randn(24, 1)), batch_size=4, num_workers=2)
    trainer = quiet(max_epochs=4, enable_checkpointing=True, callbacks=RecoveryCheckpoint(tmp_path, every_n_steps=1))
    trainer.fit(Regression(), data)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=3-step=24.ckpt"]


def test_without_steps_nothing_is_called_per_step():
    assert "on_train_batch_end" in vars(RecoveryCheckpoint(every_n_steps=2))
    assert "on_train_batch_end" not in vars(RecoveryCheckpoint())
    assert RecoveryCheckpoint.on_train_batch_end is Callback.on_train_batch_end


# ---- What it costs


def test_the_interval_follows_from_the_cost():
    callback = RecoveryCheckpoint(max_cost=0.01)
    assert callback.interval == 30.0  # not known yet, or next to nothing
    callback._cost = 1.2
    assert callback.interval == 120.0
    callback._cost = 60.0
    assert callback.interval == 600.0  # every_seconds bounds the loss, whatever it costs
    assert RecoveryCheckpoint(every_seconds=5.0).interval == 5.0
    assert RecoveryCheckpoint(max_cost=None).interval == 600.0


def test_the_cost_is_measured_and_the_next_save_by_time_put_off(tmp_path, monkeypatch):
    def slow(payload, path):
        end = recovery.thread_time() + 0.3
        while recovery.thread_time() < end:  # processor time, which a thread takes from the training
            pass
        write_checkpoint(payload, path)

    monkeypatch.setattr(recovery, "write_checkpoint", slow)
    monkeypatch.setattr(recovery, "SHORTEST", 1e-3)
    costs = []

    class Note(RecoveryCheckpoint):
        def on_train_end(self, trainer, module):
            super().on_train_end(trainer, module)
            costs.append((self._cost, self.interval, self._alarm.seconds))

    for asynchronous in (True, False):
        fitted(Note(tmp_path, max_cost=0.05, asynchronous=asynchronous), data=2, max_epochs=1)
    for cost, interval, alarm in costs:
        assert cost >= 0.3 and interval == pytest.approx(cost / 0.05) and alarm == interval


@pytest.mark.parametrize(("max_cost", "saves"), [(None, 4), (1e-9, 2)])
def test_ends_of_epochs_are_saved_as_far_as_the_cost_allows(tmp_path, monkeypatch, max_cost, saves):
    monkeypatch.setattr(recovery, "FREE", 0.0)
    callback = Watching(tmp_path, max_cost=max_cost)
    trainer = fitted(callback, data=2, max_epochs=4)
    assert len(callback.seen) == saves  # the first, whose cost nobody knows, and the newest state when training ends
    assert callback.seen[0] == ["epoch=0-step=2.ckpt"] and len(callback.seen[-1]) == 1
    assert read_checkpoint(callback.last_model_path)["global_step"] == trainer.global_step == 8
    again = fitted(Watching(tmp_path), data=2, max_epochs=5, path="last")
    assert again.global_step == 10


TOLD = [
    ({}, r"every 3\d s, for \d+\.\d% of the time; at most 3\d s of work can be lost"),
    (
        {"every_seconds": 130.0, "max_cost": None},
        r"every 2 min 10 s, .*; at most 2 min 1\d s of work can be lost",
    ),
    ({"every_seconds": None}, "at most an epoch of work can be lost"),
    ({"every_seconds": None, "every_n_steps": 3}, "at most 3 steps of work can be lost"),
]


@pytest.mark.parametrize(("options", "text"), TOLD)
def test_how_much_can_be_lost_is_told_once(tmp_path, capsys, options, text):
    fitted(RecoveryCheckpoint(tmp_path, **options))
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(f"recovery checkpoint: {text}", line)


def test_durations_are_for_people():
    assert [duration(seconds) for seconds in (0.0, 0.2, 59.5, 129.2, 3600.0)] == ["0 s", "1 s", "1 min", "2 min 10 s", "1 h"]


# ---- Beside others


class Saver(Checkpoint):
    """Saves the whole state in some epochs, and says so."""

    def __init__(self, folder, epochs):
        self.folder, self.epochs = folder, epochs

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch in self.epochs:
            self.last_model_path = f"{self.folder}/own.ckpt"
            self.saved_batches = trainer.progress.batches
            trainer.save_checkpoint(self.last_model_path)

    def folders(self, trainer):
        return [self.folder]


def test_the_name_is_the_same_wherever_the_end_is_saved(tmp_path, monkeypatch):
    """At the end of an epoch, or when the training ends, because saving was too expensive before."""
    fitted(Watching(tmp_path / "soon"))
    monkeypatch.setattr(recovery, "FREE", -math.inf)
    late = Watching(tmp_path / "late")
    fitted(late)
    assert late.seen == [["epoch=1-step=8.ckpt"]] == [[path.name for path in (tmp_path / "soon").iterdir()]]


@pytest.mark.parametrize(("epochs", "files"), [((0, 1), ["own.ckpt"]), ((0,), ["epoch=1-step=8-recovery.ckpt", "own.ckpt"])])
def test_what_another_has_saved_at_this_step_is_not_saved_again(tmp_path, epochs, files):
    callback = RecoveryCheckpoint(tmp_path)
    fitted([Saver(tmp_path, epochs), callback])
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    again = fitted([Saver(tmp_path, ()), RecoveryCheckpoint(tmp_path)], max_epochs=3, path="last")
    assert again.global_step == 12 and again.current_epoch == 3


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_kill_before_the_older_file_was_removed(tmp_path, asynchronous):
    """The newer file knows which one it takes the place of; a file of that name of another training stays."""
    options = {"max_cost": None, "asynchronous": asynchronous}
    folder, other = tmp_path / "files", tmp_path / "other"
    fitted(RecoveryCheckpoint(folder, **options), max_epochs=1)
    older = (folder / "epoch=0-step=4.ckpt").read_bytes()
    fitted(RecoveryCheckpoint(folder, **options), path="last")
    (folder / "epoch=0-step=4.ckpt").write_bytes(older)
    fitted(RecoveryCheckpoint(folder, **options), path=folder / "epoch=1-step=8.ckpt", max_epochs=3)
    assert [path.name for path in folder.iterdir()] == ["epoch=2-step=12.ckpt"]
    fitted(RecoveryCheckpoint(other, **options), max_epochs=1)
    stranger = (other / "epoch=0-step=4.ckpt").rename(folder / "epoch=1-step=8.ckpt")
    fitted(RecoveryCheckpoint(folder, **options), path=folder / "epoch=2-step=12.ckpt", max_epochs=4)
    assert sorted(path.name for path in folder.glob("*.ckpt")) == [stranger.name, "epoch=3-step=16.ckpt"]


@pytest.mark.filterwarnings(r"ignore:\[no-validation")
def test_each_step_of_each_optimizer_counts(tmp_path):
    class Two(Regression):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), 0.01) for _ in range(2)]

    callback = Watching(tmp_path, every_n_steps=3, every_seconds=None)
    fitted(callback, data=6, max_epochs=1, module=Two())
    assert [names[0] for names in callback.seen] == [f"epoch=0-step={step}.ckpt" for step in (4, 6, 10, 12, 12)]


# ---- The best


@pytest.mark.filterwarnings(r"ignore:\[no-validation")
def test_where_no_other_saves_the_newest_is_the_best(tmp_path):
    callback = RecoveryCheckpoint(tmp_path)
    trainer = fitted(callback, module=Validated())
    assert callback.best_model_path == callback.last_model_path == f"{tmp_path}/epoch=1-step=8.ckpt"
    assert (callback.best_model_score, callback.best_k_models) == (None, {})
    assert type(trainer.module).load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    for parameter in trainer.module.parameters():
        torch.nn.init.zeros_(parameter)
    trainer.validate(dataloaders=batches(1), verbose=False)
    assert not any(value.any() for value in trainer.module.parameters())  # the module as it is
    trainer.validate(dataloaders=batches(1), ckpt_path="best", verbose=False)
    assert all(value.any() for value in trainer.module.parameters())


def test_beside_others_it_has_no_best(tmp_path):
    callback = RecoveryCheckpoint(tmp_path)
    trainer = fitted([callback, Saver(tmp_path, ())])
    assert callback.last_model_path and callback.best_model_path == ""
    assert trainer.checkpoint_callbacks[-1] is callback
    with pytest.raises(CheckpointError, match="no callback of this trainer has a best checkpoint"):
        trainer.validate(Validated(), batches(1), ckpt_path="best")


@pytest.mark.filterwarnings(r"ignore:\[no-validation")
def test_a_test_of_another_file_changes_nothing(tmp_path):
    fitted(RecoveryCheckpoint(tmp_path / "one"), max_epochs=1, module=Validated())
    callback = RecoveryCheckpoint(tmp_path / "two")
    trainer = fitted(callback, module=Validated())
    known = callback.best_model_path
    trainer.validate(dataloaders=batches(1), ckpt_path=tmp_path / "one" / "epoch=0-step=4.ckpt", verbose=False)
    assert (callback.best_model_path, callback.last_model_path) == (known, known)


def test_an_empty_path_is_said_to_be_empty():
    with pytest.raises(CheckpointError) as caught:
        Regression.load_from_checkpoint("")
    assert str(caught.value) == "the path of the checkpoint is empty: the callback that gave it has saved none (yet)"
