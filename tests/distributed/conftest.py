"""What these tests share lies beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for fleet.py and fleet_job.py

from fleet import Fleet, reports


@pytest.fixture
def fleet(tmp_path):
    made = Fleet(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What the ranks report of a run without failures."""
    made = Fleet(tmp_path_factory.mktemp("whole"))
    try:
        folder, status, output = made.agent("whole", 0)
        assert status == 0, output
        return reports(folder)
    finally:
        made.end()
