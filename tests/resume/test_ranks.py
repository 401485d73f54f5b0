"""On several ranks, too: each goes on with its own random numbers and data, and all that was logged is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from resume_job import MOMENTS

NOT_SHARED = "on_validation_batch_end"
"""Where ranks cannot save together: they have different numbers of validation batches."""
JOB = Path(__file__).with_name("ranks_job.py")


def check(folder, strategy, ranks, moment, every):
    command = [sys.executable, "-W", "ignore", JOB, folder, strategy, ranks, moment, every]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parent)}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return int(done.stdout.splitlines()[-1].split()[0])


@pytest.mark.parametrize(("strategy", "ranks", "moment", "every", "cuts"), [
    ("ddp_fork", 4, "on_train_batch_end", 15, 3),
    ("ddp_fork", 2, "on_validation_end", 5, 2),
    ("ddp_spawn", 2, "on_train_batch_end", 50, 2),
])  # fmt: skip
def test_ranks_can_be_cut(tmp_path, strategy, ranks, moment, every, cuts):
    assert check(tmp_path, strategy, ranks, moment, every) == cuts


@pytest.mark.nightly
@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment != NOT_SHARED])
def test_ranks_can_be_cut_in_every_hook(tmp_path, moment):
    """Every hook, and of those that are called often, every seventh time: windows have two batches, epochs eight."""
    every = {"on_train_batch_end": 7, "on_train_start": 1, "on_train_end": 1}.get(moment, 2)
    assert check(tmp_path, "ddp_fork", 2, moment, every) > 0
