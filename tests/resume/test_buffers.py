"""Averaged and pruned weights on two ranks, each with batch statistics or random masks of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from resume_job import MOMENTS
from test_ranks import NOT_SHARED

JOB = Path(__file__).with_name("buffers_job.py")


def check(folder, *arguments):
    command = [sys.executable, "-W", "ignore", JOB, folder, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return int(done.stdout.splitlines()[-1].split()[0])


@pytest.mark.parametrize(("kind", "moment", "every", "cuts"), [
    ("ema", "on_train_batch_end", 6, 2),
    ("swa", "on_train_epoch_end", 5, 1),
    ("plain", "on_train_batch_end", 4, 3),
])  # fmt: skip
def test_averages_and_masks_of_ranks_can_be_cut(tmp_path, kind, moment, every, cuts):
    assert check(tmp_path, kind, moment, every) == cuts


@pytest.mark.nightly
@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment != NOT_SHARED])
@pytest.mark.parametrize("kind", ["ema", "swa", "plain", "resampled"])
def test_averages_and_masks_of_ranks_can_be_cut_in_every_hook(tmp_path, kind, moment):
    assert check(tmp_path, kind, moment, 1) > 0
