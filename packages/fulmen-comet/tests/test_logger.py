"""Trainings whose offline archives are read back, and what reaches Comet's client online."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from archives import about, archives, assets, messages, metrics, others, params, values

from fulmen import Callback, ConfigurationError, FulmenWarning, Trainer
from fulmen.loggers import CometLogger
from fulmen.testing import FailingModule, Failure, Validated, batches, quiet

KEY = "k" * 32


def fit(logger, module=None, ckpt_path=None, **options) -> Trainer:
    trainer = quiet(**{"max_epochs": 2, "log_every_n_steps": 1, "logger": logger, **options})
    trainer.fit(module or Validated(), batches(8), batches(2), ckpt_path=ckpt_path)
    return trainer


# ---- What arrives


def test_a_training_leaves_metrics_parameters_and_options(tmp_path):
    module, logger = Validated(), CometLogger(project="digits", workspace="team", online=False)
    fit(logger, module)
    (archive,) = archives(tmp_path)
    assert str(archive.relative_to(tmp_path)) == f"digits/{logger.version}/{logger.version}.zip"
    assert (about(archive)["project_name"], about(archive)["workspace"]) == ("digits", "team")
    assert values(tmp_path, "train_loss_step") == [(step, pytest.approx(loss)) for step, loss in enumerate(module.losses)]
    assert [step for step, _ in values(tmp_path, "val_loss")] == [7, 15]
    assert {(each["step"], each["epoch"]) for each in metrics(tmp_path)} == {(step, step // 8) for step in range(16)}
    assert params(tmp_path) == {"lr": 0.1}
    assert assets(tmp_path)["hparams.json"] == {"lr": 0.1}
    assert assets(tmp_path)["config.json"]["options"]["max_epochs"] == 2
    assert others(tmp_path)["fulmen.status"] == "success"


def test_by_name_it_writes_under_the_root_folder(tmp_path):
    trainer = fit("comet?online=false", default_root_dir=tmp_path / "root", enable_checkpointing=True)
    assert [path.parent for path in archives(tmp_path)] == [Path(trainer.log_dir)]
    assert Path(trainer.log_dir) == tmp_path / "root" / trainer.logger.version
    assert [path.name for path in Path(trainer.log_dir, "checkpoints").iterdir()] == ["epoch=1-step=16.ckpt"]


def test_nothing_is_created_before_something_is_logged(tmp_path):
    logger = CometLogger(online=False, save_dir=tmp_path / "new")
    assert len(logger.version) == 32 and logger.log_dir == str(tmp_path / "new" / logger.version)
    logger.save()
    logger.finalize("failed")
    assert logger.state_dict() == {}
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_no_numbers_of_this_world(tmp_path):
    logger = CometLogger(online=False)
    logger.log_metrics({"a": math.nan, "b": -math.inf, "c": torch.tensor(2.5)}, 3)
    logger.finalize("success")
    assert {each["metricName"]: each["metricValue"] for each in metrics(tmp_path)} == {"a": "NaN", "b": "-Infinity", "c": 2.5}


class Rude:
    def __str__(self):
        raise RuntimeError


def test_parameters_of_any_kind(tmp_path):
    logger = CometLogger(online=False)
    nested = {"text": "x" * 2000, "dtype": torch.float32, "layer": torch.nn.Linear, "list": [1, 2], "parts": [{"n": 1}]}
    logger.log_hyperparams({"net": nested, "none": None, "rude": Rude()})
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    found = params(tmp_path)
    assert found["net/text"] == "x" * 997 + "..."
    assert (found["net/dtype"], found["net/layer"]) == ("torch.float32", "torch.nn.modules.linear.Linear")
    assert (found["net/list"], found["net/parts/0/n"], found["none"], found["lr"]) == ("[1, 2]", 1, "None", 0.1)
    assert found["rude"].endswith(".Rude>")
    assert assets(tmp_path)["hparams.json"]["lr"] == 0.1


# ---- How a run ends


def test_a_training_that_fails_is_ended(tmp_path):
    with pytest.raises(Failure):
        fit(CometLogger(online=False), FailingModule(at=5))
    assert others(tmp_path)["fulmen.status"] == "failed"
    assert [step for step, _ in values(tmp_path, "train_loss_step")] == [0, 1, 2, 3, 4]


class Press(Callback):
    """Ctrl-C at a batch, as often as told."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.progress.batches == 3:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_is_ended(tmp_path):
    fit(CometLogger(online=False), callbacks=Press(1))
    assert others(tmp_path)["fulmen.status"] == "interrupted"


def test_ctrl_c_twice_is_ended(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(CometLogger(online=False), callbacks=Press(2))
    assert others(tmp_path)["fulmen.status"] == "interrupted"


LEAVES = """
from fulmen_comet import CometLogger
CometLogger(online=False).log_metrics({"a": 1.5}, 0)
"""


def test_a_process_that_just_ends_loses_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", LEAVES], check=True, cwd=tmp_path, timeout=120)
    assert values(tmp_path, "a") == [(0, 1.5)]


def test_two_fits_are_two_archives_of_one_experiment(tmp_path):
    logger = CometLogger(online=False)
    trainer = quiet(max_epochs=1, logger=logger, log_every_n_steps=1)
    for _ in range(2):
        trainer.fit(Validated(), batches(8), batches(2))
    first, second = archives(tmp_path)
    assert about(first)["offline_id"] == about(second)["offline_id"] == logger.version
    assert (about(first)["resume_strategy"], about(second)["resume_strategy"]) == ("create", "get")


def test_saving_waits_until_rows_are_written():
    logger = CometLogger(online=False)
    for step in range(300):
        logger.log_metrics({"a": 1.0}, step)
    logger.save()
    written = (Path(logger.experiment.tmpdir) / "messages.json").read_text().count('"metricName":"a"')
    assert written >= 299  # the thread may have the last one in its hands
    logger.finalize("success")


def test_what_comets_thread_holds_when_the_experiment_ends_is_not_lost(tmp_path):
    """Comet lets its thread drop what that has taken and not written when it is told to end."""
    logger = CometLogger(online=False)
    logger.log_metrics({"a": 1.0}, 0)
    streamer = logger.experiment.streamer
    take, put = streamer.getn, streamer.put_message_in_q

    def take_slowly(count):
        found = take(count)
        time.sleep(1.0)
        return found

    streamer.getn = take_slowly
    streamer.put_message_in_q = lambda message: put(message) if type(message).__name__ == "LogOtherMessage" else None
    time.sleep(1.5)  # the thread has asked for more before, and waits for it for up to a second
    logger.finalize("success")
    assert others(tmp_path)["fulmen.status"] == "success"


def test_an_archive_that_is_not_complete_is_said(tmp_path):
    logger = CometLogger(online=False)
    logger.log_metrics({"a": 1.0}, 0)
    logger.experiment.streamer.abort_and_wait(10)  # as where its thread died of a full disk
    with pytest.raises(OSError, match=r"Comet's archive .* is not complete: is the disk full\? Values of this run are lost"):
        logger.finalize("success")


# ---- Resume


def test_a_resumed_training_continues_its_experiment(tmp_path):
    first = CometLogger(project="digits", online=False, api_key="secret")
    trainer = fit(first, max_epochs=1, enable_checkpointing=True)
    path = trainer.checkpoint_callback.last_model_path
    assert "secret" not in str(torch.load(path, weights_only=True))
    second = CometLogger(project="digits", online=False)
    fit(second, ckpt_path=path, enable_checkpointing=True)
    assert second.version == first.version and second.log_dir == first.log_dir
    assert len(archives(tmp_path)) == 2
    assert [step for step, _ in values(tmp_path, "train_loss_step")] == list(range(16))


def test_another_key_or_project_is_not_continued():
    state = {"experiment_key": "a" * 32, "project": "digits"}
    given, other, same = CometLogger(project="digits", experiment_key=KEY), CometLogger(), CometLogger(project="digits")
    fresh = other.version
    for logger in (given, other, same):
        logger.load_state_dict(state)
    assert (given.version, other.version, same.version) == (KEY, fresh, "a" * 32)


def test_the_state_holds_no_api_key():
    logger = CometLogger(api_key="secret", project="digits", online=False)
    logger.log_metrics({"a": 1.0}, 0)
    assert logger.state_dict() == {"experiment_key": logger.version, "project": "digits", "step": 0}
    logger.finalize("success")


def test_it_can_be_sent_to_another_process(tmp_path):
    logger = CometLogger(online=False)
    logger.log_metrics({"a": 1.0}, 0)
    other = pickle.loads(pickle.dumps(logger))
    logger.finalize("success")
    other.log_metrics({"a": 2.0}, 1)
    other.finalize("success")
    assert other.version == logger.version
    assert values(tmp_path, "a") == [(0, 1.0), (1, 2.0)]


# ---- Options


def logged(**options) -> CometLogger:
    logger = CometLogger(**{"online": False, **options})
    logger.log_metrics({"loss": 1.0, "epoch": 2}, 0)
    logger.finalize("success")
    return logger


def test_prefix_is_before_each_metric(tmp_path):
    logged(prefix="a")
    assert [(each["metricName"], each["epoch"]) for each in metrics(tmp_path)] == [("a-loss", 2)]


def test_name_and_tags_are_those_of_the_experiment(tmp_path):
    logged(name="first try", tags=["a", "b"])
    assert others(tmp_path)["Name"] == "first try"
    assert sorted(about(archives(tmp_path)[0])["tags"]) == ["a", "b"]


def test_experiment_key_is_its_version_and_archive(tmp_path):
    assert logged(experiment_key=KEY).version == KEY
    assert [path.name for path in archives(tmp_path)] == [f"{KEY}.zip"] or archives(tmp_path)[0].name.startswith(KEY)


@pytest.mark.parametrize(("mode", "expected"), [(None, "get_or_create"), ("create", "create"), ("get", "get")])
def test_mode_says_whether_the_experiment_must_exist(mode, expected, tmp_path):
    logged(experiment_key=KEY, mode=mode)
    assert about(archives(tmp_path)[0])["resume_strategy"] == expected


def test_offline_directory_is_given_or_that_of_the_environment(tmp_path, monkeypatch):
    logged(offline_directory=tmp_path / "given")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "env"))
    logged()
    assert [path.parent.name for path in archives(tmp_path)] == ["given", "env"]


def test_save_dir_holds_archives(tmp_path):
    logger = logged(save_dir=tmp_path / "runs")
    assert [path.parent for path in archives(tmp_path)] == [tmp_path / "runs" / logger.version]


@pytest.mark.parametrize("log_code", [False, True])
def test_code_is_kept_only_where_it_is_asked_for(log_code, tmp_path):
    (tmp_path / "job.py").write_text(
        "from fulmen_comet import CometLogger\n"
        f"logger = CometLogger(online=False, log_code={log_code})\n"
        "logger.log_metrics({'a': 1.0}, 0)\nlogger.finalize('success')\n"
    )
    subprocess.run([sys.executable, "job.py"], check=True, cwd=tmp_path, timeout=120)
    uploads = [each["upload_type"] for each in messages(tmp_path, "file_upload")]
    assert ("source_code" in uploads) is log_code


@pytest.mark.parametrize("log_graph", [False, True])
def test_the_graph_is_kept_only_where_it_is_asked_for(log_graph, tmp_path):
    logger = CometLogger(online=False, log_graph=log_graph)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_graph(Validated())
    logger.finalize("success")
    assert [("Linear" in each["graph"]) for each in messages(tmp_path, "graph")] == [True] * log_graph


def test_experiment_config_wins(tmp_path):
    logged(name="a", experiment_config={"name": "b"})
    assert others(tmp_path)["Name"] == "b"


# ---- Online, as far as a machine without Comet allows


class Client:
    """Stands for the function ``comet_ml.start``: keeps its arguments."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, **arguments):
        self.calls.append(arguments)
        raise ConnectionError("nobody answers")


def test_arguments_reach_comet(monkeypatch):
    import comet_ml

    client = Client()
    monkeypatch.setattr(comet_ml, "start", client)
    logger = CometLogger(
        api_key="secret",
        workspace="team",
        project="digits",
        experiment_key=KEY,
        mode="get",
        name="a",
        tags=["b"],
        log_code=True,
    )
    logger.required = True
    with pytest.raises(ConnectionError):
        logger.log_metrics({"a": 1.0}, 0)
    (call,) = client.calls
    config = call.pop("experiment_config")
    expected = {"api_key": "secret", "workspace": "team", "project_name": "digits", "experiment_key": KEY}
    assert call == {**expected, "mode": "get", "online": True}
    assert (config.name, config.tags, config.log_code, config.log_graph, config.parse_args) == ("a", ["b"], True, False, False)


def test_without_an_api_key_everything_goes_into_an_archive(tmp_path):
    logger = CometLogger(project="digits")
    with pytest.warns(FulmenWarning) as caught:
        fit(logger)
    (text,) = [str(each.message) for each in caught]
    assert text.startswith("[comet-offline] Comet cannot be used (ValueError: ")
    assert text.endswith(
        f"The training goes on, and everything is kept in an archive in {logger.log_dir}; send it later: comet upload FILE"
    )
    assert [step for step, _ in values(tmp_path, "train_loss_step")] == list(range(16))


def test_a_server_that_is_gone_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_URL_OVERRIDE", "http://127.0.0.1:9/clientlib/")  # discard: nobody listens
    monkeypatch.setenv("COMET_HTTP_SESSION_RETRY_TOTAL", "0")
    with pytest.warns(FulmenWarning, match=r"\[comet-offline\] Comet cannot be used \(ConnectionError: .*refused"):
        fit(CometLogger(api_key="a" * 25))
    assert others(tmp_path)["fulmen.status"] == "success"


def test_a_required_logger_stops_the_training():
    logger = CometLogger()
    logger.required = True
    with pytest.raises(ValueError, match="requires an api_key"):
        fit(logger)


# ---- Refusals


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mode": "new"}, "mode='new' is not allowed; allowed: get_or_create, get, create and None"),
        ({"mode": "get"}, "mode='get' continues an experiment: give experiment_key, or leave out mode"),
        ({"experiment_key": "a b"}, "experiment_key='a b' is not allowed; allowed: 32 to 50 letters and digits, or None"),
        (
            {"online": False, "save_dir": "s3://bucket"},
            "CometLogger cannot write archives to 's3://bucket', which is not a local folder; give it offline_directory",
        ),
    ],
)
def test_arguments_that_cannot_work(arguments, text):
    with pytest.raises(ConfigurationError) as caught:
        CometLogger(**arguments)
    assert str(caught.value) == text
