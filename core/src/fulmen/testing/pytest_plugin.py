"""Markers for tests that need hardware, and measured figures at the end of a run.

In the ``conftest.py`` at the root of a test suite: ``pytest_plugins = ["fulmen.testing.pytest_plugin"]``. Then
``@pytest.mark.gpu`` needs a CUDA device and ``@pytest.mark.hardware("mps")`` another one; where torch does not find it, the
test is skipped and says so.
"""

from __future__ import annotations

import importlib.util

import pytest

MARKERS = {
    "gpu": "needs a CUDA device; skipped where there is none",
    "hardware(name)": "needs other hardware, 'mps' or 'xla'; skipped where torch does not find it",
}


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known, for ``--strict-markers``."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs hardware that is not here. Only the markers ``gpu`` and ``hardware`` lead here."""
    if item.get_closest_marker("gpu") and not has_device("cuda"):
        pytest.skip("torch finds no CUDA device")
    for marker in item.iter_markers("hardware"):
        if not has_device(marker.args[0]):
            pytest.skip(f"torch finds no {marker.args[0]} device")


def has_device(kind: str) -> bool:
    """Whether there is a device of a kind: ``"cuda"``, ``"mps"`` or ``"xla"``."""
    import torch

    if kind == "xla":
        return importlib.util.find_spec("torch_xla") is not None
    return bool({"cuda": torch.cuda, "mps": torch.backends.mps}[kind].is_available())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured, which they tell with the fixture ``record_property``."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    measured = [f"{name}: {value}" for report in reports for name, value in report.user_properties]
    if measured:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(measured))
