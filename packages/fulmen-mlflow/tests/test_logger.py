"""Trainings whose record is read back from a SQLite store with MLflow's own client."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fulmen_mlflow import send_unsent
from mlflow import MlflowClient

from fulmen import Callback, ConfigurationError, FulmenError, FulmenWarning, Trainer
from fulmen.callbacks import RecoveryCheckpoint
from fulmen.loggers import MLFlowLogger
from fulmen.testing import FailingModule, Failure, Validated, batches, quiet

pytestmark = pytest.mark.usefixtures("folder")


def fit(logger, module=None, ckpt_path=None, **options) -> Trainer:
    trainer = quiet(**{"max_epochs": 2, "log_every_n_steps": 1, "logger": logger, **options})
    trainer.fit(module or Validated(), batches(8), batches(2), ckpt_path=ckpt_path)
    return trainer


def run_of(logger):
    return logger.experiment.get_run(logger.version)


def history(logger, name) -> list[tuple[int, float]]:
    return sorted((each.step, each.value) for each in logger.experiment.get_metric_history(logger.version, name))


def artifacts(logger, folder=None) -> list[str]:
    return [each.path for each in logger.experiment.list_artifacts(logger.version, folder)]


def artifact(logger, path) -> dict:
    return json.loads(Path(logger.experiment.download_artifacts(logger.version, path)).read_text())


# ---- What arrives


def test_a_training_leaves_metrics_parameters_and_options():
    module, logger = Validated(), MLFlowLogger("digits")
    fit(logger, module)
    run = run_of(logger)
    assert run.info.status == "FINISHED"
    assert history(logger, "train_loss_step") == [(step, pytest.approx(loss)) for step, loss in enumerate(module.losses)]
    assert [step for step, _ in history(logger, "val_loss")] == [7, 15]
    assert history(logger, "epoch")[0] == (0, 0.0)
    assert run.data.params == {"lr": "0.1"}
    assert artifact(logger, "hparams.json") == {"lr": 0.1}
    assert artifact(logger, "config.json")["options"]["max_epochs"] == 2
    assert logger.experiment.get_experiment(run.info.experiment_id).name == logger.name == "digits"


def test_by_name_it_writes_under_the_root_folder(tmp_path, empty_database):
    root = tmp_path / "root"
    trainer = fit("mlflow", default_root_dir=root, enable_checkpointing=True)
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    assert client.get_run(trainer.logger.version).info.status == "FINISHED"
    assert [path.name for path in Path(trainer.log_dir, "checkpoints").iterdir()] == ["epoch=1-step=16.ckpt"]
    assert Path(trainer.log_dir).parent == root / "fulmen_logs"


def test_nothing_is_created_before_something_is_logged(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    logger = MLFlowLogger(save_dir=tmp_path / "new")
    assert logger.version is None and logger.log_dir.startswith(str(tmp_path))
    logger.save()
    logger.finalize("failed")
    assert logger.state_dict() == {}
    assert sorted(tmp_path.rglob("*")) == before


def test_not_a_number_is_kept_and_infinity_is_said():
    logger = MLFlowLogger()
    with pytest.warns(FulmenWarning) as caught:
        logger.log_metrics({"a": math.nan, "b": math.inf, "epoch": 0}, 3)
    logger.log_metrics({"a": 1.0, "b": -math.inf, "epoch": 0}, 4)  # warned of once
    logger.finalize("success")
    assert [str(each.message) for each in caught] == [
        "[mlflow-infinite] b is inf at step 3: it is NaN in MLflow, which cannot store infinities"
    ]
    assert [str(value) for _, value in history(logger, "a")] == ["nan", "1.0"]
    assert [str(value) for _, value in history(logger, "b")] == ["nan", "nan"]
    assert run_of(logger).data.tags["fulmen.infinite.b"] == "inf at step 3"


def test_names_that_mlflow_refuses_are_changed_and_said():
    logger = MLFlowLogger()
    with pytest.warns(FulmenWarning, match=r"\[mlflow-name\] MLflow does not take the name 'acc@1'; it is 'acc_1' there"):
        logger.log_metrics({"acc@1": 0.5}, 0)
    logger.finalize("success")
    assert history(logger, "acc_1") == [(0, 0.5)]


def test_parameters_that_are_many_long_and_nested():
    logger = MLFlowLogger()
    many = {f"p{index}": index for index in range(250)}
    with pytest.warns(FulmenWarning, match=r"\[mlflow-long\] the values of net/text are cut at 6000 characters; hparams.json"):
        logger.log_hyperparams({"net": {"text": "x" * 9000, "dtype": torch.float32}, **many})
    logger.finalize("success")
    params = run_of(logger).data.params
    assert len(params) == 252
    assert params["net/dtype"] == "torch.float32" and params["p249"] == "249"
    assert params["net/text"] == "x" * 5997 + "..."
    assert artifact(logger, "hparams.json")["net"] == {"text": "x" * 9000, "dtype": "torch.float32"}


def test_a_parameter_that_changes_goes_into_a_tag():
    logger = MLFlowLogger()
    logger.log_hyperparams({"lr": 0.1, "size": 3})
    logger.finalize("success")
    logger.log_hyperparams({"lr": 0.2, "size": 3, "new": 1})
    with pytest.warns(
        FulmenWarning, match=r"\[mlflow-params\] MLflow did not take params: ValueError: parameters of an MLflow"
    ):
        logger.finalize("success")
    assert run_of(logger).data.params == {"lr": "0.1", "size": "3", "new": "1"}
    assert run_of(logger).data.tags["fulmen.changed.lr"] == "0.2"
    assert artifact(logger, "hparams.json") == {"lr": 0.2, "size": 3, "new": 1}


def test_files_are_uploaded_as_they_were(tmp_path):
    logger = MLFlowLogger()
    file, folder = tmp_path / "a.json", tmp_path / "plots"
    file.write_text("[1]")
    folder.mkdir()
    (folder / "b.json").write_text("[2]")
    logger.log_artifact(file, "notes")
    logger.log_artifact(folder)
    file.unlink()  # it was put aside
    logger.log_tags({"seen": True})
    logger.finalize("success")
    assert artifact(logger, "notes/a.json") == [1]
    assert artifact(logger, "plots/b.json") == [2]
    assert run_of(logger).data.tags["seen"] == "True"
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".mlflow")] == []


def test_a_file_that_is_missing_is_an_error_and_one_that_cannot_be_uploaded_a_warning(tmp_path):
    logger = MLFlowLogger(artifact_location="nowhere://x")
    with pytest.raises(FileNotFoundError):
        logger.log_artifact(tmp_path / "missing.txt")
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_config({"options": {}})
    with pytest.warns(FulmenWarning, match=r"\[mlflow-text\] MLflow did not take text: .*nowhere"):
        logger.finalize("success")
    assert history(logger, "a") == [(0, 1.0)]
    assert run_of(logger).info.status == "FINISHED"


# ---- How a run ends


def test_a_training_that_fails_is_failed():
    logger = MLFlowLogger()
    with pytest.raises(Failure):
        fit(logger, FailingModule(at=5))
    assert run_of(logger).info.status == "FAILED"
    assert [step for step, _ in history(logger, "train_loss_step")] == [0, 1, 2, 3, 4]


class Press(Callback):
    """Ctrl-C at a batch, as often as told."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == 3:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_is_killed():
    logger = MLFlowLogger()
    fit(logger, callbacks=Press(1))
    assert run_of(logger).info.status == "KILLED"


def test_ctrl_c_twice_is_killed():
    logger = MLFlowLogger()
    with pytest.raises(KeyboardInterrupt):
        fit(logger, callbacks=Press(2))
    assert run_of(logger).info.status == "KILLED"


LEAVES = """
from fulmen_mlflow import MLFlowLogger
logger = MLFlowLogger(run_name="left")
logger.log_metrics({"a": 1.5}, 0)
"""


def test_a_process_that_just_ends_loses_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", LEAVES], check=True, cwd=tmp_path, timeout=120)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("fulmen_logs").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.metrics) == ("left", "KILLED", {"a": 1.5})


def test_two_fits_are_one_run_that_is_finished():
    logger = MLFlowLogger()
    seen = []
    trainer = quiet(max_epochs=1, logger=logger, log_every_n_steps=1)
    trainer.fit(Validated(), batches(8), batches(2))
    seen.append((logger.version, run_of(logger).info.status))
    logger.log_metrics({"late": 1.0}, 9)
    logger.save()
    seen.append((logger.version, run_of(logger).info.status))
    logger.finalize("failed")
    seen.append((logger.version, run_of(logger).info.status))
    assert seen == [(logger.version, status) for status in ("FINISHED", "RUNNING", "FAILED")]


# ---- Resume


def test_a_resumed_training_continues_its_run(tmp_path):
    first = MLFlowLogger("digits")
    trainer = fit(first, max_epochs=1, enable_checkpointing=True)
    second = MLFlowLogger("digits", tags={"again": "yes"})
    fit(second, ckpt_path=trainer.checkpoint_callback.last_model_path, enable_checkpointing=True)
    assert second.version == first.version and second.log_dir == first.log_dir
    assert [step for step, _ in history(second, "train_loss_step")] == list(range(16))
    assert run_of(second).info.status == "FINISHED"
    assert run_of(second).data.tags["again"] == "yes"


def test_another_experiment_or_run_is_not_continued():
    state = {"run_id": "0" * 32, "experiment": "digits", "run_name": "a", "folder": "a"}
    given, other = MLFlowLogger("digits", run_id="1" * 32), MLFlowLogger("letters")
    for logger in (given, other):
        logger.load_state_dict(state)
    assert (given.version, other.version) == ("1" * 32, None)


def test_a_run_that_is_gone_is_replaced_and_said():
    logger = MLFlowLogger("digits")
    logger.load_state_dict({"run_id": "0" * 32, "experiment": "digits", "run_name": "a", "folder": "a"})
    logger.log_metrics({"a": 1.0}, 0)
    with pytest.warns(FulmenWarning) as caught:
        logger.finalize("success")
    assert [str(each.message) for each in caught] == [
        f"[mlflow-moved] the checkpoint continues the run {'0' * 32}, which {logger.tracking_uri} does not have; a new run "
        "goes on. Give the logger the tracking_uri that it had, to continue the other"
    ]
    assert history(logger, "a") == [(0, 1.0)]


def test_the_state_is_read_without_waiting_for_a_server():
    """All ranks load a state and ask for the folder; only one logs."""
    logger = MLFlowLogger("digits", tracking_uri="http://127.0.0.1:9", save_dir="runs")
    logger.load_state_dict({"run_id": "0" * 32, "experiment": "digits", "run_name": "a", "folder": "a-1"})
    assert logger.version == "0" * 32
    assert logger.log_dir == os.path.join("runs", "digits", "a-1")


def test_it_can_be_sent_to_another_process():
    logger = MLFlowLogger("digits")
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    other = pickle.loads(pickle.dumps(logger))
    assert (other.version, other.log_dir) == (logger.version, logger.log_dir)
    other.log_metrics({"a": 2.0}, 1)
    other.finalize("success")
    logger.finalize("success")
    assert history(logger, "a") == [(0, 1.0), (1, 2.0)]


# ---- Options


def test_run_name_and_tags_are_those_of_the_run():
    logger = MLFlowLogger(run_name="first try", tags={"team": "a", "size": 3})
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    run = run_of(logger)
    assert run.info.run_name == "first try"
    assert (run.data.tags["team"], run.data.tags["size"]) == ("a", "3")
    assert os.path.basename(logger.log_dir).startswith("first try-")


def test_without_a_run_name_run_and_folder_have_the_same():
    logger = MLFlowLogger()
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert run_of(logger).info.run_name == os.path.basename(logger.log_dir)


def test_prefix_is_before_metrics_and_not_before_epoch():
    logger = MLFlowLogger(prefix="a")
    logger.log_metrics({"loss": 1.0, "epoch": 0}, 0)
    logger.finalize("success")
    assert sorted(run_of(logger).data.metrics) == ["a-loss", "epoch"]


def test_tracking_uri_is_given_or_that_of_the_environment(tmp_path, monkeypatch, empty_database):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///env.db")
    assert MLFlowLogger().tracking_uri == "sqlite:///env.db"
    given = f"sqlite:///{tmp_path}/given.db"
    (tmp_path / "given.db").write_bytes(empty_database.read_bytes())
    logger = MLFlowLogger(tracking_uri=given)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert MlflowClient(given).get_run(logger.version).data.metrics == {"a": 1.0}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert MLFlowLogger(save_dir="runs").tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_artifact_location_is_that_of_a_new_experiment(tmp_path):
    for location in (None, (tmp_path / "there").as_uri()):
        logger = MLFlowLogger(f"e{location is None}", artifact_location=location)
        logger.log_config({"a": 1})
        logger.finalize("success")
        assert artifact(logger, "config.json") == {"a": 1}
    assert len(list((tmp_path / "there").rglob("config.json"))) == 1
    assert len(list((tmp_path / "mlartifacts" / "eTrue").rglob("config.json"))) == 1


def test_run_id_continues_that_run():
    first = MLFlowLogger()
    first.log_metrics({"a": 1.0}, 0)
    first.finalize("failed")
    second = MLFlowLogger(run_id=first.version)
    second.log_metrics({"a": 2.0}, 1)
    second.finalize("success")
    assert history(first, "a") == [(0, 1.0), (1, 2.0)]
    assert run_of(first).info.status == "FINISHED"


@pytest.mark.parametrize(("log_model", "expected"), [(False, 0), (True, 1), ("all", 2)])
def test_log_model_uploads_checkpoints(log_model, expected, tmp_path):
    logger = MLFlowLogger(log_model=log_model)
    trainer = fit(logger, enable_checkpointing=True, callbacks=[RecoveryCheckpoint(max_cost=None)])
    found = artifacts(logger, "checkpoints")
    names = ["checkpoints/epoch=0-step=8.ckpt", "checkpoints/epoch=1-step=16.ckpt"]
    assert found == names[len(names) - expected :]
    for path in found[-1:]:
        kept = torch.load(logger.experiment.download_artifacts(logger.version, path), weights_only=True)
        assert kept["global_step"] == 16
    assert [path.name for path in Path(trainer.log_dir, "checkpoints").iterdir()] == ["epoch=1-step=16.ckpt"]


def test_log_model_uploads_nothing_when_the_training_failed():
    logger = MLFlowLogger(log_model=True)
    with pytest.raises(Failure):
        fit(logger, FailingModule(at=10), enable_checkpointing=True)
    assert artifacts(logger, "checkpoints") == []


def test_a_checkpoint_that_is_not_local_is_named_in_a_tag():
    logger = MLFlowLogger(log_model="all")
    with pytest.warns(FulmenWarning, match=r"\[mlflow-remote-checkpoint\] memory://a.ckpt is not local"):
        logger.after_save_checkpoint(Callback(), "memory://a.ckpt")
    logger.finalize("success")
    assert run_of(logger).data.tags["fulmen.checkpoint"] == "memory://a.ckpt"


def test_synchronous_has_sent_each_row_when_the_call_returns():
    logger = MLFlowLogger(synchronous=True)
    logger.log_metrics({"a": 1.0}, 0)
    assert history(logger, "a") == [(0, 1.0)]
    logger.finalize("success")


def test_other_ranks_begin_no_run(monkeypatch, tmp_path):
    logger = MLFlowLogger("digits")
    with monkeypatch.context() as variables:
        variables.setenv("RANK", "1")
        assert (logger.run_id, logger.experiment_id) == (None, None)
        logger.experiment.log_param(logger.run_id, "lr", 0.1)
        logger.log_tags({"a": 1})
        logger.finalize("success")
        assert logger.version is None
    assert logger.experiment.get_run(logger.run_id).data.tags.keys() & {"a"} == set()
    logger.finalize("success")


def test_run_id_and_experiment_id_make_a_run_where_there_is_none():
    logger = MLFlowLogger("digits")
    assert logger.experiment.get_run(logger.run_id).info.experiment_id == logger.experiment_id
    assert MLFlowLogger("digits", run_id=logger.run_id).experiment_id == logger.experiment_id
    logger.finalize("success")


# ---- Refusals


def test_arguments_that_cannot_work(monkeypatch):
    for arguments, text in [
        ({"experiment_name": ""}, "experiment_name='' is not allowed; allowed: a text that is not empty"),
        ({"log_model": "best"}, "log_model='best' is not allowed; allowed: True, False and 'all'"),
        ({"timeout": -1}, "timeout=-1 is not allowed; allowed: seconds from 0"),
        (
            {"save_dir": "s3://bucket"},
            "MLFlowLogger cannot keep its database in save_dir='s3://bucket', which is not a local folder. Give it "
            "tracking_uri='http://...' of a server, or a local save_dir",
        ),
        (
            {"tracking_uri": "file:./mlruns"},
            "tracking_uri='file:./mlruns' is a folder, which MLflow no longer takes as a store. Use a database, as in "
            "tracking_uri='sqlite:///mlflow.db', or a server, 'http://...'; or set the environment variable "
            "MLFLOW_ALLOW_FILE_STORE=true",
        ),
    ]:
        with pytest.raises(ConfigurationError) as caught:
            MLFlowLogger(**arguments)
        assert str(caught.value) == text
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert MLFlowLogger(tracking_uri="./mlruns").tracking_uri == "./mlruns"


def test_a_run_that_does_not_exist_is_refused_once_and_values_are_kept():
    logger = MLFlowLogger(run_id="0" * 32)
    with pytest.warns(FulmenWarning) as caught:
        fit(logger)
    codes = [str(each.message).split()[0] for each in caught]
    assert codes == ["[mlflow-refused]", "[mlflow-unsent]"]
    assert f"Run with id={'0' * 32} not found. The training goes on; values are kept in " in str(caught[0].message)
    lines = Path(logger.log_dir, "mlflow_unsent.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [index for index, entry in enumerate(kept) if "target" in entry] in ([0], [0, len(kept) - 1])
    rows = [row for entry in kept if entry.get("kind") == "metrics" for row in entry["data"]]
    assert sorted(row[3] for row in rows if row[0] == "train_loss_step") == list(range(16))


def test_a_required_logger_stops_the_training():
    logger = MLFlowLogger(run_id="0" * 32, synchronous=True)
    logger.required = True
    with pytest.raises(FulmenError, match=r"not found, and this logger is required"):
        fit(logger)


def test_a_deleted_run_is_refused():
    logger = MLFlowLogger()
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    logger.experiment.delete_run(logger.version)
    logger.log_metrics({"a": 1.0}, 1)
    with pytest.warns(FulmenWarning, match=r"the run \w+ is deleted; restore it, or leave out run_id and ckpt_path"):
        logger.finalize("success")


def test_a_file_of_something_else_is_not_sent(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigurationError, match=r"a.jsonl, line 1: this is no file of unsent values of fulmen-mlflow"):
        send_unsent(tmp_path / "a.jsonl")
