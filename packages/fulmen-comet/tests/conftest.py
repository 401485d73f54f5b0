"""Tests find no account of Comet, and collect nothing about this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for archives.py, which tests share


@pytest.fixture(autouse=True)
def _nobody(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for name in ("COMET_API_KEY", "COMET_OFFLINE_DIRECTORY", "COMET_EXPERIMENT_KEY", "COMET_WORKSPACE", "COMET_PROJECT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for part in ("DETAILS", "HOST", "GPU", "CPU", "NETWORK", "DISK"):
        monkeypatch.setenv(f"COMET_AUTO_LOG_ENV_{part}", "false")
