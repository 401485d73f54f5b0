"""The first real job, as a newcomer runs it: a process of its own, real signals, real resumes."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"
SHORT = ("--max-epochs", "3")


def digits(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(DIGITS), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "runs" / "digits").iterdir()
    return found


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of the training, without that of the test after it."""
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if not row["test_acc"]]


def checkpoint_of(folder: Path) -> dict:
    (path,) = (folder / "checkpoints").iterdir()
    return torch.load(path, weights_only=True)


def accuracy_in(output: str) -> float:
    return float(re.search(r"test accuracy: +([0-9.]+)", output)[1])


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of three epochs that nothing interrupts: its folder, and what it prints."""
    folder = tmp_path_factory.mktemp("short")
    return folder, finished(digits(folder, *SHORT))


def test_the_first_job_learns_and_stops_by_itself(tmp_path):
    output = finished(digits(tmp_path))
    assert accuracy_in(output) >= 0.97
    assert re.search(r"training ended at epoch \d+, step \d+: val_acc has not risen above 0\.\d+ for 6 epochs", output)

    again = finished(digits(tmp_path, "--resume"))
    assert "nothing left to train: val_acc has not risen above" in again
    assert accuracy_in(again) == accuracy_in(output)


def test_it_leaves_everything_in_one_folder(short):
    folder, output = run_folder(short[0]), short[1]
    left = {path.name for path in folder.iterdir()}
    assert left == {"metrics.csv", "config.json", "hparams.yaml", "checkpoints", "learning_curves.png"}
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert {"train_loss", "val_loss", "val_acc", "lr-AdamW"} < rows_of(folder)[0].keys()
    assert checkpoint_of(folder)["hyper_parameters"] == {"width": 32, "lr": 3e-3, "dropout": 0.5}
    assert "training ended at epoch 3, step 102: max_epochs=3 reached" in output
    assert f"run folder:       {folder.relative_to(short[0])}" in output
    assert "next: run it again, cut it with Ctrl-C and add --resume" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_cut_run_that_resumes_equals_one_that_never_stopped(short, tmp_path, number):
    process = digits(tmp_path, *SHORT)
    while not list(tmp_path.glob("runs/digits/*/checkpoints/*.ckpt")):  # written when the first epoch ends
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if number == signal.SIGINT else -number), output
    if number == signal.SIGINT:
        assert re.search(
            r"stopped by Ctrl-C at epoch \d, step \d+; go on from there: python examples/digits.py --resume", output
        )
    assert "test accuracy" not in output

    output = finished(digits(tmp_path, *SHORT, "--resume"))
    assert "continuing from runs/digits/version_0/checkpoints/epoch=" in output
    expected, found = run_folder(short[0]), run_folder(tmp_path)
    weights, resumed = checkpoint_of(expected)["state_dict"], checkpoint_of(found)["state_dict"]
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert rows_of(found) == rows_of(expected)


def test_a_finished_run_goes_on_with_more_epochs(short, tmp_path):
    first = finished(digits(tmp_path, "--max-epochs", "2"))
    assert "training ended at epoch 2, step 68: max_epochs=2 reached" in first
    assert "nothing left to train: max_epochs=2 reached" in finished(digits(tmp_path, "--max-epochs", "2", "--resume"))
    finished(digits(tmp_path, *SHORT, "--resume"))
    weights, longer = (checkpoint_of(run_folder(folder))["state_dict"] for folder in (short[0], tmp_path))
    assert all(torch.equal(weights[name], longer[name]) for name in weights)


def test_resuming_without_a_run_starts_from_the_beginning_and_says_so(tmp_path):
    output = finished(digits(tmp_path, "--max-epochs", "1", "--resume"))
    assert "[no-checkpoint] ckpt_path='last': there is none of a Classifier in" in output
    assert "training ended at epoch 1, step 34: max_epochs=1 reached" in output
