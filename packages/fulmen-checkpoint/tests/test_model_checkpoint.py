"""When a checkpoint is saved, which are kept, what they are called; every option."""

from __future__ import annotations

import math
import os
from datetime import timedelta

import pytest
import torch
import yaml
from fulmen_checkpoint import ModelCheckpoint

import fulmen.callbacks
from fulmen import Callback, CheckpointError, ConfigurationError, FulmenWarning, Logger, ModuleError, Trainer, read_checkpoint
from fulmen.testing import Regression, Validated, batches, quiet

VALUES = [5.0, 3.0, 4.0, 3.0, 2.0, 6.0]


class Watch(Callback):
    """Notes the files that are there when others have acted."""

    runs_last = True

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(sorted(path.name for path in self.folder.glob("*")))


# ---- Which are kept


def test_the_best_is_kept_and_known(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, monitor="score")
    trainer = fit(callback, VALUES)
    assert names(tmp_path) == ["epoch=4-step=10.ckpt"]
    assert callback.best_model_path == callback.last_model_path == f"{tmp_path}/epoch=4-step=10.ckpt"
    assert (float(callback.best_model_score), callback.best_model_score.ndim, float(callback.current_score)) == (2.0, 0, 6.0)
    assert trainer.checkpoint_callback is callback
    found = read_checkpoint(callback.best_model_path)
    assert (found["epoch"], found["global_step"]) == (4, 10)
    (state,) = found["callbacks"].values()
    assert state["best_model_path"] == callback.best_model_path  # the file knows that it is the best


@pytest.mark.parametrize(
    ("options", "kept", "best"),
    [
        ({"save_top_k": 3}, [1, 3, 4], 4),
        ({"save_top_k": 2}, [1, 4], 4),  # the second 3.0 is not better than the first
        ({"save_top_k": 0}, [], None),
        ({"save_top_k": -1}, [0, 1, 2, 3, 4, 5], 4),
        ({"save_top_k": 2, "mode": "max"}, [0, 5], 5),
        ({"mode": "max"}, [5], 5),
    ],
)
def test_save_top_k_and_mode(tmp_path, fit, names, options, kept, best):
    callback = ModelCheckpoint(tmp_path / "here", monitor="score", filename="{epoch}", **options)
    fit(callback, VALUES)
    found = names(tmp_path / "here") if (tmp_path / "here").exists() else []
    assert found == [f"epoch={epoch}.ckpt" for epoch in kept]
    assert callback.best_model_path == ("" if best is None else f"{tmp_path}/here/epoch={best}.ckpt")
    assert {path: float(score) for path, score in callback.best_k_models.items()} == {
        f"{tmp_path}/here/epoch={epoch}.ckpt": VALUES[epoch] for epoch in kept
    }


def test_the_worst_of_those_that_are_kept(tmp_path, fit):
    callback = ModelCheckpoint(tmp_path, monitor="score", filename="{epoch}", save_top_k=3)
    assert (callback.kth_best_model_path, float(callback.kth_value)) == ("", math.inf)
    fit(callback, VALUES)
    assert (os.path.basename(callback.kth_best_model_path), float(callback.kth_value)) == ("epoch=1.ckpt", 3.0)
    assert float(ModelCheckpoint(tmp_path, monitor="score", mode="max").kth_value) == -math.inf


def test_without_a_monitor_the_newest_are_kept(tmp_path, fit, names):
    for count, kept in ((1, [5]), (2, [4, 5]), (-1, [0, 1, 2, 3, 4, 5]), (0, [])):
        folder = tmp_path / str(count)
        folder.mkdir()
        callback = ModelCheckpoint(folder, filename="{epoch}", save_top_k=count)
        fit(callback, VALUES)
        assert names(folder) == [f"epoch={epoch}.ckpt" for epoch in kept]
        assert callback.best_model_path == (f"{folder}/epoch=5.ckpt" if kept else "")
        assert (callback.best_model_score, callback.best_k_models, callback.kth_best_model_path) == (None, {}, "")


def test_what_is_not_a_number_is_never_the_best(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path / "one", monitor="score", filename="{epoch}", save_top_k=2)
    with pytest.warns(FulmenWarning) as caught:
        fit(callback, [math.nan, 5.0, math.nan, 6.0])
    assert names(tmp_path / "one") == ["epoch=1.ckpt", "epoch=3.ckpt"]
    assert (
        str(caught[0].message) == ("[checkpoint-nan] score is not a number at step 2: not saved as one of the best")
        and len(caught) == 1
    )
    callback = ModelCheckpoint(tmp_path / "all", monitor="score", filename="{epoch}", save_top_k=-1, mode="max")
    fit(callback, [math.nan, 5.0, math.nan, -math.inf])
    assert len(names(tmp_path / "all")) == 4
    assert (os.path.basename(callback.best_model_path), float(callback.best_model_score)) == ("epoch=1.ckpt", 5.0)


def test_the_new_file_is_complete_before_an_old_one_is_removed(tmp_path, fit):
    seen = []

    class Told(Logger):
        name, version = "told", None

        def log_metrics(self, metrics, step):
            pass

        def after_save_checkpoint(self, callback, path):
            read_checkpoint(path)
            seen.append(os.path.basename(path))

    class Failing(Callback):
        def on_save_checkpoint(self, trainer, module, checkpoint):
            seen.append([path.name for path in tmp_path.iterdir()])

    fit([ModelCheckpoint(tmp_path, monitor="score", filename="{epoch}"), Failing()], [5.0, 4.0, 3.0], logger=Told())
    assert seen == [[], "epoch=0.ckpt", ["epoch=0.ckpt"], "epoch=1.ckpt", ["epoch=1.ckpt"], "epoch=2.ckpt"]


# ---- When


def test_every_n_epochs(tmp_path, fit, names):
    fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=2), VALUES)
    assert names(tmp_path) == ["epoch=1.ckpt", "epoch=3.ckpt", "epoch=5.ckpt"]


def test_every_n_train_steps(tmp_path, fit, names):
    fit(ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=5), VALUES)
    assert names(tmp_path) == ["step=10.ckpt", "step=5.ckpt"]
    accumulated = tmp_path / "accumulated"
    fit(
        ModelCheckpoint(accumulated, filename="{step}", save_top_k=-1, every_n_train_steps=2), VALUES, accumulate_grad_batches=2
    )
    assert names(accumulated) == ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]


@pytest.mark.parametrize("interval", [timedelta(microseconds=1), 1e-6])
def test_by_time(tmp_path, fit, names, interval):
    fit(ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, train_time_interval=interval), [5.0, 4.0])
    assert names(tmp_path) == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt", "step=4.ckpt"]
    fit(ModelCheckpoint(tmp_path / "never", train_time_interval=timedelta(hours=1)), [5.0, 4.0])
    assert not (tmp_path / "never").exists()


def test_nothing_is_saved_where_all_intervals_are_off(tmp_path, fit):
    fit(ModelCheckpoint(tmp_path / "no", every_n_epochs=0), VALUES)
    fit(ModelCheckpoint(tmp_path / "no", every_n_epochs=0, every_n_train_steps=0), VALUES)
    assert not (tmp_path / "no").exists()


def test_validations_inside_an_epoch_are_each_a_candidate(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, monitor="score", filename="{step}-{score}", save_top_k=2)
    fit(callback, [5.0, 3.0, 4.0, 6.0], data=8, max_epochs=1, val_check_interval=2)
    assert names(tmp_path) == ["step=4-score=3.0.ckpt", "step=6-score=4.0.ckpt"]


def test_save_on_train_epoch_end(tmp_path, fit, names):
    values, options = [5.0, 3.0, 4.0, 6.0], {"data": 4, "max_epochs": 2, "val_check_interval": 2}
    for choice, steps in ((True, [4, 8]), (False, [2, 4, 6, 8]), (None, [2, 4, 6, 8])):
        folder = tmp_path / str(choice)
        fit(ModelCheckpoint(folder, "{step}", "score", save_top_k=-1, save_on_train_epoch_end=choice), values, **options)
        assert names(folder) == [f"step={step}.ckpt" for step in steps], choice
    for choice, steps in ((False, [2, 4, 6, 8]), (None, [4, 8])):
        folder = tmp_path / f"unmonitored-{choice}"
        fit(ModelCheckpoint(folder, "{step}", save_top_k=-1, save_on_train_epoch_end=choice), values, **options)
        assert names(folder) == [f"step={step}.ckpt" for step in steps], choice


def test_a_metric_of_the_training_alone(tmp_path, names):
    callback = ModelCheckpoint(tmp_path, "{epoch}-{train_loss_epoch:.3f}", "train_loss_epoch", save_top_k=-1)
    trainer = quiet(max_epochs=2, enable_checkpointing=True, callbacks=callback, default_root_dir=tmp_path / "else")
    trainer.fit(Validated(), batches(2), batches(1))
    assert len([name for name in names(tmp_path) if "train_loss_epoch=0." in name]) == 2


# ---- A file is tied to the evaluation that measured its metric


def test_a_stale_metric_is_never_used(tmp_path, fit, names):
    """Steps 3, 6, 9, ... are due, validations come after steps 2, 4, 6, ...: each saving waits for the next validation."""
    callback = ModelCheckpoint(tmp_path, "{step}-{score}", "score", save_top_k=-1, every_n_train_steps=3)
    fit(callback, VALUES)
    assert names(tmp_path) == sorted(
        ["step=4-score=3.0.ckpt", "step=6-score=4.0.ckpt", "step=10-score=2.0.ckpt", "step=12-score=6.0.ckpt"]
    )
    for path, score in callback.best_k_models.items():
        found = read_checkpoint(path)
        assert VALUES[found["global_step"] // 2 - 1] == float(score)  # the weights are those that were evaluated


def test_a_metric_of_the_step_is_compared_at_once(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, "{step}", "train_loss", save_top_k=-1, every_n_train_steps=3)
    trainer = fit(callback, VALUES)
    assert names(tmp_path) == ["step=12.ckpt", "step=3.ckpt", "step=6.ckpt", "step=9.ckpt"]
    losses = trainer.module.losses
    assert [float(score) for score in callback.best_k_models.values()] == [losses[step - 1] for step in (3, 6, 9, 12)]


def test_an_evaluation_that_did_not_measure_it_saves_nothing(tmp_path, fit, names):
    fit(ModelCheckpoint(tmp_path, "{epoch}", "score", save_top_k=-1), [5.0, None, None, 4.0])
    assert names(tmp_path) == ["epoch=0.ckpt", "epoch=3.ckpt"]


def test_epochs_without_a_validation_save_nothing(tmp_path, fit, names):
    fit(ModelCheckpoint(tmp_path, "{epoch}", "score", save_top_k=-1), VALUES, check_val_every_n_epoch=3)
    assert names(tmp_path) == ["epoch=2.ckpt", "epoch=5.ckpt"]


def test_the_sanity_check_is_no_evaluation(tmp_path, fit):
    callback = ModelCheckpoint(tmp_path, monitor="score")
    fit(callback, VALUES, num_sanity_val_steps=2)
    assert float(callback.best_model_score) == 2.0


def test_an_unknown_metric_is_an_error_that_lists_what_was_logged(tmp_path, fit):
    with pytest.raises(ModuleError) as caught:
        fit(ModelCheckpoint(tmp_path, monitor="scroe"), VALUES)
    assert str(caught.value) == "ModelCheckpoint monitors 'scroe', which was never logged; logged are: score, train_loss"
    for options in ({"save_on_train_epoch_end": False}, {"every_n_train_steps": 2}, {"train_time_interval": 1e-6}):
        with pytest.raises(ModuleError, match="ModelCheckpoint monitors 'scroe'"):
            fit(ModelCheckpoint(tmp_path, monitor="scroe", **options), VALUES)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_does_not_belong_to_the_end_of_the_epoch_is_an_error(tmp_path, fit):
    callback = ModelCheckpoint(tmp_path, monitor="score", save_on_train_epoch_end=True)
    with pytest.raises(ModuleError) as caught:
        fit(callback, VALUES, data=5, val_check_interval=2)
    assert str(caught.value) == (
        "ModelCheckpoint save_on_train_epoch_end=True saves at the end of the epoch, and 'score' was measured 1 batches "
        "before: it does not belong to these weights. Leave the argument out, to save where it is measured"
    )


def test_after_validations_needs_validations(tmp_path, fit):
    with pytest.raises(ConfigurationError) as caught:
        fit(ModelCheckpoint(tmp_path, save_on_train_epoch_end=False), max_epochs=1)
    assert str(caught.value) == (
        "ModelCheckpoint save_on_train_epoch_end=False saves after validations, and this training has none; leave it out, or "
        "set it to True"
    )


# ---- The newest state


def test_save_last_is_the_newest_state_and_not_the_newest_best(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, "{epoch}", "score", save_last=True)
    fit(callback, VALUES)
    assert names(tmp_path) == ["epoch=4.ckpt", "last.ckpt"]
    assert callback.last_model_path == f"{tmp_path}/last.ckpt"
    assert [read_checkpoint(tmp_path / name)["global_step"] for name in names(tmp_path)] == [10, 12]
    assert not (tmp_path / "last.ckpt").is_symlink()


def test_save_last_alone(tmp_path, fit, names):
    for options in ({"save_top_k": 0}, {"save_top_k": 0, "monitor": "score"}, {"every_n_epochs": 0}):
        fit(ModelCheckpoint(tmp_path, save_last=True, enable_version_counter=False, **options), VALUES)
        assert names(tmp_path) == ["last.ckpt"]
        assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 12


def test_save_last_by_steps_does_not_wait_for_the_metric(tmp_path, fit):
    callback, seen = ModelCheckpoint(tmp_path, "{step}", "score", save_last=True, every_n_train_steps=3), Watch(tmp_path)
    fit([callback, seen], VALUES[:3])
    assert seen.seen[3] == ["last.ckpt"]  # saved after step 3, before the validation after step 4
    assert seen.seen[4] == ["last.ckpt", "step=4.ckpt"]


def test_save_last_as_a_link(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, "{epoch}", "score", save_last="link")
    fit(callback, VALUES[:5])
    assert names(tmp_path) == ["epoch=4.ckpt", "last.ckpt"]
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=4.ckpt"
    callback = ModelCheckpoint(tmp_path / "worse", "{epoch}", "score", save_last="link")
    fit(callback, [5.0, 6.0])  # the newest state is not among the best: a file of its own
    assert not (tmp_path / "worse" / "last.ckpt").is_symlink()
    assert read_checkpoint(tmp_path / "worse" / "last.ckpt")["global_step"] == 4


def test_a_link_does_not_dangle_when_its_file_goes(tmp_path):
    from fulmen_checkpoint.places import LocalPlace

    place = LocalPlace(str(tmp_path))
    place.write({"a": 1}, str(tmp_path / "one.ckpt"))
    place.repeat(str(tmp_path / "one.ckpt"), str(tmp_path / "last.ckpt"), link=True)
    place.remove(str(tmp_path / "one.ckpt"), linked_from=str(tmp_path / "last.ckpt"))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(tmp_path / "last.ckpt") == {"a": 1}


def test_the_name_of_the_last_may_be_a_template(tmp_path, fit, names):
    class Named(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-last"

    fit(Named(tmp_path, "{epoch}", "score", save_last=True), VALUES)
    assert names(tmp_path) == ["epoch=4.ckpt", "epoch=5-last.ckpt"]


def test_a_stop_in_the_middle_of_an_epoch_is_the_newest_state(tmp_path, fit, names):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.global_step == 3

    fit([ModelCheckpoint(tmp_path, "{step}", "score", save_last=True, every_n_epochs=9), Stop()], VALUES)
    assert names(tmp_path) == ["last.ckpt"]
    assert read_checkpoint(tmp_path / "last.ckpt")["loops"]["fit_loop"]["progress"]["batch"] == 1


# ---- Names


@pytest.mark.parametrize(
    ("template", "insert", "name"),
    [
        (None, True, "epoch=1-step=4.ckpt"),
        ("best", True, "best.ckpt"),
        ("{epoch:03d}-{score:.2f}", True, "epoch=001-score=3.00.ckpt"),
        ("{epoch:03d}-{score:.2f}", False, "001-3.00.ckpt"),
        ("e{epoch}_{step:>4}", False, "e1_   4.ckpt"),
        ("{epoch}-{other:.2f}", True, "epoch=1-other=unknown.ckpt"),
    ],
)
def test_filename(tmp_path, fit, names, template, insert, name):
    fit(ModelCheckpoint(tmp_path, template, "score", auto_insert_metric_name=insert), [5.0, 3.0])
    assert names(tmp_path) == [name]


def test_a_slash_in_the_name_of_a_metric_makes_no_folder(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, "{epoch}-{val/score:.1f}", "val/score")
    fit(callback, VALUES, name="val/score")
    assert names(tmp_path) == ["epoch=4-val_score=2.0.ckpt"]
    fit(
        ModelCheckpoint(tmp_path, "{epoch}-{val/score:.1f}", "val/score", auto_insert_metric_name=False),
        VALUES,
        name="val/score",
    )
    assert names(tmp_path) == ["4-2.0.ckpt", "epoch=4-val_score=2.0.ckpt"]


def test_the_same_name_again_replaces_the_file(tmp_path, fit, names):
    callback = ModelCheckpoint(tmp_path, "best", "score")
    fit(callback, VALUES)
    assert names(tmp_path) == ["best.ckpt"]
    assert read_checkpoint(tmp_path / "best.ckpt")["global_step"] == 10
    fit(ModelCheckpoint(tmp_path / "two", "best", "score", save_top_k=2), VALUES[:2])
    assert names(tmp_path / "two") == ["best-v1.ckpt", "best.ckpt"]


def test_the_files_of_another_training_stay(tmp_path, fit, names):
    fit(ModelCheckpoint(tmp_path, "{epoch}", "score", save_last=True), VALUES[:2])
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    callback = ModelCheckpoint(tmp_path, "{epoch}", "score", save_last=True)
    fit(callback, VALUES[:2])
    assert names(tmp_path) == ["epoch=1-v1.ckpt", "epoch=1.ckpt", "last-v1.ckpt", "last.ckpt"]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert callback.last_model_path == f"{tmp_path}/last-v1.ckpt"


def test_without_versions_they_are_replaced(tmp_path, fit, names):
    for values in (VALUES[:2], [7.0, 6.0]):
        callback = ModelCheckpoint(tmp_path, "{epoch}", "score", save_last=True, enable_version_counter=False)
        trainer = fit(callback, values)
    assert names(tmp_path) == ["epoch=1.ckpt", "last.ckpt"]
    assert read_checkpoint(tmp_path / "epoch=1.ckpt")["run"]["id"] == trainer.run_id


def test_two_callbacks_in_one_folder_keep_out_of_each_others_way(tmp_path, fit, names):
    low, high = ModelCheckpoint(tmp_path, monitor="score"), ModelCheckpoint(tmp_path, monitor="score", mode="max")
    fit([low, high], VALUES)
    assert names(tmp_path) == ["epoch=4-step=10.ckpt", "epoch=5-step=12.ckpt"]
    assert (low.best_model_path, high.best_model_path) == tuple(f"{tmp_path}/{name}" for name in names(tmp_path))
    one = ModelCheckpoint(tmp_path / "off", "best", "score", enable_version_counter=False)
    other = ModelCheckpoint(tmp_path / "off", "best", "score", mode="max", enable_version_counter=False)
    with pytest.raises(CheckpointError) as caught:
        fit([one, other], VALUES)
    assert str(caught.value) == (
        f"{tmp_path}/off/best.ckpt is kept by another callback, and enable_version_counter=False: give them different names or "
        "folders"
    )


def test_the_recovery_checkpoint_beside_it_removes_nothing_of_it(tmp_path):
    class Improving(Regression):
        def validation_step(self, batch, batch_idx):
            self.log("score", float(self.trainer.current_epoch))

    callback = ModelCheckpoint(monitor="score")
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=3, callbacks=callback, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Improving(), batches(2), batches(1))
    folder = f"{trainer.log_dir}/checkpoints"
    assert callback.best_model_path == f"{folder}/epoch=0-step=2.ckpt"
    assert sorted(os.listdir(folder)) == ["epoch=0-step=2.ckpt", "epoch=2-step=6-recovery.ckpt"]
    assert read_checkpoint(callback.best_model_path)["global_step"] == 2


def test_format_checkpoint_name(tmp_path):
    callback = ModelCheckpoint(tmp_path, "{epoch}-{a/b:.1f}")
    assert callback.format_checkpoint_name({"epoch": 3, "a/b": torch.tensor(0.25)}) == "epoch=3-a_b=0.2.ckpt"
    assert callback.format_checkpoint_name({"epoch": 3}, "{epoch}", ver=2) == "epoch=3-v2.ckpt"
    with pytest.raises(ConfigurationError) as caught:
        callback.format_checkpoint_name({"epoch": 0.5}, "{epoch:d}")
    assert str(caught.value) == (
        "ModelCheckpoint filename='{epoch:d}': epoch = 0.5 does not fit the format 'd': Unknown format code 'd' for object of "
        "type 'float'"
    )


# ---- What else


def test_weights_only(tmp_path, fit):
    fit(ModelCheckpoint(tmp_path, "{epoch}", "score", save_weights_only=True, save_last=True), VALUES)
    for name in ("epoch=4.ckpt", "last.ckpt"):
        assert "optimizer_states" not in read_checkpoint(tmp_path / name)
        assert isinstance(Regression.load_from_checkpoint(tmp_path / name), Regression)


def test_on_exception(tmp_path, fit, names):
    class Break(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == self.at:
                raise ValueError("no more")

    breaking = Break()
    for breaking.at, wanted, found in ((3, True, ["exception-epoch=1-step=3.ckpt"]), (3, False, []), (0, True, [])):
        folder = tmp_path / f"{breaking.at}{wanted}"
        folder.mkdir()
        with pytest.raises(ValueError, match="no more"):
            fit([ModelCheckpoint(folder, every_n_epochs=9, save_on_exception=wanted), breaking], VALUES)
        assert names(folder) == found
    breaking.at = -1
    path = tmp_path / "3True" / "exception-epoch=1-step=3.ckpt"
    trainer = fit([ModelCheckpoint(tmp_path / "3True", every_n_epochs=9), breaking], VALUES, path)
    assert trainer.global_step == 12


def test_verbose(tmp_path, fit, capsys):
    callback = ModelCheckpoint(tmp_path, "{epoch}", "score", verbose=True, save_on_exception=True)
    fit(callback, [5.0, 6.0, 4.0])
    assert capsys.readouterr().out.splitlines() == [
        f"saving {tmp_path}/epoch=0.ckpt: score = 5.0 is among the best 1",
        "score = 6.0 is not among the best 1",
        f"saving {tmp_path}/epoch=2.ckpt: score = 4.0 is among the best 1",
    ]
    fit(ModelCheckpoint(tmp_path / "quiet"), [5.0])
    assert capsys.readouterr().out == ""


def test_without_a_folder_it_goes_beside_the_metrics(tmp_path, fit):
    callback = ModelCheckpoint()
    trainer = fit(callback, VALUES, logger=True, default_root_dir=tmp_path)
    assert callback.best_model_path == f"{trainer.log_dir}/checkpoints/epoch=5-step=12.ckpt"
    callback = ModelCheckpoint()
    fit(callback, VALUES, default_root_dir=tmp_path / "bare")
    assert callback.best_model_path == f"{tmp_path}/bare/checkpoints/epoch=5-step=12.ckpt"
    again = fit(ModelCheckpoint(), [*VALUES, 1.0], "last", logger=True, default_root_dir=tmp_path)
    assert again.current_epoch == 7


def test_to_yaml(tmp_path, fit):
    callback = ModelCheckpoint(tmp_path, "{epoch}", "score", save_top_k=2)
    fit(callback, [3.0, math.inf])
    callback.to_yaml()
    callback.to_yaml(tmp_path / "folder" / "other.yml")
    for path in (tmp_path / "best_k_models.yaml", tmp_path / "folder" / "other.yml"):
        assert yaml.safe_load(path.read_text()) == {f"{tmp_path}/epoch=0.ckpt": 3.0, f"{tmp_path}/epoch=1.ckpt": math.inf}


def test_in_a_fast_development_run_nothing_is_written(tmp_path, fit):
    fit(ModelCheckpoint(tmp_path / "no", save_last=True), VALUES, fast_dev_run=True)
    assert not (tmp_path / "no").exists()


def test_best_is_what_the_trainer_loads(tmp_path, fit):
    callback = ModelCheckpoint(tmp_path, "{epoch}", "score")
    trainer = fit(callback, [5.0, 3.0, 4.0])
    assert trainer.validate(dataloaders=batches(1), ckpt_path="best", verbose=False)
    best = read_checkpoint(callback.best_model_path)["state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in trainer.module.state_dict().items())


# ---- Arguments


WRONG = [
    ({"mode": "auto"}, "ModelCheckpoint mode='auto' is not allowed; allowed: 'min', 'max'"),
    ({"save_last": "copy"}, "ModelCheckpoint save_last='copy' is not allowed; allowed: True, False, None, 'link'"),
    ({"save_top_k": -2}, "ModelCheckpoint save_top_k=-2 is not allowed; allowed: a whole number from -1"),
    ({"save_top_k": True}, "ModelCheckpoint save_top_k=True is not allowed; allowed: a whole number from -1"),
    ({"every_n_epochs": -1}, "ModelCheckpoint every_n_epochs=-1 is not allowed; allowed: a whole number from 0"),
    ({"every_n_train_steps": 1.5}, "ModelCheckpoint every_n_train_steps=1.5 is not allowed; allowed: a whole number from 0"),
    (
        {"train_time_interval": 0},
        "ModelCheckpoint train_time_interval=0 is not allowed; allowed: a timedelta or seconds above 0, or None",
    ),
    (
        {"every_n_train_steps": 1, "every_n_epochs": 1},
        "ModelCheckpoint was given every_n_train_steps and every_n_epochs: keep one, and use a second ModelCheckpoint for the "
        "other",
    ),
    (
        {"every_n_train_steps": 1, "save_on_train_epoch_end": True},
        "ModelCheckpoint save_on_train_epoch_end is for every_n_epochs, and contradicts every_n_train_steps; drop one of them",
    ),
    ({"filename": "a/{epoch}"}, "ModelCheckpoint filename='a/{epoch}' has a folder in it; put the folder into dirpath"),
    (
        {"filename": "{epoch"},
        "ModelCheckpoint filename='{epoch' is not allowed; allowed: text with fields such as {epoch} or {val_loss:.2f}",
    ),
    (
        {"dirpath": "s3://bucket/run", "save_last": "link"},
        "ModelCheckpoint save_last='link' is not possible at s3://bucket/run, where there are no links; use save_last=True",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_say_which_are_right(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        ModelCheckpoint(**arguments)
    assert str(caught.value) == message


def test_it_is_given_by_name(tmp_path):
    trainer = quiet(
        enable_checkpointing=True, callbacks=f"checkpoint?dirpath={tmp_path}&monitor=val_loss&save_top_k=3&save_last=link"
    )
    callback = trainer.checkpoint_callback
    assert (callback.dirpath, callback.monitor, callback.save_top_k, callback.save_last) == (
        str(tmp_path),
        "val_loss",
        3,
        "link",
    )
    assert fulmen.callbacks.ModelCheckpoint is ModelCheckpoint is type(callback)
