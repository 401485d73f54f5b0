"""All ranks decide alike, on what rank 0 measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_all_ranks_follow_rank_0(tmp_path):
    script = Path(__file__).with_name("two_ranks.py")
    commands = [[sys.executable, "-W", "error", str(script), str(tmp_path), str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    reason = "score did not improve in the last 2 checks; the best was 2.000"
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [[6, 2, 2.0, reason]] * 2
    improved = [
        f"score improved{'' if best == 5 else ' by 1.000, which is more than 0'}. New best score: {best}.000"
        for best in (5, 4, 3, 2)
    ]
    assert outputs[0][0].splitlines() == [*improved, reason] * 2
    assert outputs[1][0].splitlines() == [f"[rank 1] {line}" for line in [*improved, reason]]
