"""A real SLURM: a job that is signalled is saved, queued again, and goes on to the result of one that was left alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import cluster

JOB = Path(__file__).with_name("slurm_job.py")
SCRIPT = """#!/bin/bash
#SBATCH --job-name=training --nodes=1 --ntasks-per-node=2 --requeue --open-mode=append --output={folder}/out.txt
export OMP_NUM_THREADS=1 MASTER_ADDR=127.0.0.1  # nobody can look up the name n1
srun --kill-on-bad-exit {python} {job} {folder} {seconds}
"""

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not cluster.is_possible(), reason="needs root, and Debian's slurm-wlm and munge"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with cluster.running(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def submit(slurm, folder, seconds):
    folder.mkdir()
    script = folder / "job.sh"
    script.write_text(SCRIPT.format(folder=folder, python=sys.executable, job=JOB, seconds=seconds), encoding="utf-8")
    return slurm.run("sbatch", "--parsable", str(script)).strip()


def steps(folder):
    path = folder / "steps.txt"
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_signalled_job_is_queued_again_and_ends_as_if_nothing_had_been(slurm, tmp_path):
    alone = submit(slurm, tmp_path / "alone", 0)
    found = slurm.wait_for(alone, "COMPLETED", "FAILED")
    assert found["JobState"] == "COMPLETED", (tmp_path / "alone" / "out.txt").read_text()
    job, folder = submit(slurm, tmp_path / "signalled", 0.5), tmp_path / "signalled"
    end = time.monotonic() + 120
    while len(steps(folder)) < 3:
        assert time.monotonic() < end, (folder / "out.txt").read_text()
        time.sleep(0.1)
    slurm.run("scancel", "--signal=USR1", job)
    slurm.wait_for(job, "PENDING")
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+4")  # nodes refuse a job that they have just killed
    found = slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), (folder / "out.txt").read_text()
    done = steps(folder)
    assert {restart for restart, _ in done} == {0, 1}
    assert [step for _, step in done] == list(range(1, 25))  # none twice
    expected, weights = (torch.load(tmp_path / name / "weights.pt") for name in ("alone", "signalled"))
    assert all(torch.equal(expected[key], weights[key]) for key in expected)
