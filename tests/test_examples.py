"""The first real job, as a newcomer runs it: a process of its own, a real signal, a real resume."""

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


def digits(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(DIGITS), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "runs" / "digits" / "fulmen_logs").iterdir()
    return found


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if not row.get("test_acc")]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "checkpoints").iterdir()
    return torch.load(path, weights_only=True)["state_dict"]


def wait_for_rows(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the run has a checkpoint, so that the cut comes in the middle."""
    while not list(folder.glob("runs/digits/fulmen_logs/*/checkpoints/*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing interrupts: its folder, and what it prints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, finished(digits(folder))


def test_the_first_job_learns_and_leaves_everything(whole):
    folder, output = whole
    accuracy = float(re.search(r"test accuracy: ([0-9.]+)", output)[1])
    assert accuracy >= 0.97
    left = {path.name for path in run_folder(folder).iterdir()}
    assert left == {"metrics.csv", "config.json", "hparams.yaml", "checkpoints", "learning_curves.png"}
    assert (run_folder(folder) / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "next: cut a run with Ctrl-C and add --resume" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cut_run_that_resumes_equals_one_that_never_stopped(whole, tmp_path, number):
    process = digits(tmp_path)
    wait_for_rows(tmp_path, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if number == signal.SIGINT else -number), output
    if number == signal.SIGINT:
        assert "go on with: python examples/digits.py --resume" in output
    output = finished(digits(tmp_path, "--resume"))
    assert "continuing from" in output

    expected, found = weights_of(run_folder(whole[0])), weights_of(run_folder(tmp_path))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert rows_of(run_folder(tmp_path)) == rows_of(run_folder(whole[0]))


def test_a_finished_run_that_resumes_tests_again(whole, tmp_path):
    first = finished(digits(tmp_path, "--max-epochs", "1"))
    again = finished(digits(tmp_path, "--max-epochs", "1", "--resume"))
    accuracy = re.compile(r"test accuracy: ([0-9.]+)")
    assert accuracy.search(first)[1] == accuracy.search(again)[1]
    assert "stopped: max_epochs=1 reached" in again
