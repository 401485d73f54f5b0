"""A database that has its tables, copied for each test: making them takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
TABLES = "import sys; from mlflow import MlflowClient; MlflowClient(f'sqlite:///{sys.argv[1]}').search_experiments()"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    subprocess.run([sys.executable, "-c", TABLES, str(path)], check=True, capture_output=True, timeout=120)
    return path


@pytest.fixture
def folder(tmp_path, empty_database, monkeypatch) -> Path:
    """The working folder of a test, with a database where a logger without ``tracking_uri`` expects it."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path
