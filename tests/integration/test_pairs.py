"""Parts of several packages in one training: two ranks against one process that sees the same global batches."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

JOB = Path(__file__).with_name("job.py")
ALONE = {"strategy": "single_device", "devices": 1}
TOGETHER = {"strategy": "ddp", "devices": 2}


def job(folder: Path, **given):
    """What rank 0 reports."""
    folder.mkdir(exist_ok=True)
    ranks = 2 if given["options"]["devices"] == 2 else 1
    settings = {"folder": str(folder), "batch_size": 16 // ranks, **given}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COMET_GIT_DIRECTORY": str(folder)}
    env.pop("PYTEST_CURRENT_TEST", None)  # this is a script of a user
    command = [sys.executable, str(JOB), json.dumps(settings)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return torch.load(folder / "report", weights_only=True)


def assert_alike(one, other, tolerance):
    for key in ("steps", "epoch", "stopped", "files"):
        assert one[key] == other[key], key
    for key, value in one["weights"].items():
        torch.testing.assert_close(value, other["weights"][key], rtol=tolerance, atol=tolerance)
    assert other["metrics"] == pytest.approx(one["metrics"], rel=tolerance)
    assert other["best"] == pytest.approx(one["best"], rel=tolerance)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("64-true", 1e-12), ("32-true", 1e-5), ("bf16-mixed", 3e-2)],
    ids=["64-true", "32-true", "bf16"],
)
def test_accumulation_clipping_checkpoints_and_early_stopping_under_ddp(tmp_path, precision, tolerance):
    options = {
        "max_epochs": 3 if precision == "bf16-mixed" else 40,
        "accumulate_grad_batches": 3,
        "gradient_clip_val": 0.5,
        "precision": precision,
        "logger": False,
    }
    alone = job(tmp_path / "alone", options={**options, **ALONE})
    together = job(tmp_path / "together", options={**options, **TOGETHER})
    assert_alike(alone, together, tolerance)
    if precision != "bf16-mixed":
        assert together["stopped"][0] > 0, "early stopping must have stopped it, or this test shows nothing about it"


def test_a_training_of_two_ranks_goes_on_with_two_ranks_bit_for_bit(tmp_path):
    options = {"logger": False, "accumulate_grad_batches": 3, **TOGETHER}
    whole = job(tmp_path / "whole", options={**options, "max_epochs": 4}, patience=100)
    job(tmp_path / "cut", options={**options, "max_epochs": 2}, patience=100)
    resumed = job(tmp_path / "cut", options={**options, "max_epochs": 4}, patience=100, ckpt_path="last")
    assert all(torch.equal(value, resumed["weights"][key]) for key, value in whole["weights"].items())
    assert (whole["metrics"], whole["best"], whole["steps"]) == (resumed["metrics"], resumed["best"], resumed["steps"])


LOGGERS = {
    "csv": "csv",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "comet": "comet?online=false&project=digits",
    "wandb": "wandb?offline=true&project=digits",
}


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of SQLAlchemy, used by MLflow
def test_each_logger_records_a_run_of_two_ranks_once(tmp_path):
    options = {"max_epochs": 2, "logger": list(LOGGERS.values()), **TOGETHER}
    report = job(tmp_path / "run", options=options)
    folders = dict(zip(LOGGERS, report["loggers"], strict=True))
    losses = {"csv": csv_losses(folders["csv"]), "tensorboard": event_losses(folders["tensorboard"])}
    losses["mlflow"] = mlflow_losses(tmp_path / "run")
    assert report["log_dir"] == folders["csv"]
    assert len(losses["csv"]) == 2
    for name, found in losses.items():
        assert found == pytest.approx(losses["csv"], rel=1e-6), name
    archives = list((tmp_path / "run").rglob("*.zip"))
    assert len(archives) == 1, archives
    offline = list((tmp_path / "run").rglob("*.wandb"))
    assert len(offline) == 1, offline
    assert b"train_loss" in offline[0].read_bytes()


def csv_losses(folder):
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]


def event_losses(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars("val_loss")]


def mlflow_losses(folder):
    from mlflow import MlflowClient

    (database,) = folder.rglob("mlflow.db")
    client = MlflowClient(f"sqlite:///{database}")
    runs = [run for each in client.search_experiments() for run in client.search_runs([each.experiment_id])]
    assert [run.info.status for run in runs] == ["FINISHED"]
    return [metric.value for metric in client.get_metric_history(runs[0].info.run_id, "val_loss")]
