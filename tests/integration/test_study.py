"""A study whose trials are trained by two ranks decides as one whose trials are trained by one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STUDY = Path(__file__).with_name("study.py")


def study(folder: Path, batch_size: int, *launcher: str):
    folder.mkdir()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    env.pop("PYTEST_CURRENT_TEST", None)
    command = [sys.executable, *launcher, str(STUDY), str(folder), str(batch_size)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads((folder / "study.json").read_text())


def test_two_ranks_prune_the_trials_that_one_process_prunes(tmp_path):
    alone = study(tmp_path / "alone", 16)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    together = study(tmp_path / "together", 8, *torchrun)
    states = [[state, step] for state, step, _ in alone["trials"]]
    assert [[state, step] for state, step, _ in together["trials"]] == states
    assert [state for state, _ in states].count("PRUNED") >= 1, states
    values = [value for *_, value in alone["trials"]]
    assert [value for *_, value in together["trials"]] == pytest.approx(values, rel=1e-5)
    assert torch.load(together["checkpoint"], weights_only=True)["state_dict"].keys()
