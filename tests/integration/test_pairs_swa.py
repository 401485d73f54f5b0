"""Averaged and pruned weights of two ranks are those of one process on the same global batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

JOB = Path(__file__).with_name("averages_job.py")
NAMES = ["swa", "swa_norm", "ema", "pruning"]


@pytest.fixture(scope="module", params=[1, 3], ids=["each", "accumulated"])
def folder(request, tmp_path_factory):
    """What all trainings report, with one process and with two ranks."""
    folder = tmp_path_factory.mktemp("averages")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTEST_CURRENT_TEST", None)  # this is a script of a user
    for ranks in (1, 2):
        settings = json.dumps({"folder": str(folder), "names": NAMES, "ranks": ranks, "accumulate": request.param})
        command = [sys.executable, str(JOB), settings]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one_process(folder, name):
    alone, together = (torch.load(folder / f"{name}.{ranks}", weights_only=True) for ranks in (1, 2))
    assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-9)
    for key, value in alone["weights"].items():
        torch.testing.assert_close(together["weights"][key], value, rtol=1e-9, atol=1e-9, msg=key)
    if name == "pruning":
        zeros = sum(int((value == 0).sum()) for value in together["weights"].values())
        assert zeros > 20, "nothing was pruned: this shows nothing"
