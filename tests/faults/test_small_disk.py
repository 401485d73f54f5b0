"""The same on a real file system of two megabytes that is full, or cannot be written to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fault_runs import EPOCHS, WRITERS, run, weights

JOB = Path(__file__).with_name("small_disk_job.py")
REMEDY = "check the free space and the permissions of the folder"
MOUNT = ["unshare", "--map-root-user", "--mount"]  # a mount of its own, for which nobody needs to be root


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*MOUNT, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"], capture_output=True)
    return tried.returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="this machine lets nobody mount a file system of his own")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "disk"
    folder.mkdir()
    done = subprocess.run(
        [*MOUNT, sys.executable, JOB, folder],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return weights(run(WRITERS["last"](tmp_path_factory.mktemp("good")))[1])


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("fault", "reason"), [("full", "No space left on device"), ("read-only", "Read-only file system")])
def test_a_disk_that_takes_no_more(found, undisturbed, fault, reason, writer):
    case = found[f"{fault}: {writer}"]
    assert case["error"].startswith("could not save ") and reason in case["error"] and case["error"].endswith(REMEDY)
    assert "/disk/files/" in case["error"].split(":")[0]
    assert case["kept"] and case["left"] == []
    assert case["weights"] == undisturbed


def test_what_a_killed_process_left_makes_room_first(found):
    assert found["leftover"]["files"] == [f"mine-{epoch}.ckpt" for epoch in range(EPOCHS)]


def test_metrics_on_a_full_disk_do_not_stop_a_training(found):
    case = found["metrics"]
    assert (case["status"], case["epochs"], case["left"]) == ("finished", EPOCHS, [])
    assert case["warnings"] and all("No space left on device" in text for text in case["warnings"])
    assert all(text.startswith("[logger-failed] CSVLogger") and "The training goes on" in text for text in case["warnings"])
