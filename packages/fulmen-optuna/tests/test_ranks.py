"""Rank 0 decides; all ranks train the same trials and stop after the same epoch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_two_ranks_share_each_trial(tmp_path):
    script = Path(__file__).with_name("two_ranks.py")
    known = "ignore:.*sync-dist.*:fulmen.FulmenWarning"
    commands = [[sys.executable, "-W", known, str(script), str(tmp_path), str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    (seen, states), (other, none) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert seen == other and none is None and len(seen) == 6
    assert {"COMPLETE", "PRUNED", "FAIL"} == set(states) and [i for i, state in enumerate(states) if state == "FAIL"] == [1]
    assert [epochs for _, epochs in seen] == [1 if state == "PRUNED" else 3 for state in states]
    assert len(list((tmp_path / "runs").glob("*.ckpt"))) == 1
