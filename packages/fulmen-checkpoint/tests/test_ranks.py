"""In a distributed run rank 0 decides and writes, and all ranks know the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fulmen_checkpoint.intervals import TimeOfRankZero


def test_rank_0_decides_and_writes(tmp_path):
    script = Path(__file__).with_name("two_ranks.py")
    commands = [[sys.executable, "-W", "error", str(script), str(tmp_path), str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    in_the_thread = [found.pop("failing in the thread") for found in (first, second)]
    assert [found["error"] for found in in_the_thread] == ["no space", "no space"]  # on both ranks, after the same step
    assert in_the_thread[0]["step"] == in_the_thread[1]["step"] and in_the_thread[1]["best"] == "epoch=0.ckpt"
    epochs = [f"epoch={epoch}.ckpt" for epoch in (0, 1, 2)]
    steps = [f"step={step}.ckpt" for step in range(1, 13)]
    assert first == {
        "monitored": {"wrote": epochs, "best": epochs[2], "last": "last.ckpt", "error": "", "step": 12},
        "asynchronous": {"wrote": epochs, "best": epochs[2], "last": epochs[2], "error": "", "step": 12},
        "timed": {"wrote": steps, "best": steps[-1], "last": steps[-1], "error": "", "step": 12},
        "failing": {"wrote": epochs[:1], "best": epochs[0], "last": epochs[0], "error": "no space", "step": 8},
    }
    assert second == {name: {**found, "wrote": []} for name, found in first.items()}
    assert sorted(path.name for path in (tmp_path / "monitored" / "files").iterdir()) == ["epoch=2.ckpt", "last.ckpt"]


class Alone:
    """The runtime of one rank, which counts the exchanges."""

    def __init__(self):
        self.runtime, self.exchanges = self, 0

    def broadcast(self, value):
        self.exchanges += 1
        return value


def test_the_clock_of_rank_0_is_asked_at_few_steps(monkeypatch):
    now, alone, over = [0.0], Alone(), []
    monkeypatch.setattr("fulmen_checkpoint.intervals.monotonic", lambda: now[0])
    clock = TimeOfRankZero(100.0)
    for step in range(1, 3001):
        now[0] += 0.1
        if clock.is_over(alone):
            over.append(step)
    assert over == [1000, 2000, 3000] or all(abs(step - due) <= 12 for step, due in zip(over, (1000, 2000, 3000), strict=False))
    assert 2 <= len(over) <= 3 and alone.exchanges <= 60
