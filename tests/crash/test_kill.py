"""kill -9 anywhere: a training that is killed over and over and started again ends as one that ran through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
SAVES = "in a save", "in another file"


def driven(folder: Path, kills: int, seed: int, workers: int, model: str) -> dict[str, Any]:
    """What the driver found; fails where something was lost."""
    arguments = ["--kills", kills, "--seed", seed, "--workers", workers, "--model", model, "--folder", folder]
    done = subprocess.run(
        [sys.executable, DRIVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=3600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == kills and not figures["problems"]
    return figures


def test_25_kills_lose_nothing(tmp_path):
    figures = driven(tmp_path / "runs", 25, seed=1, workers=0, model="mlp")
    assert sum(figures["where"].get(place, 0) for place in SAVES) >= 5  # that it was killed where it matters
    assert len(figures["progress"]) >= 5  # and all along: in so many tenths of the training
    assert figures["worst_lost_batches"] <= 12  # a save every 4 batches, of which the latest can be lost with one under way


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("seed", "workers", "model", "kills"),
    [(11, 0, "mlp", 60), (12, 2, "mlp", 60), (13, 2, "conv", 60), (14, 0, "rnn", 60), (15, 2, "wide", 60)],
)
def test_300_kills_lose_nothing(tmp_path, seed, workers, model, kills):
    figures = driven(tmp_path / "runs", kills, seed, workers, model)
    assert sum(figures["where"].get(place, 0) for place in SAVES) >= kills // 4
    assert figures["where"].get("between saves", 0) and len(figures["progress"]) >= 8


def test_a_model_of_the_user(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(
        "from crash_job import BATCH_SIZE, Fitted, Noisy\n"
        "from torch.utils.data import DataLoader\n"
        "def mine(seed, workers):\n"
        "    return Fitted('rnn', seed), DataLoader(Noisy((5, 4), 0.2, seed), BATCH_SIZE, shuffle=True), "
        "DataLoader(Noisy((5, 4), 0.0, 7), 24)\n"
    )
    assert driven(tmp_path / "runs", 1, seed=5, workers=0, model=f"{path}:mine")["rounds"] >= 1
