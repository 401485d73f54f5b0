"""Trainings whose offline runs are read back from the disk."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import fulmen_wandb
import pandas as pd
import pytest
import torch
from runfiles import config, exit_codes, files, found, items, rows, values

from fulmen import Callback, Checkpoint, ConfigurationError, FulmenWarning
from fulmen.loggers import WandbLogger
from fulmen.testing import FailingModule, Failure, RecordingLogger, Validated, batches, quiet


def fit(logger, module=None, ckpt_path=None, **options):
    trainer = quiet(**{"max_epochs": 2, "log_every_n_steps": 1, "logger": logger, **options})
    trainer.fit(module or Validated(), batches(8), batches(2), ckpt_path=ckpt_path)
    return trainer


# ---- What arrives


def test_a_training_leaves_metrics_parameters_and_options():
    module, logger = Validated(), WandbLogger("first", "here", project="digits", offline=True)
    fit(logger, module)
    (path,) = files("here")
    assert path.parent.parent == Path("here/wandb")
    assert path.parent.name.endswith(logger.version)
    (_, run), *_ = found("here", "run")
    assert (run.display_name, run.project, run.run_id) == ("first", "digits", logger.version)
    assert values("here", "train_loss_step") == [(step, pytest.approx(loss)) for step, loss in enumerate(module.losses)]
    assert [step for step, _ in values("here", "val_loss")] == [7, 15]
    assert {(step, epoch) for step, epoch in values("here", "epoch")} == {(step, step // 8) for step in range(16)}
    assert (config("here")["lr"], config("here")["fulmen"]["options"]["max_epochs"]) == (0.1, 2)
    assert exit_codes("here") == [0]


def test_all_charts_use_the_axis_of_the_trainer():
    logger = WandbLogger(offline=True)
    logger.log_metrics({"a": 1.0}, 5)
    logger.log_metrics({"a": 2.0}, 3)  # a step that is smaller is no reason to drop a row
    logger.finalize("success")
    assert values(".", "a") == [(5, 1.0), (3, 2.0)]
    axes = {record.name or record.glob_name: record.step_metric for _, record in found(".", "metric")}
    assert axes["*"] == "trainer/global_step"


def test_the_package_has_the_class():
    assert fulmen_wandb.WandbLogger is WandbLogger


def test_where_it_is():
    logger = WandbLogger(project="digits", save_dir="here", id="abc", offline=True)
    assert (logger.name, logger.version, logger.save_dir) == ("digits", "abc", "here")
    assert logger.log_dir == os.path.join("here", "digits", "abc")


@pytest.mark.parametrize(
    ("arguments", "variable", "expected"),
    [
        ({}, None, (".", "fulmen_logs")),
        ({"dir": "other"}, None, ("other", "fulmen_logs")),
        ({"dir": "other", "save_dir": "here"}, None, ("here", "fulmen_logs")),
        ({}, {"WANDB_DIR": "there", "WANDB_PROJECT": "digits", "WANDB_RUN_ID": "xyz"}, ("there", "digits")),
        ({"project": "own", "save_dir": "here"}, {"WANDB_DIR": "there", "WANDB_PROJECT": "digits"}, ("here", "own")),
    ],
)
def test_folder_and_project(arguments, variable, expected, monkeypatch):
    for name, value in (variable or {}).items():
        monkeypatch.setenv(name, value)
    logger = WandbLogger(offline=True, **arguments)
    assert (logger.save_dir, logger.name) == expected
    assert (logger.version == "xyz") is ("WANDB_RUN_ID" in (variable or {}))


@pytest.mark.parametrize("key", ["version", "id"])
def test_a_given_id(key):
    logger = WandbLogger(offline=True, **{key: "mine"})
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert [path.name for path in files(".")] == ["run-mine.wandb"]


def test_by_name_it_writes_under_the_root_folder(tmp_path):
    trainer = fit("wandb?offline=true&prefix=a", default_root_dir=tmp_path / "root", enable_checkpointing=True)
    assert len(values("root", "a-train_loss_step")) == 16 and len(values("root", "epoch")) == 20
    assert Path(trainer.log_dir) == tmp_path / "root" / "fulmen_logs" / trainer.logger.version
    assert [path.name for path in Path(trainer.log_dir, "checkpoints").iterdir()] == ["epoch=1-step=16.ckpt"]


def test_ids_differ_and_take_nothing_from_the_random_numbers_of_the_training():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert len({WandbLogger().version for _ in range(20)}) == 20
    assert torch.equal(before, torch.get_rng_state())


def test_values_that_are_no_numbers_of_this_world():
    logger = WandbLogger(offline=True)
    logger.log_metrics({"nan": math.nan, "inf": -math.inf, "tensor": torch.tensor(2.5)}, 3)
    logger.finalize("success")
    (row,) = rows(".")
    assert math.isnan(float(row["nan"])) and float(row["inf"]) == -math.inf and row["tensor"] == 2.5


class Rude:
    def __str__(self):
        raise RuntimeError


def test_parameters_of_any_kind():
    logger = WandbLogger(offline=True)
    logger.log_hyperparams({"lr": 0.1, "net": {"act": torch.nn.ReLU, "sizes": (64, 10)}, "rude": Rude(), "none": None})
    logger.log_hyperparams({"lr": 0.2})
    logger.finalize("success")
    kept = config(".")
    assert (kept["lr"], kept["none"], kept["rude"]) == (0.2, None, f"<{__name__}.Rude>")
    assert kept["net"] == {"act": "torch.nn.modules.activation.ReLU", "sizes": [64, 10]}


def test_further_arguments_of_wandb():
    logger = WandbLogger(offline=True, entity="team", tags=["a", "b"], group="g", notes="n", job_type="j")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    (_, run), *_ = found(".", "run")
    assert (run.entity, list(run.tags), run.run_group, run.notes, run.job_type) == ("team", ["a", "b"], "g", "n", "j")


def test_fast_dev_run_writes_nothing(tmp_path):
    fit(WandbLogger(offline=True), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


# ---- How a run ends


@pytest.mark.parametrize(("status", "expected"), [("success", 0), ("failed", 1), ("interrupted", 255)])
def test_the_status_of_a_run(status, expected):
    logger = WandbLogger(offline=True)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize(status)
    logger.finalize(status)
    assert exit_codes(".") == [expected]


def test_a_training_that_fails_is_closed_with_all_its_rows():
    logger, recorder = WandbLogger(offline=True), RecordingLogger()
    with pytest.raises(Failure):
        fit([logger, recorder], FailingModule(at=5))
    assert len(rows(".")) == len(recorder.rows) == 5
    assert exit_codes(".") == [1]


SIGNALLED = """
import os, sys
from fulmen import Callback
from fulmen.loggers import WandbLogger
from fulmen.testing import Validated, batches, quiet

class Signal(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 4:
            os.kill(os.getpid(), int(sys.argv[1]))

trainer = quiet(max_epochs=2, log_every_n_steps=1, logger=WandbLogger(offline=True), callbacks=[Signal()])
trainer.fit(Validated(), batches(8), batches(2))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_all_rows(number):
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(int(number))], timeout=120)
    assert done.returncode == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 0}[number]
    assert [step for step, _ in values(".", "train_loss_step")] == [0, 1, 2, 3, 4]
    assert exit_codes(".") == [255]


# ---- Resume


class Stop(Callback):
    """Saves after batch 11, and fails there."""

    runs_last = True

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == 11:
            trainer.save_checkpoint("cut.ckpt")
            raise Failure


def cut(**arguments):
    logger = WandbLogger(save_dir="here", offline=True, **arguments)
    with pytest.raises(Failure):
        fit(logger, callbacks=[Stop()])
    return logger


def test_a_run_that_continues_has_the_same_id():
    first, logger = cut(), WandbLogger(save_dir="here", offline=True)
    fit(logger, ckpt_path="cut.ckpt")
    assert logger.version == first.version
    assert len(files("here")) == 2
    assert [step for step, _ in values("here", "train_loss_step")] == list(range(16))
    assert exit_codes("here") == [1, 0]


@pytest.mark.parametrize("arguments", [{"id": "other"}, {"project": "other"}])
def test_another_id_or_project_is_another_run(arguments):
    first, logger = cut(), WandbLogger(save_dir="there", offline=True, **arguments)
    fit(logger, ckpt_path="cut.ckpt")
    assert logger.version != first.version
    assert [step for step, _ in values("there", "train_loss_step")] == list(range(11, 16))


def test_it_can_be_sent_while_it_is_open():
    logger = WandbLogger(offline=True)
    logger.log_metrics({"a": 1.0}, 0)
    other = pickle.loads(pickle.dumps(logger))
    assert other.version == logger.version
    logger.finalize("success")
    other.log_metrics({"a": 2.0}, 1)
    other.finalize("success")
    assert values(".", "a") == [(0, 1.0), (1, 2.0)]


# ---- Runs beside it


def test_two_loggers_are_two_runs():
    import wandb

    loggers = [WandbLogger(save_dir="here", offline=True, project=project) for project in ("a", "b")]
    seen = []

    class See(Callback):
        def on_train_start(self, trainer, module):
            seen.append(wandb.run.id)

    fit(loggers, callbacks=[See()])
    assert len({run for run, _ in found("here", "history")}) == 2
    assert len(values("here", "train_loss_step")) == 32
    assert seen == [loggers[0].version]  # wandb.log in a module goes to the first
    assert wandb.run is None


def test_a_run_of_the_program_is_used_and_left_open():
    import wandb

    run = wandb.init(project="mine", mode="offline", dir=os.getcwd())
    logger = WandbLogger(experiment=run)
    fit(logger)
    assert (logger.version, logger.name) == (run.id, "mine")
    run.log({"after": 1.0})
    run.finish()
    assert len(values(".", "train_loss_step")) == 16
    assert rows(".")[-1]["after"] == 1.0


def test_a_run_that_the_program_has_begun_is_used_with_a_warning():
    import wandb

    run = wandb.init(project="mine", mode="offline", dir=os.getcwd())
    logger = WandbLogger()
    with pytest.warns(FulmenWarning) as caught:
        logger.log_metrics({"a": 1.0}, 0)
    assert str(caught[0].message) == (
        f"[wandb-run] the program has begun the run {run.id}, which is used; WandbLogger(experiment=...) says so"
    )
    logger.finalize("success")
    run.finish()
    assert (logger.version, len(files("."))) == (run.id, 1)


def test_with_an_id_of_its_own_it_leaves_the_run_of_the_program_alone():
    import wandb

    run = wandb.init(project="mine", mode="offline", dir=os.getcwd())
    logger = WandbLogger(id="own", offline=True)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    run.finish()
    assert [name for name, _ in found(".", "history")] == ["own"]


# ---- Checkpoints


class Saver(Checkpoint):
    """Keeps every epoch; the first is the best."""

    def on_train_epoch_end(self, trainer, module):
        path = f"kept/{trainer.current_epoch}.ckpt"
        self.last_model_path = path
        self.best_model_path = self.best_model_path or path
        trainer.save_checkpoint(path)
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self, path)
        if trainer.current_epoch == self.fails_at:
            raise Failure

    fails_at = -1


def logged(folder="."):
    """Artifacts in order: names, aliases and files."""
    kept = [record for _, record in found(folder, "artifact") if record.type == "model"]
    kept = [each for each in kept if "epoch=" not in each.metadata]  # of RecoveryCheckpoint
    return [(each.name, sorted(each.aliases), [entry.path for entry in each.manifest.contents]) for each in kept]


MODEL = ["model.ckpt"]


@pytest.mark.parametrize(
    ("log_model", "expected"),
    [
        (False, []),
        (True, [("weights", ["best", "latest"], MODEL), ("weights", ["latest"], MODEL)]),
        ("all", [("weights", ["best", "latest"], MODEL), ("weights", ["latest"], MODEL)]),
    ],
)
def test_checkpoints_as_artifacts(log_model, expected):
    logger = WandbLogger(offline=True, log_model=log_model, checkpoint_name="weights")
    fit(logger, callbacks=[Saver()], enable_checkpointing=True)
    assert logged() == expected


def test_no_checkpoints_of_a_training_that_fails():
    logger, saver = WandbLogger(offline=True, log_model=True), Saver()
    saver.fails_at = 0
    with pytest.raises(Failure):
        fit(logger, callbacks=[saver], enable_checkpointing=True)
    assert logged() == []


def test_a_checkpoint_that_is_the_best_and_the_last_is_sent_once():
    logger = WandbLogger(offline=True, log_model=True, id="abc")
    saver = Saver()
    saver.best_model_path = saver.last_model_path = "one.ckpt"
    Path("one.ckpt").write_bytes(b"weights")
    logger.log_metrics({"a": 1.0}, 0)
    logger.after_save_checkpoint(saver, "one.ckpt")
    logger.finalize("success")
    assert logged() == [("model-abc", ["best", "latest"], MODEL)]


def test_folders_and_remote_files_as_checkpoints():
    logger, saver = WandbLogger(offline=True, log_model="all"), Saver()
    Path("folder").mkdir()
    Path("folder/part-0").write_bytes(b"weights")
    logger.after_save_checkpoint(saver, "folder")
    logger.after_save_checkpoint(saver, "s3://bucket/model.ckpt")
    logger.after_save_checkpoint(Callback(), "nobody")
    logger.finalize("success")
    assert [paths for _, _, paths in logged()] == [["part-0"], MODEL]


# ---- Media and models


def test_images_tables_and_others():
    import numpy as np
    import wandb

    logger = WandbLogger(offline=True, prefix="p")
    logger.log_metrics({"a": 1.0}, 7)
    logger.log_image("pictures", [torch.rand(3, 8, 8), np.zeros((8, 8), np.uint8)], caption=["one", "two"])
    logger.log_image("plain", [torch.rand(3, 8, 8)])
    logger.log_table("table", columns=["x", "y"], data=[[1, 2], [3, 4]], step=9)
    logger.log_media("html", wandb.Html("<b>hello</b>"))
    logger.experiment.log({"by hand": 2.0})
    logger.finalize("success")
    kept = {name: (row.get("trainer/global_step"), row[name]) for row in rows(".") for name in row if not name.startswith("_")}
    step, pictures = kept["p-pictures"]
    assert (step, pictures["count"], pictures["captions"]) == (7, 2, ["one", "two"])
    assert (kept["p-table"][0], kept["p-table"][1]["nrows"]) == (9, 2)
    assert (kept["p-plain"][1]["count"], kept["p-html"][1]["_type"], kept["by hand"][1]) == (1, "html-file", 2.0)


def test_a_table_of_a_dataframe():
    logger = WandbLogger(offline=True)
    logger.log_table("table", dataframe=pd.DataFrame({"x": [1, 2, 3]}))
    logger.finalize("success")
    assert rows(".")[0]["table"]["nrows"] == 3


def histograms(folder="."):
    return {(name, row["trainer/global_step"]) for row in rows(folder) for name in row if name.startswith(("grad", "param"))}


@pytest.mark.parametrize(
    ("log", "kinds", "count"),
    [
        ("gradients", {"gradients"}, 2),
        ("parameters", {"parameters"}, 3),  # wandb counts forward passes, and so those of the validation
        (None, set(), 0),
    ],
)
def test_a_model_that_is_watched(log, kinds, count):
    logger, module = WandbLogger(offline=True), Validated()
    logger.watch(module.net, log=log, log_freq=4)
    fit(logger, module, max_epochs=1)
    kept = histograms()
    assert {name.partition("/")[0] for name, _ in kept} == kinds
    assert len({step for _, step in kept}) == count
    fit(logger, module, max_epochs=1)  # its hooks do not write to the run that has ended
    assert len(values(".", "train_loss_step")) == 16


def test_the_graph_of_a_model_that_is_watched():
    logger, module = WandbLogger(offline=True), Validated()
    logger.watch(module, log=None, log_graph=True)
    fit(logger, module, max_epochs=1)
    summaries = [items(record.update) for _, record in found(".", "summary")]
    assert any("graph" in name for summary in summaries for name in summary)


def test_a_model_that_is_watched_no_more():
    logger, module = WandbLogger(offline=True), Validated()
    logger.log_metrics({"a": 1.0}, 0)
    logger.watch(module, log_freq=1)
    logger.unwatch(module)
    fit(logger, module, max_epochs=1)
    assert histograms() == set()


def test_each_image_and_sound_has_its_own_arguments():
    import numpy as np

    logger = WandbLogger(offline=True)
    mask = {"ground": {"mask_data": np.zeros((8, 8), np.uint8), "class_labels": {0: "sky"}}}
    logger.log_image("seen", [np.zeros((8, 8, 3), np.uint8)] * 2, caption=["one", "two"], masks=[mask, None])
    Path("clip.gif").write_bytes(b"GIF89a")
    logger.log_video("moving", ["clip.gif"], caption=["short"])
    logger.log_text("said", columns=["text"], data=[["hello"]])
    with pytest.raises(ConfigurationError) as caught:
        logger.log_image("seen", [np.zeros((8, 8, 3), np.uint8)], caption="one")
    assert str(caught.value) == "caption='one' must be a list with one value for each of 1"
    logger.finalize("success")
    kept = {name: value for row in rows(".") for name, value in row.items()}
    assert (kept["seen"]["captions"], kept["seen"]["all_masks"][0]["ground"]["_type"]) == (["one", "two"], "mask")
    assert (kept["moving"]["videos"][0]["caption"], kept["said"]["nrows"]) == ("short", 1)


def test_sounds():
    logger = WandbLogger(offline=True)
    logger.log_audio("heard", [torch.tensor([0.0, 0.5] * 50).numpy()], sample_rate=[8000], caption=["a tone"])
    logger.finalize("success")
    assert rows(".")[0]["heard"]["audio"][0]["caption"] == "a tone"


@pytest.mark.parametrize("required", [False, True])
def test_where_wandb_does_not_say_how_many_rows_there_are(required, monkeypatch):
    logger = WandbLogger(offline=True)
    logger.required = required
    logger.log_metrics({"a": 1.0}, 0)
    with monkeypatch.context() as broken:
        broken.setattr(type(logger.experiment), "step", property(lambda run: 1 / 0))
        if required:
            with pytest.raises(ZeroDivisionError):
                logger.state_dict()
        else:
            with pytest.warns(FulmenWarning, match=r"\[wandb-rows\] wandb does not say how many rows a run has"):
                assert logger.state_dict()["id"] == logger.version
    logger.finalize("success")


def test_rows_of_the_second_folder_are_counted_on():
    first = WandbLogger(offline=True)
    for step in range(3):
        first.log_metrics({"a": 1.0}, step)
    state = first.state_dict()
    first.finalize("success")
    first.log_metrics({"a": 2.0}, 3)  # an evaluation after the fit
    first.finalize("success")
    resumed = WandbLogger(offline=True)
    resumed.load_state_dict(state)
    resumed.log_metrics({"a": 3.0})
    resumed.finalize("success")
    assert [(row["_step"], row["trainer/global_step"], row["a"]) for row in rows(".")] == [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (2, 2, 1.0),
        (3, 3, 2.0),
        (3, 2, 3.0),
    ]


PROGRAM = """
import multiprocessing, pickle, wandb
from fulmen.loggers import WandbLogger


def train(sent):
    logger = pickle.loads(sent)
    logger.log_metrics({"there": 1.0}, 1)
    logger.finalize("success")


if __name__ == "__main__":
    run = wandb.init(mode="offline", project="mine")
    process = multiprocessing.get_context("spawn").Process(target=train, args=[pickle.dumps(WandbLogger(GIVEN))])
    process.start()
    process.join()
    assert process.exitcode == 0
    run.log({"here": 1.0})
    run.finish()
"""


@pytest.mark.parametrize("given", ["experiment=run", "offline=True"])
def test_a_run_of_the_program_takes_the_rows_of_other_processes(given):
    Path("program.py").write_text(PROGRAM.replace("GIVEN", given))
    subprocess.run([sys.executable, "program.py"], check=True, timeout=300)
    assert len(files(".")) == 1
    assert {name for row in rows(".") for name in row if name in ("here", "there")} == {"here", "there"}


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_other_ranks_write_nothing(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "1")
    logger = WandbLogger(offline=True)
    logger.watch(Validated())
    logger.log_image("one", [torch.rand(3, 8, 6)])
    logger.experiment.log({"a": 1.0})
    logger.experiment.config.update({"a": 1})
    logger.experiment.summary["best"] = 1.0
    logger.use_artifact("weights:latest").download()
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


# ---- Arguments


ALLOWED = "text without # % / : ? \\, or None"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "a", "id": "b"}, "version='a' and id='b' are the same option: give one of them"),
        ({"id": "a/b"}, f"id='a/b' is not allowed; allowed: {ALLOWED}"),
        ({"version": " "}, f"version=' ' is not allowed; allowed: {ALLOWED}"),
        ({"log_model": "best"}, "log_model='best' is not allowed; allowed: True, False, 'all'"),
        ({"resume": "yes"}, "resume='yes' is not allowed; allowed: 'allow', 'must', 'never', 'auto', None"),
        ({"timeout": 0}, "timeout=0 is not allowed; allowed: seconds above 0"),
        ({"offline": True, "mode": "online"}, "offline=True and mode='online' contradict each other: give one of them"),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        WandbLogger(**arguments)
    assert str(caught.value) == message


def test_an_unknown_argument():
    with pytest.raises(ConfigurationError, match=r"no argument 'entitty'; did you mean 'entity'\?; it has: name, "):
        WandbLogger(entitty="team")


def test_what_cannot_be_watched_for():
    with pytest.raises(ConfigurationError) as caught:
        WandbLogger().watch(Validated(), log="weights")
    assert str(caught.value) == "log='weights' is not allowed; allowed: 'gradients', 'parameters', 'all', None"
