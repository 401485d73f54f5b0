"""Tests find no account, and send nothing to anyone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for runfiles.py and wandb_server.py, which tests share
os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when wandb is imported


@pytest.fixture(autouse=True)
def _nobody(tmp_path, tmp_path_factory, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["RANK", "SLURM_PROCID"]:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    for name, value in {
        "HOME": home,
        "NETRC": home / "netrc",
        "WANDB_CONFIG_DIR": home,
        "WANDB_CACHE_DIR": home / "cache",
        "WANDB_DATA_DIR": home / "data",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_DISABLE_GIT": "true",
        "WANDB__DISABLE_STATS": "true",
        "WANDB_X_DISABLE_STATS": "true",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it keeps what it read from the environment, and its own process
